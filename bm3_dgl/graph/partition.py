"""Partition directory: dataset -> one part of the graph and of the features per machine, whole or not at all.

    parts/<name>/
        bm3.json               DGL's description; the paths in it are relative to this directory
        part<k>/graph.dgl      DGL's structure of part k with its halo; node_feat.dgl and edge_feat.dgl are empty
        part<k>/features/<modality>.npy    float32 (own items, width), rows in partition order
        node_map_user.npy, node_map_item.npy, edge_map.npy    from partition space to the dataset
        parts.json             schema version, dataset hash, settings, counts, ranges, report, files with their hashes

Partition space: per node type, part 0's nodes have the first ids, part 1's the next, and so on; with one part the ids
are the dataset's. A part owns its items' `rates` edges and its users' `rated_by` edges, all of them. The same dataset,
parts, method and seed give the same maps; `metis` takes no seed. A build that was killed leaves a hidden
`.<name>.*.tmp` beside the directory, which the next build removes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bm3_dgl.config.schema import JobConfig, PartitionMethod
from bm3_dgl.data.dataset import Dataset, file_hash
from bm3_dgl.errors import DataError
from bm3_dgl.graph.sibling import sibling_name, temporary_sibling
from bm3_dgl.graph.split import EDGE_MAP, GRAPH_NAME, node_map_file, run_split
from bm3_dgl.log import logger
from bm3_dgl.types import ITEM, NODE_TYPES, USER, Split

SCHEMA_VERSION = 1
MANIFEST = "parts.json"
_BLOCK_BYTES = 1 << 25  # feature rows copied at once


@dataclass(frozen=True)
class Partition:
    """An opened partition directory."""

    directory: Path
    manifest: dict[str, Any]

    @property
    def num_parts(self) -> int:
        return self.manifest["parts"]

    @property
    def digest(self) -> str:
        """Names the partition by its content: equal on two machines that hold the same one."""
        return hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()

    @property
    def part_config(self) -> Path:
        """DGL's JSON file."""
        return self.directory / f"{self.graph_name}.json"

    @property
    def graph_name(self) -> str:
        return self.manifest["graph_name"]

    @property
    def report(self) -> dict[str, Any]:
        """What `measure` found, with the bytes of each part on disk."""
        return self.manifest["report"]

    def node_map(self, ntype: str) -> np.ndarray:
        """Partition-space id -> dataset index, int64 (num_nodes,), a permutation."""
        return self._load(node_map_file(ntype))

    def edge_map(self) -> np.ndarray:
        """Partition-space `rates` edge id -> number of the train interaction, int64 (num_train,), a permutation."""
        return self._load(EDGE_MAP)

    def part_range(self, part: int, ntype: str) -> tuple[int, int]:
        """First id of a part's own nodes, and one past the last, in partition space."""
        start, stop = self.manifest["ranges"][ntype][part]
        return start, stop

    def feature_path(self, part: int, modality: str) -> Path:
        """File with the features of a part's own items in partition order, float32 (own items, width)."""
        if modality not in self.manifest["features"]:
            have = ", ".join(self.manifest["features"]) or "none"
            raise DataError(f"data.modalities: {modality!r} is not in {self.directory} (it has: {have})")
        return self.directory / _feature_file(part, modality)

    def _load(self, name: str) -> np.ndarray:
        try:
            return np.load(self.directory / name, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.directory / name}: cannot be read ({error}); partition again") from None


def partition_directory(config: JobConfig) -> Path:
    """Where this machine's copy of the partition is, or will be."""
    settings = config.partition
    kind = f"{settings.method.name}-{settings.parts}"
    return Path(settings.dir) if settings.dir else Path(config.data.dir) / "parts" / kind


