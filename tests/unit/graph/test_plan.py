"""The plan's formulas against recounts: from edges one by one, from the tables, files and products of an opened session."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bm3_dgl.config import load_config
from bm3_dgl.config.schema import JobConfig
from bm3_dgl.data.prepare import prepare
from bm3_dgl.errors import JobError
from bm3_dgl.graph.measure import Graph, PartReport, expected_graph, measured_graph
from bm3_dgl.graph.partition import ensure_partition
from bm3_dgl.graph.plan import (
    Job,
    checkpoint_bytes,
    disk_bytes,
    evaluation_network_bytes,
    feature_bytes,
    modality_widths,
    network_bytes,
    network_seconds,
    private_bytes,
    rank_bytes,
    rank_peak,
    shared_bytes,
    step_work,
    steps_per_epoch,
)
from bm3_dgl.graph.store import GraphStore, Table
from bm3_dgl.jobs import session as session_module
from bm3_dgl.jobs.session import check_shared_memory, open_session
from bm3_dgl.model.bm3 import BM3Head
from bm3_dgl.model.head import BatchRows
from bm3_dgl.runtime.ranks import Ranks
from bm3_dgl.train.checkpoint import Progress
from bm3_dgl.types import ITEM, NODE_TYPES, USER, Split

SHOP = ["shop.users=120", "shop.items=50", "model.embedding_dim=8", "shop.visual_width=5", "shop.text_width=3"]
WIDTHS = {"visual": 5, "text": 3}


def config_of(home: Path, *overrides: str) -> JobConfig:
    return load_config(None, [*SHOP, f"data.dir={home / 'data'}", f"run.dir={home / 'run'}", *overrides])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up shop with partitions into 1, 2 and 3 parts."""
    home = tmp_path_factory.mktemp("plan")
    for parts in (1, 2, 3):
        config = config_of(home, f"partition.parts={parts}")
        ensure_partition(config, prepare(config))
    return home


def graph_in(home: Path, parts: int) -> Graph:
    config = config_of(home, f"partition.parts={parts}")
    dataset = prepare(config)
    return measured_graph(ensure_partition(config, dataset).manifest, interactions=dataset.manifest["counts"]["interactions"])


def train_edges(home: Path) -> list[tuple[int, int]]:
    users, items = prepare(config_of(home)).interactions(Split.train)
    return list(zip(users.tolist(), items.tolist(), strict=True))


# the graph in parts


def halo_by_hand(edges: list[tuple[int, int]], home_of: dict[str, np.ndarray], part: int) -> int:
    """Foreign nodes that the edges of a part's own nodes come from, one edge at a time."""
    users = {u for u, i in edges if home_of[ITEM][i] == part and home_of[USER][u] != part}
    items = {i for u, i in edges if home_of[USER][u] == part and home_of[ITEM][i] != part}
    return len(users) + len(items)


@pytest.mark.parametrize("parts", [2, 5])
def test_expected_parts_are_the_mean_over_random_assignments(home: Path, parts: int) -> None:
    edges, random = train_edges(home), np.random.default_rng(1)
    degrees = {ntype: degrees_of([edge[end] for edge in edges], count) for ntype, end, count in ((USER, 0, 120), (ITEM, 1, 50))}
    expected = expected_graph(degrees, interactions=len(edges), parts=parts)
    halo, cut, rounds = 0, 0, 40
    for _ in range(rounds):
        home_of = {USER: random.integers(parts, size=120), ITEM: random.integers(parts, size=50)}
        halo += sum(halo_by_hand(edges, home_of, part) for part in range(parts))
        cut += sum(home_of[USER][u] != home_of[ITEM][i] for u, i in edges)
    (part,) = expected.parts
    assert (expected.users, expected.items, expected.train) == (120, 50, len(edges))
    assert part.halo * parts == pytest.approx(halo / rounds, rel=0.03)
    assert expected.cut == pytest.approx(cut / rounds / len(edges), rel=0.03)
    assert part.rates_edges == part.rated_by_edges == math.ceil(len(edges) / parts)
    even = {USER: {len(edges) / 120: 120}, ITEM: {len(edges) / 50: 50}}  # all that is known of data that is not there
    assert expected_graph(even, interactions=len(edges), parts=parts).parts[0].halo >= part.halo


