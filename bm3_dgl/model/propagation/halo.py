"""Rows of other machines: each rank fetches its part of the machine's halo from the rank of the same number there."""

from __future__ import annotations

import torch

from bm3_dgl.graph.store import GraphStore


class HaloExchange:
    """Who needs which rows of one node type, agreed once. COLLECTIVE to make.

    Rank k of a machine handles the k-th share of what its machine needs and asks rank k of each owning machine, so
    every row crosses the network once per machine that needs it.
    """

    def __init__(self, store: GraphStore, ntype: str) -> None:
        self._team = store.team
        ranks = self._team.ranks
        halo = torch.from_numpy(store.local.halo[ntype])
        self._slots = slice(
            ranks.local_rank * len(halo) // ranks.local_world_size, (ranks.local_rank + 1) * len(halo) // ranks.local_world_size
        )
        if ranks.num_machines == 1:
            return
        wanted = halo[self._slots]
        starts = torch.tensor(self._team.gather_values(store.local.start[ntype])[:: ranks.local_world_size])
        owner = torch.searchsorted(starts, wanted, right=True) - 1  # ascending, since the halo is
        self._expected = torch.zeros(ranks.world_size, dtype=torch.int64)
        per_machine = torch.bincount(owner, minlength=ranks.num_machines)
        self._expected[ranks.local_rank :: ranks.local_world_size] = per_machine
        asked, self._asked_counts = self._team.exchange(wanted, self._expected)
        self._asked_rows = asked - store.local.start[ntype]

    def fetch(self, local: torch.Tensor, halo: torch.Tensor) -> None:
        """Fill this rank's share of `halo` (num_halo, w) from the owners' `local` (num_own, w). COLLECTIVE.

        The caller sees to barriers: before, so that `local` is complete everywhere; after, so that `halo` is.
        """
        rows = local[self._asked_rows].view(torch.uint8)  # gloo does not know bfloat16
        counts = self._asked_counts, self._expected.tolist()
        halo[self._slots] = self._team.exchange_known(rows, *counts, purpose="halo rows").view(halo.dtype)
