"""Adam for tables: the parameter rows, their moments beside them in the store, each row written by its owner alone.

Gradients are sums over the ranks of each rank's share of the mean loss: a row weighs the same whatever rank met it and
however often, as under DDP (DGL's own sparse optimisers take the mean over a row's occurrences instead).
"""

from __future__ import annotations

import math

import numpy as np
import torch

from bm3_dgl.graph.store import GraphStore, Table
from bm3_dgl.model.propagation.kernels import adam_rows, adam_slots, adam_sparse

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # as torch.optim.Adam


class TableAdam:
    """One table's optimiser. Dense: all own rows move at every step. Sparse: touched rows, each with its step count.

    first, stop: the rows of the local table that this rank owns. COLLECTIVE to make.
    """

    def __init__(self, store: GraphStore, table: Table, own: tuple[int, int], *, sparse: bool) -> None:
        width = table.local.shape[1]
        self.table = table
        self.own = own
        self._moment = store.table(f"{table.name}.moment", table.ntype, width)
        self._variance = store.table(f"{table.name}.variance", table.ntype, width)
        self._steps = store.table(f"{table.name}.steps", table.ntype, 1) if sparse else None
        self._views = tuple(t.local.numpy() for t in (table, self._moment, self._variance))
        # Where it is a list, each call adds the sum of squares of its gradient (train/watch.py).
        self.squares: list[float] | None = None

    @property
    def state(self) -> list[Table]:
        """The table and everything that belongs to its optimiser."""
        return [t for t in (self.table, self._moment, self._variance, self._steps) if t is not None]

    def step_dense(self, first: int, stop: int, grad: np.ndarray, step: int, learning_rate: float) -> None:
        """Dense Adam on local rows first..stop-1; grad (stop - first, width); step counts from 1."""
        rows = slice(first, stop)
        self._note(grad)
        adam_rows(*(view[rows] for view in self._views), grad, *_scalars(step, learning_rate))

    def step_rows(self, rows: torch.Tensor, grad: torch.Tensor, step: int, learning_rate: float) -> None:
        """One step from gradients of some rows: rows int64 (n,), counted from the first own row, repeated where met
        more than once; grad (n, width). Dense tables move their other own rows too."""
        first, stop = self.own
        unique, place = torch.unique(rows, return_inverse=True)
        total = torch.zeros(max(len(unique), 1), grad.shape[1]).index_add_(0, place, grad).numpy()
        self._note(total)
        own = tuple(view[first:stop] for view in self._views)
        if self._steps is not None:
            steps = self._steps.local.numpy()[first:stop]
            adam_sparse(*own, steps, unique.numpy(), total, learning_rate, BETA1, BETA2, EPS)
            return
        slot = np.full(stop - first, -1, np.int32)
        slot[unique.numpy()] = np.arange(len(unique), dtype=np.int32)
        adam_slots(*own, slot, total, *_scalars(step, learning_rate))

    def _note(self, grad: np.ndarray) -> None:
        if self.squares is not None:
            self.squares.append(float(np.square(grad, dtype=np.float64).sum()))  # threads append, nobody adds to a sum


def _scalars(step: int, learning_rate: float) -> tuple[np.float32, ...]:
    step_size = learning_rate / (1 - BETA1**step)
    root_correction = math.sqrt(1 - BETA2**step)
    return tuple(np.float32(x) for x in (step_size, BETA1, BETA2, root_correction, EPS))
