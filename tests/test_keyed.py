"""The keyed random numbers against SplitMix64 written out in Python's integers."""

import hashlib
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data.keyed import keyed_generator, random_bits, random_integers, random_permutation, shift_right

MASK = (1 << 64) - 1
INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
COUNT = 20_000
exhaustive = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def splitmix64(state: int) -> Iterator[int]:
    """The generator as its authors give it."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield z ^ (z >> 31)


def reference_bits(number: int, seed: int, purpose: str, *counters: int) -> int:
    state = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")
    for counter in (seed, *counters):
        state = next(splitmix64(state ^ (counter & MASK)))
    return next(splitmix64(state ^ (number & MASK)))


def unsigned(bits: Tensor) -> list[int]:
    return [value & MASK for value in bits.tolist()]


def deviation_from_half(bits: Tensor) -> float:
    """Of each of the 64 bits, how far from one half its share of ones is; the largest, in standard deviations."""
    ones = np.unpackbits(bits.numpy().view(np.uint8)).reshape(len(bits), 64).mean(axis=0)
    return float(np.abs(ones - 0.5).max() / (0.5 / len(bits) ** 0.5))


def test_the_reference_gives_the_published_numbers_of_splitmix64() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert list(islice(splitmix64(1234567), 4)) == published


@exhaustive
@given(
    ids=st.lists(INT64, min_size=1, max_size=8),
    seed=st.integers(0, MASK),
    purpose=st.text(max_size=8),
    counters=st.lists(INT64, max_size=3),
)
def test_random_bits_are_splitmix64_of_the_position(
    ids: list[int], seed: int, purpose: str, counters: list[int]
) -> None:
    expected = [reference_bits(number, seed, purpose, *counters) for number in ids]
    assert unsigned(random_bits(torch.tensor(ids), seed, purpose, *counters)) == expected


def test_random_bits_keep_the_shape_of_the_ids() -> None:
    bits = random_bits(torch.arange(12).view(3, 4), 0, "order")
    assert bits.shape == (3, 4)
    assert torch.equal(bits.flatten(), random_bits(torch.arange(12), 0, "order"))


@exhaustive
@given(value=INT64, count=st.integers(1, 63))
def test_shift_right_moves_zeros_in(value: int, count: int) -> None:
    assert unsigned(shift_right(torch.tensor([value]), count)) == [(value & MASK) >> count]


def test_each_of_the_64_bits_is_set_in_half_of_the_numbers() -> None:
    assert deviation_from_half(random_bits(torch.arange(COUNT), 0, "crop", 0)) < 5


def test_neighbouring_ids_share_no_bits_beyond_chance() -> None:
    bits = random_bits(torch.arange(COUNT), 0, "crop", 0)
    assert deviation_from_half(bits[1:] ^ bits[:-1]) < 5


def test_numbers_do_not_repeat() -> None:
    assert len(random_bits(torch.arange(COUNT), 0, "crop", 0).unique()) == COUNT


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, "crop", 0), (1, "crop", 0)),
        ((0, "crop", 0), (0, "flip", 0)),
        ((0, "crop", 0), (0, "crop", 1)),
        ((0, "crop", 1), (1, "crop", 0)),
        ((0, "crop"), (0, "crop", 0)),
    ],
    ids=["seeds", "purposes", "epochs", "seed 0 epoch 1 and seed 1 epoch 0", "no epoch and epoch 0"],
)
def test_two_positions_share_nothing_beyond_chance(one: tuple, other: tuple) -> None:
    ids = torch.arange(COUNT)
    assert deviation_from_half(random_bits(ids, *one) ^ random_bits(ids, *other)) < 5


@exhaustive
@given(bits=INT64, bound=st.integers(1, (1 << 31) - 1), field=st.integers(0, 1))
def test_random_integers_are_the_scaled_half_of_the_bits(bits: int, bound: int, field: int) -> None:
    half = (bits & MASK) >> 32 if field == 0 else bits & 0xFFFFFFFF
    (drawn,) = random_integers(torch.tensor([bits]), bound, field).tolist()
    assert drawn == half * bound >> 32
    assert 0 <= drawn < bound


def test_the_two_fields_are_uniform_and_independent() -> None:
    bits = random_bits(torch.arange(COUNT), 3, "crop", 7)
    pairs = random_integers(bits, 9, field=0) * 9 + random_integers(bits, 9, field=1)
    counts = torch.bincount(pairs, minlength=81).double()
    expected = COUNT / 81
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert len(counts) == 81
    assert chi_squared < 80 + 5 * (2 * 80) ** 0.5


@exhaustive
@given(ids=st.lists(INT64, unique=True, max_size=30), seed=st.integers(0, 100), epoch=st.integers(0, 100))
def test_a_permutation_holds_each_id_once_in_the_order_of_the_hashes(
    ids: list[int], seed: int, epoch: int
) -> None:
    def signed_bits(number: int) -> int:
        bits = reference_bits(number, seed, "order", epoch)
        return bits - (1 << 64) if bits >> 63 else bits

    permuted = random_permutation(torch.tensor(ids, dtype=torch.int64), seed, "order", epoch).tolist()
    assert permuted == sorted(ids, key=signed_bits)


def test_permutations_put_each_id_anywhere() -> None:
    ids = torch.arange(10)
    firsts = torch.stack([random_permutation(ids, 0, "order", epoch)[0] for epoch in range(1000)])
    counts = torch.bincount(firsts, minlength=10)
    assert counts.min() > 100 - 5 * 90**0.5
    assert counts.max() < 100 + 5 * 90**0.5


def test_a_positions_generator_has_its_first_two_hashes_for_a_key() -> None:
    generator = keyed_generator(7, "mix", 3, 40)
    key = [reference_bits(number, 7, "mix", 3, 40) for number in (0, 1)]
    expected = np.random.Generator(np.random.Philox(key=np.array(key, dtype=np.uint64)))
    assert generator.random(5).tolist() == expected.random(5).tolist()
