"""One propagation of a whole graph: our kernel against the library's, with the same result, in turn in one run.

    python -m benchmarks.propagation                             # a graph of Amazon Baby's size
    python -m benchmarks.propagation --users 192403 --items 63001 --edges 1350000

One thread. `torch CSR`: a sparse product per direction, with nodes scaled before and after and the base added, as one
would write it. Prints medians in ms and the ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
import torch

from bm3_dgl.model.propagation.kernels import gather_rows
from bm3_dgl.model.propagation.vectors import lanes_of


def make_graph(users: int, items: int, edges: int) -> sp.csr_matrix:
    """Random interactions with heavy-tailed items, without repeats."""
    generator = np.random.default_rng(1)
    share = 1.0 / np.arange(1, items + 1) ** 0.8
    drawn = np.stack([generator.integers(0, users, edges), generator.choice(items, edges, p=share / share.sum())])
    pairs = np.unique(drawn, axis=1)
    return sp.csr_matrix((np.ones(pairs.shape[1], np.float32), tuple(pairs)), (users, items))


def ours(matrix: sp.csr_matrix, x: np.ndarray, base: np.ndarray) -> Callable[[], np.ndarray]:
    rows = matrix.shape[0]
    out = np.empty_like(base)
    indptr, indices = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32)
    scales = root(matrix, 1), root(matrix, 0)
    none = np.empty((0, x.shape[1]), np.float32)
    half, lanes = np.float32(0.5), lanes_of(x.shape[1])

    def run() -> np.ndarray:
        gather_rows(indptr, indices, *scales, x, none, base, half, half, 0, rows, out, lanes)
        return out

    return run


def library(matrix: sp.csr_matrix, x: np.ndarray, base: np.ndarray) -> Callable[[], np.ndarray]:
    parts = (torch.from_numpy(matrix.indptr), torch.from_numpy(matrix.indices), torch.from_numpy(matrix.data))
    csr = torch.sparse_csr_tensor(*parts, size=matrix.shape)
    scale, other = (torch.from_numpy(root(matrix, axis))[:, None] for axis in (1, 0))
    x_t, base_t = torch.from_numpy(x), torch.from_numpy(base)
    return lambda: (0.5 * base_t + 0.5 * scale * (csr @ (other * x_t))).numpy()


def root(matrix: sp.csr_matrix, axis: int) -> np.ndarray:
    degree = np.asarray(matrix.sum(axis)).ravel()
    return (1.0 / np.sqrt(np.maximum(degree, 1))).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("users", 19445), ("items", 7050), ("edges", 118551), ("dim", 64), ("repeats", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    matrix = make_graph(arguments.users, arguments.items, arguments.edges)
    generator = np.random.default_rng(2)
    user, item = (generator.standard_normal((n, arguments.dim)).astype(np.float32) for n in matrix.shape)
    transposed = matrix.T.tocsr()
    methods = {
        name: (make(matrix, item, user), make(transposed, user, item))
        for name, make in (("ours", ours), ("torch CSR", library))
    }
    results = [[run().copy() for run in pair] for pair in methods.values()]
    for mine, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(arguments.repeats):
        for name, pair in methods.items():
            began = time.perf_counter()
            for run in pair:
                run()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) * 1e3 for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:10} {value:9.2f} ms")
    print(f"ratio      {medians['torch CSR'] / medians['ours']:9.2f}")


if __name__ == "__main__":
    main()
