"""Full ranking against a naive loop in float64, bit for bit under every split into blocks and calls.

Both ways are held against it: the compiled one of CPUs, with and without the instructions that the host may have, and
the blockwise one of other devices, run on the CPU here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bm3_dgl.errors import DivergedError
from bm3_dgl.evaluate import blockwise
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


def full_sort(users_UD: Tensor, items_ID: Tensor, k: int, indptr: Tensor, masked: Tensor) -> TopK:
    """As `naive`, with all items' scores in one float64 tensor per user: for thousands of items."""
    top = TopK(torch.full((len(users_UD), k), -1), torch.full((len(users_UD), k), -torch.inf, dtype=torch.float64))
    for u, user_D in enumerate(users_UD.double()):
        terms_ID = items_ID.double() * user_D
        while terms_ID.shape[1] > 1:
            half = terms_ID.shape[1] // 2
            lower_ID, upper_ID = terms_ID.tensor_split([terms_ID.shape[1] - half], dim=1)
            terms_ID = torch.cat([lower_ID[:, :half] + upper_ID, lower_ID[:, half:]], 1)
        allowed = torch.ones(len(items_ID), dtype=torch.bool)
        allowed[masked[indptr[u] : indptr[u + 1]]] = False
        candidates = allowed.nonzero().squeeze(1)
        scores = terms_ID[candidates, 0]
        order = scores.argsort(descending=True, stable=True)[:k]
        top.items[u, : len(order)], top.scores[u, : len(order)] = candidates[order], scores[order]
    return top


def top_k_blockwise(
    users_UD: Tensor, items_ID: Tensor, k: int, *, masked_indptr: Tensor, masked_items: Tensor, block_users: int = 256
) -> TopK:
    """What `top_k` does for devices other than the CPU."""
    top = TopK(torch.full((len(users_UD), k), -1), torch.full((len(users_UD), k), -torch.inf, dtype=torch.float64))
    norm_U, max_norm = users_UD.double().norm(dim=1), float(items_ID.double().norm(dim=1).max())
    arguments = users_UD, items_ID, norm_U, max_norm, masked_indptr, masked_items, top.items, top.scores
    blockwise.rank_blockwise(*arguments, block_users=block_users, device="cpu")
    return top


def assert_equal(one: TopK, other: TopK) -> None:
    """Bit for bit."""
    assert torch.equal(one.items, other.items)
    assert torch.equal(one.scores, other.scores)


def check(users_UD: Tensor, items_ID: Tensor, k: int, indptr: Tensor, masked: Tensor) -> TopK:
    """Both ways equal the naive loop with every block size; returns it."""
    expected = naive(users_UD, items_ID, k, indptr, masked)
    for way in (top_k, top_k_blockwise):
        for block_users in (1, 7, 256):
            found = way(users_UD, items_ID, k, masked_indptr=indptr, masked_items=masked, block_users=block_users)
            assert_equal(found, expected)
    return expected


