"""Random numbers that are a function of position.

Each number is a hash of (seed, purpose, counters, id): SplitMix64 (Steele, Lea and Flood, 2014, "Fast
splittable pseudorandom number generators"), in 64-bit integer arithmetic, so that CPU and CUDA agree to
the bit. There is no generator and so no state: the same sample of the same epoch is drawn alike by any
loader, on any number of processes and workers, before and after a restart.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def shift_right(bits: Tensor, count: int) -> Tensor:
    """Logical shift; torch's own >> on int64 repeats the sign bit."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def _mix_int(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def _key(seed: int, purpose: str, *counters: int) -> int:
    key = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")
    for counter in (seed, *counters):
        key = _mix_int(key ^ (counter & _MASK))
    return key


def random_bits(ids: Tensor, seed: int, purpose: str, *counters: int) -> Tensor:
    """64 random bits for each id.

    Args:
        ids: int64, any shape.
        seed: the run's seed.
        purpose: names the use, so that two uses never share their numbers.
        counters: further position, such as the epoch.

    Returns:
        int64 of the shape and on the device of `ids`.
    """
    key = _key(seed, purpose, *counters)
    bits = (ids ^ _signed(key)) + _signed(_GOLDEN)
    bits = (bits ^ shift_right(bits, 30)) * _signed(_MIX_1)
    bits = (bits ^ shift_right(bits, 27)) * _signed(_MIX_2)
    return bits ^ shift_right(bits, 31)


def random_integers(bits: Tensor, bound: int | Tensor, field: int = 0) -> Tensor:
    """Integers in [0, bound) from one of the two 32-bit halves of `bits` (`field` 0 or 1).

    A tensor of bounds gives each number its own. Multiply and shift (Lemire, 2019) keeps to integers; the bias is
    below bound / 2**32.
    """
    half = shift_right(bits, 32) if field == 0 else bits & 0xFFFFFFFF
    return (half * bound) >> 32


def random_permutation(ids: Tensor, seed: int, purpose: str, *counters: int) -> Tensor:
    """`ids` (int64, one dimension) in the order of their hashes."""
    return ids[torch.argsort(random_bits(ids, seed, purpose, *counters), stable=True)]


def keyed_generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A generator of its own for one position: for few numbers of distributions that integers do not give.

    Its key is a hash of the position, so that nothing carries over from one position to the next. Philox'
    bits are the same in every version of NumPy; how a distribution is made of them may change between versions
    (NumPy's NEP 19), which summary.json records.
    """
    position = _key(seed, purpose, *counters)
    key = [_mix_int(position ^ number) for number in (0, 1)]  # random_bits of these ids, without tensors
    return np.random.Generator(np.random.Philox(key=key))
