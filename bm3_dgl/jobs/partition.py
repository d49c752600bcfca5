"""Job `partition`: split the prepared dataset's graph for as many machines as `partition.parts`, and show the result.

With --plan it splits nothing and shows what a job would take on several numbers of machines (graph/plan.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from bm3_dgl.config.load import load_config, parser_with_keys
from bm3_dgl.config.schema import JobConfig
from bm3_dgl.data.dataset import Dataset
from bm3_dgl.data.prepare import prepare
from bm3_dgl.errors import ConfigError, DataError
from bm3_dgl.graph import plan
from bm3_dgl.graph.measure import Graph, PartReport, expected_graph, measured_graph
from bm3_dgl.graph.partition import Partition, ensure_partition, open_partition, partition_directory
from bm3_dgl.graph.plan import Job
from bm3_dgl.types import ITEM, USER, Split

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30
_COLUMNS = {
    "users": "users",
    "items": "items",
    "rates": "rates_edges",
    "rated_by": "rated_by_edges",
    "halo users": "halo_users",
    "halo items": "halo_items",
}
_COUNTS = ("users", "items", "interactions")  # options that stand for a dataset


@dataclass
class Command:
    """The command line beside the configuration: `parse` reads it, `run` is the job."""

    options: argparse.Namespace = field(default_factory=argparse.Namespace)

    def parse(self, description: str) -> JobConfig:
        parser = parser_with_keys(description)
        parser.add_argument("--plan", action="store_true", help="print what a job takes of each machine; partition nothing")
        parser.add_argument("--machines", type=_counts, metavar="M,M,...", help="for --plan; default 1,2,4,8,partition.parts")
        parser.add_argument("--ranks", type=_count, metavar="N", help="for --plan: ranks of each machine; default 4")
        for name in _COUNTS:
            parser.add_argument(f"--{name}", type=_count, metavar="N", help="for --plan of data that is not there: its counts")
        parser.add_argument("--feature-widths", type=_counts, default=[], metavar="V,V,...", help="and its raw feature widths")
        self.options = parser.parse_intermixed_args()
        given = [name for name in _COUNTS if getattr(self.options, name)]
        if given and len(given) < len(_COUNTS):
            missing = next(name for name in _COUNTS if name not in given)
            raise ConfigError(f"command line: --{missing} is missing beside --{given[0]}; a plan from counts needs all three")
        of_plan = [*given, *(name for name in ("machines", "ranks", "feature_widths") if getattr(self.options, name))]
        if of_plan and not self.options.plan:
            raise ConfigError(f"command line: --{of_plan[0].replace('_', '-')} is for --plan; add it, or leave it out")
        if self.options.feature_widths and not given:
            raise ConfigError("command line: --feature-widths is for a plan from counts; a dataset has its own")
        return load_config(self.options.config, self.options.overrides)

    def run(self, config: JobConfig) -> None:
        if not self.options.plan:
            main(config)
        elif self.options.users:
            users, items, interactions = (getattr(self.options, name) for name in _COUNTS)
            widths = {f"modality {number}": width for number, width in enumerate(self.options.feature_widths, 1)}
            degrees = {USER: {interactions / users: users}, ITEM: {interactions / items: items}}
            print(self._table(config, widths, lambda parts: _expected(degrees, interactions, parts)))
        else:
            print(self._table(config, *_from_dataset(config, prepare(config))))

    def _table(self, config: JobConfig, widths: Mapping[str, int], graph_of: Callable[[int], tuple[Graph, str]]) -> str:
        machines = self.options.machines or sorted({1, 2, 4, 8, config.partition.parts})
        return plan_table(config, widths, graph_of, machines=machines, ranks=self.options.ranks or 4)


def main(config: JobConfig) -> None:
    """Prepare the dataset where needed, partition it where needed, print the report."""
    print(report_table(ensure_partition(config, prepare(config)), config))


def report_table(partition: Partition, config: JobConfig) -> str:
    """The partition's report as an aligned table, one line per part, and a line for the whole."""
    rows = [["part", *_COLUMNS, "disk MiB", "memory MiB"]]
    job = Job(config, plan.modality_widths(config, partition.manifest["features"]), partition.num_parts, ranks=1)
    report = partition.report
    for number, entry in enumerate(report["parts"]):
        part = PartReport(**entry)
        memory = sum(plan.shared_bytes(job, part, report["cut_edges"]).values()) + plan.feature_bytes(job, part)
        counts = [f"{entry[key]:,}" for key in _COLUMNS.values()]
        rows.append([str(number), *counts, f"{part.bytes_on_disk / _MIB:,.1f}", f"{memory / _MIB:,.1f}"])
    whole = (
        f"cut edges {report['cut_edges']:.1%}; max / mean of nodes {report['node_balance']:.3f}, "
        f"of edges {report['edge_balance']:.3f}; memory: tables, graph and features, without processes (--plan tells)"
    )
    return "\n".join([str(partition.directory), *_aligned(rows), whole])


