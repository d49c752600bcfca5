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
from bm3_dgl.graph.local import Edges
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

    def step(self, ids: torch.Tensor, step: GlobalStep) -> Losses:
        """Train on the interactions `ids` (all ranks' batch), int64. Returns this rank's share of the losses."""
        ranks, model = self._store.team.ranks, self._model
        edges = self._store.local.edges(ids).share(ranks.local_rank, ranks.local_world_size)
        item_nids = edges.item_row + self._store.local.start[ITEM]
        pairs = SeedPairs(edges.user_nid, item_nids, num_pairs=len(ids), step=step)

        model.optimizer.zero_grad(set_to_none=True)
        h_user_BD, h_item_BD = model.engine.lookup(pairs)
        rows, leaves = self._batch_rows(h_user_BD, h_item_BD, edges, step)
        losses: Losses = model.wrapped(rows, len(ids))
        norms = model.engine.regulariser()
        losses = Losses(
            losses.reconstruction,
            losses.alignment,
            losses.masking,
            losses.regulariser.cpu() + norms,
            losses.total.cpu() + norms,
        )
        (losses.total * self._world).backward()
        model.optimizer.step()
        extra = [(adam, RowGradients(ITEM, item_nids, _gradient(leaf))) for adam, leaf in leaves]
        model.engine.update(extra, learning_rate=self._config.train.learning_rate)
        return losses

    def _batch_rows(
        self, h_user_BD: torch.Tensor, h_item_BD: torch.Tensor, edges: Edges, step: GlobalStep
    ) -> tuple[BatchRows, list[tuple[TableAdam, torch.Tensor]]]:
        """The head's input on its device, and the leaves whose gradients go to item tables."""
        leaves: list[tuple[TableAdam, torch.Tensor]] = []
        rows = BatchRows(h_user_BD.to(self._device), h_item_BD.to(self._device))
        item_index = self._store.local.original[ITEM][edges.item_row]
        rows.dropout = {USER: self._dropout(USER, edges.user_index, step), ITEM: self._dropout(ITEM, item_index, step)}
        trainable = self._config.model.features is Features.trainable
        for name, raw in self._model.raw.items():
            rows.modality_dropout[name] = self._dropout(f"modality {name}", item_index, step)
            leaf = None
            if name in self._model.item_rows:
                leaf = self._model.item_rows[name].lookup(edges.item_row)
                leaves.append((self._model.item_rows[name].adam, leaf))
            if trainable:
                assert leaf is not None, "trainable features are item rows"
                rows.features[name] = leaf.to(self._device)
            else:
                rows.features[name] = raw[edges.item_row].to(self._device)
                if leaf is not None:
                    rows.residual[name] = leaf.to(self._device)
        return rows, leaves

    def _dropout(self, kind: str, index: torch.Tensor, step: GlobalStep) -> torch.Tensor:
        """A node's mask depends on the seed, the step and its dataset index: one per node and step, as in the reference."""
        model = self._config.model
        key = derive(self._config.train.seed, "dropout", step, kind)
        return dropout_multiplier(key, index, model.embedding_dim, model.dropout).to(self._device)


def _gradient(leaf: torch.Tensor) -> torch.Tensor:
    gradient: Any = leaf.grad
    return torch.zeros_like(leaf) if gradient is None else gradient
