"""What a job takes of each machine, computed from counts alone: memory, disk, network, time.

The only place of these formulas: the check of /dev/shm before a job (jobs/session.py), the report of a partition and
`launch/partition.py --plan` (jobs/partition.py) call them. In: a Graph, whose parts are measured or expected, and a Job.
Out: bytes and seconds, in dictionaries whose values add up. docs/OPERATIONS.md shows them beside running jobs.

Formulas count what is a multiple of rows, edges or pairs; constants that were measured say so. d = embedding_dim,
L = layers, M = machines, float32 = 4 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bm3_dgl.config.schema import Engine, Features, JobConfig
from bm3_dgl.runtime.collectives import MAIL_BYTES
from bm3_dgl.types import ITEM, NODE_TYPES, USER

_FLOAT, _ID = 4, 8  # bytes
# A part is DGL's graph with int64 ids. An edge: both ends 8 + 8 (as CSC: one end and its position), EID 8, ETYPE 4,
# inner_edge 1. A node in shared memory: indptr 8, NID 8, inner_node 1; on disk: NID 8, part_id 8, NTYPE 4, inner_node 1.
_EDGE_BYTES, _NODE_BYTES, _NODE_BYTES_ON_DISK = 29, 17, 21

# Measured with torch 2.2.1 and dgl 2.1.0 (no CUDA in use): private memory of processes on next to no data, MiB -> bytes.
_RANK_BASE, _SERVER_BASE, _LAUNCHER_BASE = 385 << 20, 265 << 20, 200 << 20  # the launcher with the guard beside it
_CODE = 340 << 20  # libraries that all processes of a machine map
_SERVER_EDGE_BYTES = 45  # while the server reads its part; measured
_OPENING_EDGE_BYTES = 73  # per edge of the part while a rank lays it out: graph/local.py `edges_of_part`
_SPLIT_BYTES = 490  # per train interaction while METIS splits the graph; measured on 3.2 million
_LEADER_BYTES = 32  # per interaction of the dataset while rank 0 reads who is held out; measured

# Speed of one core, measured (docs/OPERATIONS.md): row traffic of propagation and Adam, bytes/s; a pair's batch rows, losses
# and their gradients, seconds; raw features' products and full ranking, operations/s; an edge that is drawn, seconds.
_ROW_SPEED, _PAIR_SECONDS, _GEMM_SPEED, _RANK_SPEED, _DRAW_SECONDS = 10e9, 17e-6, 80e9, 25e9, 2e-6
NETWORK_SPEED = 0.6e9  # bytes/s of rows over gloo between two machines: 0.4 to 0.85 measured


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
class Job:
    """Who trains what. widths: raw width of each modality in use. ranks: of each machine."""

    config: JobConfig
    widths: Mapping[str, int]
    machines: int
    ranks: int

    @property
    def world(self) -> int:
        return self.machines * self.ranks

    @property
    def sampled(self) -> bool:
        return self.config.propagation.engine is Engine.sampled

    @property
    def fetches(self) -> int:
        """Halo exchanges of one propagation: one before each layer, and one where there is no layer."""
        return max(self.config.model.layers, 1)

    @property
    def free_widths(self) -> list[int]:
        """Width of each table of trainable rows per item and modality."""
        if self.config.model.features is Features.fixed:
            return []
        residual = self.config.model.features is Features.residual
        return [self.config.model.embedding_dim if residual else width for width in self.widths.values()]

    @property
    def head_bytes(self) -> int:
        """The dense weights: a projector per modality and the predictor, with biases."""
        d = self.config.model.embedding_dim
        return _FLOAT * sum((width + 1) * d for width in [*self.widths.values(), d])


def modality_widths(config: JobConfig, have: Mapping[str, int]) -> dict[str, int]:
    """Raw widths of the modalities that the model uses, of those that there are."""
    names = config.data.modalities if config.data.modalities is not None else list(have)
    return {name: have[name] for name in names if name in have}


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
        halo[ntype] = math.ceil(away * float((counts * (1 - away**values)).sum())) if parts > 1 else 0
    users, items, edges = (-(-total // parts) for total in (nodes[USER], nodes[ITEM], train))
    part = PartReport(users, items, edges, edges, halo[USER], halo[ITEM])
    return Graph(nodes[USER], nodes[ITEM], train, interactions, away, (part,))


def shared_bytes(job: Job, part: PartReport, cut: float) -> dict[str, int]:
    """/dev/shm of one machine: tables, DGL's graph, rows received from others, mail between the ranks of one machine."""
    d = job.config.model.embedding_dim
    shared, _ = _floats_per_row(job)
    several = job.machines > 1
    return {
        "tables": _FLOAT * (shared[USER] * part.users + shared[ITEM] * part.items),
        "graph": _NODE_BYTES * (part.rows + part.halo) + _EDGE_BYTES * _held_edges(part, cut),
        "halo": _FLOAT * (d + 1) * part.halo if several else 0,  # rows and degrees
        "mail": 0 if several or job.world == 1 else 2 * MAIL_BYTES * job.world,
    }