def degrees_of(nodes: list[int], count: int) -> dict[float, int]:
    degree = [nodes.count(node) for node in range(count)]
    return {value: degree.count(value) for value in degree}


def test_one_part_has_no_halo() -> None:
    graph = expected_graph({USER: {0: 2, 4: 5}, ITEM: {5: 4}}, interactions=30, parts=1)
    assert graph == Graph(7, 4, 20, 30, 0.0, (PartReport(7, 4, 20, 20, 0, 0),))


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_files_of_a_partition(home: Path, parts: int) -> None:
    config = config_of(home, f"partition.parts={parts}")
    made, graph = ensure_partition(config, prepare(config)), graph_in(home, parts)
    job = Job(config, WIDTHS, parts, ranks=2)
    maps = sum((made.directory / name).stat().st_size for name in ("node_map_user.npy", "node_map_item.npy", "edge_map.npy"))
    measured = sum(part.bytes_on_disk for part in graph.parts) + parts * maps
    assert sum(disk_bytes(job, graph, part) for part in graph.parts) == pytest.approx(measured, abs=400 * parts)
    planned = sum(disk_bytes(job, graph, PartReport(**{**vars(part), "bytes_on_disk": 0})) for part in graph.parts)
    headers = 5900 * parts  # of DGL's files and of numpy's
    assert planned + headers == pytest.approx(measured, rel=0.02)


# memory


@pytest.mark.parametrize("engine", [["propagation.engine=exact"], ["propagation.engine=sampled", "propagation.fanouts=[2,2]"]])
@pytest.mark.parametrize("features", ["fixed", "residual", "trainable"])
@pytest.mark.parametrize(
    ("layers", "precision"),
    [
        ("model.layers=1", "float32"),
        ("model.layers=2", "float32"),
        ("model.layers=3", "float32"),
        ("model.layers=3", "bfloat16"),
    ],
)
def test_tables_and_checkpoint_are_those_of_a_session(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: list[str],
    features: str,
    layers: str,
    precision: str,
) -> None:
    made: list[Table] = []
    buffers: dict[str, int] = {}

    def note(store: GraphStore, name: str, *arguments: Any, original=GraphStore.machine_buffer) -> torch.Tensor:  # type: ignore[no-untyped-def]
        buffer = original(store, name, *arguments)
        kind = name.split("_")[0].rstrip("01")
        buffers[kind] = buffers.get(kind, 0) + buffer.nbytes
        return buffer

    def keep(store: GraphStore, name: str, ntype: str, tensor: object, original=GraphStore._as_table) -> Table:  # type: ignore[no-untyped-def]
        made.append(original(store, name, ntype, tensor))
        return made[-1]

    monkeypatch.setattr(GraphStore, "_as_table", keep)
    monkeypatch.setattr(GraphStore, "machine_buffer", note)
    if "sampled" in engine[0]:
        engine = [engine[0], f"propagation.fanouts={[2] * int(layers[-1])}"]
    config = config_of(
        home, *engine, f"model.features={features}", layers, f"run.dir={tmp_path / 'run'}", f"train.precision={precision}"
    )
    graph = graph_in(home, 1)
    job = Job(config, WIDTHS, machines=1, ranks=1)
    with open_session(config, alone=True) as session:
        planned = shared_bytes(job, graph.parts[0], 0.0)
        assert planned["tables"] == sum(table.local.nbytes for table in made)
        assert planned["propagation"] == buffers.get("scratch", 0) + buffers.get("gradient", 0)
        assert planned["features"] == buffers.get("feature", 0)
        head = sum(parameter.numel() for parameter in session.model.head.parameters())
        assert job.head_bytes == 4 * head
        session.checkpoints(resuming=True).save(session.model, Progress(0, {}), best=False, keep=1)
    files = list((tmp_path / "run/checkpoints/step-00000000").glob("*.safetensors"))
    without_moments = checkpoint_bytes(job, graph) - 2 * job.head_bytes  # Adam of the head has not begun
    assert without_moments == pytest.approx(sum(path.stat().st_size for path in files), abs=4000)  # headers


