"""LightGCN propagation of whole tables: H = P E, shared by the ranks; its gradient is the same operator.

    P = 1/(L+1) sum_{l=0..L} A-hat^l  (+ identity on items),   A-hat = D^-1/2 A D^-1/2        equations (3), (4)

The identity is BM3's (its item residual); without it P is LightGCN's.

A-hat is symmetric and the identity diagonal, so P is symmetric and dE = P dH. The sum is taken by Horner's rule,
Y_0 = E, Y_{k+1} = E + A-hat Y_k, so one table of scratch serves any number of layers and the last layer is written
where it is wanted. Each rank computes its own rows; before a layer reads, all rows of the layer before must be there
(a barrier) and rows of other machines must have come (the halo exchange).

What neighbours read may be stored as bfloat16 (train.precision): half the bytes through memory and network. Sums, the
result, parameters and moments stay float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from bm3_dgl.config.schema import Objective, Precision
from bm3_dgl.graph.local import OTHER, Adjacency
from bm3_dgl.graph.store import GraphStore
from bm3_dgl.model.propagation.halo import HaloExchange
from bm3_dgl.model.propagation.kernels import copy_rows, gather_rows, lay_rows
from bm3_dgl.model.propagation.shares import Shares
from bm3_dgl.model.propagation.vectors import lanes_of
from bm3_dgl.types import ITEM, NODE_TYPES

_BLOCK_ROWS = 4096  # rows written between two calls of the last layer's consumer: 1 MB at d = 64, stays in cache

Rows = dict[str, torch.Tensor]  # node type -> this machine's rows (num_own, D), shared by its ranks
Emit = Callable[[str, int, int], np.ndarray]  # where rows first..stop-1 of a type are to be written
Done = Callable[[str, int, int, np.ndarray], None]  # they are written


class Propagator:
    """The operator P of one graph. COLLECTIVE to make and to call."""

    def __init__(
        self,
        store: GraphStore,
        shares: Shares,
        *,
        layers: int,
        width: int,
        objective: Objective,
        item_residual: bool,
        threads: int,
        precision: Precision = Precision.float32,
        gradients: bool = False,
    ) -> None:
        """gradients: whether `lay_gradient` and `consume` will be called."""
        self.layers = layers
        self._team = store.team
        self._shares = shares
        self._item_extra = float(item_residual)
        self._width, self._lanes = width, lanes_of(width)
        self._dtype = dtype_of(precision)
        self._adjacency = store.local.adjacency if layers else _without_edges(store.local.adjacency)
        self._halo = {ntype: HaloExchange(store, ntype) for ntype in NODE_TYPES}
        self._halo_rows = self._buffer(store, "halo", {ntype: len(store.local.halo[ntype]) for ntype in NODE_TYPES})
        # Layers write to two tables in turn. Forward, the gradient is one of them, since nobody needs it then; backward,
        # it is the base of every layer, and float32 writes to what forward gave out, which nobody needs any more.
        self._gradient = self._buffer(store, "gradient", store.local.num_own) if gradients else {}
        self._borrows = gradients and self._dtype == torch.float32
        own = range(num_scratch(layers, gradients=gradients, float32=self._dtype == torch.float32))
        self._scratch = [self._buffer(store, f"scratch{k}", store.local.num_own) for k in own]
        self._given_out: Rows = {}
        self._scale = self._scales(store, objective)
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def forward(self, source: Rows, out: Rows) -> dict[str, float]:
        """out = P source, float32; ends without a barrier. Returns the sum of squares of the own rows of out, per type.

        `consume` may write to out.
        """
        self._given_out = out
        current = source
        if self._dtype != torch.float32:
            current = self._gradient  # nobody needs it now
            for ntype in NODE_TYPES:
                self._in_blocks(ntype, functools.partial(copy_rows, _array(source[ntype]), _array(current[ntype])))
        borrowed = [self._gradient] if self._borrows else []
        return self._run(current, source, [*borrowed, *self._scratch], _into(out), None)

    def lay_gradient(self, ntype: str, source: torch.Tensor, weight: float, rows: torch.Tensor, grad: torch.Tensor) -> None:
        """Set the own rows of the gradient of one type: weight source + what has come for some of them.

        source: this machine's rows. rows: int64 (n,), counted from the first own row, repeated where met more than
        once; grad: (n, D).
        """
        first, stop = self._shares.own[ntype]
        unique, place = torch.unique(rows, return_inverse=True)
        total = torch.zeros(max(len(unique), 1), self._width).index_add_(0, place, grad).numpy()
        slot = np.full(stop - first, -1, np.int32)
        slot[unique.numpy()] = np.arange(len(unique), dtype=np.int32)
        arguments = _array(source), np.float32(weight)
        out = _array(self._gradient[ntype])
        self._in_blocks(ntype, lambda begin, end: lay_rows(*arguments, slot[begin - first : end - first], total, begin, out))

    def consume(self, consumer: Done) -> None:
        """P of the gradient, float32, handed block by block to `consumer` instead of being stored."""
        emit = lambda _, first, stop: np.empty((stop - first, self._width), np.float32)  # noqa: E731
        borrowed = [self._given_out] if self._borrows else []
        self._run(self._gradient, self._gradient, [*borrowed, *self._scratch], emit, consumer)

    def _buffer(self, store: GraphStore, name: str, rows: dict[str, int]) -> Rows:
        return {n: store.machine_buffer(f"{name}_{n}", (rows[n], self._width), self._dtype) for n in NODE_TYPES}

    def _run(self, current: Rows, base: Rows, targets: list[Rows], emit: Emit, done: Done | None) -> dict[str, float]:
        for layer in range(self.layers - 1):
            self._complete(current)
            target = targets[layer % 2]
            self._layer(current, base, 1.0, 0.0, 1.0, _into(target), None)
            current = target
        self._complete(current)
        mean = 1.0 / (self.layers + 1)
        return self._layer(current, base, mean, self._item_extra, mean, emit, done)

    def _complete(self, rows: Rows) -> None:
        """Wait until every rank has written its rows, and fetch those of other machines."""
        self._team.barrier()
        if self._team.ranks.num_machines > 1:
            for ntype in NODE_TYPES:
                self._halo[ntype].fetch(rows[ntype], self._halo_rows[ntype])
            self._team.barrier()

    def _layer(
        self, current: Rows, base: Rows, base_weight: float, item_extra: float, sum_weight: float, emit: Emit, done: Done | None
    ) -> dict[str, float]:
        """One layer of the own rows: base_weight (+ item_extra) base + sum_weight A-hat current. Returns sums of squares."""
        squares = {}
        for ntype in NODE_TYPES:
            other = OTHER[ntype]
            adjacency = self._adjacency[ntype]
            weight = base_weight + (item_extra if ntype == ITEM else 0.0)
            arguments = (
                adjacency.indptr, adjacency.columns, self._scale[ntype], self._scale[other],
                _array(current[other]), _array(self._halo_rows[other]), _array(base[ntype]),
                np.float32(weight), np.float32(sum_weight),
            )  # fmt: skip

            def block(first: int, stop: int, ntype: str = ntype, arguments: tuple = arguments) -> float:
                out = emit(ntype, first, stop)
                total = gather_rows(*arguments, first, stop, out, self._lanes)
                if done is not None:
                    done(ntype, first, stop, out)
                return total

            squares[ntype] = sum(self._in_blocks(ntype, block))
        return squares

    def _in_blocks(self, ntype: str, work: Callable[[int, int], Any]) -> list[Any]:
        """Call work(first, stop) for blocks of the own rows, by all threads of this rank."""
        first, stop = self._shares.own[ntype]
        starts = range(first, stop, _BLOCK_ROWS)
        stops = [min(start + _BLOCK_ROWS, stop) for start in starts]
        return list(self._pool.map(work, starts, stops) if self._pool else map(work, starts, stops))

    def _scales(self, store: GraphStore, objective: Objective) -> dict[str, np.ndarray]:
        """D^-1/2 of own rows, then halo rows, float32, per type; the reference code adds 1e-7 to the degree."""
        scales = {}
        for ntype in NODE_TYPES:
            degrees = torch.from_numpy(store.local.adjacency[ntype].degrees().astype(np.float32))[:, None]
            halo = store.machine_buffer(f"degree_{ntype}", (len(store.local.halo[ntype]), 1))
            if self._team.ranks.num_machines > 1:
                self._halo[ntype].fetch(degrees, halo)
                self._team.barrier()
            degree = torch.cat([degrees, halo]).squeeze(1).double()
            degree += 1e-7 if objective is Objective.reference else 0.0
            scales[ntype] = torch.where(degree > 0, degree.rsqrt(), 0.0).float().numpy()
        return scales


def _without_edges(adjacency: dict[str, Adjacency]) -> dict[str, Adjacency]:
    return {ntype: Adjacency(np.zeros_like(a.indptr), a.columns[:0]) for ntype, a in adjacency.items()}


def num_scratch(layers: int, *, gradients: bool, float32: bool) -> int:
    """Tables that layers need for one another besides those of the engine."""
    return min(max(layers - 1 - (gradients and float32), 0), 1 if gradients and float32 else 2)


def _into(tables: Rows) -> Emit:
    """Write rows to their place in tables."""
    arrays = {ntype: _array(rows) for ntype, rows in tables.items()}
    return lambda ntype, first, stop: arrays[ntype][first:stop]


def dtype_of(precision: Precision) -> torch.dtype:
    """Of what is stored in reduced precision."""
    return torch.bfloat16 if precision is Precision.bfloat16 else torch.float32


def _array(rows: torch.Tensor) -> np.ndarray:
    """The same memory as numpy has it: bfloat16 as uint16."""
    return rows.view(torch.int16).numpy().view(np.uint16) if rows.dtype == torch.bfloat16 else rows.numpy()
