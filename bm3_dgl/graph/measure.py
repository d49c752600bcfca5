"""The counts of a graph in parts: as read back from the files that DGL wrote, and whether they are a partition at all; or
as expected of an assignment at random.

In: DGL's JSON and part files, the maps, the dataset's train interactions; or degrees. Out: plain numbers, for the
manifest and for plan.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bm3_dgl.types import ITEM, NODE_TYPES, RATED_BY, RATES, USER

Ranges = Mapping[str, Sequence[tuple[int, int]]]  # node type -> (start, stop) of each part, in partition-space ids


@dataclass(frozen=True)
class PartReport:
    """One part. Edges are those it owns; halo nodes are the foreign nodes that these edges come from."""

    users: int
    items: int
    rates_edges: int  # of its own items
    rated_by_edges: int  # of its own users
    halo_users: int
    halo_items: int
    bytes_on_disk: int = 0

    @property
    def rows(self) -> int:
        return self.users + self.items

    @property
    def edges(self) -> int:
        return self.rates_edges + self.rated_by_edges

    @property
    def halo(self) -> int:
        return self.halo_users + self.halo_items


@dataclass(frozen=True)
class Graph:
    """The whole graph and its parts. cut: share of the train interactions whose user and item lie in different parts.

    parts: one for each machine where they were measured, else one that stands for all. interactions: of all splits.
    """

    users: int
    items: int
    train: int
    interactions: int
    cut: float
    parts: tuple[PartReport, ...]


@dataclass(frozen=True)
class _Edges:
    """A part's own edges of one type, in partition-space ids per type: int64 (n,) each; source_inner bool (n,)."""

    ids: np.ndarray
    sources: np.ndarray
    targets: np.ndarray
    source_inner: np.ndarray


@dataclass(frozen=True)
class _Part:
    nodes: dict[str, np.ndarray]  # node type -> own nodes, partition-space ids, in the part's local order
    rates: _Edges
    rated_by: _Edges


def measured_graph(manifest: Mapping[str, Any], *, interactions: int) -> Graph:
    """From the manifest of a partition."""
    counts, report = manifest["counts"], manifest["report"]
    parts = tuple(PartReport(**part) for part in report["parts"])
    return Graph(counts["users"], counts["items"], counts["train"], interactions, report["cut_edges"], parts)


