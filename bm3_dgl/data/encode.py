"""Feature rows that a model makes of the items' texts or pictures: batch after batch, resumable, in bounded memory.

    <target>                the .npy file, float32 or float16 (num_items, width); appears by a rename, when whole
    <target>.part           the same, its rows up to the mark below written
    <target>.found          one byte for each row written: 1 where it was made of an input, 0 where there was none
    <target>.progress.json  which encoder, shape and type the part is of; with another the pass begins anew

A row counts as written when its byte in `.found` is, and that comes after the row itself. Batches begin at fixed
multiples of their size, so a resumed pass makes the same batches, and the same bits, as one that ran through.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from bm3_dgl.data.features import fill_with_mean, new_rows
from bm3_dgl.data.progress import Progress
from bm3_dgl.errors import DataError
from bm3_dgl.log import logger


class Column(Protocol):
    """What an encoder needs of the items: the inputs of all of them, in order, from some item on."""

    num_items: int

    def batches(self, column: str, *, begin: int = 0, size: int = 1024) -> Iterator[list[str | None]]: ...


class Encoder(Protocol):
    """identity: equal only where equal inputs give equal rows. width: columns of a row. batch: items at once."""

    identity: str
    width: int
    batch: int

    def rows(self, inputs: list[str | None]) -> tuple[np.ndarray, np.ndarray]:
        """found, bool (n,): which inputs have a row; and those rows, float32 (found.sum(), width)."""
        ...


def write_rows(items: Column, column: str, target: Path, encoder: Encoder, dtype: np.dtype) -> np.ndarray:
    """Write the rows of all items to `target`; items without input get the mean of the others.

    Returns found, bool (num_items,): the items with a row of their own. Raises DataError where there is none at all,
    and for a row that is not finite as `dtype`.
    """
    rows, found_file = _open_part(target, (items.num_items, encoder.width), dtype, encoder.identity)
    begin = found_file.stat().st_size
    if begin < items.num_items:
        begin -= begin % encoder.batch
        os.truncate(found_file, begin)  # of a batch whose marks were torn
    if begin:
        logger.info("%s: going on at item %d of %d", target.name, begin, items.num_items)
    with open(found_file, "ab") as marks, Progress(target.name, total=items.num_items, done=begin, unit="items") as progress:
        for inputs in items.batches(column, begin=begin, size=encoder.batch):
            found, made = encoder.rows(inputs)
            end = begin + len(inputs)
            rows[begin:end][found] = _checked(made, begin + np.flatnonzero(found), dtype, target)
            rows.flush()
            marks.write(found.tobytes())
            marks.flush()
            os.fsync(marks.fileno())
            progress.advance(len(inputs))
            begin = end
    found = np.fromfile(found_file, dtype=bool)
    assert len(found) == items.num_items, f"{len(found)} rows of {items.num_items} items"
    if not found.any():
        raise DataError(f"{target.stem}: not one item has an input for {encoder.identity}; leave this modality out")
    fill_with_mean(rows, found)
    rows.flush()
    _part(target).rename(target)
    found_file.unlink()
    _progress(target).unlink()
    return found


def _open_part(target: Path, shape: tuple[int, int], dtype: np.dtype, identity: str) -> tuple[np.memmap, Path]:
    """The part with its marks, as an earlier pass left them where that made the same, otherwise new."""
    part, marks = _part(target), target.with_name(f"{target.name}.found")
    made = {"encoder": identity, "shape": list(shape), "dtype": np.dtype(dtype).name}
    try:
        if json.loads(_progress(target).read_text(encoding="utf-8")) == made:
            marks.touch()
            return np.lib.format.open_memmap(part, mode="r+"), marks
    except (OSError, ValueError):
        pass  # none, or one that was torn: begin anew
    _progress(target).unlink(missing_ok=True)
    rows = new_rows(part, shape, dtype)
    marks.write_bytes(b"")
    _progress(target).write_text(json.dumps(made), encoding="utf-8")
    return rows, marks


def _checked(made: np.ndarray, items: np.ndarray, dtype: np.dtype, target: Path) -> np.ndarray:
    """The rows as `dtype`. items: int (n,), whose they are."""
    with np.errstate(over="ignore"):
        rows = made.astype(dtype)
    wrong = ~np.isfinite(rows).all(axis=1)
    if wrong.any():
        raise DataError(
            f"{target.stem}: the encoder's row of item {items[np.argmax(wrong)]} is not finite as {np.dtype(dtype).name}; "
            "use another encoder, or data.feature_dtype=float32"
        )
    return rows


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


def _progress(target: Path) -> Path:
    return target.with_name(f"{target.name}.progress.json")
