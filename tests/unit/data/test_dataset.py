"""The dataset directory: what is written is read back, and every damage is told apart."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from bm3_dgl.data.dataset import Dataset, RawDataset, file_hash, open_dataset, write_dataset
from bm3_dgl.errors import DataError
from bm3_dgl.types import Split
from tests.unit.data.sources import ROWS, features


@pytest.fixture
def raw() -> RawDataset:
    users, items, split = np.array(ROWS).T
    return RawDataset(
        users=users.astype(np.int32),
        items=items.astype(np.int32),
        split=split.astype(np.int8),
        raw_user_ids=["ann", "bo", "cy"],
        raw_item_ids=["cup", "pan", "tent", "belt"],
        titles=["Cup®", None, "Tent", None],
        features={"visual": features(3), "text": features(2)},
        origin={"reader": "by hand"},
        warnings=["one item is a tent"],
    )


@pytest.fixture
def dataset(raw: RawDataset, tmp_path: Path) -> Dataset:
    return write_dataset(raw, tmp_path / "made")


def test_what_is_written_is_read_back(raw: RawDataset, dataset: Dataset) -> None:
    for split in Split:
        users, items = dataset.interactions(split)
        assert (users.dtype, items.dtype) == (np.int32, np.int32)
        expected = [(user, item) for user, item, label in ROWS if label == split]
        assert list(zip(users.tolist(), items.tolist(), strict=True)) == expected
    assert (dataset.num_users, dataset.num_items) == (3, 4)
    assert dataset.modalities == ["visual", "text"]
    assert (dataset.raw_user_ids(), dataset.raw_item_ids()) == (raw.raw_user_ids, raw.raw_item_ids)
    assert dataset.titles() == raw.titles
    assert dataset.manifest["origin"] == raw.origin
    assert dataset.manifest["warnings"] == raw.warnings
    assert dataset.manifest["counts"] == {"users": 3, "items": 4, "interactions": 7, "train": 5, "valid": 1, "test": 1}


def test_features_are_mapped_read_only(dataset: Dataset) -> None:
    rows = dataset.feature("visual")
    assert isinstance(rows, np.memmap)
    np.testing.assert_array_equal(rows, features(3))
    with pytest.raises(ValueError, match="read-only"):
        rows[0, 0] = 1


def test_manifest_hashes_every_file(dataset: Dataset) -> None:
    on_disk = {str(path.relative_to(dataset.directory)) for path in dataset.directory.rglob("*") if path.is_file()}
    assert on_disk - {"dataset.json"} == set(dataset.manifest["files"])
    for name, entry in dataset.manifest["files"].items():
        assert file_hash(dataset.directory / name) == entry["sha256"]


def test_hash_follows_content_and_not_origin(raw: RawDataset, dataset: Dataset, tmp_path: Path) -> None:
    same = dataclasses.replace(raw, origin={"reader": "another"}, warnings=[])
    assert write_dataset(same, tmp_path / "same").hash == dataset.hash
    other = dataclasses.replace(raw, features=raw.features | {"text": features(2) + 1})
    assert write_dataset(other, tmp_path / "other").hash != dataset.hash
    swapped = dataclasses.replace(raw, split=np.roll(raw.split, 1))
    assert write_dataset(swapped, tmp_path / "swapped").hash != dataset.hash


def test_existing_directory_is_not_overwritten(raw: RawDataset, dataset: Dataset) -> None:
    with pytest.raises(DataError, match=r"made: exists already; remove it or choose another data\.dir"):
        write_dataset(raw, dataset.directory)


def test_failure_leaves_nothing_behind(raw: RawDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DataError, match=r"made: cannot be written \(No space left on device\)"):
        write_dataset(raw, tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_unknown_modality_names_those_there_are(dataset: Dataset) -> None:
    with pytest.raises(DataError, match=r"data\.modalities: 'audio' is not in .*made \(it has: visual, text\)"):
        dataset.feature("audio")


def test_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no dataset here \(dataset\.json is missing\)"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"dataset\.json: not valid JSON"),
        ("[]", r"dataset\.json: schema version None, this program reads 2"),
        ('{"schema_version": 99}', r"dataset\.json: schema version 99, this program reads 2"),
    ],
)
def test_damaged_manifest(dataset: Dataset, content: str, message: str) -> None:
    (dataset.directory / "dataset.json").write_text(content)
    with pytest.raises(DataError, match=message):
        open_dataset(dataset.directory)


def test_missing_and_shortened_files(dataset: Dataset) -> None:
    path = dataset.directory / "features" / "text.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=rf"text\.npy: has {len(content) - 1} bytes, dataset\.json says {len(content)}"):
        open_dataset(dataset.directory)
    path.unlink()
    with pytest.raises(DataError, match=r"text\.npy: is missing, dataset\.json says"):
        open_dataset(dataset.directory)


def test_damage_inside_of_a_file_is_told_when_it_is_read(dataset: Dataset) -> None:
    for name in ("interactions.parquet", "features/text.npy"):
        path = dataset.directory / name
        path.write_bytes(b"x" * path.stat().st_size)
    damaged = open_dataset(dataset.directory)
    with pytest.raises(DataError, match=r"interactions\.parquet: cannot be read"):
        damaged.interactions(Split.train)
    with pytest.raises(DataError, match=r"text\.npy: cannot be read"):
        damaged.feature("text")


def test_features_of_another_shape_than_recorded(dataset: Dataset) -> None:
    manifest = json.loads((dataset.directory / "dataset.json").read_text())
    manifest["features"]["text"]["shape"] = [2, 4]
    (dataset.directory / "dataset.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"text\.npy: holds float32 \(4, 2\), dataset\.json says float32 \(2, 4\)"):
        open_dataset(dataset.directory).feature("text")