def ensure_partition(config: JobConfig, dataset: Dataset, *, part: int | None = None) -> Partition:
    """The partition that the configuration asks for: opened where it fits, built where it is missing or does not.

    part: as in `open_partition`.

    Raises DataError where the directory holds something else than a partition, and as `partition` does.
    """
    settings, method, directory = config.partition, config.partition.method.name, partition_directory(config)
    if _is_ours(directory):
        try:
            found = open_partition(directory, dataset_hash=dataset.hash, part=part)
            wanted = {"parts": settings.parts, "method": method, "seed": settings.seed}
            have = {key: found.manifest[key] for key in wanted}
            if have == wanted:
                return found
            logger.info("%s: was made with %s, now %s is wanted; partitioning again", directory, have, wanted)
        except DataError as error:
            logger.info("%s; doing so now", error)
    return partition(dataset, directory, parts=settings.parts, method=settings.method, seed=settings.seed)


def partition(dataset: Dataset, directory: Path, *, parts: int, method: PartitionMethod, seed: int) -> Partition:
    """Split the train graph and the features into `parts` and write them under `directory`, replacing only a partition.

    Raises DataError for more parts than users or items, parts that come out empty, no train interactions, a directory
    that holds something else, or one that cannot be written.
    """
    directory = directory.resolve()
    _refuse_foreign(directory)
    fewest = min(dataset.num_users, dataset.num_items)
    if not 1 <= parts <= fewest:
        raise DataError(
            f"partition.parts={parts}: expected 1 to {fewest}, a user and an item for each part; "
            f"{dataset.directory} has {dataset.num_users} users and {dataset.num_items} items"
        )
    users, items = dataset.interactions(Split.train)
    if len(users) == 0:
        raise DataError(f"{dataset.directory}: no train interactions, so no graph; check the split column of the source")
    logger.info("partitioning %d train interactions into %d parts (%s)", len(users), parts, method.name)
    try:
        with temporary_sibling(directory) as temporary:
            run_split(dataset, temporary, parts=parts, method=method.name, seed=seed)
            manifest = _describe(dataset, temporary, users, items)
            manifest |= {"dataset_hash": dataset.hash, "parts": parts, "method": method.name, "seed": seed}
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            _publish(temporary, directory)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{directory}: cannot be written ({reason}); free space or choose another partition.dir") from None
    return open_partition(directory, dataset_hash=dataset.hash)


