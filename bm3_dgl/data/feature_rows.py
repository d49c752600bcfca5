"""The pass over the ready-made features of one modality: records of a raw source -> one row per item, memory-mapped.

Each row is written once, straight to its place in the dataset's file. Items without a record get the mean of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bm3_dgl.data.blocks import SourceReader
from bm3_dgl.data.features import fill_with_mean, new_rows
from bm3_dgl.data.mistakes import Mistakes
from bm3_dgl.data.progress import Progress
from bm3_dgl.data.raw import FeatureRows, RawSource
from bm3_dgl.data.work import Result
from bm3_dgl.errors import DataError


def write_features(
    source: RawSource, modality: str, known: Mapping[str, int], target: Path, *, dtype: np.dtype, skip: bool
) -> Result:
    """Write `target`, (len(known), width) of `dtype`, and beside it <modality>.found.npy, bool (len(known),).

    known: raw id -> item index. Result: files, what was skipped. Raises DataError for a repeated item and a value that is
    not finite (unless skipped), and where no item has a record.
    """
    mistakes, found = Mistakes(skip), np.zeros(len(known), np.bool_)
    paths = source.features[modality]
    rows: np.memmap | None = None
    with Progress(f"reading features {modality}", total=sum(path.stat().st_size for path in paths), unit="B") as progress:
        reader = SourceReader(progress.advance)
        for some in source.feature_rows(modality, reader, mistakes, known):
            if rows is None:
                rows = new_rows(target.with_suffix(".part"), (len(known), some.rows.shape[1]), dtype)
            chosen, values = _usable(some, found, dtype, mistakes)
            rows[some.indices[chosen]] = values
            found[some.indices[chosen]] = True
    if rows is None or not found.any():
        raise DataError(f"{paths[0]}: has features of none of the {len(known)} items; do the ids match the interactions'?")
    fill_with_mean(rows, found)
    rows.flush()
    del rows  # closes the mapping
    np.save(found_file(target), found)
    target.with_suffix(".part").rename(target)
    return {"files": reader.entries, **mistakes.as_result()}


def found_file(target: Path) -> Path:
    """Where the items with a row of their own are noted, outside of the dataset: beside its directory."""
    return target.parents[2] / "scratch" / f"{target.stem}.found.npy"


def _usable(some: FeatureRows, found: np.ndarray, dtype: np.dtype, mistakes: Mistakes) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the rows that are finite and the first such of their item, int64 (c,), and those rows as `dtype`."""
    with np.errstate(over="ignore"):
        values = some.rows.astype(dtype, copy=False)
    finite = np.isfinite(values).all(axis=1)
    places = np.flatnonzero(finite & ~found[some.indices])
    _, first = np.unique(some.indices[places], return_index=True)
    chosen = np.sort(places[first])
    others = np.ones(len(values), np.bool_)
    others[chosen] = False
    for position in np.flatnonzero(others).tolist():
        reason = "its item has a record before; expected one" if finite[position] else "a value that is not finite"
        if not finite[position] and np.isfinite(some.rows[position]).all():
            reason = f"a value that is too large for {dtype}; set data.feature_dtype=float32"
        mistakes.at(some.path, "record", int(some.numbers[position]), reason)
    return chosen, values[chosen]
