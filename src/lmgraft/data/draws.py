"""Random draws without a state: functions of (seed, epoch, index) and a draw's number.

A hash replaces a generator, so a sample's augmentation depends neither on the batch it is in,
nor on the worker that loads it, nor on what was drawn before.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection of 64 bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _hashed(seed: int, *words: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """One word for each row of `words`, which are broadcast; shape (B,)."""
    columns = np.broadcast_arrays(*(np.asarray(word, np.uint64) for word in words))
    state = np.full(columns[0].shape, np.uint64(seed % (1 << 64)))
    for word in columns:
        state = _mix(state + _GOLDEN) ^ word
    return state


def _bits(state: npt.NDArray[np.uint64], count: int) -> npt.NDArray[np.uint64]:
    """`count` words for each state, shape (B, count)."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    return _mix(_mix(state + _GOLDEN)[:, None] + steps)


def uniforms(seed: int, epochs: npt.ArrayLike, indices: npt.ArrayLike, count: int) -> npt.NDArray[np.float64]:
    """`count` uniform numbers in [0, 1) for each (epoch, index), shape (B, count)."""
    with np.errstate(over="ignore"):
        bits = _bits(_hashed(seed, epochs, indices), count)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def seeds(
    seed: int, epochs: npt.ArrayLike, indices: npt.ArrayLike, repeats: npt.ArrayLike, count: int
) -> npt.NDArray[np.uint64]:
    """`count` seeds for generators for each (epoch, index, repeat), shape (B, count)."""
    with np.errstate(over="ignore"):
        return _bits(_hashed(seed, epochs, indices, repeats), count)


def permutation(seed: int, epoch: int, size: int) -> npt.NDArray[np.int64]:
    """The order of an epoch: a permutation of `size` items."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    return generator.permutation(size)
