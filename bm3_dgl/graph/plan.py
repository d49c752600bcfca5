"""What a job takes of each machine, computed from counts alone: memory, disk, network, time.

The only place of these formulas: the check of /dev/shm before a job (jobs/session.py), the report of a partition and
`launch/partition.py --plan` (jobs/partition.py) call them. In: a Graph, whose parts are measured or expected, and a Job.
Out: bytes and seconds, in dictionaries whose values add up. docs/OPERATIONS.md shows them beside running jobs.

Formulas count what grows with rows, edges and pairs; constants that were measured say so. d = embedding_dim,
L = layers, P = parts = machines; float32 4 bytes, ids 8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bm3_dgl.config.models import DEFAULTS
from bm3_dgl.config.schema import Engine, Features, JobConfig, Precision
from bm3_dgl.graph.measure import Graph, PartReport
from bm3_dgl.runtime.collectives import MAIL_BYTES
from bm3_dgl.types import ITEM, USER

# A part is DGL's graph with int64 ids. An edge: both ends 8 + 8 (as CSC: one end and its position), EID 8, ETYPE 4,
# inner_edge 1. A node in shared memory: indptr 8, NID 8, inner_node 1; on disk: NID 8, part_id 8, NTYPE 4, inner_node 1.
_EDGE_BYTES, _NODE_BYTES, _NODE_BYTES_ON_DISK = 29, 17, 21

# Measured with torch 2.2.1 and dgl 2.1.0 on the CPU. Private memory of processes that hold next to no data:
_RANK_BASE, _SERVER_BASE, _LAUNCHER_BASE = 385 << 20, 285 << 20, 200 << 20  # the launcher with the guard beside it
_CODE = 340 << 20  # libraries that all processes of a machine map
_SERVER_EDGE_BYTES = 45  # while the server reads its part
_OPENING_EDGE_BYTES = 73  # per edge of the part while a rank lays it out: the arrays of graph/local.py `edges_of_part`
_SPLIT_BASE, _SPLIT_BYTES = 280 << 20, 490  # and per train interaction while the graph is split, by METIS or at random
_LEADER_BYTES = 32  # per interaction of the dataset while rank 0 reads who is held out
# A step takes more than its arrays: gradients on their way, and, where these are small, gaps that malloc keeps between them.
_MALLOC_RETURNS, _WITH_GAPS, _WITHOUT_GAPS = 32 << 20, 3.25, 1.4

# Speeds of one core: bytes/s of rows in propagation and Adam (10 to 18e9 measured); operations/s of products and of full
# ranking; seconds of a pair's losses and their gradients, and of a drawn edge.
_ROW_SPEED, _GEMM_SPEED, _RANKING_SPEED, _PAIR_SECONDS, _DRAW_SECONDS = 14e9, 80e9, 200e9, 6e-6, 0.7e-6
# With several machines each rank looks every pair of the whole batch up among its machine's edges: seconds for a pair, and
# more for the square root of their number, as the caches no longer hold them (60 thousand to 60 million edges measured).
_LOOKUP_SECONDS, _LOOKUP_ROOT_SECONDS = 0.15e-6, 1.1e-10
# Bytes/s that a machine receives: over gloo (0.4 to 0.85e9 measured), and pulled from DGL's servers (0.14 to 0.35e9).
GLOO_SPEED, PULL_SPEED = 0.6e9, 0.25e9


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
    def row_bytes(self) -> int:
        """Of a row that neighbours read. The sampled engine has them in float32."""
        half = self.config.train.precision is Precision.bfloat16 and not self.sampled
        return (2 if half else 4) * self.config.model.embedding_dim

    @property
    def converts_features(self) -> bool:
        return self.config.train.precision is Precision.bfloat16 and self.config.model.features is not Features.trainable

    @property
    def head_bytes(self) -> int:
        """The dense weights: a projector per modality and the predictor, with biases."""
        d = self.config.model.embedding_dim
        return 4 * sum((width + 1) * d for width in [*self.widths.values(), d])


def modality_widths(config: JobConfig, have: Mapping[str, int]) -> dict[str, int]:
    """Raw widths of the modalities that the model uses, of those that there are."""
    if not DEFAULTS[config.model.name].features:
        return {}
    names = config.data.modalities if config.data.modalities is not None else list(have)
    return {name: have[name] for name in names if name in have}


def shared_bytes(job: Job, part: PartReport, cut: float) -> dict[str, int]:
    """/dev/shm of one machine: tables, DGL's graph, rows received from others, mail between the ranks of one machine."""
    several = job.machines > 1
    return {
        "tables": _table_bytes(_floats_per_row(job)[0], part.users, part.items),
        "graph": _NODE_BYTES * (part.rows + part.halo) + _EDGE_BYTES * _held_edges(part, cut),
        "propagation": _propagation_bytes(job, part),
        "features": 2 * part.items * sum(job.widths.values()) if job.converts_features else 0,
        "halo": (job.row_bytes + 4) * part.halo if several else 0,  # rows and degrees
        "mail": 0 if several or job.world == 1 else 2 * MAIL_BYTES * job.world,
    }


