"""This machine's share of the graph, laid out for propagation and for drawing batches.

Ids: a node's *global_nid* is its id in the partitioned graph, per node type, contiguous for each part; its *row* is its
place in this machine's tables (global_nid - start); its *index* is its place in the dataset. Neighbours that belong to
other machines are *halo* nodes; they come after the own rows: column num_own + k is the k-th halo node.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch

from bm3_dgl.types import ITEM, NODE_TYPES, RATED_BY, RATES, USER

OTHER = {USER: ITEM, ITEM: USER}


@dataclass(frozen=True)
class Adjacency:
    """Neighbours of a machine's own rows of one node type, in compressed rows.

    indptr: int64 (num_own + 1,); columns: int32 (num_edges,), rows of the other type, own first, then halo.
    """

    indptr: np.ndarray
    columns: np.ndarray

    def degrees(self) -> np.ndarray:
        """int64 (num_own,): train interactions of each own row, over the whole graph: own rows have all their edges."""
        return np.diff(self.indptr)


@dataclass(frozen=True)
class Edges:
    """Train interactions of a batch that this machine draws; int64 (n,) each.

    number: of the train interaction. user_nid, user_index: the user, who may belong to another machine. item_row: the item,
    always an own row, so that its features and free rows are local.
    """

    number: torch.Tensor
    user_nid: torch.Tensor
    user_index: torch.Tensor
    item_row: torch.Tensor

    def share(self, number: int, of: int) -> Edges:
        """The number-th of `of` nearly equal runs, in the order of their items, so that few items stand in several."""
        order = self.item_row.argsort(stable=True)
        return self[order[number * len(order) // of : (number + 1) * len(order) // of]]

    def __getitem__(self, places: torch.Tensor) -> Edges:
        """Those at int64 places, or where a bool mask is true."""
        return Edges(*(ends[places] for ends in (self.number, self.user_nid, self.user_index, self.item_row)))


@dataclass(frozen=True)
class LocalGraph:
    """Own rows, their neighbours, and the train edges this machine draws: those whose item it owns.

    start, num_own, num_nodes: per node type, first own global_nid, own rows, rows of all machines.
    halo: per node type, global_nids int64, ascending. original, halo_original: per node type, dataset index of each own
    and of each halo row, int64.
    edge_ids: int64 (num_edges,), ascending numbers of the train interactions; edge_user: their users' global_nids,
    edge_index: the same users' dataset indices; edge_item: their items' own rows; int64. num_train: train
    interactions of all machines.
    """

    start: dict[str, int]
    num_own: dict[str, int]
    num_nodes: dict[str, int]
    adjacency: dict[str, Adjacency]
    halo: dict[str, np.ndarray]
    original: dict[str, torch.Tensor]
    halo_original: dict[str, torch.Tensor]
    edge_ids: torch.Tensor
    edge_user: torch.Tensor
    edge_index: torch.Tensor
    edge_item: torch.Tensor
    num_train: int

    def neighbor_nids(self, ntype: str, columns: np.ndarray) -> torch.Tensor:
        """global_nids, int64, of columns of a node type's adjacency."""
        other = OTHER[ntype]
        halo = columns - self.num_own[other]
        nids = columns.astype(np.int64) + self.start[other]
        nids[halo >= 0] = self.halo[other][halo[halo >= 0]]
        return torch.from_numpy(nids)

    def edges(self, ids: torch.Tensor) -> Edges:
        """Of the train interactions `ids`, int64, those that this machine draws, in their order."""
        if len(self.edge_ids) == self.num_train:  # one machine draws them all: number k is the k-th
            place = ids
        else:
            place = torch.searchsorted(self.edge_ids, ids).clamp_(max=len(self.edge_ids) - 1)
            place = place[self.edge_ids[place] == ids]
        return Edges(self.edge_ids[place], self.edge_user[place], self.edge_index[place], self.edge_item[place])


