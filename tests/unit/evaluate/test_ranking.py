"""Full ranking against a naive loop in float64, bit for bit under every split into blocks and calls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bm3_dgl.errors import DivergedError
from bm3_dgl.evaluate import ranking
from bm3_dgl.evaluate.ranking import TopK, top_k


def embeddings(num_users: int, num_items: int, dim: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_users, dim, generator=generator), torch.randn(num_items, dim, generator=generator)


def masks(num_users: int, num_items: int, most: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """CSR of 0..most masked items per user, unordered."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, most + 1, (num_users,), generator=generator)
    rows = [torch.randperm(num_items, generator=generator)[: int(count)] for count in counts]
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]), torch.cat(rows)


def naive(users_UD: Tensor, items_ID: Tensor, k: int, indptr: Tensor, masked: Tensor) -> TopK:
    """A Python loop: pairwise float64 sum of each pair's products, explicit sort with ties by index."""

    def dot(user: list[float], item: list[float]) -> float:
        terms = [a * b for a, b in zip(user, item, strict=True)]
        while len(terms) > 1:
            half = len(terms) // 2
            lower, upper = terms[: len(terms) - half], terms[len(terms) - half :]
            terms = [a + b for a, b in zip(lower, upper, strict=False)] + lower[half:]
        return terms[0]

    top = TopK(torch.full((len(users_UD), k), -1), torch.full((len(users_UD), k), -torch.inf, dtype=torch.float64))
    items = items_ID.double().tolist()
    for u, user in enumerate(users_UD.double().tolist()):
        hidden = set(masked[indptr[u] : indptr[u + 1]].tolist())
        best = sorted((-dot(user, item), i) for i, item in enumerate(items) if i not in hidden)[:k]
        for place, (negative, item_idx) in enumerate(best):
            top.items[u, place], top.scores[u, place] = item_idx, -negative
    return top


def assert_equal(one: TopK, other: TopK) -> None:
    """Bit for bit."""
    assert torch.equal(one.items, other.items)
    assert torch.equal(one.scores, other.scores)


def check(users_UD: Tensor, items_ID: Tensor, k: int, indptr: Tensor, masked: Tensor) -> TopK:
    """top_k equals the naive loop with every block size; returns it."""
    expected = naive(users_UD, items_ID, k, indptr, masked)
    for block_users in (1, 7, 256):
        assert_equal(top_k(users_UD, items_ID, k, masked_indptr=indptr, masked_items=masked, block_users=block_users), expected)
    return expected


@pytest.mark.parametrize(
    "num_users, num_items, dim, k", [(20, 300, 8, 5), (9, 97, 7, 20), (5, 400, 64, 1), (4, 50, 1, 50), (3, 700, 33, 600)]
)
def test_equals_the_naive_loop(num_users: int, num_items: int, dim: int, k: int) -> None:
    check(*embeddings(num_users, num_items, dim), k, *masks(num_users, num_items, 40))


def test_identical_items_are_ranked_by_index() -> None:
    users_UD, items_ID = embeddings(12, 200, 16)
    items_ID[:] = items_ID[torch.arange(200) % 3]  # three vectors, 66 or 67 copies of each
    top = check(users_UD, items_ID, 20, *masks(12, 200, 9))
    assert (top.scores[:, :1] == top.scores).all(), "the 20 best are copies of one item"
    assert (top.items.diff() > 0).all()


