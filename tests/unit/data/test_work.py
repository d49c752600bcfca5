"""Work that is killed at the worst places: what comes out is whole, or is made anew."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from bm3_dgl.config.load import load_config
from bm3_dgl.data import work
from bm3_dgl.data.dataset import Dataset, open_dataset
from bm3_dgl.data.prepare import prepare
from bm3_dgl.errors import DataError
from tests.unit.data.dumps import make_dump, write_2014

DUMP = make_dump(3)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_2014(tmp_path / "source", DUMP)


def made(source: Path, *keys: str) -> Dataset:
    return prepare(
        load_config(None, ["data.format=amazon2014", f"data.source={source}", f"data.dir={source.parent / 'out'}", *keys])
    )


def publish_and_die(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed when the dataset has its name, and before the rest is taken away."""
    remove = shutil.rmtree

    def die(path: Path, **more: Any) -> None:
        if Path(path).name == ".out.work":
            raise Killed
        remove(path, **more)

    with monkeypatch.context() as patch:
        patch.setattr(work.shutil, "rmtree", die)
        with pytest.raises(Killed):
            made(source)


def test_killed_between_the_name_and_the_tidying(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_and_die(source, monkeypatch)
    first = open_dataset(source.parent / "out")
    assert (source.parent / ".out.work").exists()
    assert made(source).hash == first.hash
    assert not (source.parent / ".out.work").exists()


def test_the_dataset_is_removed_after_such_a_kill(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made(source).hash
    shutil.rmtree(source.parent / "out")
    publish_and_die(source, monkeypatch)
    shutil.rmtree(source.parent / "out")
    assert made(source).hash == whole


def test_killed_while_other_work_is_cleared(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made(source).hash
    shutil.rmtree(source.parent / "out")

    def interrupt(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:  # the first plan stops before its last pass
        patch.setattr("bm3_dgl.data.prepare_raw.write_items", interrupt)
        with pytest.raises(Killed):
            made(source)
    directory = source.parent / ".out.work"
    assert (directory / "work.json").exists()
    kept = shutil.rmtree

    def half(path: Path, **_: object) -> None:
        for name in ("interactions.parquet", "users.parquet"):
            (Path(path) / name).unlink(missing_ok=True)
        raise Killed

    with monkeypatch.context() as patch:  # the second plan dies while it clears the first one's files
        patch.setattr(work.shutil, "rmtree", half)
        with pytest.raises(Killed):
            made(source, "data.k_core=2")
    assert shutil.rmtree is kept
    assert made(source).hash == whole


def test_nothing_is_left_of_a_first_pass_that_was_refused(source: Path) -> None:
    path = next(source.glob("ratings_*"))
    path.write_bytes(path.read_bytes() + b"broken\n")
    with pytest.raises(DataError, match="line"):
        made(source)
    assert sorted(entry.name for entry in source.parent.iterdir()) == ["source"]


def test_a_dataset_without_its_tables_is_not_opened(source: Path) -> None:
    dataset = made(source)
    path = dataset.directory / "dataset.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"users.parquet"', '"others.parquet"'), encoding="utf-8")
    with pytest.raises(DataError, match=r"does not list users\.parquet"):
        open_dataset(dataset.directory)
    path.write_text('{"schema_version": 2}', encoding="utf-8")
    with pytest.raises(DataError, match=r"does not list interactions\.parquet"):
        open_dataset(dataset.directory)
