"""The exact engine: all rows of H are propagated at every step, by all ranks together.

One step: every rank propagates its own rows (Propagator), reads the rows of its pairs, and after backward sends their
gradients to the owners, who lay them into G = dL/dH; dE = P G comes out block by block and goes straight into dense
Adam. It is the published algorithm with global batch = world_size x batch_size, not an approximation.

Under the reference objective every row of H has a gradient from the norms of H_U and H_I; owners add it to G.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bm3_dgl.config.schema import ModelConfig, Objective, Precision
from bm3_dgl.graph.store import GraphStore, Table
from bm3_dgl.model.head import Needs
from bm3_dgl.model.propagation.adam import TableAdam
from bm3_dgl.model.propagation.base import SeedPairs, initial_embeddings
from bm3_dgl.model.propagation.operator import Propagator
from bm3_dgl.model.propagation.shares import RowGradients, Shares
from bm3_dgl.types import ITEM, NODE_TYPES, USER


class ExactEngine:
    """Engine over full propagation; see base.Engine for the contract."""

    def __init__(
        self,
        store: GraphStore,
        shares: Shares,
        config: ModelConfig,
        needs: Needs,
        precision: Precision,
        *,
        seed: int,
        threads: int,
    ) -> None:
        width = config.embedding_dim
        self._team, self._shares = store.team, shares
        self._propagator = Propagator(
            store,
            shares,
            layers=config.layers,
            width=width,
            objective=config.objective,
            item_residual=needs.item_residual,
            threads=threads,
            precision=precision,
            gradients=True,
        )
        embedding = {ntype: store.table(f"embedding_{ntype}", ntype, width) for ntype in NODE_TYPES}
        self._latent = {ntype: store.table(f"latent_{ntype}", ntype, width) for ntype in NODE_TYPES}
        self._E, self._H = _local(embedding), _local(self._latent)
        self.embeddings = {ntype: TableAdam(store, embedding[ntype], shares.own[ntype], sparse=False) for ntype in NODE_TYPES}
        self._norm_weight = config.reg_weight / store.local.num_nodes[ITEM] if config.objective is Objective.reference else 0.0
        self._norms = dict.fromkeys(NODE_TYPES, 0.0)  # |H_U|, |H_I| of the last propagation
        self._step = 0  # of the last look-up, from 1
        self._leaves: dict[str, torch.Tensor] = {}
        self._initial: dict[str, torch.Tensor] = {}  # leaves of E where the last look-up was followed by `initial`
        self._nids: dict[str, torch.Tensor] = {}
        initial_embeddings(store, shares, embedding, seed=seed)

    def lookup(self, pairs: SeedPairs) -> tuple[torch.Tensor, torch.Tensor]:
        self.latents()
        self._initial = {}
        self._step = pairs.step + 1
        self._nids = {USER: pairs.user_nids, ITEM: pairs.item_nids}
        self._leaves = {ntype: self._latent[ntype].pull(nids).requires_grad_() for ntype, nids in self._nids.items()}
        return self._leaves[USER], self._leaves[ITEM]

    def initial(self) -> tuple[torch.Tensor, torch.Tensor]:
        self._initial = {n: self.embeddings[n].table.pull(nids).requires_grad_() for n, nids in self._nids.items()}
        return self._initial[USER], self._initial[ITEM]

    def regulariser(self) -> torch.Tensor:
        value = self._norm_weight * sum(self._norms.values())
        return torch.tensor(value / self._team.ranks.world_size)

    def update(self, extra: Sequence[tuple[TableAdam, RowGradients]], *, learning_rate: float) -> None:
        world = self._team.ranks.world_size
        gradients = [RowGradients(n, self._nids[n], _grad(self._leaves[n]) / world) for n in NODE_TYPES]
        gradients += [RowGradients(n, self._nids[n], _grad(leaf) / world) for n, leaf in self._initial.items()]
        gradients += [RowGradients(g.ntype, g.nids, g.rows / world) for _, g in extra]
        arrived = self._shares.deliver(gradients)
        for ntype, (rows, grad) in zip(NODE_TYPES, arrived[: len(NODE_TYPES)], strict=True):
            # The norm's gradient is c H, with c = lambda / (num_items |H|).
            weight = self._norm_weight / self._norms[ntype] if self._norms[ntype] > 0 else 0.0
            self._propagator.lay_gradient(ntype, self._H[ntype], weight, rows, grad)
        after = len(NODE_TYPES) + len(self._initial)
        of_initial = dict(zip(self._initial, map(_added_up, arrived[len(NODE_TYPES) : after]), strict=True))
        for (adam, _), (rows, grad) in zip(extra, arrived[after:], strict=True):
            adam.step_rows(rows, grad, self._step, learning_rate)

        def descend(ntype: str, first: int, stop: int, grad: np.ndarray) -> None:
            if ntype in of_initial:
                _add_run(*of_initial[ntype], first - self._shares.own[ntype][0], grad)
            self.embeddings[ntype].step_dense(first, stop, grad, self._step, learning_rate)

        with self._team.phases("propagate_back"):
            self._propagator.consume(descend)

    def latents(self) -> dict[str, Table]:
        squares = self._propagator.forward(self._E, self._H)
        total = self._team.sum_few([squares[ntype] for ntype in NODE_TYPES])  # and a barrier
        self._norms = {ntype: square**0.5 for ntype, square in zip(NODE_TYPES, total, strict=True)}
        return self._latent


def _local(tables: dict[str, Table]) -> dict[str, torch.Tensor]:
    return {ntype: table.local for ntype, table in tables.items()}


def _added_up(arrived: tuple[torch.Tensor, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Rows int64 (m,), ascending, each once, and their gradients' sums (m, D)."""
    rows, grad = arrived
    unique, place = torch.unique(rows, return_inverse=True)
    return unique.numpy(), torch.zeros(len(unique), grad.shape[1]).index_add_(0, place, grad).numpy()


def _add_run(rows: np.ndarray, total: np.ndarray, first: int, grad: np.ndarray) -> None:
    """Add those of the ascending rows that lie in first .. first + len(grad) - 1 to grad, in place."""
    begin, end = np.searchsorted(rows, [first, first + len(grad)])
    grad[rows[begin:end] - first] += total[begin:end]


def _grad(leaf: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
