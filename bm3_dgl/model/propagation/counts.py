"""The engine of a model without parameters: H is one column, 1 for a user and the train interactions of an item."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bm3_dgl.graph.store import GraphStore, Table
from bm3_dgl.model.propagation.adam import TableAdam
from bm3_dgl.model.propagation.base import SeedPairs
from bm3_dgl.model.propagation.shares import RowGradients, Shares
from bm3_dgl.types import ITEM, NODE_TYPES, USER


class CountEngine:
    """Engine that is only evaluated; see base.Engine for the contract."""

    def __init__(self, store: GraphStore, shares: Shares) -> None:
        self.embeddings: dict[str, TableAdam] = {}
        self._latent = {ntype: store.table(f"latent_{ntype}", ntype, 1) for ntype in NODE_TYPES}
        users, items = shares.rows(USER), shares.rows(ITEM)
        self._latent[USER].local[users] = 1.0
        self._latent[ITEM].local[items, 0] = torch.from_numpy(store.local.adjacency[ITEM].degrees()[items]).float()
        store.team.barrier()

    def latents(self) -> dict[str, Table]:
        return self._latent

    def lookup(self, pairs: SeedPairs) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError("counts are not trained")

    def initial(self) -> tuple[torch.Tensor, torch.Tensor]:
        raise AssertionError("counts are not trained")

    def regulariser(self) -> torch.Tensor:
        raise AssertionError("counts are not trained")

    def update(self, extra: Sequence[tuple[TableAdam, RowGradients]], *, learning_rate: float) -> None:
        raise AssertionError("counts are not trained")
