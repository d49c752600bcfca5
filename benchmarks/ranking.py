"""Exact top-k against the plain way: blockwise matmul + torch.topk over all items, with the same masks.

    python -m benchmarks.ranking --users 19445 --items 7050
    python -m benchmarks.ranking --users 192403 --items 63001 --repeats 1

Prints medians of runs taken in turn, their ratio, and the peak memory above the inputs and the result, each measured
in a child process of its own (Linux). On a busy machine compare with --threads 1: many short parallel loops wait for
the slowest thread. The plain way's order of near ties depends on its block size; `same` is the share of
places where it agrees with the exact answer.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch import Tensor

from bm3_dgl.evaluate.ranking import top_k

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
Method = Callable[[Inputs, int, int], Tensor]


def make_inputs(num_users: int, num_items: int, dim: int, masked_per_user: int) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    users_UD = torch.randn(num_users, dim, generator=generator)
    # Norms differ between items, as popularity makes them.
    items_ID = torch.randn(num_items, dim, generator=generator) * (1 + torch.rand(num_items, 1, generator=generator))
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


def peak_mib(method: Method, shape: tuple[int, int, int, int], k: int, block_users: int, threads: int) -> float:
    """Most growth of the resident size during one call, less the int64 (and float64) result; sampled every 2 ms."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(sender, method, shape, k, block_users, threads))
    child.start()
    grown_bytes: int = receiver.recv()
    child.join()
    return (grown_bytes - shape[0] * k * (16 if method is exact else 8)) / 2**20


def _measure(
    sender: Connection, method: Method, shape: tuple[int, int, int, int], k: int, block_users: int, threads: int
) -> None:
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
    parser.add_argument("--block-users", type=int, default=256)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape = (args.users, args.items, args.dim, args.masked)
    inputs = make_inputs(*shape)
    print(f"{args.users} users x {args.items} items, D={args.dim}, {args.threads} threads, blocks of {args.block_users}")
    print(f"{'k':>5} {'plain s':>9} {'exact s':>9} {'ratio':>6} {'plain MiB':>10} {'exact MiB':>10} {'same':>9}")
    for k in args.k:
        seconds: dict[Method, list[float]] = {plain: [], exact: []}
        results: dict[Method, Tensor] = {}
        for _ in range(args.repeats):
            for method in (plain, exact):
                start = time.perf_counter()
                results[method] = method(inputs, k, args.block_users)
                seconds[method].append(time.perf_counter() - start)
        slow, fast = statistics.median(seconds[plain]), statistics.median(seconds[exact])
        peaks = [peak_mib(method, shape, k, args.block_users, args.threads) for method in (plain, exact)]
        same = float((results[plain] == results[exact]).double().mean())
        print(f"{k:>5} {slow:>9.3f} {fast:>9.3f} {slow / fast:>6.2f} {peaks[0]:>10.0f} {peaks[1]:>10.0f} {same:>9.6f}")


if __name__ == "__main__":
    main()
