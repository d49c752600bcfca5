"""The dataset directory: what every reader writes and every later stage reads.

    data/<name>/
        interactions.parquet   user int32, item int32, split int8 (0 train, 1 valid, 2 test); where the source has them
                               time int64 (milliseconds since 1970) and weight float32
        users.parquet          raw_user_id string; row number = user index
        items.parquet          raw_item_id, title, text, category, image (URL or path): string or null; has_text, has_image:
                               bool, null where it is not known; row number = item index
        features/<modality>.npy    float32 or float16 (num_items, width), C order, opened memory-mapped
        skipped.jsonl          only where data.on_error=skip left something out: file, line or record, reason
        dataset.json           schema version, counts, steps that led to them, features, file hashes, origin, warnings,
                               `hash` of all files and counts

A directory under its final name is whole: it is written under another one and renamed at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bm3_dgl.errors import DataError
from bm3_dgl.types import Split

SCHEMA_VERSION = 2
MANIFEST = "dataset.json"
SKIPPED = "skipped.jsonl"
_TABLES = ("interactions.parquet", "users.parquet", "items.parquet")
_HASH_CHUNK = 1 << 22  # bytes read at once while hashing


@dataclass(frozen=True)
class RawDataset:
    """What a reader returns, already checked: the content of a dataset directory before it is written.

    users, items: int32 (num_interactions,), indices from 0; split: int8 (num_interactions,), values of Split.
    features: modality name -> float32 array (num_items, width), possibly memory-mapped.
    titles: one per item, None where unknown. origin: where it came from, enough to tell two sources apart.
    warnings: one sentence each, to be shown and stored (for example users without train rows).
    """

    users: np.ndarray
    items: np.ndarray
    split: np.ndarray
    raw_user_ids: list[str]
    raw_item_ids: list[str]
    titles: list[str | None]
    features: Mapping[str, np.ndarray]
    origin: dict
    warnings: list[str]


@dataclass(frozen=True)
class Dataset:
    """An opened dataset directory."""

    directory: Path
    manifest: dict

    @property
    def hash(self) -> str:
        """Hash of the content: equal for equal interactions, ids and features."""
        return self.manifest["hash"]

    @property
    def num_users(self) -> int:
        return self.manifest["counts"]["users"]

    @property
    def num_items(self) -> int:
        return self.manifest["counts"]["items"]

    @property
    def modalities(self) -> list[str]:
        return list(self.manifest["features"])

    def interactions(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """User and item indices of one split, int32 (n,) each, in file order."""
        table = self._table("interactions.parquet", "user", "item", "split")
        chosen = table["split"].to_numpy() == int(split)
        return table["user"].to_numpy()[chosen], table["item"].to_numpy()[chosen]

    def feature(self, modality: str) -> np.ndarray:
        """Features of one modality, float32 or float16 (num_items, width), memory-mapped read-only."""
        path = self.feature_path(modality)
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read ({error}); prepare the dataset again") from None
        entry = self.manifest["features"][modality]
        shape, dtype = tuple(entry["shape"]), entry["dtype"]
        if rows.shape != shape or rows.dtype != dtype:
            raise DataError(
                f"{path}: holds {rows.dtype} {rows.shape}, {MANIFEST} says {dtype} {shape}; prepare the dataset again"
            )
        return rows

    def feature_path(self, modality: str) -> Path:
        """File of one modality. Raises DataError, naming those there are, for an unknown one."""
        if modality not in self.manifest["features"]:
            have = ", ".join(self.modalities) or "none"
            raise DataError(f"data.modalities: {modality!r} is not in {self.directory} (it has: {have})")
        return self.directory / "features" / f"{modality}.npy"

    def raw_user_ids(self) -> list[str]:
        return self._table("users.parquet", "raw_user_id")["raw_user_id"].to_pylist()

    def raw_item_ids(self) -> list[str]:
        return self.items("raw_item_id")["raw_item_id"].to_pylist()

    def titles(self) -> list[str | None]:
        return self.items("title")["title"].to_pylist()

    def items(self, *columns: str) -> pa.Table:
        """Columns of items.parquet, all where none is named; row number = item index."""
        return self._table("items.parquet", *columns)

    def _table(self, name: str, *columns: str) -> pa.Table:
        path = self.directory / name
        try:
            return pq.read_table(path, columns=list(columns) or None)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: cannot be read ({error}); prepare the dataset again") from None


def write_dataset(raw: RawDataset, directory: Path) -> Dataset:
    """Write `raw` under `directory`, which must not exist yet; whole or not at all."""
    if directory.exists():
        raise DataError(f"{directory}: exists already; remove it or choose another data.dir")
    part = directory.with_name(f".{directory.name}.{os.getpid()}.tmp")
    try:
        (part / "features").mkdir(parents=True)
        _write_tables(raw, part)
        for modality, rows in raw.features.items():
            np.save(part / "features" / f"{modality}.npy", np.ascontiguousarray(rows, dtype=np.float32))
        features = {name: {"shape": list(rows.shape), "dtype": "float32"} for name, rows in raw.features.items()}
        counts = {"users": len(raw.raw_user_ids), "items": len(raw.raw_item_ids), "interactions": len(raw.users)}
        steps = [{"step": "read", **counts}]
        counts |= {split.name: int((raw.split == split).sum()) for split in Split}
        write_manifest(part, counts=counts, steps=steps, features=features, origin=raw.origin, warnings=raw.warnings)
        part.rename(directory)
    except OSError as error:
        raise DataError(
            f"{directory}: cannot be written ({error.strerror or error}); free space or choose another data.dir"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return open_dataset(directory)


def open_dataset(directory: Path) -> Dataset:
    """Open a dataset directory and check that its files are there in their recorded sizes."""
    path = directory / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise DataError(f"{directory}: no dataset here ({MANIFEST} is missing); make one with launch/prepare.py") from None
    except ValueError:
        raise DataError(f"{path}: not valid JSON; prepare the dataset again") from None
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise DataError(f"{path}: schema version {version}, this program reads {SCHEMA_VERSION}; prepare the dataset again")
    for name in _TABLES:
        if name not in manifest.get("files", {}):
            raise DataError(f"{path}: does not list {name}; prepare the dataset again")
    for name, entry in manifest["files"].items():
        size = (directory / name).stat().st_size if (directory / name).is_file() else None
        if size != entry["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes"
            raise DataError(f"{directory / name}: {found}, {MANIFEST} says {entry['bytes']}; prepare the dataset again")
    return Dataset(directory, manifest)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, read in chunks."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _write_tables(raw: RawDataset, part: Path) -> None:
    interactions = pa.table(
        {
            "user": pa.array(raw.users, pa.int32()),
            "item": pa.array(raw.items, pa.int32()),
            "split": pa.array(raw.split, pa.int8()),
        }
    )
    pq.write_table(interactions, part / "interactions.parquet")
    pq.write_table(pa.table({"raw_user_id": pa.array(raw.raw_user_ids, pa.string())}), part / "users.parquet")
    titles, unknown = pa.array(raw.titles, pa.string()), pa.nulls(len(raw.titles), pa.string())
    items = {"raw_item_id": pa.array(raw.raw_item_ids, pa.string()), "title": titles}
    items |= {"text": titles, "category": unknown, "image": unknown}
    items |= {"has_text": titles.is_valid(), "has_image": pa.nulls(len(raw.titles), pa.bool_())}
    pq.write_table(pa.table(items), part / "items.parquet")


def write_manifest(
    part: Path, *, counts: dict, steps: list[dict], features: dict[str, dict], origin: dict, warnings: list[str], **more: Any
) -> None:
    """Describe the finished files of a dataset, and hash them. more: entries that the hash leaves out, such as `skipped`."""
    files = {
        str(path.relative_to(part)): {"bytes": path.stat().st_size, "sha256": file_hash(path)}
        for path in sorted(part.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    decisive = {name: entry for name, entry in files.items() if name != SKIPPED}  # which names the source's directory
    content = json.dumps([decisive, counts], sort_keys=True)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "hash": hashlib.sha256(content.encode()).hexdigest(),
        "counts": counts,
        "steps": steps,
        "features": features,
        "origin": origin,
        "warnings": warnings,
        **more,
        "files": files,
    }
    (part / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