def expected_graph(degrees: Mapping[str, Mapping[float, int]], *, interactions: int, parts: int) -> Graph:
    """What an assignment of nodes to parts at random comes to in the mean. degrees: node type -> degree -> nodes with it.

    A node with k neighbours has one in each of the other P - 1 parts with probability 1 - (1 - 1/P)^k, and its row goes
    there; of its edges a share of 1 - 1/P is cut. METIS exchanges less. The sum is concave in k, so where only the mean
    degree is known, taking it for every node gives an upper bound.
    """
    away = 1 - 1 / parts
    nodes = {ntype: sum(degrees[ntype].values()) for ntype in NODE_TYPES}
    train = round(sum(degree * count for degree, count in degrees[USER].items()))
    halo = {}
    for ntype in NODE_TYPES:
        values, counts = np.array([*degrees[ntype]], dtype=np.float64), np.array([*degrees[ntype].values()])
        halo[ntype] = math.ceil(away * float((counts * (1 - away**values)).sum()))
    users, items, edges = (-(-total // parts) for total in (nodes[USER], nodes[ITEM], train))
    part = PartReport(users, items, edges, edges, halo[USER], halo[ITEM])
    return Graph(nodes[USER], nodes[ITEM], train, interactions, away, (part,))


def measure(
    part_config: Path,
    ranges: Ranges,
    *,
    users: np.ndarray,
    items: np.ndarray,
    node_maps: Mapping[str, np.ndarray],
    edge_map: np.ndarray,
) -> dict[str, Any]:
    """Load every part and return {"parts": [PartReport as dict], "cut_edges", "node_balance", "edge_balance"}.

    users, items: the train interactions, integers (num_train,). node_maps, edge_map: as `Partition` describes them.
    cut_edges = share of train interactions whose user and item lie in different parts. Balance = max / mean over the
    parts of own nodes, and of own edges of both types (which is a machine's work).

    Asserts that each node and each edge is in exactly one part, that a part owns exactly the edges that end in its
    own nodes (so all `rates` edges of its items and all `rated_by` edges of its users), that its nodes are the
    range it claims, and that edges mapped back through the maps are the train interactions.
    """
    reports: list[PartReport] = []
    cut = 0
    found: dict[str, list[np.ndarray]] = {"edges": [], "pairs": []}
    for part in range(len(ranges[USER])):
        loaded = _load(part_config, part)
        for ntype in NODE_TYPES:
            own = np.arange(*ranges[ntype][part])
            assert np.array_equal(loaded.nodes[ntype], own), f"part {part}: its {ntype} nodes are not the range of the manifest"
        rates, rated_by = loaded.rates, loaded.rated_by
        numbers = edge_map[rates.ids]
        assert np.array_equal(node_maps[USER][rates.sources], users[numbers]), f"part {part}: wrong users on `rates` edges"
        assert np.array_equal(node_maps[ITEM][rates.targets], items[numbers]), f"part {part}: wrong items on `rates` edges"
        found["edges"].append(numbers)
        found["pairs"].append(node_maps[USER][rated_by.targets] * len(node_maps[ITEM]) + node_maps[ITEM][rated_by.sources])
        cut += int((~rates.source_inner).sum())
        reports.append(_report(loaded))
    _check_covering(found, users, items, node_maps, ranges)
    return {
        "parts": [asdict(report) for report in reports],
        "cut_edges": cut / len(users),
        "node_balance": _balance([report.users + report.items for report in reports]),
        "edge_balance": _balance([report.rates_edges + report.rated_by_edges for report in reports]),
    }


def _load(part_config: Path, part: int) -> _Part:
    """Read one part's file; asserts that own edges end in own nodes and that all edges which do are own."""
    import dgl  # late: it takes seconds, and the counts above are wanted without it
    from dgl.distributed import load_partition

    graph, _, _, book, *_ = load_partition(str(part_config), part, load_feats=False)
    node_types, node_ids = (ids.numpy() for ids in book.map_to_per_ntype(graph.ndata[dgl.NID]))
    edge_types, edge_ids = (ids.numpy() for ids in book.map_to_per_etype(graph.edata[dgl.EID]))
    inner_node = graph.ndata["inner_node"].numpy().astype(bool)
    inner_edge = graph.edata["inner_edge"].numpy().astype(bool)
    sources, targets = (ends.numpy() for ends in graph.edges(order="eid"))
    assert np.array_equal(inner_edge, inner_node[targets]), f"part {part}: an edge is not owned by the part of its target"

    def edges(etype: tuple[str, str, str]) -> _Edges:
        chosen = np.flatnonzero(inner_edge & (edge_types == book.canonical_etypes.index(etype)))
        ends = sources[chosen], targets[chosen]
        for ntype, nodes in zip((etype[0], etype[2]), ends, strict=True):
            right = node_types[nodes] == book.ntypes.index(ntype)
            assert right.all(), f"part {part}: {etype[1]} edges end elsewhere than in a {ntype}"
        return _Edges(edge_ids[chosen], node_ids[ends[0]], node_ids[ends[1]], inner_node[ends[0]])

    nodes = {ntype: node_ids[inner_node & (node_types == book.ntypes.index(ntype))] for ntype in NODE_TYPES}
    return _Part(nodes, edges(RATES), edges(RATED_BY))


def _report(part: _Part) -> PartReport:
    def foreign(edges: _Edges) -> int:
        return len(np.unique(edges.sources[~edges.source_inner]))

    return PartReport(
        users=len(part.nodes[USER]),
        items=len(part.nodes[ITEM]),
        rates_edges=len(part.rates.ids),
        rated_by_edges=len(part.rated_by.ids),
        halo_users=foreign(part.rates),
        halo_items=foreign(part.rated_by),
    )


def _check_covering(
    found: Mapping[str, list[np.ndarray]],
    users: np.ndarray,
    items: np.ndarray,
    node_maps: Mapping[str, np.ndarray],
    ranges: Ranges,
) -> None:
    """Every node in one part, every train interaction once in each direction, over all parts together."""
    for ntype, node_map in node_maps.items():
        starts, stops = zip(*ranges[ntype], strict=True)
        assert (0, *stops) == (*starts, len(node_map)), f"the parts' {ntype} ranges do not join to one"
        assert np.array_equal(np.sort(node_map), np.arange(len(node_map))), f"the {ntype} map is not a permutation"
    assert np.array_equal(np.sort(np.concatenate(found["edges"])), np.arange(len(users))), "a `rates` edge is not in one part"
    pairs = users.astype(np.int64) * len(node_maps[ITEM]) + items
    assert np.array_equal(np.sort(np.concatenate(found["pairs"])), np.sort(pairs)), "a `rated_by` edge is not in one part"


def _balance(sizes: Sequence[int]) -> float:
    return max(sizes) * len(sizes) / sum(sizes)
