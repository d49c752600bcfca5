"""The sampled engine: each rank propagates only the neighbourhood of its own pairs, drawn layer by layer.

A node with d neighbours of which k are drawn without replacement weighs each by d / k, so that the sum is unbiased for
equation (3); layers are drawn independently, so the product of layers is unbiased too. Horner's rule as in operator.py:
Y <- E + A-hat Y over the blocks from the outside in, where a block's target nodes are a prefix of its source nodes.
With fanout -1 it computes what the exact engine computes.

The reference objective's norms run over all rows. Here they are estimated from the batch: a user of degree d stands in
a share d / num_train of the pairs, so |H_U|^2 is estimated by num_train / num_pairs sum |h_u|^2 / d_u, unbiased, and
exact when the batch is the whole of the train data and every node has train interactions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from bm3_dgl.config.schema import ModelConfig, Objective, PropagationConfig
from bm3_dgl.graph.local import OTHER
from bm3_dgl.graph.store import GraphStore, Table
from bm3_dgl.model.head import Needs
from bm3_dgl.model.propagation.adam import TableAdam
from bm3_dgl.model.propagation.base import SeedPairs, initial_embeddings
from bm3_dgl.model.propagation.operator import Propagator
from bm3_dgl.model.propagation.shares import RowGradients, Shares
from bm3_dgl.runtime.random import derive
from bm3_dgl.types import ITEM, NODE_TYPES, RATED_BY, RATES, USER

_INTO = {USER: RATED_BY, ITEM: RATES}  # the edge type whose targets are of a node type


class SampledEngine:
    """Engine over sampled blocks; see base.Engine for the contract."""

    def __init__(
        self,
        store: GraphStore,
        shares: Shares,
        config: ModelConfig,
        needs: Needs,
        propagation: PropagationConfig,
        *,
        seed: int,
        threads: int,
    ) -> None:
        width = config.embedding_dim
        self._store, self._team, self._shares = store, store.team, shares
        self._fanouts = list(propagation.fanouts)
        self._item_residual = needs.item_residual
        self._seed, self._step = seed, 0  # step: of the last look-up, from 1
        self._epsilon = 1e-7 if config.objective is Objective.reference else 0.0
        self._norm_weight = config.reg_weight / store.local.num_nodes[ITEM] if config.objective is Objective.reference else 0.0
        self._degree = {ntype: _degree_table(store, shares, ntype) for ntype in NODE_TYPES}
        pairs = {ntype: store.embedding(f"embedding_{ntype}", ntype, width) for ntype in NODE_TYPES}
        self._tables = {ntype: table for ntype, (table, _) in pairs.items()}
        self._lookups = {ntype: embedding for ntype, (_, embedding) in pairs.items()}  # DGL's DistEmbedding
        self.embeddings = {n: TableAdam(store, self._tables[n], shares.own[n], sparse=True) for n in NODE_TYPES}
        self._latent = {ntype: store.table(f"latent_{ntype}", ntype, width) for ntype in NODE_TYPES}
        self._propagator = Propagator(
            store,
            shares,
            layers=config.layers,
            width=width,
            objective=config.objective,
            item_residual=needs.item_residual,
            threads=threads,
        )
        self._squares = torch.zeros(2)
        self._x: dict[str, torch.Tensor] = {}  # E of the nodes of the last look-up, leaves of autograd
        self._user_place = torch.empty(0, dtype=torch.int64)
        self._num_items = 0
        initial_embeddings(store, shares, self._tables, seed=seed)
        self._team.barrier()

    def lookup(self, pairs: SeedPairs) -> tuple[torch.Tensor, torch.Tensor]:
        self._step = pairs.step + 1
        users, self._user_place = torch.unique(pairs.user_nids, return_inverse=True)
        self._num_items = len(pairs.item_nids)
        latent = self._propagate({USER: users, ITEM: pairs.item_nids})
        h_user_BD, h_item_ND = latent[USER][self._user_place], latent[ITEM]
        self._estimate_norms(pairs, h_user_BD, h_item_ND)
        return h_user_BD, h_item_ND

    def initial(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._x[USER][self._user_place], self._x[ITEM][: self._num_items]  # a look-up's seeds come first

    def regulariser(self) -> torch.Tensor:
        if self._norm_weight == 0.0:
            return torch.zeros(())
        total = self._team.sum(self._squares.detach().clone()).sqrt()  # |H_U|, |H_I|
        part = (self._squares / (2 * total.clamp_min(1e-30))).sum()  # its gradient is that of |H_U| + |H_I|
        return self._norm_weight * (part + part.detach())  # the parts' values add up to half of it

    def update(self, extra: Sequence[tuple[TableAdam, RowGradients]], *, learning_rate: float) -> None:
        world = self._team.ranks.world_size
        gradients = []
        for ntype in NODE_TYPES:
            ((nids, leaf),) = self._lookups[ntype]._trace  # one look-up per step
            self._lookups[ntype].reset_trace()
            gradients.append(RowGradients(ntype, nids, (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad) / world))
        gradients += [RowGradients(g.ntype, g.nids, g.rows / world) for _, g in extra]
        adams = [self.embeddings[ntype] for ntype in NODE_TYPES] + [adam for adam, _ in extra]
        for adam, (rows, grad) in zip(adams, self._shares.deliver(gradients), strict=True):
            adam.step_rows(rows, grad, self._step, learning_rate)
        self._team.barrier()  # nobody reads rows of the next step before they are written

    def latents(self) -> dict[str, Table]:
        tables = {ntype: table.local for ntype, table in self._tables.items()}
        self._propagator.forward(tables, {ntype: table.local for ntype, table in self._latent.items()})
        self._team.barrier()
        return self._latent

    def _propagate(self, seeds: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """h of the seed nodes, per type, by equation (4)."""
        blocks = self._draw_blocks(seeds)
        inputs = {n: blocks[0].srcnodes[n].data["_ID"] for n in NODE_TYPES} if blocks else seeds
        self._x = x = {ntype: self._look_up(ntype, inputs[ntype]) for ntype in NODE_TYPES}
        y = x
        for block in blocks:
            y = {ntype: self._block_layer(block, ntype, x, y) for ntype in NODE_TYPES}
        mean = 1.0 / (len(self._fanouts) + 1)
        h = {ntype: y[ntype] * mean for ntype in NODE_TYPES}
        if self._item_residual:
            h[ITEM] = h[ITEM] + x[ITEM][: len(seeds[ITEM])]
        return h

    def _look_up(self, ntype: str, nids: torch.Tensor) -> torch.Tensor:
        """Embeddings of nodes, a leaf of autograd."""
        table = self._tables[ntype]
        with table.traffic.crossing(table.remote_bytes(nids)):
            return self._lookups[ntype](nids)

    def _block_layer(self, block: Any, ntype: str, x: dict[str, torch.Tensor], y: dict[str, torch.Tensor]) -> torch.Tensor:
        """Targets of one block: E + D^-1/2 (d / k) sum over drawn neighbours of D^-1/2 y."""
        import dgl

        other, edges = OTHER[ntype], block[_INTO[ntype]]
        num_targets = block.num_dst_nodes(ntype)
        if num_targets == 0 or edges.num_edges() == 0:
            return x[ntype][:num_targets]
        source_scale = self._inverse_root(other, block.srcnodes[other].data["_ID"])
        target_ids = block.dstnodes[ntype].data["_ID"]
        degree = self._degree[ntype].pull(target_ids)
        drawn = edges.in_degrees().clamp_min(1)[:, None]
        target_scale = self._inverse_root(ntype, target_ids) * degree / drawn
        return x[ntype][:num_targets] + target_scale * dgl.ops.copy_u_sum(edges, source_scale * y[other])

    def _draw_blocks(self, seeds: dict[str, torch.Tensor]) -> list[Any]:
        """Blocks from the outermost layer to the seeds'. fanouts: nearest the seeds first."""
        import dgl

        blocks = list[Any]()
        for hop, fanout in enumerate(self._fanouts):
            key = derive(self._seed, "sampling", self._step, hop)
            block = dgl.to_block(self._store.sample_neighbors(seeds, fanout, key=key), seeds)
            seeds = {ntype: block.srcnodes[ntype].data["_ID"] for ntype in NODE_TYPES}
            blocks.insert(0, block)
        return blocks

    def _inverse_root(self, ntype: str, nids: torch.Tensor) -> torch.Tensor:
        """D^-1/2 of nodes, float32 (n, 1); 0 where the degree is 0."""
        degree = self._degree[ntype].pull(nids)
        return torch.where(degree > 0, (degree.double() + self._epsilon).rsqrt().float(), torch.zeros(()))

    def _estimate_norms(self, pairs: SeedPairs, h_user_BD: torch.Tensor, h_item_ND: torch.Tensor) -> None:
        if self._norm_weight == 0.0:
            return
        scale = self._store.local.num_train / pairs.num_pairs
        of_user_B = h_user_BD.square().sum(1) / self._degree[USER].pull(pairs.user_nids).squeeze(1)
        of_item_N = h_item_ND.square().sum(1) / self._degree[ITEM].pull(pairs.item_nids).squeeze(1)
        self._squares = scale * torch.stack([of_user_B.sum(), of_item_N @ pairs.item_pairs])


def _degree_table(store: GraphStore, shares: Shares, ntype: str) -> Table:
    """Degrees as a table, float32 (n, 1): neighbours may belong to other machines."""
    table = store.table(f"degree_{ntype}", ntype, 1)
    rows = shares.rows(ntype)
    table.local[rows] = torch.from_numpy(store.local.adjacency[ntype].degrees()[rows]).float()[:, None]
    return table
