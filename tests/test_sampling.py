"""Split, order and shares: every image where it belongs, once."""

import re
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data.errors import InputError
from data.sampling import epoch_batches, evaluation_batches, micro_batches, split, split_last, subset

properties = settings(max_examples=60, deadline=None, derandomize=True, database=None)
CLASS_SIZES = st.lists(st.integers(2, 40), min_size=1, max_size=6)
SEEDS = st.integers(0, 1000)


def shuffled_labels(class_sizes: list[int]) -> Tensor:
    labels = torch.repeat_interleave(torch.arange(len(class_sizes)), torch.tensor(class_sizes))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


# Split ------------------------------------------------------------------------------------------------------


@properties
@given(class_sizes=CLASS_SIZES, fraction=st.floats(0.01, 0.99), seed=SEEDS)
def test_a_split_is_disjoint_complete_ascending_and_stratified(
    class_sizes: list[int], fraction: float, seed: int
) -> None:
    labels = shuffled_labels(class_sizes)
    train, validation = split(labels, fraction, seed)
    assert sorted(train.tolist() + validation.tolist()) == list(range(len(labels)))
    assert train.tolist() == sorted(train.tolist())
    assert validation.tolist() == sorted(validation.tolist())
    held_out = Counter(labels[validation].tolist())
    expected = [min(max(round(fraction * size), 1), size - 1) for size in class_sizes]
    assert [held_out[label] for label in range(len(class_sizes))] == expected


@properties
@given(class_sizes=CLASS_SIZES, fraction=st.floats(0.01, 0.99))
def test_the_last_of_each_class_are_held_out(class_sizes: list[int], fraction: float) -> None:
    labels = shuffled_labels(class_sizes)
    train, validation = split_last(labels, fraction)
    assert sorted(train.tolist() + validation.tolist()) == list(range(len(labels)))
    for label, size in enumerate(class_sizes):
        of_class = (labels == label).nonzero().flatten().tolist()
        count = min(max(round(fraction * size), 1), size - 1)
        assert [id for id in validation.tolist() if labels[id] == label] == of_class[size - count :]


@properties
@given(class_sizes=CLASS_SIZES, fraction=st.floats(0.01, 1), seed=SEEDS)
def test_a_subset_has_the_same_share_of_each_class(class_sizes: list[int], fraction: float, seed: int) -> None:
    labels = shuffled_labels(class_sizes)
    chosen = subset(labels, fraction, seed).tolist()
    assert chosen == sorted(set(chosen))
    held = Counter(labels[chosen].tolist())
    expected = [max(round(fraction * size), 1) for size in class_sizes]
    assert [held[label] for label in range(len(class_sizes))] == expected


def test_the_seed_chooses_the_subset_and_apart_from_the_split() -> None:
    labels = torch.arange(1000) % 10
    first, other = set(subset(labels, 0.5, 0).tolist()), set(subset(labels, 0.5, 1).tolist())
    assert first == set(subset(labels, 0.5, 0).tolist()) != other
    held_out = set(split(labels, 0.5, 0)[1].tolist())
    assert 150 < len(first & held_out) < 350  # 250 by chance


@pytest.mark.parametrize("fraction", [0.1, 0.2])
def test_cifars_training_set_splits_to_the_image(fraction: float) -> None:
    labels = torch.arange(50_000) % 10
    train, validation = split(labels, fraction, seed=0)
    assert torch.bincount(labels[validation]).tolist() == [round(5000 * fraction)] * 10
    assert torch.bincount(labels[train]).tolist() == [5000 - round(5000 * fraction)] * 10


def test_the_seed_and_nothing_else_chooses_the_split() -> None:
    labels = torch.arange(1000) % 10
    torch.manual_seed(1)
    first = split(labels, 0.1, seed=0)
    torch.manual_seed(2)
    again = split(labels, 0.1, seed=0)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    others = [set(split(labels, 0.1, seed)[1].tolist()) for seed in range(1, 20)]
    shared = [len(other & set(first[1].tolist())) for other in others]
    assert 0 < sum(shared) / len(shared) < 20  # of 100 held out, 10 by chance


def test_validation_images_come_from_all_over_their_class() -> None:
    """A split by position would hold out one end, and files are often sorted by how they were taken."""
    _, validation = split(torch.zeros(10_000, dtype=torch.int64), 0.1, seed=0)
    tenths = torch.bincount(validation // 1000, minlength=10)
    assert tenths.min() > 50
    assert tenths.max() < 150


def test_a_class_of_one_image_cannot_be_split() -> None:
    with pytest.raises(InputError, match=re.compile(r"^class 2 has one image[^\n]*$")):
        split(torch.tensor([0, 1, 2, 1, 0]), 0.2, seed=0)


# Order ------------------------------------------------------------------------------------------------------


@properties
@given(count=st.integers(0, 100), batch_size=st.integers(1, 40), seed=SEEDS, epoch=st.integers(0, 1000))
def test_an_epoch_holds_each_id_at_most_once_in_whole_batches(
    count: int, batch_size: int, seed: int, epoch: int
) -> None:
    ids = torch.arange(count) * 3 + 5
    batches = epoch_batches(ids, batch_size, seed, epoch)
    assert batches.shape == (count // batch_size, batch_size)
    drawn = batches.flatten().tolist()
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) <= set(ids.tolist())
    assert torch.equal(batches, epoch_batches(ids, batch_size, seed, epoch))


def test_orders_differ_between_epochs_and_seeds() -> None:
    ids = torch.arange(1000)
    orders = {tuple(epoch_batches(ids, 10, seed, epoch).flatten().tolist()) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4  # seed 0 epoch 1 is not seed 1 epoch 0 either


def test_the_ids_left_over_differ_between_epochs() -> None:
    ids = torch.arange(15)
    left_over = [set(range(15)) - set(epoch_batches(ids, 10, 0, epoch).flatten().tolist()) for epoch in range(30)]
    assert set.union(*left_over) == set(range(15))


# Shares -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_the_shares_of_all_processes_make_up_the_global_batch(world_size: int, accumulation: int) -> None:
    batches = epoch_batches(torch.arange(250), 48, seed=0, epoch=0)
    shares = [micro_batches(batches, rank, world_size, accumulation) for rank in range(world_size)]
    for share in shares:
        assert share.shape == (5, accumulation, 48 // (world_size * accumulation))
    for step, batch in enumerate(batches):
        parts = [share[step, micro] for micro in range(accumulation) for share in shares]
        assert torch.equal(torch.cat(parts), batch)  # in order, so each id once


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 23, 100])
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_evaluation_covers_each_id_once(count: int, world_size: int, batch_size: int) -> None:
    ids = torch.arange(count) * 2 + 7
    shares = [evaluation_batches(ids, batch_size, rank, world_size) for rank in range(world_size)]
    seen = [number for share in shares for batch in share for number in batch.tolist()]
    assert seen == ids.tolist()
    for share in shares:
        assert all(len(batch) == batch_size for batch in share[:-1])
        assert all(0 < len(batch) <= batch_size for batch in share)


def test_processes_without_ids_get_no_batches() -> None:
    shares = [evaluation_batches(torch.arange(2), 4, rank, 5) for rank in range(5)]
    assert [len(share) for share in shares] == [1, 1, 0, 0, 0]


def test_evaluation_is_shared_evenly() -> None:
    sizes = [sum(map(len, evaluation_batches(torch.arange(23), 4, rank, 5))) for rank in range(5)]
    assert max(sizes) - min(sizes) <= 1