@pytest.mark.parametrize("cells", [1 << 20, 64])
def test_all_zero_embeddings_rank_by_index(monkeypatch: pytest.MonkeyPatch, cells: int) -> None:
    monkeypatch.setattr(ranking, "_RUN_CELLS", cells)  # 64: every row is a run of its own
    indptr, masked = torch.tensor([0, 2, 2, 3]), torch.tensor([1, 0, 5])
    top = check(torch.zeros(3, 16), torch.zeros(500, 16), 4, indptr, masked)
    assert top.items.tolist() == [[2, 3, 4, 5], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_near_ties_at_float32_resolution() -> None:
    """Scores that differ by a part in 2^30: the float32 GEMM sees one tie, or the wrong order."""
    generator = torch.Generator().manual_seed(3)
    users_UD, base_D = torch.randn(16, 64, generator=generator), torch.randn(64, generator=generator)
    items_ID = base_D.repeat(300, 1)
    items_ID[torch.arange(300), torch.randint(64, (300,), generator=generator)] *= 1 + 2.0**-23
    indptr, masked = masks(16, 300, 5)
    top = check(users_UD, items_ID, 10, indptr, masked)
    coarse = (users_UD @ items_ID.T).topk(10).indices
    assert not torch.equal(top.items, coarse), "the case is too easy: float32 alone ranks it right"


def test_a_winner_that_float32_puts_last() -> None:
    """Cancellation: each exact score is tiny against the terms, so the GEMM's errors reorder everything."""
    generator = torch.Generator().manual_seed(4)
    half_UD, half_ID = torch.randn(8, 32, generator=generator), torch.randn(250, 32, generator=generator)
    jitter_ID = half_ID * (1 + 2.0**-22 * torch.randint(-3, 4, half_ID.shape, generator=generator))
    users_UD, items_ID = torch.cat([half_UD, -half_UD], 1), torch.cat([half_ID, jitter_ID], 1)
    check(users_UD, items_ID, 10, *masks(8, 250, 5))


def test_more_places_than_candidates() -> None:
    users_UD, items_ID = embeddings(3, 6, 4)
    top = check(users_UD, items_ID, 10, torch.tensor([0, 0, 4, 10]), torch.tensor([0, 1, 2, 3, 5, 4, 3, 2, 1, 0]))
    assert ((top.items >= 0).sum(1)).tolist() == [6, 2, 0], "the last user has every item masked"
    assert (top.scores[top.items < 0] == -torch.inf).all()


def test_fewer_groups_than_places() -> None:
    users_UD, items_ID = embeddings(2, 6, 4)
    assert ((check(users_UD, items_ID, 40, *masks(2, 6, 3)).items >= 0).sum(1) >= 3).all()


def test_the_worst_gemm_that_the_error_bound_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every score is off by up to 64 roundings of |u| |i|: the nominated items still hold the k best."""
    generator = torch.Generator().manual_seed(5)

    def worst(users_BD: Tensor, items_DW: Tensor, *, out: Tensor) -> Tensor:
        users, items = users_BD.double(), items_DW.double()
        sign = 1 - 2.0 * torch.randint(2, out.shape, generator=generator)
        error = 64 * 2.0**-24 * users.norm(dim=1, keepdim=True) * items.norm(dim=0)
        return out.copy_(users @ items + sign * error)

    users_UD, items_ID = embeddings(12, 300, 64)
    items_ID = items_ID[:1] + 2.0**-18 * items_ID  # many scores lie within one such error
    monkeypatch.setattr(torch, "mm", worst)
    check(users_UD, items_ID, 10, *masks(12, 300, 5))


def test_repeated_and_int32_masks() -> None:
    users_UD, items_ID = embeddings(2, 40, 8)
    masked = torch.tensor([3, 3, 9, 0, 0], dtype=torch.int32)
    top = check(users_UD, items_ID, 40, torch.tensor([0, 3, 5]), masked)
    assert ((top.items >= 0).sum(1)).tolist() == [38, 39]


def test_no_users_or_no_items() -> None:
    users_UD, items_ID = embeddings(2, 5, 4)
    nobody, nothing = torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    assert top_k(users_UD[:0], items_ID, 3, masked_indptr=nobody, masked_items=nothing).items.shape == (0, 3)
    top = top_k(users_UD, items_ID[:0], 3, masked_indptr=nobody.repeat(3), masked_items=nothing)
    assert (top.items == -1).all() and (top.scores == -torch.inf).all()


def test_calls_blocks_and_threads_change_no_bit() -> None:
    """A larger case than the naive loop can take, with near ties, against one user per call."""
    users_UD, items_ID = embeddings(150, 3000, 64)
    items_ID[1500:] = items_ID[:1500] * (1 + 2.0**-23)
    indptr, masked = masks(150, 3000, 50)
    whole = top_k(users_UD, items_ID, 20, masked_indptr=indptr, masked_items=masked)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert_equal(top_k(users_UD, items_ID, 20, masked_indptr=indptr, masked_items=masked, block_users=64), whole)
    finally:
        torch.set_num_threads(threads)
    for user in range(0, 150, 10):
        hidden = masked[indptr[user] : indptr[user + 1]]
        alone = top_k(users_UD[[user]], items_ID, 20, masked_indptr=torch.tensor([0, len(hidden)]), masked_items=hidden)
        assert_equal(alone, TopK(whole.items[[user]], whole.scores[[user]]))


def test_runs_keep_the_rectangle_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "_RUN_CELLS", 100)
    runs = list(ranking._runs([10, 20, 30, 40, 500, 1, 1]))
    assert [(run.start, run.stop) for run in runs] == [(0, 3), (3, 4), (4, 5), (5, 7)]


@pytest.mark.parametrize("kind, value", [("user", torch.nan), ("item", torch.inf)])
def test_embeddings_that_are_not_finite(kind: str, value: float) -> None:
    users_UD, items_ID = embeddings(10, 30, 4)
    (users_UD if kind == "user" else items_ID)[8, 2] = value
    with pytest.raises(DivergedError, match=f"embedding of {kind} 8 is not finite"):
        top_k(users_UD, items_ID, 3, masked_indptr=torch.zeros(11).long(), masked_items=torch.zeros(0).long(), block_users=4)


def test_scores_beyond_float32() -> None:
    users_UD, items_ID = embeddings(2, 30, 4)
    with pytest.raises(DivergedError, match="overflow float32"):
        top_k(users_UD * 1e25, items_ID * 1e25, 3, masked_indptr=torch.zeros(3).long(), masked_items=torch.zeros(0).long())


@pytest.mark.parametrize("item", [-1, 30])
def test_masked_items_out_of_range(item: int) -> None:
    users_UD, items_ID = embeddings(1, 30, 4)
    with pytest.raises(AssertionError, match=r"must lie in 0\.\.29"):
        top_k(users_UD, items_ID, 3, masked_indptr=torch.tensor([0, 1]), masked_items=torch.tensor([item]))
