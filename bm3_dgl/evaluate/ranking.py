"""Full ranking: the k best items of every user by s(u, i) = h_u . h_i, the user's masked items left out (equation 13).

In: online embeddings of some users and of all items, and per user the items to leave out. Out: `TopK`.

The answer is a function of one user's row, the item table and the user's masked items only: block size, threads, the
way users are split over ranks and the processor change no bit of it. A fast product alone cannot promise that, since
its rounding depends on how it is computed, and two nearly equal scores may then swap. So it only nominates candidates,
with a proven bound on its error, and the exact score of a candidate decides: computed in float64, in an order of
additions fixed by D alone. Equal scores are ordered by item index.

    search.py      on CPUs: 8-bit products in registers nominate, a heap per user keeps the k best
    blockwise.py   on other devices: a float32 GEMM of a block of users nominates
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from bm3_dgl.errors import DivergedError
from bm3_dgl.evaluate.blockwise import rank_blockwise
from bm3_dgl.evaluate.catalog import build_catalog
from bm3_dgl.evaluate.search import rank_users

_LARGEST_SCORE = 2.0**127  # above it float32 sums may overflow
_MAX_DIM = 4096  # the error bounds count on it; the configuration's limit of model.embedding_dim
_NORM_CELLS = 1 << 18  # float64 values at once (2 MiB)


@dataclass(frozen=True)
class TopK:
    """Ranked lists, on the CPU, best first.

    items: int64 (U, K), item indices, -1 where the user has fewer than K candidates.
    scores: float64 (U, K), -inf where items is -1.
    """

    items: Tensor
    scores: Tensor


def top_k(
    online_users_UD: Tensor,
    online_items_ID: Tensor,
    k: int,
    *,
    masked_indptr: Tensor,
    masked_items: Tensor,
    block_users: int = 256,
    device: torch.device | str = "cpu",
    threads: int | None = None,
) -> TopK:
    """The k best unmasked items of each user: score descending, equal scores by smaller item index.

    online_users_UD, online_items_ID: float32 (U, D), (I, D), D <= 4096; U, I and what remains of I may be less than k.
    masked_indptr, masked_items: CSR over the users of this call, on the CPU, int64 (U+1,) and int32 or int64 (nnz,), any
    order, repeats allowed. device: where to compute. block_users: users at once, per thread; it changes nothing but the
    memory, which beside the result and about twice the item table is 4 (1024 + D) bytes per user on the CPU (I bytes
    per thread), 4 I elsewhere. threads: of the CPU, torch.get_num_threads() by default. Raises DivergedError if an
    embedding is not finite, or so large that scores overflow float32.
    """
    _check_arguments(online_users_UD, online_items_ID, k, masked_indptr, masked_items, block_users)
    num_users, num_items = len(online_users_UD), len(online_items_ID)
    top = TopK(
        torch.full((num_users, k), -1, dtype=torch.int64),
        torch.full((num_users, k), -torch.inf, dtype=torch.float64),
    )
    if num_users == 0 or num_items == 0:
        return top
    users_UD, items_ID = online_users_UD.detach(), online_items_ID.detach()
    norm_U, max_norm = _norms(users_UD, "user"), float(_norms(items_ID, "item").max())
    if float(norm_U.max()) * max_norm > _LARGEST_SCORE:
        raise DivergedError("scores of the online embeddings overflow float32; training diverged, lower train.learning_rate")
    arguments = users_UD, items_ID, norm_U, max_norm, masked_indptr, masked_items, top.items, top.scores
    if torch.device(device).type == "cpu":
        _rank_compiled(*arguments, block_users=block_users, threads=threads or torch.get_num_threads())
    else:
        rank_blockwise(*arguments, block_users=block_users, device=device)
    return top


def _rank_compiled(
    users_UD: Tensor,
    items_ID: Tensor,
    norm_U: Tensor,
    max_norm: float,
    masked_indptr: Tensor,
    masked_items: Tensor,
    items_UK: Tensor,
    scores_UK: Tensor,
    *,
    block_users: int,
    threads: int,
) -> None:
    """Write the ranking into items_UK and scores_UK, blocks of users spread over threads."""
    catalog = build_catalog(items_ID.cpu().numpy(), max_norm)
    users, norms = users_UD.cpu().contiguous().numpy(), norm_U.numpy()
    indptr, masked = masked_indptr.contiguous().numpy(), masked_items.long().contiguous().numpy()
    items, scores = items_UK.numpy(), scores_UK.numpy()

    def rank(start: int) -> None:
        own = slice(start, start + block_users)
        rank_users(users[own], norms[own], indptr[start : own.stop + 1], masked, catalog, items[own], scores[own])

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(rank, range(0, len(users), block_users)):  # hands on what a thread raises
            pass


def _check_arguments(users_UD: Tensor, items_ID: Tensor, k: int, indptr: Tensor, masked: Tensor, block_users: int) -> None:
    assert users_UD.ndim == 2 and items_ID.ndim == 2 and users_UD.shape[1] == items_ID.shape[1], (
        f"embeddings must be (U, D) and (I, D), got {tuple(users_UD.shape)} and {tuple(items_ID.shape)}"
    )
    assert users_UD.dtype == items_ID.dtype == torch.float32, (
        f"embeddings must be float32, got {users_UD.dtype}, {items_ID.dtype}"
    )
    assert 1 <= users_UD.shape[1] <= _MAX_DIM, f"embeddings are {users_UD.shape[1]} wide, the bound holds for 1..{_MAX_DIM}"
    assert k >= 1 and block_users >= 1, f"k and block_users must be positive, got {k} and {block_users}"
    assert indptr.shape == (len(users_UD) + 1,), f"masked_indptr must be ({len(users_UD) + 1},), got {tuple(indptr.shape)}"
    if len(masked):
        low, high = int(masked.min()), int(masked.max())
        assert low >= 0 and high < len(items_ID), f"masked items must lie in 0..{len(items_ID) - 1}, got {low}..{high}"


def _norms(rows_ND: Tensor, kind: str) -> Tensor:
    """Euclidean norms, float64 (N,), on the CPU. Raises DivergedError for a row that is not finite."""
    step = max(1, _NORM_CELLS // rows_ND.shape[1])
    norm_N = torch.cat([rows.double().norm(dim=1) for rows in rows_ND.split(step)]).cpu()
    bad = norm_N.isfinite().logical_not().nonzero()
    if len(bad):
        raise DivergedError(
            f"the online embedding of {kind} {int(bad[0])} is not finite; training diverged, lower train.learning_rate"
        )
    return norm_N
