"""Partitions of made-up graphs: maps, features and report against the interactions; errors; killed builds."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dgl
import numpy as np
import pytest

import bm3_dgl.graph.partition as partition_module
from bm3_dgl.config import load_config
from bm3_dgl.config.schema import JobConfig, PartitionMethod
from bm3_dgl.data.dataset import Dataset, RawDataset, open_dataset, write_dataset
from bm3_dgl.errors import DataError
from bm3_dgl.graph.build import build_graph
from bm3_dgl.graph.measure import measure
from bm3_dgl.graph.partition import MANIFEST, Partition, ensure_partition, open_partition, partition
from bm3_dgl.graph.sibling import sibling_name, temporary_sibling
from bm3_dgl.jobs.partition import report_table
from bm3_dgl.log import logger
from bm3_dgl.types import ITEM, NODE_TYPES, RATED_BY, RATES, USER, Split

KINDS = [(1, "metis"), (2, "metis"), (3, "metis"), (1, "random"), (2, "random"), (3, "random")]


def make_dataset(directory: Path, *, users: int = 60, items: int = 25, pairs: int = 400, train: bool = True) -> Dataset:
    """Distinct pairs in shuffled order, splits interleaved, the last user and item without train rows, two modalities."""
    random = np.random.default_rng(3)
    cells = random.choice(users * items, size=pairs, replace=False)
    split = random.choice([0, 0, 0, 0, 1, 2], size=pairs) if train else np.ones(pairs, dtype=np.int64)
    user, item = cells // items, cells % items
    split[(user == users - 1) | (item == items - 1)] = Split.test
    features = {name: random.random((items, width), dtype=np.float32) for name, width in (("visual", 7), ("text", 3))}
    ids = [f"u{k}" for k in range(users)], [f"i{k}" for k in range(items)]
    columns = (user.astype(np.int32), item.astype(np.int32), split.astype(np.int8))
    return write_dataset(RawDataset(*columns, *ids, [None] * items, features, {"reader": "test"}, []), directory)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data") / "made_up")


@pytest.fixture(scope="module")
def built(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Partition]:
    """Partition of a kind; each is built once."""
    home, done = tmp_path_factory.mktemp("parts"), dict[tuple[int, str], Partition]()

    def build(parts: int, method: str) -> Partition:
        if (parts, method) not in done:
            directory = home / f"{method}-{parts}"
            done[parts, method] = partition(dataset, directory, parts=parts, method=PartitionMethod[method], seed=5)
        return done[parts, method]

    return build


def part_of(made: Partition, ntype: str) -> dict[int, int]:
    """Dataset index -> part, node by node."""
    node_map = made.node_map(ntype)
    return {int(node_map[nid]): part for part in range(made.num_parts) for nid in range(*made.part_range(part, ntype))}


def test_graph_has_the_train_interactions_in_file_order(dataset: Dataset) -> None:
    graph = build_graph(dataset)
    users, items = dataset.interactions(Split.train)
    assert (graph.num_nodes(USER), graph.num_nodes(ITEM), graph.idtype) == (60, 25, graph.edges(etype=RATES)[0].dtype)
    for etype, ends in ((RATES, (users, items)), (RATED_BY, (items, users))):
        assert [end.tolist() for end in graph.edges(etype=etype)] == [end.tolist() for end in ends]
    assert not graph.ndata and not graph.edata


@pytest.mark.parametrize("parts, method", KINDS)
def test_maps_are_permutations_and_lead_back_to_the_interactions(
    built: Callable, dataset: Dataset, parts: int, method: str
) -> None:
    made = built(parts, method)
    users, items = dataset.interactions(Split.train)
    maps = {ntype: made.node_map(ntype) for ntype in NODE_TYPES}
    edge_map = made.edge_map()
    for ids, count in ((maps[USER], 60), (maps[ITEM], 25), (edge_map, len(users))):
        assert ids.dtype == np.int64
        assert sorted(ids.tolist()) == list(range(count))
    seen = {RATES: 0, RATED_BY: 0}
    for part in range(parts):
        graph, _, _, book, name, *_ = dgl.distributed.load_partition(str(made.part_config), part)
        assert name == made.graph_name
        ntype_of, nid = (ids.tolist() for ids in book.map_to_per_ntype(graph.ndata[dgl.NID]))
        etype_of, eid = (ids.tolist() for ids in book.map_to_per_etype(graph.edata[dgl.EID]))
        for edge, (source, target) in enumerate(zip(*(ends.tolist() for ends in graph.edges(order="eid")), strict=True)):
            if not graph.edata["inner_edge"][edge]:
                continue
            etype = book.canonical_etypes[etype_of[edge]]
            seen[etype] += 1
            ends = {book.ntypes[ntype_of[node]]: maps[book.ntypes[ntype_of[node]]][nid[node]] for node in (source, target)}
            start, stop = made.part_range(part, etype[2])
            assert start <= nid[target] < stop  # an edge belongs to the part of its target
            if etype == RATES:
                number = edge_map[eid[edge]]
                assert (ends[USER], ends[ITEM]) == (users[number], items[number])
    assert seen == {RATES: len(users), RATED_BY: len(users)}


@pytest.mark.parametrize("method", ["metis", "random"])
def test_one_part_keeps_all_ids(built: Callable, method: str) -> None:
    made = built(1, method)
    assert np.array_equal(made.node_map(USER), np.arange(60))
    assert np.array_equal(made.node_map(ITEM), np.arange(25))
    assert np.array_equal(made.edge_map(), np.arange(len(made.edge_map())))
    assert (made.part_range(0, USER), made.part_range(0, ITEM)) == ((0, 60), (0, 25))


@pytest.mark.parametrize("parts, method", KINDS)
def test_report_equals_a_naive_recount(built: Callable, dataset: Dataset, parts: int, method: str) -> None:
    made = built(parts, method)
    homes = {ntype: part_of(made, ntype) for ntype in NODE_TYPES}
    train = [(int(u), int(i)) for u, i in zip(*dataset.interactions(Split.train), strict=True)]
    work = []
    for part, report in enumerate(made.report["parts"]):
        of_items = [(u, i) for u, i in train if homes[ITEM][i] == part]
        of_users = [(u, i) for u, i in train if homes[USER][u] == part]
        assert report["users"] == sum(home == part for home in homes[USER].values())
        assert report["items"] == sum(home == part for home in homes[ITEM].values())
        assert (report["rates_edges"], report["rated_by_edges"]) == (len(of_items), len(of_users))
        assert report["halo_users"] == len({u for u, _ in of_items if homes[USER][u] != part})
        assert report["halo_items"] == len({i for _, i in of_users if homes[ITEM][i] != part})
        files = [path for path in (made.directory / f"part{part}").rglob("*") if path.is_file()]
        assert report["bytes_on_disk"] == sum(path.stat().st_size for path in files)
        work.append(len(of_items) + len(of_users))
    cut = sum(homes[USER][u] != homes[ITEM][i] for u, i in train)
    assert made.report["cut_edges"] == pytest.approx(cut / len(train))
    assert made.report["edge_balance"] == pytest.approx(max(work) / (sum(work) / parts))
    nodes = [report["users"] + report["items"] for report in made.report["parts"]]
    assert made.report["node_balance"] == pytest.approx(max(nodes) / (85 / parts))


@pytest.mark.parametrize("parts, method", KINDS)
def test_features_are_the_rows_of_the_own_items(
    built: Callable, dataset: Dataset, parts: int, method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = built(parts, method)
    for modality in ("visual", "text"):
        for part in range(parts):
            path = made.feature_path(part, modality)
            rows = np.load(path, mmap_mode="r")
            own = made.node_map(ITEM)[slice(*made.part_range(part, ITEM))]
            assert rows.dtype == np.float32
            assert np.array_equal(rows, dataset.feature(modality)[own])
            assert os.path.samefile(path, dataset.feature_path(modality)) is (parts == 1)
    own = made.node_map(ITEM)[slice(*made.part_range(0, ITEM))]
    (tmp_path / "part0").mkdir()
    monkeypatch.setattr(partition_module, "_BLOCK_BYTES", 60)  # two rows of `visual`, five of `text`
    partition_module._write_features(dataset, tmp_path, 0, own)
    for modality in ("visual", "text"):
        assert np.array_equal(np.load(tmp_path / f"part0/features/{modality}.npy"), dataset.feature(modality)[own])


def test_features_are_copied_where_they_cannot_be_linked(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "part0").mkdir()
    partition_module._write_features(dataset, tmp_path, 0, np.arange(25))
    copy = tmp_path / "part0/features/visual.npy"
    assert copy.read_bytes() == dataset.feature_path("visual").read_bytes()
    assert not os.path.samefile(copy, dataset.feature_path("visual"))


def test_dgl_files_hold_structure_only_and_paths_are_relative(built: Callable) -> None:
    made = built(2, "metis")
    graph, node_feats, edge_feats, *_ = dgl.distributed.load_partition(str(made.part_config), 1)
    assert not node_feats and not edge_feats
    assert set(graph.ndata) == {dgl.NID, dgl.NTYPE, "inner_node", "part_id"}
    assert set(graph.edata) == {dgl.EID, dgl.ETYPE, "inner_edge"}
    description = json.loads(made.part_config.read_text())
    assert description["part-1"]["part_graph"] == "part1/graph.dgl"
    listed = set(made.manifest["files"]) | {MANIFEST}
    assert listed == {str(path.relative_to(made.directory)) for path in made.directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("method", ["metis", "random"])
def test_same_seed_gives_the_same_maps(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What lies in fresh memory decides where METIS puts nodes; here each process finds something else there.
    dirt = iter((1, 254, 2))
    larger = make_dataset(tmp_path / "data", users=300, items=120, pairs=2000)
    seeds = {"first": 5, "again": 5, "other": 2**40 + 6}
    made = {}
    for name, seed in seeds.items():
        byte = next(dirt)
        monkeypatch.setenv("GLIBC_TUNABLES", f"glibc.malloc.perturb={byte}:glibc.malloc.tcache_count=0")
        monkeypatch.setenv("MALLOC_PERTURB_", str(byte))
        made[name] = partition(larger, tmp_path / name, parts=3, method=PartitionMethod[method], seed=seed)
    maps = {name: [*(one.node_map(ntype) for ntype in NODE_TYPES), one.edge_map()] for name, one in made.items()}
    for first, again in zip(maps["first"], maps["again"], strict=True):
        assert np.array_equal(first, again)
    differs = not np.array_equal(maps["first"][0], maps["other"][0])
    assert differs is (method == "random")  # METIS takes no seed


def test_measure_refuses_maps_that_do_not_fit_the_edges(built: Callable, dataset: Dataset) -> None:
    made = built(2, "random")
    users, items = dataset.interactions(Split.train)
    maps = {ntype: made.node_map(ntype) for ntype in NODE_TYPES}
    arguments = {"users": users, "items": items, "node_maps": maps, "edge_map": made.edge_map()}
    assert measure(made.part_config, made.manifest["ranges"], **arguments)["cut_edges"] == made.report["cut_edges"]
    with pytest.raises(AssertionError, match="wrong users"):
        measure(made.part_config, made.manifest["ranges"], **(arguments | {"edge_map": np.roll(made.edge_map(), 1)}))
    with pytest.raises(AssertionError, match="range of the manifest"):
        measure(made.part_config, made.manifest["ranges"] | {USER: [[0, 10], [10, 60]]}, **arguments)


def test_report_table(built: Callable) -> None:
    config = load_config(None, ["model.embedding_dim=4", "data.modalities=[visual]"])
    lines = report_table(built(2, "metis"), config).splitlines()
    assert len(lines) == 5
    assert len({len(line) for line in lines[1:4]}) == 1
    assert "cut edges" in lines[4]


# errors


def test_more_parts_than_items_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"partition.parts=26: expected 1 to 25"):
        partition(dataset, tmp_path / "parts", parts=26, method=PartitionMethod.metis, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_a_part_without_edges_is_refused(tmp_path: Path) -> None:
    tiny = make_dataset(tmp_path / "data", users=6, items=5, pairs=6)
    with pytest.raises(DataError, match=r"partition.parts=5: a part came out without users, items or train interactions"):
        partition(tiny, tmp_path / "parts", parts=5, method=PartitionMethod.random, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_failure_of_the_child_is_one_line_and_its_output_is_logged(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bm3_dgl.graph.split._PROGRAM", "print('before'); raise SystemExit('METIS is unwell')")
    monkeypatch.setattr(logger, "propagate", True)
    with pytest.raises(DataError, match=r"DGL cannot split it into 2 parts \(exit code 1: METIS is unwell\)"):
        partition(dataset, tmp_path / "parts", parts=2, method=PartitionMethod.metis, seed=0)
    assert "DGL: before" in caplog.messages
    assert list(tmp_path.iterdir()) == []


def test_no_train_interactions_is_refused(tmp_path: Path) -> None:
    empty = make_dataset(tmp_path / "data", train=False)
    with pytest.raises(DataError, match="no train interactions"):
        partition(empty, tmp_path / "parts", parts=1, method=PartitionMethod.metis, seed=0)
    with pytest.raises(DataError, match="no train interactions"):
        build_graph(empty)


def test_unwritable_directory_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file" / "parts", Path("/proc/bm3/parts")):
        with pytest.raises(DataError, match=r"parts: cannot be written \([A-Z].*choose another partition.dir") as caught:
            partition(dataset, directory, parts=1, method=PartitionMethod.metis, seed=0)
        assert "\n" not in str(caught.value)


def test_foreign_directory_is_refused_and_left_alone(dataset: Dataset, tmp_path: Path) -> None:
    for name in ("notes", "alien", "file"):
        (tmp_path / name).mkdir() if name != "file" else (tmp_path / name).touch()
    (tmp_path / "notes" / "todo.txt").write_text("keep")
    (tmp_path / "alien" / MANIFEST).write_text('{"parts": 3}')
    for name, message in (("notes", "something else"), ("alien", "something else"), ("file", "as a directory")):
        with pytest.raises(DataError, match=message):
            ensure_partition(config_for(tmp_path / name), dataset)
    assert (tmp_path / "notes" / "todo.txt").read_text() == "keep"
    assert (tmp_path / "alien" / MANIFEST).exists()


def test_open_names_what_is_wrong(built: Callable, dataset: Dataset, tmp_path: Path) -> None:
    made = built(2, "metis")
    assert open_partition(made.directory, dataset_hash=dataset.hash) == made
    with pytest.raises(DataError, match="no partition here"):
        open_partition(tmp_path)
    with pytest.raises(DataError, match=r"is of another dataset \(.*, not 0123\)"):
        open_partition(made.directory, dataset_hash="0123")
    with pytest.raises(DataError, match=r"'sound' is not in .* \(it has: visual, text\)"):
        made.feature_path(0, "sound")
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(made.directory), str(copy)], check=True)
    (copy / "part1" / "graph.dgl").write_bytes(b"short")
    with pytest.raises(DataError, match=r"part1/graph.dgl: has 5 bytes, parts.json says"):
        open_partition(copy)
    (copy / "part1" / "graph.dgl").unlink()
    with pytest.raises(DataError, match=r"part1/graph.dgl: is missing"):
        open_partition(copy)
    (copy / MANIFEST).write_text(json.dumps(made.manifest | {"schema_version": 99}))
    with pytest.raises(DataError, match="schema version 99, this program reads 1"):
        open_partition(copy)
    (copy / "edge_map.npy").write_bytes(b"x" * 200)
    with pytest.raises(DataError, match=r"edge_map.npy: cannot be read"):
        Partition(copy, made.manifest).edge_map()


# ensure_partition


def config_for(directory: Path | str, *, parts: int = 1) -> JobConfig:
    config = JobConfig()
    config.partition.dir, config.partition.parts = str(directory), parts
    return config


def test_ensure_builds_once_and_again_when_something_changed(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, logger=logger.name)
    config = config_for("")
    config.data.dir = str(tmp_path)
    made = ensure_partition(config, dataset)
    assert made.directory == tmp_path / "parts" / "metis-1"

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("built again")

    with monkeypatch.context() as patch:
        patch.setattr(partition_module, "run_split", refuse)
        assert ensure_partition(config, dataset) == made
        config.partition.seed = 1
        with pytest.raises(RuntimeError, match="built again"):
            ensure_partition(config, dataset)
    assert "was made with {'parts': 1, 'method': 'metis', 'seed': 0}" in caplog.text
    assert open_partition(made.directory) == made  # the old one stays until the new one is whole

    other = make_dataset(tmp_path / "other", users=61)
    rebuilt = ensure_partition(config, other)
    assert "is of another dataset" in caplog.text
    assert (rebuilt.manifest["dataset_hash"], rebuilt.manifest["seed"]) == (other.hash, 1)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["metis-1"]


# killed builds


def test_a_killed_build_leaves_nothing_that_disturbs_the_next(dataset: Dataset, tmp_path: Path) -> None:
    directory = tmp_path / "parts"
    program = (
        "import sys, time; from pathlib import Path; import bm3_dgl.graph.partition as p; "
        "from bm3_dgl.data.dataset import open_dataset; from bm3_dgl.config.schema import PartitionMethod; "
        "p.measure = lambda *a, **k: time.sleep(600); "
        "p.partition(open_dataset(Path(sys.argv[1])), Path(sys.argv[2]), parts=2, method=PartitionMethod.metis, seed=0)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(partition_module.__file__).parents[2])}
    build = subprocess.Popen([sys.executable, "-c", program, str(dataset.directory), str(directory)], env=environment)
    deadline = time.monotonic() + 120
    while not (written := list(tmp_path.glob(".parts.*.tmp/edge_map.npy"))) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert written, "the build never got to its maps"
    with temporary_sibling(directory):  # another build does not take what this one is writing
        assert written[0].exists()
    build.send_signal(signal.SIGKILL)
    build.wait()
    assert written[0].exists()
    assert not directory.exists()
    keep = tmp_path / ".parts.mine.tmp"
    keep.mkdir()
    sibling_name(directory).mkdir()
    partition(dataset, directory, parts=1, method=PartitionMethod.metis, seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".parts.mine.tmp", "parts"]
    assert open_partition(directory).num_parts == 1


def test_relative_dataset_path_reaches_the_child(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(dataset.directory.parent)
    made = partition(open_dataset(Path("made_up")), tmp_path / "parts", parts=1, method=PartitionMethod.random, seed=0)
    assert made.manifest["dataset_hash"] == dataset.hash
