"""One training step, from the ids of a batch to updated weights.

Order, with nothing in between: pairs of this rank -> look up -> forward -> loss -> backward -> dense step -> table step.
The loss of a rank is its share of the mean over the whole batch, so ranks may hold different numbers of pairs. DDP
averages gradients, so the share is multiplied by world_size before backward, and rows' gradients are divided again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bm3_dgl.config.schema import Features, JobConfig
from bm3_dgl.graph.store import GraphStore, Table
from bm3_dgl.model.bm3 import BatchRows, BM3Head, Losses
from bm3_dgl.model.propagation.adam import TableAdam
from bm3_dgl.model.propagation.base import Engine, ItemRows, SeedPairs
from bm3_dgl.model.propagation.shares import RowGradients
from bm3_dgl.runtime.random import derive, dropout_multiplier
from bm3_dgl.types import ITEM, USER, GlobalStep


@dataclass
class Model:
    """Everything that training changes, and the raw features it reads.

    head: the dense weights. wrapped: the head under DDP where there are several ranks. item_rows: modality ->
    residual rows or trainable features. raw: modality -> this machine's raw features (num_own items, V).
    """

    head: BM3Head
    wrapped: nn.Module
    optimizer: torch.optim.Adam
    engine: Engine
    item_rows: dict[str, ItemRows] = field(default_factory=dict)
    raw: dict[str, torch.Tensor] = field(default_factory=dict)

    def tables(self) -> list[Table]:
        """Every table that a checkpoint keeps: parameters and moments."""
        adams = [*self.engine.embeddings.values(), *(rows.adam for rows in self.item_rows.values())]
        return [table for adam in adams for table in adam.state]


class Stepper:
    """Runs steps of one job on this rank. Calls are COLLECTIVE."""

    def __init__(self, config: JobConfig, store: GraphStore, model: Model) -> None:
        self._config, self._store, self._model = config, store, model
        self._device = next(model.head.parameters()).device
        self._world = store.team.ranks.world_size
        # Raw features of a batch, kept from step to step: fresh memory costs more than the rows that go into it.
        self._features = {name: raw.new_empty(0, raw.shape[1]) for name, raw in model.raw.items()}

    def step(self, ids: torch.Tensor, step: GlobalStep) -> Losses:
        """Train on the interactions `ids` (all ranks' batch), int64. Returns this rank's share of the losses."""
        ranks, model = self._store.team.ranks, self._model
        edges = self._store.local.edges(ids).share(ranks.local_rank, ranks.local_world_size)
        items, item_B, pairs_N = torch.unique_consecutive(edges.item_row, return_inverse=True, return_counts=True)
        item_nids = items + self._store.local.start[ITEM]
        pairs = SeedPairs(edges.user_nid, item_nids, pairs_N.float(), num_pairs=len(ids), step=step)

        phases = self._store.team.phases
        model.optimizer.zero_grad(set_to_none=True)
        with phases("propagate"):
            h_user_BD, h_item_ND = model.engine.lookup(pairs)
        with phases("features"):
            device = self._device
            rows = BatchRows(h_user_BD.to(device), h_item_ND.to(device), item_B.to(device), pairs.item_pairs.to(device))
            leaves = self._fill(rows, edges.user_index, items, step)
        with phases("head"):
            losses: Losses = model.wrapped(rows, len(ids))
            norms = model.engine.regulariser()
            losses = Losses(
                losses.reconstruction,
                losses.alignment,
                losses.masking,
                losses.regulariser.cpu() + norms,
                losses.total.cpu() + norms,
            )
        with phases("backward"):
            (losses.total * self._world).backward()
        with phases("optimizer"):
            model.optimizer.step()
            extra = [(adam, RowGradients(ITEM, item_nids, _gradient(leaf))) for adam, leaf in leaves]
            model.engine.update(extra, learning_rate=self._config.train.learning_rate)
        return losses

    def _fill(
        self, rows: BatchRows, user_index: torch.Tensor, items: torch.Tensor, step: GlobalStep
    ) -> list[tuple[TableAdam, torch.Tensor]]:
        """Add features, free rows and dropout on the head's device. Returns the leaves whose gradients go to item tables.

        user_index: dataset indices (B,); items: rows of the distinct items (N,).
        """
        leaves: list[tuple[TableAdam, torch.Tensor]] = []
        item_index = self._store.local.original[ITEM][items]
        rows.dropout = {USER: self._dropout(USER, user_index, step), ITEM: self._dropout(ITEM, item_index, step)}
        trainable = self._config.model.features is Features.trainable
        for name, raw in self._model.raw.items():
            rows.modality_dropout[name] = self._dropout(f"modality {name}", item_index, step)
            leaf = None
            if name in self._model.item_rows:
                leaf = self._model.item_rows[name].lookup(items)
                leaves.append((self._model.item_rows[name].adam, leaf))
            if trainable:
                assert leaf is not None, "trainable features are item rows"
                rows.features[name] = leaf.to(self._device)
            else:
                rows.features[name] = self._raw_rows(name, raw, items).to(self._device)
                if leaf is not None:
                    rows.residual[name] = leaf.to(self._device)
        return leaves

    def _raw_rows(self, name: str, raw: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Raw features (N, V) of items; valid until the next step."""
        if len(self._features[name]) < len(items):
            self._features[name] = raw.new_empty(len(items) + len(items) // 8, raw.shape[1])
        return torch.index_select(raw, 0, items, out=self._features[name][: len(items)])

    def _dropout(self, kind: str, index: torch.Tensor, step: GlobalStep) -> torch.Tensor:
        """A node's mask depends on the seed, the step and its dataset index: one per node and step, as in the reference."""
        model = self._config.model
        key = derive(self._config.train.seed, "dropout", step, kind)
        return dropout_multiplier(key, index, model.embedding_dim, model.dropout).to(self._device)


def _gradient(leaf: torch.Tensor) -> torch.Tensor:
    gradient: Any = leaf.grad
    return torch.zeros_like(leaf) if gradient is None else gradient