def plan_table(
    config: JobConfig,
    widths: Mapping[str, int],
    graph_of: Callable[[int], tuple[Graph, str]],
    *,
    machines: list[int],
    ranks: int,
) -> str:
    """What a job takes, a column for each number of machines. graph_of: parts -> the graph, and how its parts are known."""
    columns = [["machines"], *([f"{count}"] for count in machines)]
    for count, column in zip(machines, columns[1:], strict=True):
        graph, known = graph_of(count)
        lines = [("parts", known), *_lines(Job(config, widths, count, ranks), graph)]
        columns[0][1:] = [label for label, _ in lines]
        column += [text for _, text in lines]
    model = config.model
    features = ", ".join(f"{name}: {width}" for name, width in widths.items())
    head = [
        f"{graph.users:,} users, {graph.items:,} items, {graph.train:,} train interactions; features {features or 'none'}",
        f"engine {config.propagation.engine.name}, layers {model.layers}, embedding_dim {model.embedding_dim}, features"
        f" {model.features.name}; {ranks} ranks of each machine, batch_size {config.train.batch_size} each",
        "of the machine with the most:",
    ]
    foot = [
        "parts expected: the mean of an assignment at random; METIS exchanges less",
        f"seconds: a core for each rank, {plan.GLOO_SPEED / 1e9:g} GB/s between machines ({plan.PULL_SPEED / 1e9:g} for pulled"
        " rows), nothing overlaps",
    ]
    return "\n".join([*head, *_aligned([list(row) for row in zip(*columns, strict=True)], left=1), *foot])


def _lines(job: Job, graph: Graph) -> Iterator[tuple[str, str]]:
    """Label and value of every line of one column; each value is that of the machine where it is largest."""

    def largest(formula: Callable[[PartReport], float]) -> float:
        return max(formula(part) for part in graph.parts)

    yield "users", f"{largest(lambda part: part.users):,}"
    yield "items", f"{largest(lambda part: part.items):,}"
    yield "halo nodes", f"{largest(lambda part: part.halo):,}"
    yield "cut interactions", f"{graph.cut:.1%}"
    shared = [plan.shared_bytes(job, part, graph.cut) for part in graph.parts]
    private = [plan.private_bytes(job, graph, part) for part in graph.parts]
    yield "/dev/shm", _bytes(max(sum(sizes.values()) for sizes in shared))
    for name in shared[0]:
        yield f"  {name}", _bytes(max(sizes[name] for sizes in shared))
    yield "private memory", _bytes(max(sum(sizes.values()) for sizes in private))
    for name in private[0]:
        yield f"  {name}", _bytes(max(sizes[name] for sizes in private))
    pages = [plan.feature_bytes(job, part) for part in graph.parts]
    yield "feature pages", _bytes(max(pages))
    sums = [sum(a.values()) + sum(b.values()) + c for a, b, c in zip(shared, private, pages, strict=True)]
    yield "memory in total", _bytes(max(sums))
    rank = max((plan.rank_bytes(job, graph, part) for part in graph.parts), key=plan.rank_peak)
    yield "of which a rank", _bytes(plan.rank_peak(rank))
    for name, size in rank.items():
        yield f"  {name}", _bytes(size)
    yield "disk for the partition", _bytes(largest(lambda part: plan.disk_bytes(job, graph, part)))
    yield "memory to split, once", _bytes(plan.split_bytes(graph))
    yield from _step_lines(job, graph, largest)