def test_shared_memory_by_hand() -> None:
    config = load_config(None, ["model.embedding_dim=4", "model.features=trainable", "model.layers=2"])
    part = PartReport(users=10, items=5, rates_edges=20, rated_by_edges=30, halo_users=2, halo_items=1)
    sizes = shared_bytes(Job(config, {"visual": 7}, machines=2, ranks=3), part, cut=0.5)
    assert sizes == {
        "tables": 4 * (4 * 4 * 15 + 3 * 7 * 5),
        "propagation": 4 * 1 * 4 * 15,
        "features": 0,
        "graph": 17 * 18 + 29 * 75,
        "halo": 4 * 5 * 3,
        "mail": 0,
    }
    assert shared_bytes(Job(config, {}, machines=1, ranks=3), part, cut=0.0)["mail"] == 2 * 3 * (6 << 20)
    assert shared_bytes(Job(config, {}, machines=1, ranks=1), part, cut=0.0)["mail"] == 0


@pytest.mark.parametrize("machines", [1, 2])
def test_a_job_starts_where_the_planned_shared_memory_is_free(
    home: Path, monkeypatch: pytest.MonkeyPatch, machines: int
) -> None:
    config = config_of(home, f"partition.parts={machines}")
    partition = ensure_partition(config, prepare(config))
    graph, usage = graph_in(home, machines), session_module.shutil.disk_usage("/dev/shm")
    needed = sum(shared_bytes(Job(config, WIDTHS, machines, ranks=2), graph.parts[0], graph.cut).values())
    ranks = Ranks(0, 2 * machines, 0, 2, 0, machines)
    monkeypatch.setattr(session_module.shutil, "disk_usage", lambda _: usage._replace(free=needed))
    check_shared_memory(config, partition, ranks)
    monkeypatch.setattr(session_module.shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(JobError, match="/dev/shm"):
        check_shared_memory(config, partition, ranks)


def test_a_rank_holds_its_graph_and_one_thing_more_at_a_time(home: Path) -> None:
    graph = graph_in(home, 2)
    job = Job(config_of(home, "train.batch_size=100000"), WIDTHS, machines=2, ranks=3)
    sizes = rank_bytes(job, graph, graph.parts[0])
    assert rank_peak(sizes) == sizes["empty"] + sizes["graph"] + sizes["step"]  # the batch is larger than the graph
    assert rank_peak(sizes | {"opening": 1 << 40}) == sizes["empty"] + (1 << 40)
    assert private_bytes(job, graph, graph.parts[0])["ranks"] == 3 * rank_peak(sizes)
    assert feature_bytes(job, graph.parts[0]) == graph.parts[0].items * (5 + 3) * 4


# network and work


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_network_of_the_exact_engine_by_hand(home: Path, layers: int) -> None:
    """One step whose batch is an epoch, so that the expected pairs are all there are."""
    config = config_of(home, "partition.parts=3", f"model.layers={layers}", "train.batch_size=100000")
    graph, edges = graph_in(home, 3), train_edges(home)
    made = ensure_partition(config, prepare(config))
    home_of = {ntype: np.empty(len(made.node_map(ntype)), np.int64) for ntype in NODE_TYPES}
    for ntype, part in itertools.product(NODE_TYPES, range(3)):
        home_of[ntype][made.node_map(ntype)[slice(*made.part_range(part, ntype))]] = part
    costs = [network_bytes(Job(config, WIDTHS, 3, ranks=2), graph, part) for part in graph.parts]
    assert [cost["halo rows"] for cost in costs] == [
        2 * max(layers, 1) * halo_by_hand(edges, home_of, part) * 8 * 4 for part in range(3)
    ]
    away = sum(home_of[USER][u] != home_of[ITEM][i] for u, i in edges)
    assert sum(cost["pulled rows"] for cost in costs) == pytest.approx(away * (8 * 4 + 8), abs=3)
    assert sum(cost["row gradients"] for cost in costs) == pytest.approx(away * (8 + 1) * 4, abs=3)
    head = 4 * ((5 + 1) * 8 + (3 + 1) * 8 + (8 + 1) * 8)
    assert costs[0]["head gradients"] == round(2 * 5 / 6 * head)
    assert steps_per_epoch(Job(config, WIDTHS, 3, ranks=2), graph) == 1


def test_one_machine_sends_nothing_and_purposes_are_those_that_are_counted(home: Path) -> None:
    graph = graph_in(home, 1)
    job = Job(config_of(home), WIDTHS, machines=1, ranks=4)
    assert network_bytes(job, graph, graph.parts[0]) == {}
    assert evaluation_network_bytes(job, graph, graph.parts[0]) == 0
    costs = network_bytes(Job(config_of(home), WIDTHS, machines=2, ranks=4), graph_in(home, 2), graph.parts[0])
    source = "".join(path.read_text() for path in Path(session_module.__file__).parents[1].rglob("*.py") if path.stem != "plan")
    assert all(f'"{name}"' in source for name in costs)
    assert network_seconds({"halo rows": 600, "pulled rows": 250}) == pytest.approx(2e-6)


def test_sampled_blocks_by_drawing_them(home: Path) -> None:
    config = config_of(home, "propagation.engine=sampled", "propagation.fanouts=[3]", "train.batch_size=16")
    graph, edges = graph_in(home, 2), train_edges(home)
    job, random = Job(config, WIDTHS, machines=2, ranks=1), np.random.default_rng(2)
    cost = network_bytes(job, graph, graph.parts[0])
    assert cost["halo rows"] == 0
    inputs = []
    for _ in range(50):
        batch = random.choice(len(edges), 16, replace=False)
        seeds = {USER: {edges[k][0] for k in batch}, ITEM: {edges[k][1] for k in batch}}
        near_items = {i for user in seeds[USER] for i in random.permutation([i for u, i in edges if u == user])[:3]}
        near_users = {u for item in seeds[ITEM] for u in random.permutation([u for u, i in edges if i == item])[:3]}
        inputs.append(len(seeds[USER] | near_users) + len(seeds[ITEM] | near_items))
    assert cost["row gradients"] == pytest.approx(graph.cut * np.mean(inputs) * 4 * 9, rel=0.1)


@pytest.mark.parametrize("widths", [{}, {"visual": 50}, {"visual": 50, "text": 30}])
def test_products_are_those_that_torch_counts(widths: dict[str, int]) -> None:
    config = load_config(None, ["train.batch_size=64", "model.embedding_dim=16"])
    head = BM3Head(config.model, widths, seed=1)

    def rows(width: int, leaf: bool = False) -> torch.Tensor:
        return torch.randn(64, width).requires_grad_(leaf)

    batch = BatchRows(
        rows(16, True), rows(16, True), torch.arange(64), torch.ones(64), {name: rows(width) for name, width in widths.items()},
        {name: rows(16, True) for name in widths}, {"user": rows(16), "item": rows(16)}, {name: rows(16) for name in widths},
    )  # fmt: skip
    with FlopCounterMode(display=False) as counter:
        head(batch, 64).total.backward()
    graph = expected_graph({USER: {10: 100}, ITEM: {20: 50}}, interactions=1000, parts=1)
    planned = step_work(Job(config, widths, machines=1, ranks=1), graph, graph.parts[0])["operations"]
    assert planned == counter.get_total_flops()


def test_widths_of_the_modalities_in_use() -> None:
    assert modality_widths(JobConfig(), WIDTHS) == WIDTHS
    assert modality_widths(load_config(None, ["data.modalities=[text]"]), WIDTHS) == {"text": 3}
