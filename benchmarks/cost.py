"""The cost model: bytes and operations of one step of the exact engine on one machine, from counts alone.

docs/BENCHMARKS.md explains the lines; the suite prints them beside the measured phases. Numbers are of all ranks
together. Everything about an item alone is computed once for each distinct item of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.ceiling import Ceiling

# Bytes of a stored value in the rows that edges read (under train.precision's default, float32), and in the tables.
ROW_VALUE_BYTES = 4
_TABLE_BYTES, _INDEX_BYTES = 4, 4


@dataclass(frozen=True)
class Work:
    """Bytes that must be moved between memory and cores, and float32 operations."""

    num_bytes: float
    operations: float = 0.0

    def seconds(self, ceiling: Ceiling) -> float:
        """The least time on this machine: memory at its streaming speed, or products at their peak."""
        return max(self.num_bytes / ceiling.bandwidth, self.operations / ceiling.gemm)


@dataclass(frozen=True)
class Shape:
    """What the cost of a step follows from. batch: pairs of the whole batch; distinct: their items, each counted once;
    widths: of each modality's raw features; residual: whether there are free rows per item."""

    users: int
    items: int
    train: int
    batch: int
    distinct: float
    widths: tuple[int, ...]
    residual: bool = True
    layers: int = 2
    dim: int = 64

    @property
    def rows(self) -> int:
        return self.users + self.items


def propagation_bytes(shape: Shape, value_bytes: int = ROW_VALUE_BYTES) -> float:
    """One pass over all layers: every directed edge reads a row and its index, every row reads its base and is written."""
    edges = 2 * shape.train * (shape.dim * value_bytes + _INDEX_BYTES)
    rows = shape.rows * shape.dim * (_TABLE_BYTES + value_bytes)
    return shape.layers * (edges + rows)


def step_work(shape: Shape) -> dict[str, Work]:
    """Phase of a step -> its work. Names are those of the job's phases."""
    modalities, dim = len(shape.widths), shape.dim
    raw_values = shape.distinct * sum(shape.widths)
    rows = shape.batch + shape.distinct * (1 + modalities)  # users of pairs, items, modalities of items
    project, predict = 2 * raw_values * dim, 2 * rows * dim * dim
    free = shape.items * dim * modalities if shape.residual else 0
    # Adam reads the parameter and two moments, and writes them; a row's gradient comes from the cache.
    adam = 6 * _TABLE_BYTES * shape.rows * dim
    return {
        "propagate": Work(propagation_bytes(shape)),
        "features": Work(8.0 * raw_values),  # read, and written as the batch's matrix
        "head": Work(4.0 * raw_values + 24.0 * rows * dim, project + predict),
        "backward": Work(4.0 * raw_values + 40.0 * rows * dim, project + 2 * predict),
        "propagate_back": Work(propagation_bytes(shape) + adam),
        "optimizer": Work(6.0 * _TABLE_BYTES * free),
    }


def expected_distinct(degrees: np.ndarray, batch: int) -> float:
    """Distinct items of `batch` pairs drawn from interactions in which items stand `degrees` times."""
    return float(-np.expm1(-batch * (degrees / degrees.sum())).sum())


def bandwidth_fraction(shape: Shape, phases: dict[str, float], ceiling: Ceiling) -> float:
    """Bytes of both propagations with their Adam, over their measured seconds, over the machine's bytes/s."""
    work, names = step_work(shape), ("propagate", "propagate_back")
    seconds = sum(phases[name] for name in names)
    return sum(work[name].num_bytes for name in names) / seconds / ceiling.bandwidth


def gemm_fraction(shape: Shape, phases: dict[str, float], ceiling: Ceiling) -> float:
    """Operations of the head, forward and backward, over their measured seconds, over the peak of a square product."""
    work, names = step_work(shape), ("head", "backward")
    seconds = sum(phases[name] for name in names)
    return sum(work[name].operations for name in names) / seconds / ceiling.gemm