@dataclass(frozen=True)
class PartEdges:
    """The inner edges of one part as DGL holds them, by global_nid; `number` is DGL's id of a `rates` edge."""

    rates: tuple[np.ndarray, np.ndarray]  # users, items
    rated_by: tuple[np.ndarray, np.ndarray]  # items, users
    number: np.ndarray


def build_local_graph(
    edges: PartEdges,
    *,
    part_range: dict[str, tuple[int, int]],
    num_nodes: dict[str, int],
    node_map: dict[str, np.ndarray],
    edge_map: np.ndarray,
) -> LocalGraph:
    """Lay out one part. node_map: per type, global_nid -> dataset index; edge_map: `rates` id -> train interaction."""
    adjacency, halo = {}, {}
    for ntype, (source, target) in ((USER, edges.rated_by), (ITEM, edges.rates)):
        other = OTHER[ntype]
        columns, halo[other] = _columns(source, part_range[other])
        first, stop = part_range[ntype]
        width = part_range[other][1] - part_range[other][0] + len(halo[other])
        adjacency[ntype] = _compress(target - first, columns, stop - first, width)
    number = edge_map[edges.number]
    order = np.argsort(number, kind="stable")
    return LocalGraph(
        start={ntype: part_range[ntype][0] for ntype in NODE_TYPES},
        num_own={ntype: part_range[ntype][1] - part_range[ntype][0] for ntype in NODE_TYPES},
        num_nodes=dict(num_nodes),
        adjacency=adjacency,
        halo=halo,
        original={ntype: torch.from_numpy(node_map[ntype][slice(*part_range[ntype])].copy()) for ntype in NODE_TYPES},
        halo_original={ntype: torch.from_numpy(node_map[ntype][halo[ntype]]) for ntype in NODE_TYPES},
        edge_ids=torch.from_numpy(number[order]),
        edge_user=torch.from_numpy(edges.rates[0][order]),
        edge_index=torch.from_numpy(node_map[USER][edges.rates[0][order]]),
        edge_item=torch.from_numpy(edges.rates[1][order] - part_range[ITEM][0]),
        num_train=len(edge_map),
    )


def edges_of_part(part_graph: object, book: object) -> PartEdges:
    """Read the inner edges out of DGL's homogeneous graph of one part (own nodes first, then halo)."""
    import dgl

    # Not part_graph.edges(), which would keep another copy of all edges in the graph.
    indptr, source, place = (part.numpy() for part in part_graph.adj_tensors("csc"))  # type: ignore[attr-defined]
    target = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    inner = part_graph.edata["inner_edge"].bool().numpy()[place]  # type: ignore[attr-defined]
    _, nids = book.map_to_per_ntype(part_graph.ndata[dgl.NID])  # type: ignore[attr-defined]
    etypes, eids = book.map_to_per_etype(part_graph.edata[dgl.EID])  # type: ignore[attr-defined]
    nids, etypes, eids = nids.numpy(), etypes.numpy()[place], eids.numpy()[place]
    names = [tuple(etype) for etype in book.canonical_etypes]  # type: ignore[attr-defined]
    ends, number = {}, {}
    for etype in (RATES, RATED_BY):
        chosen = inner & (etypes == names.index(etype))
        ends[etype] = (nids[source[chosen]], nids[target[chosen]])
        number[etype] = eids[chosen]
    return PartEdges(rates=ends[RATES], rated_by=ends[RATED_BY], number=number[RATES])


def _columns(nids: np.ndarray, own: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Columns of neighbours (own rows first, then halo) and the halo's global_nids."""
    first, stop = own
    inside = (nids >= first) & (nids < stop)
    halo = np.unique(nids[~inside])
    columns = np.where(inside, nids - first, 0)
    columns[~inside] = stop - first + np.searchsorted(halo, nids[~inside])
    return columns.astype(np.int32), halo


def _compress(rows: np.ndarray, columns: np.ndarray, num_rows: int, num_columns: int) -> Adjacency:
    matrix = sp.coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), (num_rows, num_columns)).tocsr()
    matrix.sort_indices()  # also ascending reads of the source table
    assert matrix.nnz == len(rows), "an interaction stands twice in the graph"
    return Adjacency(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32))