def private_bytes(job: Job, graph: Graph, part: PartReport) -> dict[str, int]:
    """Memory of a machine besides /dev/shm. Ranks at their peak, which is their opening, a step or an evaluation."""
    held = _held_edges(part, graph.cut)
    nodes = graph.users + graph.items
    opening = _OPENING_EDGE_BYTES * held + _ID * (nodes + graph.train)  # the maps of the whole partition with it
    # columns; numbers, users, their indices and items of drawn edges; DGL's COO of the part; seen items for the ranking
    edges = 4 * part.edges + 4 * _ID * part.rates_edges + 2 * _ID * held + _ID * part.rated_by_edges // job.ranks
    # indptr, index, scale; halo ids, their indices, scale; dataset index of every item
    kept = edges + (2 * _ID + 4) * (part.rows + part.halo) + _ID * (part.halo + graph.items)
    work = max(_step_bytes(job, graph), _evaluation_bytes(job, graph, part), _saved_bytes(job, part) // job.ranks)
    rank = _RANK_BASE + max(opening, kept + work)
    return {
        "ranks": job.ranks * rank,
        "graph server": _SERVER_BASE + _SERVER_EDGE_BYTES * held,
        "launcher, guard": _LAUNCHER_BASE,
        "libraries": _CODE,
        "rank 0 besides": _LEADER_BYTES * graph.interactions,
    }


def feature_bytes(job: Job, part: PartReport) -> int:
    """Pages of the mapped feature files of a machine's items, once they have all been read; the kernel may drop them."""
    return _FLOAT * part.items * sum(job.widths.values())


def disk_bytes(job: Job, graph: Graph, part: PartReport) -> int:
    """Files that one machine needs of the partition: its part with the features, and the maps of all parts."""
    own = part.bytes_on_disk or (
        _EDGE_BYTES * _held_edges(part, graph.cut) + _NODE_BYTES_ON_DISK * (part.rows + part.halo) + feature_bytes(job, part)
    )
    return own + _ID * (graph.users + graph.items + graph.train)


def split_bytes(graph: Graph) -> int:
    """Memory of the process that splits the graph, on machine 0."""
    return _SPLIT_BYTES * graph.train


def checkpoint_bytes(job: Job, graph: Graph) -> int:
    """One checkpoint: parameters, moments and indices of all rows; the head with its moments."""
    _, saved = _floats_per_row(job)
    rows = {USER: graph.users, ITEM: graph.items}
    return sum((_FLOAT * saved[n] + _ID) * rows[n] for n in NODE_TYPES) + 3 * job.head_bytes


def steps_per_epoch(job: Job, graph: Graph) -> int:
    return -(-graph.train // (job.config.train.batch_size * job.world))


def network_bytes(job: Job, graph: Graph, part: PartReport) -> dict[str, int]:
    """What a machine receives per step, and sends in the mean, under the names of summary.json's network_per_step.

    exact: its halo, before each layer of both propagations; of batch rows those whose user lies elsewhere. sampled: at
    most, with drawn neighbours, degrees and rows of which a share lies elsewhere. Head: gloo's ring over all ranks,
    which enters a machine once. Features: none, since a machine draws the edges of the items that it owns.
    """
    if job.machines == 1:
        return {}
    d = job.config.model.embedding_dim
    pairs = graph.cut * min(job.config.train.batch_size * job.world, graph.train) / job.machines
    head = round(2 * (job.world - 1) / job.world * job.head_bytes)
    if not job.sampled:
        return {
            "halo rows": 2 * job.fetches * _FLOAT * d * part.halo,
            "pulled rows": round(pairs * (_FLOAT * d + _ID)),
            "row gradients": round(pairs * _FLOAT * (d + 1)),
            "head gradients": head,
        }
    layers = job.config.model.layers
    away = min(1 - 1 / job.machines, 1 - (1 - graph.cut) ** max(layers, 1))
    seeds, drawn, inputs = _blocks(job, graph)
    # seeds, drawn edges (source, target, id, type); degrees of sources and, twice, of targets; embeddings
    pulled = _ID * seeds + 28 * drawn + (_ID + _FLOAT) * (2 * seeds + inputs) + (_ID + _FLOAT * d) * inputs
    return {
        "pulled rows": round(job.ranks * away * pulled),
        "row gradients": round(job.ranks * away * inputs * _FLOAT * (d + 1)),
        "head gradients": head,
    }


def evaluation_network_bytes(job: Job, graph: Graph, part: PartReport) -> int:
    """What a machine receives per evaluation: halo rows of one propagation, and for each rank all other items' rows."""
    if job.machines == 1:
        return 0
    d = job.config.model.embedding_dim
    return _FLOAT * d * (job.fetches * part.halo + job.ranks * (graph.items - part.items))


def step_work(job: Job, graph: Graph, part: PartReport) -> dict[str, float]:
    """What the ranks of a machine do per step: bytes of table rows read and written, operations of matrix products.

    Both propagations of the exact engine gather a row for each edge, and read and write each row, layer by layer; the
    gradient is laid out in 3 passes; Adam reads four tables of a row and writes three. Products: a raw feature's
    projection and the predictor's of users, items and modalities, forward 2 operations a weight, backward as many again
    for the weights and, behind the predictor, for its input.
    """
    model, d = job.config.model, job.config.model.embedding_dim
    pairs = min(job.config.train.batch_size * job.world, graph.train) / job.machines
    operations = 4 * sum(job.widths.values()) * d + 6 * (2 + len(job.widths)) * d * d
    if job.sampled:
        rows = 7 * d * _blocks(job, graph)[2] * job.ranks
    else:
        rows = (4 * job.fetches + 3 + 7) * d * part.rows + 6 * sum(job.free_widths) * part.items
        rows += 2 * model.layers * d * part.edges
    return {"row bytes": _FLOAT * rows, "operations": pairs * operations}


def step_seconds(job: Job, graph: Graph, part: PartReport) -> float:
    """Computation of one step with a core for each rank, without waiting and without the network."""
    work = step_work(job, graph, part)
    pairs = min(job.config.train.batch_size, -(-graph.train // job.world))
    drawn = _blocks(job, graph)[1] if job.sampled else 0
    each = (work["row bytes"] / _ROW_SPEED + work["operations"] / _GEMM_SPEED) / job.ranks
    return each + pairs * _PAIR_SECONDS + drawn * _DRAW_SECONDS


def evaluation_seconds(job: Job, graph: Graph, part: PartReport) -> float:
    """Ranking all items for all of a machine's users, with a core for each rank."""
    return 2 * job.config.model.embedding_dim * part.users * graph.items / job.ranks / _RANK_SPEED


def _floats_per_row(job: Job) -> tuple[dict[str, int], dict[str, int]]:
    """Floats of one row in all tables, per node type; and of those among them that a checkpoint keeps."""
    d, steps = job.config.model.embedding_dim, int(job.sampled)  # sparse Adam counts the steps of each row
    saved = {USER: 3 * d + steps, ITEM: 3 * d + steps + sum(3 * width + steps for width in job.free_widths)}
    rest = d + (1 if job.sampled else d) + (d if job.config.model.layers > 1 else 0)  # H; degree or gradient; scratch
    return {ntype: count + rest for ntype, count in saved.items()}, saved


def _held_edges(part: PartReport, cut: float) -> int:
    """Edges in a part's file: DGL keeps with its own ones those that leave it, as many as enter it."""
    return round(part.edges * (1 + cut))


def _saved_bytes(job: Job, part: PartReport) -> int:
    """A machine's rows of a checkpoint, which are copied while it is written."""
    _, saved = _floats_per_row(job)
    return _FLOAT * (saved[USER] * part.users + saved[ITEM] * part.items)


def _step_bytes(job: Job, graph: Graph) -> int:
    """A rank's batch at its peak, in backward: rows of d and of raw features that autograd holds. Measured."""
    d, raw = job.config.model.embedding_dim, sum(job.widths.values())
    floats = 15 * d + 5 * d * len(job.widths) + raw
    if job.free_widths:
        floats += 6 * raw if job.config.model.features is Features.trainable else 4 * d * len(job.widths)
    inputs = _blocks(job, graph)[2] if job.sampled else 0
    return _FLOAT * (floats * job.config.train.batch_size + 4 * d * inputs)


def _evaluation_bytes(job: Job, graph: Graph, part: PartReport) -> int:
    """A rank's ranking: online rows in float64 on the way, the item table twice in float32 and once in float64, scores."""
    d, evaluate = job.config.model.embedding_dim, job.config.evaluate
    users = -(-part.users // job.ranks)
    scores = _FLOAT * min(evaluate.block_users, users) * graph.items
    ranking = 4 * d * users + 16 * d * graph.items + scores + 32 * (max(evaluate.cutoffs) + 1) * users
    return max(20 * d * users, ranking)


def _blocks(job: Job, graph: Graph) -> tuple[int, int, int]:
    """At most, for a rank's batch: nodes whose neighbours are drawn, edges drawn, nodes whose embeddings are read.

    Drawing n times among N nodes meets N (1 - e^(-n / N)) of them, fewer where some are more popular.
    """
    total = {USER: graph.users, ITEM: graph.items}

    def distinct(draws: float, ntype: str) -> float:
        return total[ntype] * -math.expm1(-draws / total[ntype])

    nodes = {ntype: distinct(job.config.train.batch_size, ntype) for ntype in NODE_TYPES}
    seeds = drawn = 0.0
    for fanout in job.config.propagation.fanouts[: job.config.model.layers]:
        edges = {n: min(nodes[n] * fanout, graph.train) if fanout > 0 else graph.train for n in NODE_TYPES}
        seeds, drawn = seeds + sum(nodes.values()), drawn + sum(edges.values())
        nodes = {USER: max(nodes[USER], distinct(nodes[USER] + edges[ITEM], USER)),
                 ITEM: max(nodes[ITEM], distinct(nodes[ITEM] + edges[USER], ITEM))}  # fmt: skip
    return round(seeds), round(drawn), round(sum(nodes.values()))
