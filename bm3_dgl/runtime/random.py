"""Random numbers that are a function of (seed, purpose, node, column), never of who draws them.

Initial values, dropout masks and the order of the edges must not change with the number of ranks, machines or
blocks, and a resumed run must meet the same ones again. So nothing is drawn from a stream: every number is a hash
of what it is for. The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
"""

from __future__ import annotations

import zlib

import numpy as np
import torch
from numba import njit, uint64

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: SplitMix64's increment
_LEVELS = 1 << 16  # a dropout decision takes 16 bits, so one hash decides four columns


@njit(inline="always")
def mix(state):  # type: ignore[no-untyped-def]
    """SplitMix64's finaliser of a uint64, in compiled code."""
    state = (state ^ (state >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> uint64(27))) * uint64(0x94D049BB133111EB)
    return state ^ (state >> uint64(31))


@njit(cache=True, nogil=True)
def _hash_rows(key, ids, out):  # type: ignore[no-untyped-def]
    """out[r, c] = hash(key, ids[r], c)."""
    for r in range(out.shape[0]):
        row = mix(uint64(key) ^ (uint64(ids[r]) + uint64(1)) * uint64(_GOLDEN))
        for c in range(out.shape[1]):
            out[r, c] = mix(row + uint64(c + 1) * uint64(_GOLDEN))


def derive(seed: int, *purpose: int | str) -> int:
    """A 64-bit key for one purpose, such as `derive(seed, "dropout", step, "user")`."""
    key = seed & (2**64 - 1)
    for word in purpose:
        number = zlib.crc32(word.encode()) if isinstance(word, str) else word
        key = _finalise((key ^ (number * _GOLDEN)) + _GOLDEN)
    return key


def _finalise(state: int) -> int:
    """SplitMix64's finaliser in plain integers, for keys; `mix` is the same for arrays."""
    mask = 2**64 - 1
    state &= mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


def hash_rows(key: int, ids: torch.Tensor, columns: int) -> np.ndarray:
    """uint64 (len(ids), columns): an independent hash for each id and column. ids: int64 (n,)."""
    out = np.empty((len(ids), columns), np.uint64)
    _hash_rows(np.uint64(key), ids.numpy(), out)
    return out


def uniform_rows(key: int, ids: torch.Tensor, width: int) -> torch.Tensor:
    """float32 (len(ids), width), uniform in [-1, 1), one row for each id."""
    bits = hash_rows(key, ids, width) >> np.uint64(40)  # 24 bits: all that a float32 in [0, 1) can hold evenly
    return torch.from_numpy(bits.astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0))


def dropout_multiplier(key: int, ids: torch.Tensor, width: int, probability: float) -> torch.Tensor:
    """float32 (len(ids), width): 0 with `probability`, else 1 / (1 - probability), independent by id and column.

    The probability is rounded to a multiple of 2^-16, and the multiplier belongs to the rounded one, so that the
    mean is exactly 1.
    """
    threshold = round(probability * _LEVELS)
    if threshold == 0:
        return torch.ones(len(ids), width)
    levels = hash_rows(key, ids, (width + 3) // 4).view(np.uint16)[:, :width]
    scale = np.float32(_LEVELS / (_LEVELS - threshold))
    return torch.from_numpy(np.where(levels >= threshold, scale, np.float32(0.0)))
