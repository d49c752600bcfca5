"""Which rank owns which rows, and how gradients of rows reach their owners.

The rows of a machine are split among its ranks so that each has the same work; an owner computes its rows of every
layer and alone writes its rows' parameters and moments. Boundaries are known to all, so any rank finds any owner.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bm3_dgl.graph.local import LocalGraph
from bm3_dgl.runtime.collectives import Team
from bm3_dgl.types import NODE_TYPES

_ROW_COST = 4  # a row's own reads and writes (base, output, Adam) cost about as much as this many neighbours


@dataclass(frozen=True)
class RowGradients:
    """Gradient rows (n, width) float32 of nodes, by global_nid int64 (n,); a node may stand there many times."""

    ntype: str
    nids: torch.Tensor
    rows: torch.Tensor


class Shares:
    """COLLECTIVE to make. own[ntype] = (first, stop): this rank's rows of this machine's tables."""

    def __init__(self, graph: LocalGraph, team: Team) -> None:
        self._team = team
        self._start = graph.start
        ranks = team.ranks
        self.own: dict[str, tuple[int, int]] = {}
        self._bounds: dict[str, torch.Tensor] = {}
        for ntype in NODE_TYPES:
            cuts = _even_cuts(graph.adjacency[ntype].degrees() + _ROW_COST, ranks.local_world_size)
            self.own[ntype] = (cuts[ranks.local_rank], cuts[ranks.local_rank + 1])
            stops = team.gather_values(graph.start[ntype] + self.own[ntype][1])
            self._bounds[ntype] = torch.tensor(stops)

    def rows(self, ntype: str) -> slice:
        return slice(*self.own[ntype])

    def deliver(self, gradients: list[RowGradients]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Bring gradient rows to their owners. COLLECTIVE, with the same types and widths everywhere.

        Returns for each element the rows that arrived for this rank: row numbers counted from its first own row,
        int64 (m,), and gradients (m, width), in the order of the sending ranks.
        """
        if self._team.alone:
            return [(g.nids - self._start[g.ntype] - self.own[g.ntype][0], g.rows) for g in gradients]
        with self._team.phases("exchange"):
            boxes = self._team.post([_with_ids(g.nids, g.rows) for g in gradients])
            if boxes is not None:
                return [self._pick(g.ntype, torch.cat([box[k] for box in boxes])) for k, g in enumerate(gradients)]
            return self._send(gradients)

    def _send(self, gradients: list[RowGradients]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """`deliver` over the network: every rank sends each owner its rows."""
        packed, counts = zip(*(self._pack(g) for g in gradients), strict=True)
        world = self._team.ranks.world_size
        widths = torch.tensor([p.shape[1] for p in packed])
        count_matrix = torch.stack(counts, 1)  # (world, groups)
        received, _ = self._team.exchange(count_matrix, torch.ones(world, dtype=torch.int64), purpose="row gradients")
        pieces = [p.split(c.tolist()) for p, c in zip(packed, counts, strict=True)]
        flat = torch.cat([pieces[g][r].reshape(-1) for r in range(world) for g in range(len(packed))])
        arrived = self._team.exchange_known(
            flat, (count_matrix @ widths).tolist(), (received @ widths).tolist(), purpose="row gradients"
        )
        runs = arrived.split((received * widths).reshape(-1).tolist())
        return [
            self._unpack(g.ntype, torch.cat([runs[r * len(packed) + k] for r in range(world)]).view(-1, int(widths[k])))
            for k, g in enumerate(gradients)
        ]

    def _pack(self, gradients: RowGradients) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows in the order of their owners, the id in front as the bits of an int32; and rows per owner."""
        owner = torch.searchsorted(self._bounds[gradients.ntype], gradients.nids, right=True)
        order = torch.argsort(owner, stable=True)
        packed = _with_ids(gradients.nids[order], gradients.rows[order])
        return packed, torch.bincount(owner, minlength=len(self._bounds[gradients.ntype]))

    def _unpack(self, ntype: str, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        nids = packed[:, 0].contiguous().view(torch.int32).long()
        return nids - self._start[ntype] - self.own[ntype][0], packed[:, 1:]

    def _pick(self, ntype: str, packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the rows that all ranks have posted, this rank's own."""
        rows, gradients = self._unpack(ntype, packed)
        first, stop = self.own[ntype]
        mine = ((rows >= 0) & (rows < stop - first)).nonzero().squeeze(1)
        return rows[mine], gradients[mine]


def _with_ids(nids: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows with their id in front, as the bits of an int32: (n, 1 + width) float32."""
    return torch.cat([nids.to(torch.int32).view(torch.float32)[:, None], rows], 1)


def _even_cuts(cost: np.ndarray, parts: int) -> list[int]:
    """Row numbers that cut rows into `parts` runs of nearly equal cost: parts + 1 of them, from 0 to len(cost)."""
    total = np.concatenate([[0], np.cumsum(cost)])
    cuts = np.searchsorted(total, total[-1] * np.arange(1, parts) / parts)
    return [0, *cuts.tolist(), len(cost)]
