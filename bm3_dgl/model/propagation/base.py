"""What the training step asks of a propagation engine, and the item tables that both engines carry along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from bm3_dgl.graph.store import GraphStore, Table
from bm3_dgl.model.propagation.adam import TableAdam
from bm3_dgl.model.propagation.shares import RowGradients, Shares
from bm3_dgl.runtime.random import derive, uniform_rows
from bm3_dgl.types import ITEM, NODE_TYPES


@dataclass(frozen=True)
class SeedPairs:
    """This rank's pairs of a batch: user_nids int64 (B,), the N distinct items' item_nids int64 (N,), how many pairs
    each item stands in, item_pairs float32 (N,), and how many pairs the whole batch has.

    step: the global step, from 0; it keys what is drawn at random.
    """

    user_nids: torch.Tensor
    item_nids: torch.Tensor
    item_pairs: torch.Tensor
    num_pairs: int
    step: int


class Engine(Protocol):
    """Propagation of the ID embeddings and their training. Every method is COLLECTIVE."""

    embeddings: dict[str, TableAdam]  # node type -> E with its optimiser

    def lookup(self, pairs: SeedPairs) -> tuple[torch.Tensor, torch.Tensor]:
        """h_user_BD, h_item_ND of equation (4), float32 on the CPU, part of an autograd graph."""
        ...

    def initial(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of E, layer 0, of the last look-up's pairs, shaped and differentiable as those of H."""
        ...

    def regulariser(self) -> torch.Tensor:
        """This rank's part, shape (), of the reference objective's norm term for the last look-up.

        The parts of all ranks add up to its value, and their gradients to its gradient, as far as these flow through
        `lookup`'s rows; what does not is added by `update`. 0 under the paper's objective.
        """
        ...

    def update(self, extra: Sequence[tuple[TableAdam, RowGradients]], *, learning_rate: float) -> None:
        """After backward: bring the gradients of E to the rows' owners and update. `extra` travels along.

        Gradients are sums over ranks of what backward left on each, times 1 / world_size.
        """
        ...

    def latents(self) -> dict[str, Table]:
        """H of all rows under the current E, in the store; valid until the next look-up or update."""
        ...


def embedding_bound(num_rows: int, width: int) -> float:
    """Xavier-uniform's bound for an embedding table (num_rows, width)."""
    return (6.0 / (num_rows + width)) ** 0.5


def initial_embeddings(store: GraphStore, shares: Shares, tables: dict[str, Table], *, seed: int) -> None:
    """Fill E with xavier-uniform values that depend on the seed and the dataset index alone."""
    for ntype in NODE_TYPES:
        rows, table = shares.rows(ntype), tables[ntype]
        width = table.local.shape[1]
        values = uniform_rows(derive(seed, "embedding", ntype), store.local.original[ntype][rows], width)
        table.local[rows] = values * embedding_bound(store.local.num_nodes[ntype], width)


class ItemRows:
    """Trainable rows per item beside E: a modality's residuals (d wide) or its raw features. COLLECTIVE to make.

    A machine draws the edges of its own items, so look-ups are always local.
    """

    def __init__(
        self, store: GraphStore, shares: Shares, name: str, width: int, *, initial: torch.Tensor | None, sparse: bool
    ) -> None:
        """initial: values of this machine's items (num_own, width), or None for zeros."""
        self.table = store.table(name, ITEM, width)
        self.adam = TableAdam(store, self.table, shares.own[ITEM], sparse=sparse)
        if initial is not None:
            self.table.local[shares.rows(ITEM)] = initial[shares.rows(ITEM)]

    def lookup(self, item_rows: torch.Tensor) -> torch.Tensor:
        """Rows (N, width) of local items, a leaf of autograd."""
        return self.table.local[item_rows].requires_grad_()