def open_partition(directory: Path, *, dataset_hash: str | None = None, part: int | None = None) -> Partition:
    """Open a partition directory and check that its files are there in their recorded sizes.

    part: the only one whose own files are needed; a machine may have a copy without the others'.
    Raises DataError, naming the file, for a missing or resized one, another schema version, or another dataset.
    """
    path = directory / MANIFEST
    manifest = _read_manifest(directory)
    if manifest is None:
        raise DataError(f"{directory}: no partition here (no valid {MANIFEST}); make one with launch/partition.py")
    version, made_for = manifest["schema_version"], manifest["dataset_hash"]
    if version != SCHEMA_VERSION:
        raise DataError(f"{path}: schema version {version}, this program reads {SCHEMA_VERSION}; partition again")
    if dataset_hash is not None and made_for != dataset_hash:
        raise DataError(f"{directory}: is of another dataset ({made_for[:12]}, not {dataset_hash[:12]}); partition again")
    for name, entry in manifest["files"].items():
        if part is not None and name.startswith("part") and not name.startswith(f"part{part}/"):
            continue
        size = (directory / name).stat().st_size if (directory / name).is_file() else None
        if size != entry["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes"
            raise DataError(f"{directory / name}: {found}, {MANIFEST} says {entry['bytes']}; partition again")
    return Partition(directory, manifest)


def _read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest, or None where there is none that a version of this program could have written."""
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and {"schema_version", "dataset_hash"} <= manifest.keys() else None


def _is_ours(directory: Path) -> bool:
    return _read_manifest(directory) is not None


def _refuse_foreign(directory: Path) -> None:
    try:
        foreign = directory.exists() and any(directory.iterdir()) and not _is_ours(directory)
    except OSError as error:
        raise DataError(
            f"{directory}: cannot be opened as a directory ({error.strerror}); choose another partition.dir"
        ) from None
    if foreign:
        raise DataError(f"{directory}: holds something else than a partition; empty it or choose another partition.dir")


def _describe(dataset: Dataset, directory: Path, users: np.ndarray, items: np.ndarray) -> dict[str, Any]:
    """Write the features beside DGL's files, measure them all, and return the manifest without the settings."""
    from bm3_dgl.graph.measure import measure  # late: it imports dgl, which takes seconds

    dgl_json = directory / f"{GRAPH_NAME}.json"
    ranges = _ranges_per_type(dgl_json)
    node_maps = {ntype: np.load(directory / node_map_file(ntype), allow_pickle=False) for ntype in NODE_TYPES}
    edge_map = np.load(directory / EDGE_MAP, allow_pickle=False)
    report = measure(dgl_json, ranges, users=users, items=items, node_maps=node_maps, edge_map=edge_map)
    for part, (start, stop) in enumerate(ranges[ITEM]):
        _write_features(dataset, directory, part, node_maps[ITEM][start:stop])
    written = sorted(path for path in directory.rglob("*") if path.is_file())
    sizes = {str(path.relative_to(directory)): path.stat().st_size for path in written}
    files = {name: {"bytes": size, "sha256": file_hash(directory / name)} for name, size in sizes.items()}
    for part, entry in enumerate(report["parts"]):
        entry["bytes_on_disk"] = sum(size for name, size in sizes.items() if name.startswith(f"part{part}/"))
    return {
        "schema_version": SCHEMA_VERSION,
        "graph_name": GRAPH_NAME,
        "counts": {"users": len(node_maps[USER]), "items": len(node_maps[ITEM]), "train": len(users)},
        "ranges": ranges,
        "features": {name: dataset.feature(name).shape[1] for name in dataset.modalities},
        "report": report,
        "files": files,
    }


def _ranges_per_type(dgl_json: Path) -> dict[str, list[tuple[int, int]]]:
    """Node type -> (start, stop) of each part. DGL's own ranges count all types in one, part by part."""
    ranges = {}
    for ntype, pairs in json.loads(dgl_json.read_text(encoding="utf-8"))["node_map"].items():
        stops = list(itertools.accumulate(stop - start for start, stop in pairs))
        ranges[ntype] = list(zip([0, *stops], stops, strict=False))
    return ranges


def _feature_file(part: int, modality: str) -> str:
    return f"part{part}/features/{modality}.npy"


def _write_features(dataset: Dataset, directory: Path, part: int, own_items: np.ndarray) -> None:
    """Write the dataset's rows `own_items`, int64 (n,), of every modality; float32 rows that are all in order are linked."""
    for modality in dataset.modalities:
        target = directory / _feature_file(part, modality)
        target.parent.mkdir(exist_ok=True)
        rows = dataset.feature(modality)
        if rows.dtype == np.float32 and np.array_equal(own_items, np.arange(len(rows))):
            _link_or_copy(dataset.feature_path(modality), target)
            continue
        block = max(1, _BLOCK_BYTES // max(1, rows.strides[0]))
        with open(target, "wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(own_items), rows.shape[1])}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(own_items), block):
                # Mapped anew for each block: pages of a mapping count as this process's memory until it is closed.
                rows = dataset.feature(modality)
                file.write(np.ascontiguousarray(rows[own_items[start : start + block]], dtype="<f4").data)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _publish(temporary: Path, directory: Path) -> None:
    """Give the finished directory its name; a partition that had it goes only then."""
    if not _is_ours(directory):
        temporary.rename(directory)  # missing or empty
        return
    old = sibling_name(directory)
    directory.rename(old)
    temporary.rename(directory)
    shutil.rmtree(old, ignore_errors=True)
