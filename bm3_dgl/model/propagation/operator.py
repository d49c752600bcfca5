"""LightGCN propagation of whole tables: H = P E, shared by the ranks; its gradient is the same operator.

    P = 1/(L+1) sum_{l=0..L} A-hat^l  (+ identity on items),   A-hat = D^-1/2 A D^-1/2        equations (3), (4)

A-hat is symmetric and the identity diagonal, so P is symmetric and dE = P dH. The sum is taken by Horner's rule,
Y_0 = E, Y_{k+1} = E + A-hat Y_k, so one table of scratch serves any number of layers and the last layer is written
where it is wanted. Each rank computes its own rows; before a layer reads, all rows of the layer before must be there
(a barrier) and rows of other machines must have come (the halo exchange).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from bm3_dgl.config.schema import Objective
from bm3_dgl.graph.local import OTHER, Adjacency
from bm3_dgl.graph.store import GraphStore
from bm3_dgl.model.propagation.halo import HaloExchange
from bm3_dgl.model.propagation.kernels import gather_rows
from bm3_dgl.model.propagation.shares import Shares
from bm3_dgl.types import ITEM, NODE_TYPES

_BLOCK_ROWS = 4096  # rows written between two calls of the last layer's consumer: 1 MB at d = 64, stays in cache

Rows = dict[str, torch.Tensor]  # node type -> this machine's rows (num_own, D), shared by its ranks
Emit = Callable[[str, int, int], np.ndarray]  # where rows first..stop-1 of a type are to be written
Done = Callable[[str, int, int, np.ndarray], None]  # they are written


class Propagator:
    """The operator P of one graph. COLLECTIVE to make and to call."""

    def __init__(
        self, store: GraphStore, shares: Shares, *, layers: int, width: int, objective: Objective, threads: int
    ) -> None:
        self.layers = layers
        self._team = store.team
        self._shares = shares
        self._adjacency = store.local.adjacency if layers else _without_edges(store.local.adjacency)
        self._halo = {ntype: HaloExchange(store, ntype) for ntype in NODE_TYPES}
        self._halo_rows = {
            ntype: store.machine_buffer(f"halo_{ntype}", (len(store.local.halo[ntype]), width)) for ntype in NODE_TYPES
        }
        self._scale = self._scales(store, objective)
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def forward(self, source: Rows, scratch: Rows, out: Rows) -> dict[str, float]:
        """out = P source; ends without a barrier. Returns the sum of squares of the own rows of out, per type."""
        return self._run(source, scratch, out, _into(out), None)

    def consume(self, source: Rows, scratch: Rows, more_scratch: Rows, consumer: Done) -> None:
        """P source, handed block by block to `consumer` instead of being stored; for gradients."""
        width = next(iter(source.values())).shape[1]
        self._run(source, scratch, more_scratch, lambda _, first, stop: np.empty((stop - first, width), np.float32), consumer)

    def _run(self, source: Rows, scratch: Rows, spare: Rows, emit: Emit, done: Done | None) -> dict[str, float]:
        last = max(self.layers, 1)  # no layers: one pass without neighbours
        current, targets = source, (scratch, spare) if last % 2 == 0 else (spare, scratch)
        for layer in range(1, last):
            self._complete(current)
            target = targets[(layer - 1) % 2]
            self._layer(current, source, 1.0, 0.0, 1.0, _into(target), None)
            current = target
        self._complete(current)
        mean = 1.0 / (self.layers + 1)
        return self._layer(current, source, mean, 1.0, mean, emit, done)

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
        """One layer of the own rows: base_weight (+ item_extra) base + sum_weight A-hat current."""
        squares = dict.fromkeys(NODE_TYPES, 0.0)
        for ntype in NODE_TYPES:
            other = OTHER[ntype]
            adjacency = self._adjacency[ntype]
            weight = base_weight + (item_extra if ntype == ITEM else 0.0)
            arguments = (
                adjacency.indptr, adjacency.columns, self._scale[ntype], self._scale[other],
                current[other].numpy(), self._halo_rows[other].numpy(), base[ntype].numpy(),
                np.float32(weight), np.float32(sum_weight),
            )  # fmt: skip

            def block(first: int, ntype: str = ntype, arguments: tuple = arguments) -> float:
                stop = min(first + _BLOCK_ROWS, self._shares.own[ntype][1])
                out = emit(ntype, first, stop)
                total = gather_rows(*arguments, first, stop, out)
                if done is not None:
                    done(ntype, first, stop, out)
                return total

            starts = range(*self._shares.own[ntype], _BLOCK_ROWS)
            squares[ntype] = sum(self._pool.map(block, starts) if self._pool else map(block, starts))
        return squares

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


def _into(tables: Rows) -> Emit:
    """Write rows to their place in tables."""
    return lambda ntype, first, stop: tables[ntype].numpy()[first:stop]
