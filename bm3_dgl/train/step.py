"""One training step, from the ids of a batch to updated weights.

Order, with nothing in between: pairs of this rank (with negatives where the model needs them) -> look up -> forward ->
loss -> backward -> dense step -> table step. What a model needs of a step, it says itself (model/head.py).
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
from bm3_dgl.graph.negatives import NegativeSampler
from bm3_dgl.graph.store import GraphStore, Table
from bm3_dgl.model.head import BatchRows, Head, Losses
from bm3_dgl.model.propagation.adam import TableAdam
from bm3_dgl.model.propagation.base import Engine, ItemRows, SeedPairs
from bm3_dgl.model.propagation.shares import RowGradients
from bm3_dgl.runtime.random import derive, dropout_multiplier
from bm3_dgl.types import ITEM, USER, GlobalStep


@dataclass
class Model:
    """Everything that training changes, and the raw features it reads.

    head: the dense weights. wrapped: the head under DDP where there are several ranks and weights. device: the head's.
    item_rows: modality -> residual rows or trainable features. raw: modality -> this machine's raw features (num_own
    items, V).
    """

    head: Head
    wrapped: nn.Module
    optimizer: torch.optim.Adam
    engine: Engine
    device: torch.device
    item_rows: dict[str, ItemRows] = field(default_factory=dict)
    raw: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of what Losses.detached holds; none where there is nothing to train."""
        return (*self.head.terms, "total") if self.head.terms else ()

    def factors(self, h_ND: torch.Tensor) -> torch.Tensor:
        """Factors of a score from rows of H, on the head's device."""
        return self.head.factors(h_ND.to(self.device))

    def tables(self) -> list[Table]:
        """Every table that a checkpoint keeps: parameters and moments."""
        adams = [*self.engine.embeddings.values(), *(rows.adam for rows in self.item_rows.values())]
        return [table for adam in adams for table in adam.state]


@dataclass(frozen=True)
class Batch:
    """This rank's pairs of a batch, by what they are looked up with.

    item_B, negative_B: int64, where the item of each pair, and its negative one, stands in pairs.item_nids. negative_B is
    empty where the model needs none.
    """

    edges: Edges
    pairs: SeedPairs
    item_B: torch.Tensor
    negative_B: torch.Tensor


class Stepper:
    """Runs steps of one job on this rank. Calls are COLLECTIVE."""

    def __init__(self, config: JobConfig, store: GraphStore, model: Model) -> None:
        self._config, self._store, self._model = config, store, model
        self._needs = model.head.needs
        self._negatives = NegativeSampler(store) if self._needs.negatives else None
        self._world = store.team.ranks.world_size
        # Raw features of a batch, kept from step to step: fresh memory costs more than the rows that go into it.
        self._features = {name: raw.new_empty(0, raw.shape[1]) for name, raw in model.raw.items()}

    def step(self, ids: torch.Tensor, step: GlobalStep) -> Losses:
        """Train on the interactions `ids` (all ranks' batch), int64. Returns this rank's share of the losses."""
        model, phases = self._model, self._store.team.phases
        batch = self._batch(ids, step)
        model.optimizer.zero_grad(set_to_none=True)
        with phases("propagate"):
            rows = self._look_up(batch)
        with phases("features"):
            leaves = self._fill(rows, batch, step) if self._needs.views else []
        with phases("head"):
            losses: Losses = model.wrapped(rows, len(ids))
            losses = losses.with_norms(model.engine.regulariser())
        with phases("backward"):
            (losses.total * self._world).backward()
        with phases("optimizer"):
            model.optimizer.step()
            extra = [(adam, RowGradients(ITEM, batch.pairs.item_nids, _gradient(leaf))) for adam, leaf in leaves]
            model.engine.update(extra, learning_rate=self._config.train.learning_rate)
        return losses

    def _batch(self, ids: torch.Tensor, step: GlobalStep) -> Batch:
        """This rank's share of the interactions `ids`, with negatives where the model needs them.

        A pair whose user knows every item has no negative, so it is left out: it makes no triple and adds no loss.
        """
        store, ranks = self._store, self._store.team.ranks
        edges = store.local.edges(ids).share(ranks.local_rank, ranks.local_world_size)
        start = store.local.start[ITEM]
        if self._negatives is None:
            items, item_B, pairs_N = torch.unique_consecutive(edges.item_row, return_inverse=True, return_counts=True)
            pairs = SeedPairs(edges.user_nid, items + start, pairs_N.float(), num_pairs=len(ids), step=step)
            return Batch(edges, pairs, item_B, item_B[:0])
        with store.team.phases("negatives"):
            negatives = self._negatives.draw(edges, key=derive(self._config.train.seed, "negative", step))
            edges, negatives = edges[negatives >= 0], negatives[negatives >= 0]
            both = torch.cat([edges.item_row + start, negatives])
            item_nids, place = torch.unique(both, return_inverse=True)
            item_B, negative_B = place[: len(negatives)], place[len(negatives) :]
            pairs_N = torch.bincount(item_B, minlength=len(item_nids)).float()
            pairs = SeedPairs(edges.user_nid, item_nids, pairs_N, num_pairs=len(ids), step=step)
            return Batch(edges, pairs, item_B, negative_B)

    def _look_up(self, batch: Batch) -> BatchRows:
        """The batch's rows of H, and of E where the model needs them, on the head's device."""
        engine, device = self._model.engine, self._model.device
        h_user_BD, h_item_ND = (h.to(device) for h in engine.lookup(batch.pairs))
        rows = BatchRows(h_user_BD, h_item_ND, batch.item_B.to(device), batch.pairs.item_pairs.to(device))
        rows.negative_B = batch.negative_B.to(device)
        if self._needs.initial:
            rows.initial_user_BD, rows.initial_item_ND = (e.to(device) for e in engine.initial())
        return rows

    def _fill(self, rows: BatchRows, batch: Batch, step: GlobalStep) -> list[tuple[TableAdam, torch.Tensor]]:
        """Add features, free rows and dropout on the head's device. Returns the leaves whose gradients go to item tables."""
        leaves: list[tuple[TableAdam, torch.Tensor]] = []
        device, local = self._model.device, self._store.local
        items = batch.pairs.item_nids - local.start[ITEM]
        item_index = local.original[ITEM][items]
        rows.dropout = {USER: self._dropout(USER, batch.edges.user_index, step), ITEM: self._dropout(ITEM, item_index, step)}
        trainable = self._config.model.features is Features.trainable
        for name, raw in self._model.raw.items():
            rows.modality_dropout[name] = self._dropout(f"modality {name}", item_index, step)
            leaf = None
            if name in self._model.item_rows:
                leaf = self._model.item_rows[name].lookup(items)
                leaves.append((self._model.item_rows[name].adam, leaf))
            if trainable:
                assert leaf is not None, "trainable features are item rows"
                rows.features[name] = leaf.to(device)
            else:
                rows.features[name] = self._raw_rows(name, raw, items).to(device)
                if leaf is not None:
                    rows.residual[name] = leaf.to(device)
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
        return dropout_multiplier(key, index, model.embedding_dim, model.dropout).to(self._model.device)


def _gradient(leaf: torch.Tensor) -> torch.Tensor:
    gradient: Any = leaf.grad
    return torch.zeros_like(leaf) if gradient is None else gradient
