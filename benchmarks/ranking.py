"""Exact top-k against the plain way: blockwise matmul + torch.topk over all items, with the same masks.

    python -m benchmarks.ranking --users 19445 --items 7050
    python -m benchmarks.ranking --users 192403 --items 63001 --k 20 --repeats 3
    python -m benchmarks.ranking --users 19445 --items 63001 --k 20 --table uneven

The plain way runs on the same threads with the block size that is best for it here, found on a part of the users. Prints
medians of runs taken in turn, their ratio, the share of the exact way's time that its products alone would take at the
best rate measured for them, and the peak memory above the inputs and the result, each measured in a child process of
its own (Linux). The plain way's order of near ties depends on its block size; `same` is the share of places where it
agrees with the exact answer.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from numba import njit
from torch import Tensor

from bm3_dgl.evaluate.ranking import top_k
from bm3_dgl.evaluate.tiles import GROUP_USERS, TILE_ITEMS, nominate

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
Shape = tuple[int, int, int, int, str]  # users, items, dim, masked items per user, table
Method = Callable[[Inputs, int, int], Tensor]

_EXACT_BLOCK = 256  # the default of evaluate.block_users
_PLAIN_BLOCKS = (64, 128, 256, 512, 1024, 2048)
_TRIAL_USERS = 4096
TABLES = ("even", "uneven", "clustered")


def make_inputs(num_users: int, num_items: int, dim: int, masked_per_user: int, table: str = "even") -> Inputs:
    """Random rows. Norms of items: within a factor of two; `uneven`: log-normal, as popularity makes them; `clustered`:
    64 centres with a spread of a twentieth of their norms, users near centres too."""
    generator = torch.Generator().manual_seed(1)
    users_UD = torch.randn(num_users, dim, generator=generator)
    items_ID = torch.randn(num_items, dim, generator=generator)
    if table == "even":
        items_ID *= 1 + torch.rand(num_items, 1, generator=generator)
    elif table == "uneven":
        items_ID *= torch.randn(num_items, 1, generator=generator).exp()
    else:
        centres_CD = torch.randn(64, dim, generator=generator)
        items_ID = centres_CD[torch.randint(64, (num_items,), generator=generator)] + 0.05 * items_ID
        users_UD = centres_CD[torch.randint(64, (num_users,), generator=generator)] + 0.3 * users_UD
    masked_indptr = torch.arange(num_users + 1) * masked_per_user
    return users_UD, items_ID, masked_indptr, torch.randint(num_items, (num_users * masked_per_user,), generator=generator)


def exact(inputs: Inputs, k: int, block_users: int) -> Tensor:
    users_UD, items_ID, indptr, masked = inputs
    return top_k(users_UD, items_ID, k, masked_indptr=indptr, masked_items=masked, block_users=block_users).items


def plain(inputs: Inputs, k: int, block_users: int) -> Tensor:
    users_UD, items_ID, indptr, masked = inputs
    items_UK = torch.empty(len(users_UD), k, dtype=torch.int64)
    buffer_BI = torch.empty(block_users, len(items_ID))
    for start in range(0, len(users_UD), block_users):
        users_BD = users_UD[start : start + block_users]
        scores_BI = torch.mm(users_BD, items_ID.T, out=buffer_BI[: len(users_BD)])
        offsets = indptr[start : start + len(users_BD) + 1]
        rows = torch.arange(len(users_BD)).repeat_interleave(offsets.diff())
        hidden = masked[int(offsets[0]) : int(offsets[-1])]
        scores_BI.view(-1).index_fill_(0, rows * len(items_ID) + hidden, -torch.inf)
        items_UK[start : start + block_users] = scores_BI.topk(k, dim=1).indices
    return items_UK


def measure(
    users: int, items: int, dim: int, k: int, repeats: int, *, masked: int = 8, table: str = "even"
) -> dict[str, float]:
    """Compare both ways on torch.get_num_threads() threads; medians of `repeats` runs taken in turn.

    plain_seconds, exact_seconds, ratio; gemm_fraction: the products' time at the best rate measured for them, over
    exact_seconds; peak_mib: of the exact way, plain_peak_mib; plain_block: users per block that suit the plain way best;
    same: share of places where both agree.
    """
    shape = (users, items, dim, masked, table)
    inputs, threads = make_inputs(*shape), torch.get_num_threads()
    exact(make_inputs(8, 4 * k, dim, 1), k, 8)  # compiles
    blocks: dict[Method, int] = {plain: best_block(inputs, k), exact: _EXACT_BLOCK}
    seconds: dict[Method, list[float]] = {plain: [], exact: []}
    results: dict[Method, Tensor] = {}
    for _ in range(repeats):
        for method in (plain, exact):
            start = time.perf_counter()
            results[method] = method(inputs, k, blocks[method])
            seconds[method].append(time.perf_counter() - start)
    slow, fast = statistics.median(seconds[plain]), statistics.median(seconds[exact])
    return {
        "plain_seconds": slow,
        "exact_seconds": fast,
        "ratio": slow / fast,
        "gemm_fraction": users * items * dim / product_rate(dim, threads) / fast,
        "peak_mib": peak_mib(exact, shape, k, blocks[exact], threads),
        "plain_peak_mib": peak_mib(plain, shape, k, blocks[plain], threads),
        "plain_block": blocks[plain],
        "same": float((results[plain] == results[exact]).double().mean()),
    }


def best_block(inputs: Inputs, k: int) -> int:
    """The block size with which the plain way ranks the first users fastest; the better of two runs each."""
    users_UD, items_ID, indptr, masked = inputs
    some = (users_UD[:_TRIAL_USERS], items_ID, indptr[: _TRIAL_USERS + 1], masked)
    seconds = {}
    for block_users in _PLAIN_BLOCKS:
        for _ in range(2):
            start = time.perf_counter()
            plain(some, k, block_users)
            seconds[block_users] = min(time.perf_counter() - start, seconds.get(block_users, float("inf")))
    return min(seconds, key=seconds.__getitem__)


def product_rate(dim: int, threads: int) -> float:
    """Multiply-adds per second of the 8-bit products alone, with all operands in the first cache; the best of five runs."""
    quads, groups, rounds = -(-dim // 4), 4, max(1, 10_000_000 // dim)

    def run(_: int) -> None:
        users_SQ, tiles_TQ = np.ones((groups * GROUP_USERS, quads), np.int32), np.ones((1, quads, TILE_ITEMS), np.int32)
        products(users_SQ, tiles_TQ, np.full(len(users_SQ), -(1 << 30), np.int32), np.zeros(GROUP_USERS, np.int64), rounds)

    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(6):  # the first compiles, and is never the best
            start = time.perf_counter()
            list(pool.map(run, range(threads)))
            best = min(best, time.perf_counter() - start)
    return threads * rounds * groups * GROUP_USERS * TILE_ITEMS * dim / best


@njit(nogil=True)
def products(users_SQ, tiles_TQ, starts_S, hits, rounds):  # type: ignore[no-untyped-def]
    """All users times the first tile, again and again; returns how many tiles had a hit."""
    found = 0
    for _ in range(rounds):
        for first in range(0, len(users_SQ), GROUP_USERS):
            found += nominate(users_SQ, first, tiles_TQ, 0, starts_S, hits)
    return found


def peak_mib(method: Method, shape: Shape, k: int, block_users: int, threads: int) -> float:
    """Most growth of the resident size during one call, less the int64 (and float64) result; sampled every 2 ms."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_grow, args=(sender, method, shape, k, block_users, threads))
    child.start()
    grown_bytes: int = receiver.recv()
    child.join()
    return (grown_bytes - shape[0] * k * (16 if method is exact else 8)) / 2**20