def rank_bytes(job: Job, graph: Graph, part: PartReport) -> dict[str, int]:
    """Private memory of one rank: "empty", "graph" and, for a time each, "opening", "step", "evaluation", "save"."""
    held = _held_edges(part, graph.cut)
    # Columns; numbers, users, their indices and items of edges to draw; items seen by the users.
    edges = 4 * part.edges + 32 * part.rates_edges + 8 * part.rated_by_edges // job.ranks
    return {
        "empty": _RANK_BASE,
        # Beside the edges: indptr, index and scale; the halo's ids twice; the dataset's index of every item.
        "graph": edges + 20 * (part.rows + part.halo) + 8 * (part.halo + graph.items),
        "opening": _OPENING_EDGE_BYTES * held + 8 * (graph.users + graph.items + graph.train),  # with the whole maps
        "step": _step_bytes(job, graph),
        "evaluation": _evaluation_bytes(job, graph, part),
        "save": _table_bytes(_floats_per_row(job)[1], part.users, part.items) // job.ranks,  # a copy of what is saved
    }


def rank_peak(sizes: Mapping[str, int]) -> int:
    """The most that a rank holds at once, from `rank_bytes`."""
    return sizes["empty"] + max(sizes["opening"], sizes["graph"] + max(sizes[name] for name in ("step", "evaluation", "save")))


def private_bytes(job: Job, graph: Graph, part: PartReport) -> dict[str, int]:
    """Memory of a machine besides /dev/shm; of machine 0, where the last entry comes to it."""
    return {
        "ranks": job.ranks * rank_peak(rank_bytes(job, graph, part)),
        "graph server": _SERVER_BASE + _SERVER_EDGE_BYTES * _held_edges(part, graph.cut),
        "launcher, guard": _LAUNCHER_BASE,
        "libraries": _CODE,
        "rank 0 besides": _LEADER_BYTES * graph.interactions,
    }


def feature_bytes(job: Job, part: PartReport) -> int:
    """Pages of the mapped feature files of a machine's items, once they have all been read; the kernel may drop them."""
    return 4 * part.items * sum(job.widths.values())


def disk_bytes(job: Job, graph: Graph, part: PartReport) -> int:
    """Files that one machine needs of the partition: its part with the features, and the maps of all parts."""
    graph_file = _EDGE_BYTES * _held_edges(part, graph.cut) + _NODE_BYTES_ON_DISK * (part.rows + part.halo)
    own = part.bytes_on_disk or graph_file + feature_bytes(job, part)
    return own + 8 * (graph.users + graph.items + graph.train)


def split_bytes(graph: Graph) -> int:
    """Memory of the process that splits the graph, on machine 0."""
    return _SPLIT_BASE + _SPLIT_BYTES * graph.train


def checkpoint_bytes(job: Job, graph: Graph) -> int:
    """One checkpoint: parameters and moments of all rows, their indices, the head with its moments."""
    rows = _table_bytes(_floats_per_row(job)[1], graph.users, graph.items)
    return rows + 8 * (graph.users + graph.items) + 3 * job.head_bytes


