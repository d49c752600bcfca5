"""Full ranking by blockwise products, in plain torch: for devices that the compiled ranking does not know.

A GEMM's rounding depends on the shape it is called with, so it only nominates candidates:

    1. scores32_BW = users_BD @ items_WD.T        float32 GEMM of a block, masked items set to -inf
    2. tau_B = k-th largest of the maxima of G groups of items       k items score at least this
    3. candidates: all items with scores32 >= tau - 2 bound          `_thresholds` proves that the k best are in here
    4. scores64 of the candidates, in an order of additions fixed by D alone (`_dot`), and one stable sort by them

Nothing that cannot win is ever sorted, and ties need no special path: a tie is a candidate.

Shape suffixes: U users, B users of one block, R users of one run of a block, I items, D embedding width, K top-k,
G groups, S items of a group, W = G * S columns of the score buffer, C most candidates of a row, P (group, row) pairs,
N (row, item) pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_ROUNDOFF = 2.0**-24  # of float32
_SMALLEST_NORMAL = 2.0**-126  # of float32; a device may flush what is below it
_RUN_CELLS = 1 << 20  # scores that may be gathered at once (4 MiB), whatever the number of ties
_DOT_CELLS = 1 << 18  # float64 products at once (2 MiB)
_LANES = 16  # float32 of one cache line; the GEMM is up to four times slower into rows that are not a multiple of it
_GROUPS_PER_RESULT = 3  # with fewer groups good items share one, and the k-th maximum is a poor threshold


@dataclass(frozen=True)
class _Catalog:
    """The item table in the column order of the score buffer: column s * G + g holds item g * S + s.

    So the maxima of all groups are S - 1 elementwise maxima of contiguous rows of G, and still each group is a run of
    consecutive items, which makes (group, s) order item order. The end is filled up with zero rows.
    """

    items_WD: Tensor  # float32
    items64_WD: Tensor  # the same values
    group_size: int  # S
    filler: Tensor  # int64, the columns that are no item
    max_norm: float  # largest Euclidean norm of an item row
    scratch_2ND: Tensor  # float64, work space of `_dots`; taken once, as fresh pages cost more than the sums

    @property
    def num_groups(self) -> int:
        return self.items_WD.shape[0] // self.group_size

    def columns(self, items: Tensor) -> Tensor:
        """Columns of item indices."""
        return items % self.group_size * self.num_groups + items // self.group_size


def rank_blockwise(
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
    device: torch.device | str,
) -> None:
    """Write the ranking into items_UK, int64 filled with -1, and scores_UK, float64 filled with -inf, both on the CPU.

    Arguments as those of `ranking.top_k`; norm_U: float64, on the CPU, norms of the users, max_norm the largest of the
    items. U, I >= 1. Takes block_users * I float32 of the device's memory.
    """
    precision = torch.get_float32_matmul_precision()
    assert precision == "highest", f"the error bound is that of full float32 products, not of matmul precision {precision!r}"
    num_users, k = items_UK.shape
    with torch.no_grad():
        catalog = _catalog(items_ID.to(device), _group_size(len(items_ID), k), max_norm)
        masked_rows = torch.arange(num_users).repeat_interleave(masked_indptr.diff())
        buffer_BW = torch.empty(min(block_users, num_users), len(catalog.items_WD), device=device)
        for start in range(0, num_users, block_users):
            block = slice(start, min(start + block_users, num_users))
            users_BD, norm_B = users_UD[block].to(device), norm_U[block].to(device)
            scores_BW = torch.mm(users_BD, catalog.items_WD.T, out=buffer_BW[: len(users_BD)])
            hidden = slice(int(masked_indptr[start]), int(masked_indptr[block.stop]))
            _mask(scores_BW, catalog, (masked_rows[hidden] - start).to(device), masked_items[hidden].to(device))
            _rank_block(scores_BW, users_BD, norm_B, catalog, items_UK[block], scores_UK[block])


def _group_size(num_items: int, k: int) -> int:
    """Items per group: balances the look at all group maxima, about 3 ns each, against that into k groups, 8 ns an item."""
    return max(1, min(round((3 * num_items / (8 * k)) ** 0.5), num_items // (_GROUPS_PER_RESULT * k)))


def _catalog(items_ID: Tensor, group_size: int, max_norm: float) -> _Catalog:
    num_items, dim = items_ID.shape
    num_groups = -(-num_items // (group_size * _LANES)) * _LANES
    padded_WD = torch.nn.functional.pad(items_ID, (0, 0, 0, num_groups * group_size - num_items))
    items_WD = padded_WD.view(num_groups, group_size, dim).transpose(0, 1).reshape(-1, dim)
    order = torch.arange(len(items_WD), device=items_ID.device)
    item_of_column = order % num_groups * group_size + order // num_groups
    filler = order[item_of_column >= num_items]
    scratch_2ND = torch.empty(2, _DOT_CELLS // dim, dim, dtype=torch.float64, device=items_ID.device)
    return _Catalog(items_WD, items_WD.double(), group_size, filler, max_norm, scratch_2ND)


def _mask(scores_BW: Tensor, catalog: _Catalog, rows: Tensor, masked: Tensor) -> None:
    """Set the (row, masked item) pairs, and the columns that are no item, to -inf."""
    scores_BW.view(-1).index_fill_(0, rows * scores_BW.shape[1] + catalog.columns(masked.long()), -torch.inf)
    scores_BW.index_fill_(1, catalog.filler, -torch.inf)


def _thresholds(group_max_BG: Tensor, norm_B: Tensor, catalog: _Catalog, k: int) -> Tensor:
    """The float32 score below which an item cannot be among the k best, float32 (B,), finite.

    Let s32 be the GEMM's score of an item, s64 its score in `_dot`, and |s32 - s64| <= e for all items of the row. The k
    groups of largest maximum hold k different items of s32 >= tau, tau the smallest of these maxima. Their
    s64 >= tau - e, so the k-th best s64 is >= tau - e, and an item among the k best has s32 >= tau - 2e. With fewer
    than k groups left, tau is -inf and every unmasked item is a candidate.

    e: a float32 dot product of D terms, summed in any order, with or without FMA, errs by at most
    D r / (1 - D r) * sum |u_d i_d| <= (D + 1) r |u| |i|, r = 2^-24, D <= 4096 (Higham, Accuracy and Stability, 3.1).
    The float64 one and the rounding of the threshold itself add less than one r |u| |i| each. Flushed inputs and products
    below 2^-126 add at most D 2^-126 (|u| + |i| + 1).
    """
    dim, num_groups = catalog.items_WD.shape[1], group_max_BG.shape[1]
    if num_groups < k:
        return torch.full_like(norm_B, torch.finfo(torch.float32).min, dtype=torch.float32)
    # Groups of groups: their maxima are still maxima of different items, and far fewer to select from.
    merged = max(1, num_groups // (_GROUPS_PER_RESULT * k))
    group_max_BG = group_max_BG[:, : num_groups // merged * merged].unflatten(1, (merged, -1)).amax(1)
    tau_B = group_max_BG.topk(k, dim=1, sorted=False).values.amin(1)
    flushed_B = dim * _SMALLEST_NORMAL * (norm_B + catalog.max_norm + 1)
    error_B = (dim + 3) * _ROUNDOFF * norm_B * catalog.max_norm + flushed_B
    return (tau_B.double() - 2 * error_B).float().clamp_(min=torch.finfo(torch.float32).min)


def _rank_block(
    scores_BW: Tensor, users_BD: Tensor, norm_B: Tensor, catalog: _Catalog, items_BK: Tensor, scores_BK: Tensor
) -> None:
    """Rank the rows of a block into items_BK and scores_BK."""
    scores_BSG = scores_BW.view(len(scores_BW), catalog.group_size, catalog.num_groups)
    group_max_BG = scores_BSG.amax(1) if catalog.group_size > 1 else scores_BW
    threshold_B = _thresholds(group_max_BG, norm_B, catalog, items_BK.shape[1])
    hopeful_BG = group_max_BG >= threshold_B.unsqueeze(1)
    users64_BD = users_BD.double()
    for rows in _runs((hopeful_BG.sum(1) * catalog.group_size).tolist()):
        row_P, group_P = hopeful_BG[rows].nonzero(as_tuple=True)
        scores_PS = scores_BSG[rows][row_P, :, group_P]
        pair_N, slot_N = (scores_PS >= threshold_B[rows][row_P].unsqueeze(1)).nonzero(as_tuple=True)
        row_N, group_N = row_P[pair_N], group_P[pair_N]
        scores_N = _dots(users64_BD[rows], row_N, catalog, slot_N * catalog.num_groups + group_N)
        _order(row_N, group_N * catalog.group_size + slot_N, scores_N, items_BK[rows], scores_BK[rows])


def _runs(cells_B: list[int]) -> Iterator[slice]:
    """Split rows into runs of at most _RUN_CELLS cells as a rectangle, or single rows.

    Usually one run. Rows with thousands of equal scores come in smaller ones, so that memory stays bounded.
    """
    start, widest = 0, 0
    for stop, cells in enumerate(cells_B):
        widest = max(widest, cells)
        if stop > start and widest * (stop + 1 - start) > _RUN_CELLS:
            yield slice(start, stop)
            start, widest = stop, cells
    yield slice(start, len(cells_B))


def _dots(users64_RD: Tensor, row_N: Tensor, catalog: _Catalog, column_N: Tensor) -> Tensor:
    """Float64 scores of (row, column) pairs, (N,)."""
    scores_N = torch.empty(len(row_N), dtype=torch.float64, device=row_N.device)
    step = catalog.scratch_2ND.shape[1]
    for start in range(0, len(row_N), step):
        row_n, column_n = row_N[start : start + step], column_N[start : start + step]
        users_ND, items_ND = catalog.scratch_2ND[:, : len(row_n)]
        torch.index_select(users64_RD, 0, row_n, out=users_ND)
        torch.index_select(catalog.items64_WD, 0, column_n, out=items_ND)
        scores_N[start : start + step] = _dot(users_ND, items_ND)
    return scores_N


def _dot(users64_ND: Tensor, items64_ND: Tensor) -> Tensor:
    """Row-wise dot products of float32 values held in float64, float64 (N,); overwrites the first argument.

    The upper half of the terms is added to the lower half until one is left: elementwise operations only, so a row's
    value depends on nothing but that row, on any machine (products of float32 are exact in float64, so a fused
    multiply-add changes nothing either).
    """
    terms_ND = users64_ND.mul_(items64_ND)
    width = terms_ND.shape[1]
    while width > 1:
        half = width // 2
        terms_ND[:, :half] += terms_ND[:, width - half : width]
        width -= half
    return terms_ND[:, 0]


def _order(row_N: Tensor, item_N: Tensor, scores_N: Tensor, items_RK: Tensor, scores_RK: Tensor) -> None:
    """Write each row's candidates, which come by row and then by item index, best first."""
    num_rows, k = items_RK.shape
    count_R = row_N.bincount(minlength=num_rows)
    width = int(count_R.max())
    place_N = torch.arange(len(row_N), device=row_N.device) - (count_R.cumsum(0) - count_R)[row_N]
    cell_N = row_N * width + place_N
    scores_RC = scores_N.new_full((num_rows, width), -torch.inf).view(-1).index_copy_(0, cell_N, scores_N).view(num_rows, width)
    items_RC = item_N.new_full((num_rows, width), -1).view(-1).index_copy_(0, cell_N, item_N).view(num_rows, width)
    # Stable: equal scores keep the order of their item indices, and the filling stays behind all of them.
    best = scores_RC.sort(dim=1, descending=True, stable=True)
    kept = min(k, width)
    scores_RK[:, :kept] = best.values[:, :kept]
    items_RK[:, :kept] = items_RC.gather(1, best.indices[:, :kept])
