"""What this machine can do at most, on all cores: bytes/s from memory in order and by random rows, float32 products.

python -m benchmarks.ceiling
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numba
import numpy as np
import torch

_STREAM_FLOATS = 1 << 27  # 512 MiB an array: far more than any cache
_ROW = 64  # floats of a row: 256 bytes
_REPEATS = 5


@dataclass(frozen=True)
class Ceiling:
    """Best of several runs. Bytes/s: summing an array, a = b + s a (read and written bytes), summing random 256-byte
    rows of a table of Electronics' size. Operations/s: a square product, and the head's two (a batch of 8192 rows of 4096
    times a projector, and the gradient of that projector)."""

    cores: int
    sum_bytes: float
    triad_bytes: float
    gather_bytes: float
    gemm: float
    gemm_project: float
    gemm_project_back: float

    @property
    def bandwidth(self) -> float:
        """Bytes/s that a propagation is held against: it reads far more than it writes, and so does the sum."""
        return self.sum_bytes


def measure(*, rows: int = 255_404, batch: int = 8192, width: int = 4096) -> Ceiling:
    """rows: of the table that is gathered from."""
    cores = len(os.sched_getaffinity(0))
    numba.set_num_threads(min(cores, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(cores)
    total, triad = _streams()
    rng = np.random.default_rng(3)
    table = rng.random((rows, _ROW), dtype=np.float32)
    picks = rng.integers(0, rows, 4_000_000).astype(np.int32)
    gather = best(lambda: _gather(table, picks, cores))
    return Ceiling(
        cores=cores,
        sum_bytes=4 * _STREAM_FLOATS / total,
        triad_bytes=12 * _STREAM_FLOATS / triad,
        gather_bytes=len(picks) * (4 * _ROW + 4) / gather,
        gemm=_gemm(4096, 4096, 4096),
        gemm_project=_gemm(batch, width, 64),
        gemm_project_back=_gemm(64, batch, width),
    )


def _streams() -> tuple[float, float]:
    """Seconds of summing an array, and of a = b + s a."""
    a, b = np.ones(_STREAM_FLOATS, np.float32), np.ones(_STREAM_FLOATS, np.float32)
    return best(lambda: _sum(a)), best(lambda: _triad(a, b, np.float32(0.5)))


def best(run: Callable[[], object]) -> float:
    """Least seconds of a call; the first, which compiles, is not counted."""
    run()
    seconds = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _gemm(n: int, k: int, m: int) -> float:
    """Operations/s of (n, k) times (k, m)."""
    left, right = torch.rand(n, k), torch.rand(k, m)
    out = torch.empty(n, m)
    return 2 * n * k * m / best(lambda: torch.mm(left, right, out=out))


@numba.njit(parallel=True, fastmath=True)
def _sum(a: np.ndarray) -> np.floating:
    total = np.float32(0)
    for i in numba.prange(len(a)):
        total += a[i]
    return total


@numba.njit(parallel=True, fastmath=True)
def _triad(a: np.ndarray, b: np.ndarray, scale: np.float32) -> None:
    """a = b + scale a."""
    for i in numba.prange(len(a)):
        a[i] = b[i] + scale * a[i]


@numba.njit(parallel=True, fastmath=True)
def _gather(table: np.ndarray, picks: np.ndarray, parts: int) -> np.ndarray:
    """Sum of the picked rows, in so many parts."""
    sums = np.zeros((parts, _ROW), np.float32)
    for part in numba.prange(parts):
        total = np.zeros(_ROW, np.float32)
        for i in range(part * len(picks) // parts, (part + 1) * len(picks) // parts):
            row = picks[i]
            for j in range(_ROW):
                total[j] += table[row, j]
        sums[part] = total
    return sums


def main() -> None:
    found = measure()
    print(json.dumps(asdict(found) | {"bandwidth": found.bandwidth}, indent=2))


if __name__ == "__main__":
    main()