def _grow(sender: Connection, method: Method, shape: Shape, k: int, block_users: int, threads: int) -> None:
    torch.set_num_threads(threads)
    method(make_inputs(8, 4 * k, shape[2], 1), k, 8)  # loads libraries, starts threads
    inputs = make_inputs(*shape)
    before, samples, done = _resident_bytes(), [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.002):
            samples.append(_resident_bytes())

    sampler = threading.Thread(target=sample)
    sampler.start()
    method(inputs, k, block_users)
    done.set()
    sampler.join()
    sender.send(max(samples) - before)


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description="Time exact top-k ranking against matmul + torch.topk.")
    parser.add_argument("--users", type=int, default=19445)
    parser.add_argument("--items", type=int, default=7050)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--k", type=int, nargs="+", default=[20, 1000])
    parser.add_argument("--masked", type=int, default=8, help="masked items per user")
    parser.add_argument("--table", choices=TABLES, default="even")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{args.users} users x {args.items} items, D={args.dim}, {args.table} table, {args.threads} threads")
    print("    k   plain s   exact s  ratio  products  block  plain MiB  exact MiB      same")
    for k in args.k:
        row = measure(args.users, args.items, args.dim, k, args.repeats, masked=args.masked, table=args.table)
        print(f"{k:>5} {row['plain_seconds']:>9.3f} {row['exact_seconds']:>9.3f} {row['ratio']:>6.2f}", end="")
        print(f" {row['gemm_fraction']:>9.2f} {row['plain_block']:>6}", end="")
        print(f" {row['plain_peak_mib']:>10.0f} {row['peak_mib']:>10.0f} {row['same']:>9.6f}", flush=True)


if __name__ == "__main__":
    main()
