"""Recall and NDCG against values by hand, a naive loop, and ranx."""

from __future__ import annotations

import math
import random

import pytest
import torch
from ranx import Qrels, Run, evaluate
from torch import Tensor

from bm3_dgl.errors import DataError
from bm3_dgl.evaluate import metrics
from bm3_dgl.evaluate.metrics import per_user_metrics, ranking_metrics

CUTOFFS = [1, 5, 10, 20]


def csr(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    indptr = torch.tensor([0] + [len(row) for row in rows]).cumsum(0)
    return indptr, torch.tensor([item for row in rows for item in row], dtype=torch.int64)


def case(num_users: int, num_items: int, seed: int, most_held_out: int = 30) -> tuple[list[list[int]], list[list[int]]]:
    """Random ranked lists, some of them short, and 1..most held-out items per user."""
    rng = random.Random(seed)
    ranked = [rng.sample(range(num_items), rng.choice([20, 20, 7, 0])) for _ in range(num_users)]
    truth = [rng.sample(range(num_items), rng.choice([1, 1, 2, 5, most_held_out])) for _ in range(num_users)]
    return ranked, truth


def padded(ranked: list[list[int]], width: int = 20) -> Tensor:
    return torch.tensor([row + [-1] * (width - len(row)) for row in ranked], dtype=torch.int64).view(-1, width)


def naive(ranked: list[int], truth: list[int], cutoff: int) -> tuple[float, float]:
    held_out = set(truth)
    recall = sum(item in held_out for item in ranked[:cutoff]) / len(held_out)
    dcg = sum(1 / math.log2(rank + 1) for rank, item in enumerate(ranked[:cutoff], 1) if item in held_out)
    return recall, dcg / sum(1 / math.log2(rank + 1) for rank in range(1, min(len(held_out), cutoff) + 1))


def test_by_hand() -> None:
    top, (indptr, items) = torch.tensor([[4, 2, 9], [7, 0, -1]]), csr([[9, 4, 1, 5], [3]])
    values = ranking_metrics(top, indptr, items, [1, 3])
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert values["recall@1"] == pytest.approx((1 / 4 + 0) / 2)
    assert values["recall@3"] == pytest.approx((2 / 4 + 0) / 2)
    assert values["ndcg@1"] == pytest.approx(1 / 2), "one of one possible hit, though four are held out"
    assert values["ndcg@3"] == pytest.approx((1 + 1 / 2) / ideal / 2)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("block_cells", [1, 1 << 20])
def test_equals_the_naive_loop(monkeypatch: pytest.MonkeyPatch, seed: int, block_cells: int) -> None:
    monkeypatch.setattr(metrics, "_BLOCK_CELLS", block_cells)
    ranked, truth = case(60, 80, seed)
    values = per_user_metrics(padded(ranked), *csr(truth), CUTOFFS)
    assert list(values) == [f"{name}@{cutoff}" for name in ("recall", "ndcg") for cutoff in CUTOFFS]
    for cutoff in CUTOFFS:
        expected = torch.tensor([naive(*pair, cutoff) for pair in zip(ranked, truth, strict=True)], dtype=torch.float64)
        torch.testing.assert_close(values[f"recall@{cutoff}"], expected[:, 0], rtol=1e-14, atol=0)
        torch.testing.assert_close(values[f"ndcg@{cutoff}"], expected[:, 1], rtol=1e-14, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_equals_ranx(seed: int) -> None:
    ranked, truth = case(50, 60, seed)
    for row in ranked:
        row += [1000] * (not row)  # ranx refuses an empty list; nobody has item 1000
    qrels = Qrels({f"u{u}": {f"i{item}": 1 for item in row} for u, row in enumerate(truth)})
    run = Run({f"u{u}": {f"i{item}": 100.0 - place for place, item in enumerate(row)} for u, row in enumerate(ranked)})
    names = [f"{name}@{cutoff}" for name in ("recall", "ndcg") for cutoff in CUTOFFS]
    expected = evaluate(qrels, run, names)
    values = ranking_metrics(padded(ranked), *csr(truth), CUTOFFS)
    assert values == pytest.approx({name: float(expected[name]) for name in names}, rel=1e-9)


def test_padding_is_no_hit() -> None:
    """-1 of user 1 must not read as the largest item of user 0."""
    values = per_user_metrics(torch.tensor([[0, 1], [-1, -1]]), *csr([[5], [5]]), [2])
    assert values["recall@2"].tolist() == [0.0, 0.0]


def test_users_without_held_out_items_are_not_counted() -> None:
    top, (indptr, items) = torch.tensor([[0], [1], [2]]), csr([[0], [], [1]])
    assert torch.isnan(per_user_metrics(top, indptr, items, [1])["ndcg@1"]).tolist() == [False, True, False]
    assert ranking_metrics(top, indptr, items, [1]) == {"recall@1": 0.5, "ndcg@1": 0.5}


def test_repeated_held_out_items_count_once() -> None:
    assert ranking_metrics(torch.tensor([[3, 0]]), *csr([[3, 3, 1]]), [2])["recall@2"] == 0.5


def test_order_of_users_changes_no_bit() -> None:
    ranked, truth = case(500, 100, 9)
    order = list(range(500))
    random.Random(1).shuffle(order)
    shuffled = ranking_metrics(padded([ranked[u] for u in order]), *csr([truth[u] for u in order]), CUTOFFS)
    assert shuffled == ranking_metrics(padded(ranked), *csr(truth), CUTOFFS)


def test_nobody_to_evaluate() -> None:
    for rows in ([], [[]]):
        with pytest.raises(DataError, match="nothing to evaluate"):
            ranking_metrics(padded([[]] * len(rows)), *csr(rows), [20])


def test_cutoff_beyond_the_lists() -> None:
    with pytest.raises(AssertionError, match=r"cutoffs must lie in 1\.\.20"):
        ranking_metrics(padded([[1]]), *csr([[1]]), [21])
