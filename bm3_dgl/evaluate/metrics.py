"""Ranking metrics from ranked lists and held-out items: pure functions on CPU tensors.

In: each user's ranked items (`ranking.TopK.items`) and held-out items. Out: Recall@K and NDCG@K, per user or averaged.
The caller leaves out users without a train item (the published protocol); users without a held-out item are left out here.

Shape suffixes: U users, K width of the ranked lists, B users of one block, T distinct (user, held-out item) pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bm3_dgl.errors import DataError

_BLOCK_CELLS = 1 << 20  # ranked items looked up at once: 8 MiB for each int64 or float64 intermediate


def ranking_metrics(
    top_items_UK: Tensor, truth_indptr: Tensor, truth_items: Tensor, cutoffs: Sequence[int]
) -> dict[str, float]:
    """Means of `per_user_metrics` over the users with at least one held-out item, under the same keys.

    Arguments as there. The sums are correctly rounded (math.fsum), so the order of users does not matter, nor in how
    many parts they were ranked. Raises DataError if no user has a held-out item.
    """
    values = per_user_metrics(top_items_UK, truth_indptr, truth_items, cutoffs)
    counted_U = truth_indptr.diff() > 0
    num_counted = int(counted_U.sum())
    if num_counted == 0:
        raise DataError("no user has both a train item and a held-out item, so there is nothing to evaluate; check the split")
    return {key: math.fsum(value_U[counted_U].tolist()) / num_counted for key, value_U in values.items()}


def per_user_metrics(
    top_items_UK: Tensor, truth_indptr: Tensor, truth_items: Tensor, cutoffs: Sequence[int]
) -> dict[str, Tensor]:
    """Recall@K and NDCG@K of each user, float64 (U,) under "recall@K" and "ndcg@K" for each K in `cutoffs`.

    top_items_UK: int64 (U, K), distinct items best first, -1 where a list ends early; every cutoff is at most K.
    truth_indptr, truth_items: CSR of the held-out items, int64 (U+1,) and int32 or int64 (nnz,), all >= 0; a repeated
    item counts once. All on the CPU.

        hit(r)   = 1 if the item at rank r = 1..K is held out, else 0; no item (-1) is no hit
        Recall@K = sum_{r<=K} hit(r) / |held-out|
        NDCG@K   = sum_{r<=K} hit(r) / log2(r + 1)  /  sum_{r<=min(|held-out|, K)} 1 / log2(r + 1)

    Binary gain, as in the authors' evaluation (enoche/MMRec: utils/metrics.py) and in RecBole. Recall divides by all
    held-out items, so more than K of them keep it below 1. A user without held-out items has NaN.
    """
    num_users, width = top_items_UK.shape
    assert truth_indptr.shape == (num_users + 1,), f"truth_indptr must be ({num_users + 1},), got {tuple(truth_indptr.shape)}"
    assert cutoffs and min(cutoffs) >= 1 and max(cutoffs) <= width, f"cutoffs must lie in 1..{width}, got {list(cutoffs)}"
    stride = 1 + max(_largest(truth_items), _largest(top_items_UK))
    truth_T = _pair_keys(truth_indptr, truth_items, stride)
    count_U = torch.bincount(truth_T // stride, minlength=num_users)
    discount_K = torch.log2(torch.arange(2, width + 2, dtype=torch.float64)).reciprocal()
    columns = torch.tensor(cutoffs) - 1
    values = {
        f"{name}@{cutoff}": torch.empty(num_users, dtype=torch.float64) for name in ("recall", "ndcg") for cutoff in cutoffs
    }
    step = max(1, _BLOCK_CELLS // width)
    for start in range(0, num_users, step):
        block = slice(start, min(start + step, num_users))
        hits_BK = _hits(top_items_UK[block], start, truth_T, stride)
        recall_B, ndcg_B = _block_metrics(hits_BK, count_U[block], discount_K, columns)
        for index, cutoff in enumerate(cutoffs):
            values[f"recall@{cutoff}"][block] = recall_B[:, index]
            values[f"ndcg@{cutoff}"][block] = ndcg_B[:, index]
    return values


def _largest(items: Tensor) -> int:
    return int(items.max()) if items.numel() else 0


def _pair_keys(indptr: Tensor, items: Tensor, stride: int) -> Tensor:
    """Sorted distinct user * stride + item of CSR pairs, int64 (T,)."""
    users = torch.arange(len(indptr) - 1).repeat_interleave(indptr.diff())
    return torch.unique(users * stride + items)


def _hits(top_items_BK: Tensor, first_user: int, truth_T: Tensor, stride: int) -> Tensor:
    """Which ranked items are held out, float64 (B, K), 0 or 1."""
    users_B1 = torch.arange(first_user, first_user + len(top_items_BK)).unsqueeze(1)
    # -1 would be the key of the user before, with the largest item: it must not reach the search.
    keys_BK = torch.where(top_items_BK >= 0, users_B1 * stride + top_items_BK, -1)
    if len(truth_T) == 0:
        return torch.zeros_like(keys_BK, dtype=torch.float64)
    place_BK = torch.searchsorted(truth_T, keys_BK).clamp_(max=len(truth_T) - 1)
    return (truth_T[place_BK] == keys_BK).double()


def _block_metrics(hits_BK: Tensor, count_B: Tensor, discount_K: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Recall and NDCG at `columns` (cutoff - 1), float64 (B, number of cutoffs) each; 0 / 0 = NaN without held-out items."""
    recall = hits_BK.cumsum(1)[:, columns] / count_B.unsqueeze(1)
    ideal_K = torch.cat([torch.zeros(1, dtype=torch.float64), discount_K.cumsum(0)])
    ideal_dcg = ideal_K[torch.minimum(count_B.unsqueeze(1), columns + 1)]
    return recall, (hits_BK * discount_K).cumsum(1)[:, columns] / ideal_dcg
