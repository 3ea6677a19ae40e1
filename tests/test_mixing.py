"""mixup and CutMix against one image at a time, and the mixed stream at every cut into micro-batches."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.augment import Augmentation, BatchTransform
from data.keyed import keyed_generator
from data.loaders import Batch
from data.mixing import UNMIXED, Mixing, Mixture, draw_mixture, mix
from data.resident_loader import ResidentLoader
from data.sampling import epoch_batches, partner_batches
from data.stream import Stream, epoch_digest
from tests.images import prepared_pixels
from training.loss import training_loss

SIZE = (32, 32)


def batch_of(count: int, dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, *SIZE, generator=generator).to(dtype)
    labels = torch.randint(10, (count,), generator=generator)
    return Batch(images.to(memory_format=torch.channels_last), labels, torch.arange(count))


def lams(mixing: Mixing, count: int = 2000) -> torch.Tensor:
    return torch.tensor([draw_mixture(mixing, SIZE, 0, 0, step).lam for step in range(count)])


# What a step draws ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixups_lam_has_the_moments_of_its_beta_distribution(alpha: float) -> None:
    drawn = lams(Mixing(mixup=alpha))
    assert abs(drawn.mean() - 0.5) < 0.04
    assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_cutmixs_lam_is_the_share_of_the_image_outside_the_box() -> None:
    for step in range(200):
        mixture = draw_mixture(Mixing(cutmix=1.0), SIZE, 3, 1, step)
        assert mixture.box is not None
        top, bottom, left, right = mixture.box
        assert 0 <= top <= bottom <= 32
        assert 0 <= left <= right <= 32
        assert mixture.lam == 1 - (bottom - top) * (right - left) / 1024


def test_cutmixs_box_is_the_papers() -> None:
    """rand_bbox of the authors' code, for the same draws."""
    for step in range(50):
        draw = keyed_generator(3, "mix", 1, step)
        cut = int(32 * np.sqrt(1.0 - draw.beta(0.5, 0.5)))
        y, x = draw.integers(32), draw.integers(32)
        corners = np.clip([y - cut // 2, y + cut // 2, x - cut // 2, x + cut // 2], 0, 32)
        assert draw_mixture(Mixing(cutmix=0.5), SIZE, 3, 1, step).box == tuple(corners)


def test_with_both_about_half_of_the_steps_are_mixups() -> None:
    mixtures = [draw_mixture(Mixing(0.2, 1.0), SIZE, 0, 0, step) for step in range(1000)]
    assert abs(sum(mixture.box is None for mixture in mixtures) - 500) < 80


def test_as_many_steps_are_mixed_as_asked_for_and_those_alike() -> None:
    always, mostly = Mixing(0.2, 1.0), Mixing(0.2, 1.0, probability=0.7)
    drawn = [[draw_mixture(mixing, SIZE, 0, 0, step) for step in range(1000)] for mixing in (always, mostly)]
    mixed = [(one, other) for one, other in zip(*drawn, strict=True) if other != UNMIXED]
    assert abs(len(mixed) - 700) < 60
    assert all(one == other for one, other in mixed)
    assert UNMIXED not in drawn[0]


def test_a_step_that_is_not_mixed_leaves_images_and_loss_as_they_are() -> None:
    batch = Batch(torch.randn(6, 3, 32, 32), torch.arange(6), torch.arange(6))
    unmixed = mix(batch._replace(images=batch.images.clone()), UNMIXED)
    assert torch.equal(unmixed.images, batch.images[:3])
    logits = torch.randn(3, 10)
    plain = Batch(batch.images[:3], batch.labels[:3], batch.ids[:3])
    assert training_loss(logits, unmixed, 0.1) == training_loss(logits, plain, 0.1)


def test_every_seed_epoch_and_step_draws_anew_and_the_same_again() -> None:
    places = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    once, again = ([draw_mixture(Mixing(mixup=1.0), SIZE, *place).lam for place in places] for _ in range(2))
    assert once == again
    assert len(set(once)) == len(places)


# What it does to a batch ------------------------------------------------------------------------------------


def test_mixup_is_the_weighted_mean_of_an_image_and_its_partner() -> None:
    batch = batch_of(8)
    before = batch.images.clone().numpy()
    mixed = mix(batch, Mixture(0.75))
    for number in range(4):
        own, partner = before[number], before[4 + number]
        expected = own * np.float32(0.75) + partner * np.float32(0.25)
        np.testing.assert_array_equal(mixed.images[number].numpy(), expected)
    assert torch.equal(mixed.labels, batch.labels[:4])
    assert torch.equal(mixed.ids, batch.ids[:4])
    assert mixed.partner_labels is not None
    assert torch.equal(mixed.partner_labels, batch.labels[4:])


def test_mixup_in_bf16_is_rounded_once_after_the_mean() -> None:
    batch = batch_of(8, torch.bfloat16)
    exact = batch.images[:4].float() * 0.3 + batch.images[4:].float() * 0.7
    mixed = mix(batch, Mixture(0.3)).images
    assert mixed.dtype == torch.bfloat16
    assert torch.equal(mixed, exact.to(torch.bfloat16))


def test_cutmix_pastes_the_box_and_leaves_the_rest() -> None:
    batch = batch_of(6)
    before = batch.images.clone()
    mixed = mix(batch, Mixture(0.9, (2, 7, 20, 32))).images
    for number in range(3):
        for y in range(32):
            for x in range(32):
                source = 3 + number if 2 <= y < 7 and x >= 20 else number
                assert torch.equal(mixed[number, :, y, x], before[source, :, y, x])


@pytest.mark.parametrize("mixture", [Mixture(0.4), Mixture(0.9, (1, 9, 4, 20))], ids=["mixup", "CutMix"])
def test_mixed_batches_keep_their_memory_format(mixture: Mixture) -> None:
    assert mix(batch_of(8), mixture).images.is_contiguous(memory_format=torch.channels_last)


def test_the_loss_is_the_cross_entropy_to_smoothed_and_mixed_one_hot_targets() -> None:
    batch = mix(batch_of(12), Mixture(0.3))
    logits = torch.randn(6, 10, generator=torch.Generator().manual_seed(1))
    expected = 0.0
    assert batch.partner_labels is not None
    for row, label, partner in zip(logits, batch.labels, batch.partner_labels, strict=True):
        target = torch.full((10,), 0.2 / 10)
        target[label] += 0.8 * 0.3
        target[partner] += 0.8 * 0.7
        expected -= float((target * row.log_softmax(0)).sum()) / 6
    assert float(training_loss(logits, batch, 0.2)) == pytest.approx(expected, rel=1e-6)


# The stream -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> ResidentLoader:
    return ResidentLoader(prepared_pixels(tmp_path_factory.mktemp("cache"), 40), torch.device("cpu"))


BOTH = Mixing(mixup=0.4, cutmix=1.0)


def stream_of(
    loader: ResidentLoader, mixing: Mixing = BOTH, accumulation: int = 1, rank: int = 0, ranks: int = 1
) -> Stream:
    chosen = Augmentation(crop_padding=4, flip="alternating", cutout=8)
    transform = BatchTransform((0.5, 0.5, 0.5), (0.2, 0.2, 0.2), chosen, seed=4)
    return Stream(loader, transform, torch.arange(40), 16, 4, accumulation, rank, ranks, mixing)


def test_partners_are_a_permutation_of_each_global_batch_anew_in_each_epoch() -> None:
    batches = epoch_batches(torch.arange(4000), 1000, seed=1, epoch=2)
    partners = partner_batches(batches, seed=1, epoch=2)
    for batch, permuted in zip(batches, partners, strict=True):
        assert torch.equal(batch.sort().values, permuted.sort().values)
    assert (batches == partners).sum() < 20  # about one in each batch is its own partner
    assert torch.equal(partner_batches(batches[2:], 1, 2), partners[2:])
    assert (partner_batches(batches, 1, 3) == partners).sum() < 20
    assert (partner_batches(batches, 0, 2) == partners).sum() < 20


def test_each_image_is_mixed_with_its_partner_as_both_are_without_mixing(loader: ResidentLoader) -> None:
    """Partners are augmented by their own ids: the pixels that they have in this epoch anyway."""
    plain: dict[int, Tensor] = {}
    for (batch,) in stream_of(loader, Mixing()).epoch(1):
        assert batch.partner_labels is None
        plain |= {int(number): image for number, image in zip(batch.ids, batch.images, strict=True)}
    wanted = partner_batches(epoch_batches(torch.arange(40), 16, 4, 1), 4, 1)
    for step, (batch,) in enumerate(stream_of(loader, Mixing(mixup=0.4)).epoch(1)):
        assert batch.lam == draw_mixture(Mixing(mixup=0.4), SIZE, 4, 1, step).lam
        for image, own, partner in zip(batch.images, batch.ids, wanted[step], strict=True):
            expected = batch.lam * plain[int(own)] + (1 - batch.lam) * plain[int(partner)]
            torch.testing.assert_close(image, expected)
        assert batch.partner_labels is not None
        assert batch.partner_labels.tolist() == loader.labels[wanted[step]].tolist()


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_mixed_batches_do_not_depend_on_processes_or_accumulation(
    loader: ResidentLoader, ranks: int, accumulation: int
) -> None:
    shares = [stream_of(loader, BOTH, accumulation, rank, ranks).epoch(1) for rank in range(ranks)]
    for (whole,), *steps in zip(stream_of(loader).epoch(1), *shares, strict=True):
        parts = [step[number] for number in range(accumulation) for step in steps]
        for name in ("ids", "images", "labels", "partner_labels"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
        assert {part.lam for part in parts} == {whole.lam}


def test_an_epoch_taken_up_in_the_middle_goes_on_as_it_was(loader: ResidentLoader) -> None:
    _, (whole,) = stream_of(loader).epoch(3)
    ((resumed,),) = stream_of(loader).epoch(3, first_step=1)
    assert torch.equal(whole.images, resumed.images)
    assert whole.lam == resumed.lam


@pytest.mark.parametrize("mixing", [Mixing(), BOTH], ids=["plain", "mixed"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_steps_may_be_read_and_augmented_together(
    loader: ResidentLoader, mixing: Mixing, accumulation: int
) -> None:
    ids = torch.arange(40)

    def steps(at_once: int, first: int = 0) -> list[list[Batch]]:
        transform = BatchTransform((0.5,) * 3, (0.2,) * 3, Augmentation(crop_padding=4, flip="random"), seed=4)
        stream = Stream(loader, transform, ids, 8, 4, accumulation, mixing=mixing, steps_at_once=at_once)
        return list(stream.epoch(1, first))

    one_by_one = steps(1)
    assert len(one_by_one) == 5
    for together, expected in [(steps(2), one_by_one), (steps(100), one_by_one), (steps(2, 3), one_by_one[3:])]:
        for batches, others in zip(together, expected, strict=True):
            for batch, other in zip(batches, others, strict=True):
                assert batch.images.is_contiguous(memory_format=torch.channels_last)
                assert all(torch.equal(a, b) for a, b in zip(batch[:3], other[:3], strict=True))
                assert batch.lam == other.lam
    assert list(steps(2, 5)) == []


def test_the_digest_tells_mixed_batches_apart(loader: ResidentLoader) -> None:
    mixings = [Mixing(), Mixing(mixup=0.4), Mixing(mixup=0.5), Mixing(cutmix=1.0), BOTH]
    digests = [epoch_digest(stream_of(loader, mixing), 0, lambda tensor: tensor) for mixing in mixings]
    assert len(set(digests)) == len(mixings)


@pytest.mark.parametrize(
    "change", [{"lam": 0.25}, {"partner_labels": torch.zeros(16, dtype=torch.int64)}], ids=str
)
def test_the_digest_covers_lam_and_the_partners_labels(
    loader: ResidentLoader, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    stream = stream_of(loader)
    batches = [[batch] for (batch,) in stream.epoch(0)]
    monkeypatch.setattr(stream, "epoch", lambda epoch: batches)
    before = epoch_digest(stream, 0, lambda tensor: tensor)
    batches[1] = [batches[1][0]._replace(**change)]
    assert epoch_digest(stream, 0, lambda tensor: tensor) != before