def steps_per_epoch(job: Job, graph: Graph) -> int:
    return -(-graph.train // (job.config.train.batch_size * job.world))


def network_bytes(job: Job, graph: Graph, part: PartReport) -> dict[str, int]:
    """What a machine receives per step (and in the mean sends), under the names of summary.json's network_per_step.

    exact: its halo, before each layer of both propagations; of batch rows those whose user lies elsewhere. sampled: drawn
    edges, degrees and embeddings, of which a share lies elsewhere; rather too many. Head: gloo's ring over all ranks
    enters a machine once. Features: none, since a machine draws the edges of the items that it owns.
    """
    if job.machines == 1:
        return {}
    d = job.config.model.embedding_dim
    head = round(2 * (job.world - 1) / job.world * job.head_bytes)
    if job.sampled:
        hops = max(job.config.model.layers, 1)
        away = job.ranks * min(1 - 1 / job.machines, 1 - (1 - graph.cut) ** hops)
        seeds, drawn, inputs = _blocks(job, graph)
        # Ids of seeds; source, target, id and type of edges; degrees of sources and, twice, of targets; embeddings.
        pulled = away * (8 * seeds + 28 * drawn + 12 * (2 * seeds + inputs) + (8 + 4 * d) * inputs)
        halo, gradients = 0, away * inputs * 4 * (d + 1)
    else:
        pairs = graph.cut * min(job.config.train.batch_size * job.world, graph.train) / job.machines
        halo, pulled, gradients = 2 * job.fetches * job.row_bytes * part.halo, pairs * (8 + 4 * d), pairs * 4 * (d + 1)
    return {"halo rows": halo, "pulled rows": round(pulled), "row gradients": round(gradients), "head gradients": head}


def network_seconds(costs: Mapping[str, int]) -> float:
    return sum(count / (PULL_SPEED if name == "pulled rows" else GLOO_SPEED) for name, count in costs.items())


def evaluation_network_bytes(job: Job, graph: Graph, part: PartReport) -> int:
    """What a machine receives per evaluation: halo rows of one propagation, and for each rank all other items' rows."""
    rows = job.fetches * part.halo + job.ranks * (graph.items - part.items)
    return 4 * job.config.model.embedding_dim * rows if job.machines > 1 else 0


def step_work(job: Job, graph: Graph, part: PartReport) -> dict[str, float]:
    """What the ranks of a machine do per step: bytes of table rows read and written, operations of matrix products.

    Both propagations of the exact engine gather a row for each edge, and read and write each row, layer by layer; the
    gradient is laid out in 3 passes; Adam reads four tables and writes three. Products: the projection of raw features
    and the predictor of users, items and modalities, 2 operations a weight forward and as many again in backward for
    the weights and, behind the predictor, for its input; fewer than these where pairs of a batch share items.
    """
    model, d = job.config.model, job.config.model.embedding_dim
    pairs = min(job.config.train.batch_size * job.world, graph.train) / job.machines
    operations = 4 * sum(job.widths.values()) * d + 6 * (2 + len(job.widths)) * d * d
    row_bytes = 28.0 * d * _blocks(job, graph)[2] * job.ranks
    if not job.sampled:
        row_bytes = 4 * (4 * job.fetches + 10) * d * part.rows + 2 * model.layers * job.row_bytes * part.edges
        row_bytes += 24 * sum(job.free_widths) * part.items
    return {"row bytes": row_bytes, "operations": pairs * operations}


def step_seconds(job: Job, graph: Graph, part: PartReport) -> float:
    """Computation of one step with a core for each rank, without waiting and without the network."""
    work = step_work(job, graph, part)
    pairs = min(job.config.train.batch_size, -(-graph.train // job.world))
    drawn = _blocks(job, graph)[1] if job.sampled else 0
    each = (work["row bytes"] / _ROW_SPEED + work["operations"] / _GEMM_SPEED) / job.ranks
    lookup = _LOOKUP_SECONDS + _LOOKUP_ROOT_SECONDS * part.rates_edges**0.5 if job.machines > 1 else 0.0
    return each + pairs * (_PAIR_SECONDS + job.world * lookup) + drawn * _DRAW_SECONDS


def evaluation_seconds(job: Job, graph: Graph, part: PartReport) -> float:
    """Ranking all items for all of a machine's users, with a core for each rank."""
    return 2 * job.config.model.embedding_dim * part.users * graph.items / job.ranks / _RANKING_SPEED


def _floats_per_row(job: Job) -> tuple[dict[str, int], dict[str, int]]:
    """Floats of one row in all tables, per node type; and of those among them that a checkpoint keeps."""
    d, steps = job.config.model.embedding_dim, int(job.sampled)  # sparse Adam counts the steps of each row
    saved = {USER: 3 * d + steps, ITEM: 3 * d + steps + sum(3 * width + steps for width in job.free_widths)}
    rest = d + (1 if job.sampled else 0)  # H; degree
    return {ntype: count + rest for ntype, count in saved.items()}, saved


def _propagation_bytes(job: Job, part: PartReport) -> int:
    """What layers write for one another, and the gradient of the exact engine."""
    layers = job.config.model.layers
    borrows = not job.sampled and job.config.train.precision is Precision.float32  # as model/propagation/operator.py has it
    scratch = min(max(layers - 2, 0), 1) if borrows else min(max(layers - 1, 0), 2)
    return job.row_bytes * part.rows * (scratch + (0 if job.sampled else 1))


def _table_bytes(floats: Mapping[str, int], users: int, items: int) -> int:
    return 4 * (floats[USER] * users + floats[ITEM] * items)


def _held_edges(part: PartReport, cut: float) -> int:
    """Edges in a part's file: DGL keeps with its own ones those that leave it, as many as enter it."""
    return round(part.edges * (1 + cut))


def _step_bytes(job: Job, graph: Graph) -> int:
    """A rank's batch at its peak, in backward: rows of d and of raw features that autograd holds. Measured."""
    d, raw, modalities = job.config.model.embedding_dim, sum(job.widths.values()), len(job.widths)
    free = {Features.fixed: 0, Features.residual: 4 * d * modalities, Features.trainable: 6 * raw}
    floats = 15 * d + 5 * d * modalities + raw + free[job.config.model.features]
    inputs = _blocks(job, graph)[2] if job.sampled else 0
    gaps = job.world > 1 and 4 * d * job.config.train.batch_size < _MALLOC_RETURNS
    arrays = 4 * (floats * job.config.train.batch_size + 4 * d * inputs)
    return round(arrays * (_WITH_GAPS if gaps else _WITHOUT_GAPS))


def _evaluation_bytes(job: Job, graph: Graph, part: PartReport) -> int:
    """A rank's ranking: online rows in float64 on the way, the item table twice in float32 and once in float64, scores."""
    d, evaluate = job.config.model.embedding_dim, job.config.evaluate
    users = -(-part.users // job.ranks)
    scores = 4 * min(evaluate.block_users, users) * graph.items
    return max(20 * d * users, 4 * d * users + 16 * d * graph.items + scores + 32 * (max(evaluate.cutoffs) + 1) * users)


def _blocks(job: Job, graph: Graph) -> tuple[int, int, int]:
    """About, for a rank's batch: nodes whose neighbours are drawn, edges drawn, nodes whose embeddings are read.

    n draws among N nodes meet N (1 - e^(-n / N)) of them. Fewer where some nodes are more popular than others, or have
    fewer neighbours than are to be drawn.
    """

    def distinct(draws: float, of: int) -> float:
        return -of * math.expm1(-draws / of)

    batch = job.config.train.batch_size
    users, items, seeds, drawn = distinct(batch, graph.users), distinct(batch, graph.items), 0.0, 0.0
    for fanout in job.config.propagation.fanouts[: job.config.model.layers]:
        of_users, of_items = (min(n * fanout, graph.train) if fanout > 0 else graph.train for n in (users, items))
        seeds, drawn = seeds + users + items, drawn + of_users + of_items
        users = max(users, distinct(users + of_items, graph.users))
        items = max(items, distinct(items + of_users, graph.items))
    return round(seeds), round(drawn), round(users + items)
