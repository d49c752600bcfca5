"""The open graph store: this machine's part of the graph, and tables with a row per user or item.

The only door to dgl.distributed besides the servers. A Table's rows are spread over the machines as the nodes are;
the rows of this machine lie in shared memory, so that its ranks read and write them without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bm3_dgl.graph.local import LocalGraph, build_local_graph, edges_of_part
from bm3_dgl.graph.partition import Partition
from bm3_dgl.runtime.collectives import Team, Traffic
from bm3_dgl.runtime.random import derive
from bm3_dgl.types import ITEM, NODE_TYPES, RATED_BY, RATES, USER


@dataclass(frozen=True)
class Table:
    """float32 rows of one node type. `local`: this machine's rows (num_own, width), shared by its ranks."""

    name: str
    ntype: str
    local: torch.Tensor
    start: int
    tensor: Any  # DGL's DistTensor
    traffic: Traffic = field(default_factory=Traffic)

    def pull(self, nids: torch.Tensor) -> torch.Tensor:
        """Rows of any machine, (len(nids), width), by global_nid int64; a copy."""
        if self.remote_bytes(nids) == 0:
            return self.local[nids - self.start]
        with self.traffic.crossing(self.remote_bytes(nids)):
            return self.tensor[nids]

    def remote_bytes(self, nids: torch.Tensor) -> int:
        """Size of those rows that belong to other machines."""
        rows = nids - self.start
        return int(((rows < 0) | (rows >= len(self.local))).sum()) * self.local.shape[1] * 4


class GraphStore:
    """COLLECTIVE to open, and to add tables to."""

    def __init__(self, partition: Partition, team: Team, *, part_config: Path, graph_name: str, tag: str) -> None:
        """Open the graph that the servers hold (or, standalone, the files). tag makes this job's names its own."""
        import dgl

        self.team = team
        self._tag = tag
        self.part = team.ranks.machine
        self.graph = dgl.distributed.DistGraph(graph_name, part_config=str(part_config))
        self.local = self._lay_out(partition)
        self.partition = partition

    def table(self, name: str, ntype: str, width: int) -> Table:
        """A new table of zeros. COLLECTIVE."""
        import dgl

        tensor = dgl.distributed.DistTensor(
            (self.local.num_nodes[ntype], width),
            torch.float32,
            name=f"{self._tag}_{name}",
            part_policy=self.graph.get_node_partition_policy(ntype),
            persistent=True,  # lives as long as the servers: no clean-up message from a garbage collector
        )
        return self._as_table(name, ntype, tensor)

    def embedding(self, name: str, ntype: str, width: int) -> tuple[Table, Any]:
        """A new table of zeros and DGL's DistEmbedding over it, whose look-ups are leaves of autograd. COLLECTIVE."""
        import dgl

        embedding = dgl.distributed.DistEmbedding(
            self.local.num_nodes[ntype],
            width,
            name=f"{self._tag}_{name}",
            part_policy=self.graph.get_node_partition_policy(ntype),
        )
        tensor = embedding.weight
        return self._as_table(name, ntype, tensor), embedding

    def sample_neighbors(self, seeds: dict[str, torch.Tensor], fanout: int, *, key: int) -> Any:
        """DGL graph of up to `fanout` drawn in-edges of each seed (global_nids per type), of any machine; -1: all.

        Which ones depends on the key and the nodes alone.
        """
        import dgl

        edges = {}
        for ntype, etype in ((USER, RATED_BY), (ITEM, RATES)):
            nids = seeds[ntype].sort().values  # the order of a block's nodes, which are the next seeds, varies
            counts, neighbors = self._draw(ntype, nids, fanout, derive(key, ntype))
            edges[etype] = (neighbors, nids.repeat_interleave(counts))
        return dgl.heterograph(edges, num_nodes_dict=self.local.num_nodes)

    def neighbors(self, ntype: str, nids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All neighbours of nodes of any machine; nids: int64 (n,), ascending global_nids of one type.

        Returns how many each has, int64 (n,), and their global_nids, int64, node by node, in no particular order.
        """
        return self._draw(ntype, nids, -1, 0)

    def _draw(self, ntype: str, nids: torch.Tensor, fanout: int, key: int) -> tuple[torch.Tensor, torch.Tensor]:
        """For nodes in ascending order: how many neighbours were drawn, and their global_nids."""
        from dgl.distributed import rpc

        from bm3_dgl.graph.sampling import NeighborRequest, draw_neighbors

        local, parts = self.local, range(self.partition.num_parts)
        stops = torch.tensor([self.partition.part_range(part, ntype)[1] for part in parts])
        runs = nids.tensor_split(torch.searchsorted(nids, stops)[:-1])  # a part's nodes are one range
        others = [part for part in parts if part != self.part and len(runs[part])]
        requests = [(part, NeighborRequest(ntype, runs[part], fanout, key)) for part in others]
        asked = rpc.send_requests_to_machine(requests) if requests else {}
        own = runs[self.part].numpy()
        counts, columns = draw_neighbors(local.adjacency[ntype], own - local.start[ntype], own, fanout, key=key)
        answers = rpc.recv_responses(asked) if requests else []
        drawn = {part: (answer.counts, answer.nids) for part, answer in zip(others, answers, strict=True)}
        drawn[self.part] = torch.from_numpy(counts), local.neighbor_nids(ntype, columns)
        found = [drawn[part] for part in parts if part in drawn]
        return torch.cat([part[0] for part in found]), torch.cat([part[1] for part in found])

    def machine_buffer(self, name: str, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Zeros that only this machine's ranks share. COLLECTIVE."""
        if self.team.alone:
            return torch.zeros(shape, dtype=dtype)
        count = shape[0] * shape[1]  # may be 0 on one machine and not on another, and all must meet
        memory = self.team.map_shared(name, max(1, count) * dtype.itemsize)
        return torch.frombuffer(memory, dtype=dtype)[:count].view(shape)

    def feature_rows(self, modality: str, dtype: torch.dtype) -> torch.Tensor:
        """Features of this machine's own items (num_own, width): the file's float32, memory-mapped and never written to,
        or a copy of another type that the machine's ranks share. COLLECTIVE."""
        path = self.partition.feature_path(self.part, modality)
        mapped = torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))
        if dtype == mapped.dtype:
            return mapped
        rows = self.machine_buffer(f"feature_{modality}", (len(mapped), mapped.shape[1]), dtype)
        ranks = self.team.ranks
        for block in torch.arange(len(mapped)).tensor_split(ranks.local_world_size)[ranks.local_rank].split(1024):
            rows[block[0] : block[-1] + 1] = mapped[block[0] : block[-1] + 1]
        self.team.barrier()
        return rows

    def _as_table(self, name: str, ntype: str, tensor: Any) -> Table:
        start = self.local.start[ntype]
        return Table(name, ntype, tensor.local_partition, start, tensor, self.team.traffic["pulled rows"])

    def _lay_out(self, partition: Partition) -> LocalGraph:
        book = self.graph.get_partition_book()
        node_map = {ntype: partition.node_map(ntype) for ntype in NODE_TYPES}
        self.item_index = torch.from_numpy(node_map[ITEM])  # dataset index of every item, by global_nid
        return build_local_graph(
            edges_of_part(self.graph.local_partition, book),
            part_range={ntype: partition.part_range(self.part, ntype) for ntype in NODE_TYPES},
            num_nodes={ntype: self.graph.num_nodes(ntype) for ntype in NODE_TYPES},
            node_map=node_map,
            edge_map=partition.edge_map(),
        )