def _step_lines(job: Job, graph: Graph, largest: Callable[[Callable[[PartReport], float]], float]) -> Iterator[tuple[str, str]]:
    costs = [plan.network_bytes(job, graph, part) for part in graph.parts]
    yield "network per step", _bytes(max(sum(cost.values()) for cost in costs))
    for name in ("halo rows", "pulled rows", "row gradients", "head gradients"):
        yield f"  {name}", _bytes(max(cost.get(name, 0) for cost in costs))
    yield "  features", _bytes(0)
    yield "row traffic per step", _bytes(largest(lambda part: plan.step_work(job, graph, part)["row bytes"]))
    yield "products per step", f"{largest(lambda part: plan.step_work(job, graph, part)['operations']) / 1e9:,.3g} Gflop"
    computing = largest(lambda part: plan.step_seconds(job, graph, part))
    waiting = max(plan.network_seconds(cost) for cost in costs)
    yield "step: computing", _seconds(computing)
    yield "step: network", _seconds(waiting)
    steps = plan.steps_per_epoch(job, graph)
    yield "steps per epoch", f"{steps:,}"
    yield "epoch", _seconds(steps * (computing + waiting))
    yield "evaluation: ranking", _seconds(largest(lambda part: plan.evaluation_seconds(job, graph, part)))
    yield "evaluation: network", _bytes(largest(lambda part: plan.evaluation_network_bytes(job, graph, part)))
    yield "checkpoint", _bytes(plan.checkpoint_bytes(job, graph))


def _from_dataset(config: JobConfig, dataset: Dataset) -> tuple[dict[str, int], Callable[[int], tuple[Graph, str]]]:
    """The dataset's feature widths, and its graph in so many parts: as partitioned where it is, else as expected."""
    widths = plan.modality_widths(config, {name: entry["shape"][1] for name, entry in dataset.manifest["features"].items()})
    interactions = dataset.manifest["counts"]["interactions"]
    ends = dict(zip((USER, ITEM), dataset.interactions(Split.train), strict=True))
    counts = {USER: dataset.num_users, ITEM: dataset.num_items}
    degrees: dict[str, dict[float, int]] = {}
    for ntype, nodes in ends.items():
        histogram = np.bincount(np.bincount(nodes, minlength=counts[ntype]))
        degrees[ntype] = {int(degree): int(histogram[degree]) for degree in np.flatnonzero(histogram)}

    def graph_of(parts: int) -> tuple[Graph, str]:
        found = _partition_into(config, dataset, parts)
        if found is not None:
            return measured_graph(found.manifest, interactions=interactions), "measured"
        return _expected(degrees, interactions, parts)

    return widths, graph_of


def _partition_into(config: JobConfig, dataset: Dataset, parts: int) -> Partition | None:
    """The partition that a job on so many machines would find."""
    settings = replace(config.partition, parts=parts)
    try:
        found = open_partition(partition_directory(replace(config, partition=settings)), dataset_hash=dataset.hash)
    except DataError:
        return None
    fits = (found.num_parts, found.manifest["method"]) == (parts, settings.method.name)
    return found if fits and found.manifest["seed"] == settings.seed else None


def _expected(degrees: Mapping[str, Mapping[float, int]], interactions: int, parts: int) -> tuple[Graph, str]:
    return expected_graph(degrees, interactions=interactions, parts=parts), "expected"


def _aligned(rows: list[list[str]], left: int = 0) -> list[str]:
    """Lines of a table; the first `left` columns are aligned to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(f"{cell:{'<' if column < left else '>'}{widths[column]}}" for column, cell in enumerate(row)) for row in rows
    ]


def _bytes(count: float) -> str:
    if count < _KIB:
        return f"{count:.0f} B" if count else "0"
    unit, name = next((unit, name) for unit, name in ((_GIB, "GiB"), (_MIB, "MiB"), (_KIB, "KiB")) if count >= unit)
    return f"{count / unit:,.1f} {name}"


def _seconds(count: float) -> str:
    if count < 1:
        return f"{count * 1000:.1f} ms" if count else "0"
    unit, name = (1, "s") if count < 120 else (60, "min") if count < 7200 else (3600, "h")
    return f"{count / unit:,.1f} {name}"


def _count(text: str) -> int:
    if not text.replace("_", "").isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _counts(text: str) -> list[int]:
    return [_count(part) for part in text.split(",")]