@pytest.mark.parametrize(
    "num_users, num_items, dim, k",
    [(20, 300, 8, 5), (9, 97, 7, 20), (5, 400, 64, 1), (4, 50, 1, 50), (3, 700, 33, 600), (2, 70, 4096, 3)],
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
    monkeypatch.setattr(blockwise, "_RUN_CELLS", cells)  # 64: every row is a run of its own
    indptr, masked = torch.tensor([0, 2, 2, 3]), torch.tensor([1, 0, 5])
    for items_ID in (torch.zeros(500, 16), embeddings(1, 500, 16)[1]):
        top = check(torch.zeros(3, 16), items_ID, 4, indptr, masked)
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
    indptr, masked = masks(12, 300, 5)
    monkeypatch.setattr(torch, "mm", worst)
    found = top_k_blockwise(users_UD, items_ID, 10, masked_indptr=indptr, masked_items=masked)
    assert_equal(found, naive(users_UD, items_ID, 10, indptr, masked))


def hard_table(kind: str, num_items: int, dim: int) -> tuple[Tensor, Tensor]:
    """Users and items on which a loose or a wrong bound shows."""
    users_UD, items_ID = embeddings(20, num_items, dim, seed=7)
    if kind == "uneven norms":  # trained tables; most items can be left out by their norm
        items_ID *= torch.logspace(1, -3, num_items)[torch.randperm(num_items), None]
    elif kind == "huge and tiny":
        items_ID *= 10.0 ** torch.randint(-30, 18, (num_items, 1))
        users_UD *= 10.0 ** torch.arange(-10, 10)[:, None]
    elif kind == "subnormal":
        users_UD, items_ID = users_UD * 1e-40, items_ID * 1e-42
    elif kind == "clusters":  # hundreds of items within the error of 8 bits, dozens equal
        items_ID = items_ID[torch.arange(num_items) % 7] + 0.003 * items_ID[torch.arange(num_items) % 211]
    elif kind == "one direction":  # the spread is a ten thousandth of what all items have in common
        items_ID = items_ID[:1] + 1e-4 * items_ID
    elif kind == "one component":
        items_ID[:, 1:] *= 1e-3
    elif kind == "tie across chunks":  # equal scores from rows of all norms, since users see two components only
        users_UD[:, 2:] = 0
        items_ID[:, :2] = torch.randint(-2, 3, (num_items, 2))
    return users_UD, items_ID


KINDS = ["uneven norms", "huge and tiny", "subnormal", "clusters", "one direction", "one component", "tie across chunks"]


@pytest.mark.parametrize("dim", [3, 16, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_hard_tables(kind: str, dim: int) -> None:
    """Thousands of items, so that limits rise over several chunks."""
    torch.manual_seed(0)
    users_UD, items_ID = hard_table(kind, 3333, dim)
    indptr, masked = masks(20, 3333, 200)
    for k in (1, 20, 1500):
        expected = full_sort(users_UD, items_ID, k, indptr, masked)
        assert_equal(top_k(users_UD, items_ID, k, masked_indptr=indptr, masked_items=masked), expected)
        assert_equal(top_k_blockwise(users_UD, items_ID, k, masked_indptr=indptr, masked_items=masked), expected)


def test_the_full_sort_is_the_naive_loop() -> None:
    users_UD, items_ID = embeddings(5, 60, 11)
    items_ID[30:] = items_ID[:30]
    indptr, masked = masks(5, 60, 20)
    assert_equal(full_sort(users_UD, items_ID, 50, indptr, masked), naive(users_UD, items_ID, 50, indptr, masked))


# Asks numba for a processor of 2013, which has no 8-bit products, in a process of its own as the choice is made once.
PLAIN_PROCESSOR = """
import sys
import numpy as np, torch
from bm3_dgl.evaluate.ranking import top_k
from bm3_dgl.evaluate.search import rank_users
case = {name: torch.from_numpy(array) for name, array in np.load(sys.argv[1], allow_pickle=False).items()}
top = top_k(case["users"], case["items"], 20, masked_indptr=case["indptr"], masked_items=case["masked"])
code = "".join(rank_users.inspect_asm().values())
assert "vpdpbusd" not in code and "zmm" not in code, "this is not the code of a plain processor"
np.savez(sys.argv[2], items=top.items.numpy(), scores=top.scores.numpy())
"""


def test_a_plain_processor_finds_the_same_bits(tmp_path: Path) -> None:
    users_UD, items_ID = embeddings(50, 2000, 37)
    items_ID[1000:] = items_ID[:1000] * (1 + 2.0**-23)
    indptr, masked = masks(50, 2000, 50)
    case = {"users": users_UD, "items": items_ID, "indptr": indptr, "masked": masked}
    np.savez(tmp_path / "case.npz", **{name: tensor.numpy() for name, tensor in case.items()})
    plain = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma", "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", PLAIN_PROCESSOR, str(tmp_path / "case.npz"), str(tmp_path / "top.npz")]
    subprocess.run(command, env={**os.environ, **plain}, check=True, timeout=200, cwd=Path(__file__).parents[3])
    with np.load(tmp_path / "top.npz", allow_pickle=False) as found:
        top = TopK(torch.from_numpy(found["items"]), torch.from_numpy(found["scores"]))
    assert_equal(top, full_sort(users_UD, items_ID, 20, indptr, masked))
    assert_equal(top, top_k(users_UD, items_ID, 20, masked_indptr=indptr, masked_items=masked))


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
    for threads in (1, 3):
        assert_equal(top_k(users_UD, items_ID, 20, masked_indptr=indptr, masked_items=masked, threads=threads), whole)
    for user in range(0, 150, 10):
        hidden = masked[indptr[user] : indptr[user + 1]]
        alone = top_k(users_UD[[user]], items_ID, 20, masked_indptr=torch.tensor([0, len(hidden)]), masked_items=hidden)
        assert_equal(alone, TopK(whole.items[[user]], whole.scores[[user]]))


def test_runs_keep_the_rectangle_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "_RUN_CELLS", 100)
    runs = list(blockwise._runs([10, 20, 30, 40, 500, 1, 1]))
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
