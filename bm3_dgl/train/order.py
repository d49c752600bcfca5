"""The order in which an epoch meets the train interactions: a permutation that nobody needs to hold.

Position p of epoch e is interaction F(p), where F is a Feistel network keyed by (seed, epoch) over the smallest even
number of bits that holds all interactions, walked along its cycle until it lands among them (Black and Rogaway,
CT-RSA 2002). So any rank finds any batch of any epoch at once, a resumed run included, in memory that does not grow.
"""

from __future__ import annotations

import numpy as np
import torch

from bm3_dgl.runtime.random import derive, hash_rows

_ROUNDS = 4


class EpochOrder:
    """The permutation of 0..num_interactions-1 for one epoch."""

    def __init__(self, num_interactions: int, *, seed: int, epoch: int) -> None:
        assert num_interactions > 0, "an epoch needs at least one interaction"
        self._size = num_interactions
        self._half = max(1, (max(num_interactions - 1, 1).bit_length() + 1) // 2)  # bits of each half
        self._keys = [derive(seed, "order", epoch, number) for number in range(_ROUNDS)]

    def batch(self, number: int, size: int) -> torch.Tensor:
        """Interactions of the number-th batch of `size`, int64; the last batch of an epoch may be smaller."""
        positions = np.arange(number * size, min((number + 1) * size, self._size))
        ids = self._feistel(positions)
        while (outside := np.flatnonzero(ids >= self._size)).size:
            ids[outside] = self._feistel(ids[outside])
        return torch.from_numpy(ids)

    def _feistel(self, values: np.ndarray) -> np.ndarray:
        mask = np.int64((1 << self._half) - 1)
        left, right = values >> self._half, values & mask
        for key in self._keys:
            mixed = hash_rows(key, torch.from_numpy(right), 1)[:, 0].astype(np.int64) & mask
            left, right = right, left ^ mixed
        return (left << self._half) | right


def batches_per_epoch(num_interactions: int, batch_size: int) -> int:
    """Batches of `batch_size` pairs (of all ranks together) that an epoch takes."""
    return -(-num_interactions // batch_size)
