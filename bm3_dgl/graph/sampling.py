"""Drawing neighbours: which ones is a function of (key, node) alone, for the nodes of any machine.

DGL's own sampler takes its random numbers from one stream per thread, and which thread has which stream depends on
who came first in the process; a resumed run, or another processor, would draw something else. Here a node's neighbours
follow from a hash of the key and the node, as all random numbers of the job do (runtime/random.py). So several ranks
that meet a node draw the same, and W ranks of B pairs propagate what one rank of W * B pairs does.

A machine's trainers draw for its own nodes; its graph server does so for the trainers of other machines. Imported by
both, which registers the request with both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from dgl.distributed import rpc
from numba import njit, uint64

from bm3_dgl.graph.local import Adjacency
from bm3_dgl.runtime.random import mix

_SERVICE_ID = 916657  # DGL's own end at 6664


def draw_neighbors(
    adjacency: Adjacency, rows: np.ndarray, nids: np.ndarray, fanout: int, *, key: int
) -> tuple[np.ndarray, np.ndarray]:
    """Up to `fanout` different neighbours of each row, uniformly, without replacement; -1: all.

    rows, nids: int64 (n,), rows of `adjacency` and their global_nids. Returns counts int64 (n,) and columns int32
    (sum of counts,), row by row, in the order of the row.
    """
    degree = adjacency.indptr[rows + 1] - adjacency.indptr[rows]
    counts = degree if fanout < 0 else np.minimum(degree, fanout)
    columns = np.empty(int(counts.sum()), np.int32)
    _draw(adjacency.indptr, adjacency.columns, rows, nids, counts, np.uint64(key), columns)
    return counts, columns


@njit(cache=True, nogil=True)
def _draw(indptr, columns, rows, nids, counts, key, out):  # type: ignore[no-untyped-def]
    """Floyd's algorithm (Bentley and Floyd, CACM 1987), the places drawn so far in ascending order."""
    stop = 0
    for n in range(rows.shape[0]):
        first, count = stop, counts[n]
        stop += count
        begin = indptr[rows[n]]
        degree = indptr[rows[n] + 1] - begin
        if count == degree:
            out[first:stop] = columns[begin : begin + degree]
            continue
        stream = mix(key ^ mix(uint64(nids[n]) + uint64(1)))
        for drawn in range(count):
            last = degree - count + drawn
            place = np.int32(mix(stream + uint64(drawn)) % uint64(last + 1))
            at = first + np.searchsorted(out[first : first + drawn], place)
            if at < first + drawn and out[at] == place:  # met before: `last` cannot have been, and is the largest
                place, at = np.int32(last), first + drawn  # type: ignore[assignment]
            for k in range(first + drawn, at, -1):
                out[k] = out[k - 1]
            out[at] = place
        for k in range(first, stop):
            out[k] = columns[begin + out[k]]


class NeighborRequest(rpc.Request):
    """Ask another machine's graph server to draw neighbours of its nodes."""

    def __init__(self, ntype: str, nids: torch.Tensor, fanout: int, key: int) -> None:
        """nids: int64 (n,), global_nids of that machine's nodes of one type."""
        self.state = (ntype, nids, fanout, key)

    def __getstate__(self) -> tuple:
        return self.state

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    def process_request(self, server_state: Any) -> NeighborResponse:
        import dgl

        ntype, nids, fanout, key = self.state
        graph, book = server_state.graph, server_state.partition_book
        rows = book.nid2localnid(book.map_to_homo_nid(nids, ntype), book.partid).numpy()
        counts, columns = draw_neighbors(_in_edges(graph), rows, nids.numpy(), fanout, key=key)
        neighbors = graph.ndata[dgl.NID][torch.from_numpy(columns).long()]
        _, neighbor_nids = book.map_to_per_ntype(neighbors)
        return NeighborResponse(torch.from_numpy(counts), neighbor_nids)


class NeighborResponse(rpc.Response):
    """counts: int64 (n,); nids: int64 (sum of counts,), global_nids of the neighbours."""

    def __init__(self, counts: torch.Tensor, nids: torch.Tensor) -> None:
        self.counts, self.nids = counts, nids

    def __getstate__(self) -> tuple:
        return self.counts, self.nids

    def __setstate__(self, state: tuple) -> None:
        self.counts, self.nids = state


_laid_out: dict[int, Adjacency] = {}


def _in_edges(graph: Any) -> Adjacency:
    """In-edges of a server's part by local id, each row ascending; laid out once."""
    if id(graph) not in _laid_out:
        import scipy.sparse as sp

        indptr, columns, _ = (part.numpy() for part in graph.adj_tensors("csc"))
        matrix = sp.csr_matrix((np.ones(len(columns), np.int8), columns, indptr), (graph.num_nodes(),) * 2, copy=True)
        matrix.sort_indices()
        _laid_out[id(graph)] = Adjacency(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32))
    return _laid_out[id(graph)]


rpc.register_service(_SERVICE_ID, NeighborRequest, NeighborResponse)
