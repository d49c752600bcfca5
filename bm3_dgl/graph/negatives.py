"""Negative items: for each pair of a batch one item that its user has no train interaction with, all equally likely.

Which one is a function of (key, number of the train interaction) alone: the r-th item of those that the user does not
know, in the order of the dataset, r being a hash. So nothing is drawn twice, a user who knows nearly everything costs no
more than another, and neither ranks nor machines nor the partition change what is drawn. A user's train items are on the
user's machine; where that is another one, its graph server is asked for them.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit, uint64

from bm3_dgl.graph.local import Edges
from bm3_dgl.graph.store import GraphStore
from bm3_dgl.runtime.random import hash_rows
from bm3_dgl.types import USER


class NegativeSampler:
    """Draws for this rank's pairs."""

    def __init__(self, store: GraphStore) -> None:
        self._store = store
        self._nid_of = torch.empty_like(store.item_index)  # by dataset index
        self._nid_of[store.item_index] = torch.arange(len(store.item_index))

    def draw(self, edges: Edges, *, key: int) -> torch.Tensor:
        """global_nids int64 (n,) of an item for each pair; -1 where the user knows every item. key: 64 bits."""
        users, place = torch.unique(edges.user_nid, return_inverse=True)
        counts, known_nids = self._store.neighbors(USER, users)
        indptr = np.concatenate([[0], np.cumsum(counts.numpy())])
        known = self._store.item_index[known_nids].numpy()
        items = torch.from_numpy(draw_unknown(indptr, known, place.numpy(), edges.number, len(self._nid_of), key=key))
        return torch.where(items >= 0, self._nid_of[items], -1)


def draw_unknown(
    indptr: np.ndarray, known: np.ndarray, user_B: np.ndarray, number_B: torch.Tensor, num_items: int, *, key: int
) -> np.ndarray:
    """For each pair an item 0..num_items-1 that its user does not know, int64 (B,); -1 where there is none.

    indptr: int64 (users + 1,), known: int64, the items of each user, each once, in any order (they are sorted in place).
    user_B: int64, the user of each pair; number_B: int64, what the draw depends on besides the key.
    """
    out = np.empty(len(user_B), np.int64)
    _draw(indptr, known, user_B, hash_rows(key, number_B, 1)[:, 0], num_items, out)
    return out


@njit(cache=True, nogil=True)
def _draw(indptr, known, user_B, hash_B, num_items, out):  # type: ignore[no-untyped-def]
    """With known items k_0 < k_1 < ..., the r-th unknown one is r + the number of k_j with k_j - j <= r."""
    for user in range(indptr.shape[0] - 1):
        known[indptr[user] : indptr[user + 1]].sort()
    for pair in range(out.shape[0]):
        begin, end = indptr[user_B[pair]], indptr[user_B[pair] + 1]
        unknown = num_items - (end - begin)
        if unknown == 0:
            out[pair] = -1
            continue
        place = np.int64(hash_B[pair] % uint64(unknown))
        low, high = begin, end
        while low < high:
            middle = (low + high) // 2
            if known[middle] - (middle - begin) <= place:
                low = middle + 1
            else:
                high = middle
        out[pair] = place + (low - begin)
