"""The passes over interactions of raw sources: read them into columns of numbers, then keep, number and split them.

    read    source files -> scratch: user.i32, item.i32, time.i64, weight.f32, split.i1 (a number per row), users.arrow,
            items.arrow
    filter  these -> interactions.parquet, users.parquet; scratch: item_ids.arrow (raw ids of the items that are kept)

Memory: reading, one block and the vocabularies; filtering, the mapped columns and about 25 bytes a row.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bm3_dgl.config.schema import DataConfig, DataFormat, Repeats, SplitMethod
from bm3_dgl.data.blocks import SourceReader
from bm3_dgl.data.columns import whole_column
from bm3_dgl.data.kcore import distinct, drop_repeats, k_core, renumber
from bm3_dgl.data.mistakes import Mistakes
from bm3_dgl.data.progress import Progress
from bm3_dgl.data.raw import RawSource
from bm3_dgl.data.splits import split_rows
from bm3_dgl.data.vocabulary import Vocabulary, load_strings
from bm3_dgl.data.work import Result
from bm3_dgl.errors import DataError
from bm3_dgl.log import logger
from bm3_dgl.types import Split

_COLUMNS: dict[str, np.dtype] = {
    "user": np.dtype("<i4"),
    "item": np.dtype("<i4"),
    "time": np.dtype("<i8"),
    "weight": np.dtype("<f4"),
    "split": np.dtype("<i1"),
}
_ROW_GROUP = 1 << 20  # rows written at once
ITEM_IDS = "item_ids.arrow"
_USERS, _ITEMS = "users.arrow", "items.arrow"


def read_interactions(source: RawSource, scratch: Path, *, skip: bool) -> Result:
    """The read pass. Result: files, rows, complete rows, users and items among them, what was skipped."""
    mistakes, users, items = Mistakes(skip), Vocabulary(), Vocabulary()
    rows = complete = 0
    total = sum(path.stat().st_size for path in source.interactions)
    names = [name for name in _COLUMNS if name in source.columns.schema.names]
    with ExitStack() as opened:
        files = {name: opened.enter_context(open(_column_file(scratch, name), "wb")) for name in names}
        progress = opened.enter_context(Progress("reading interactions", total=total, unit="B"))
        reader = SourceReader(progress.advance)
        for table in _tables(source, reader, mistakes):
            rows += table.num_rows
            table = table.drop_null()
            complete += table.num_rows
            for name in names:
                values = whole_column(table, name)
                numbers = users.add(values) if name == "user" else items.add(values) if name == "item" else values
                files[name].write(np.asarray(numbers, _COLUMNS[name]).data)
    if complete == 0:
        what = "has no interaction" if rows == 0 else f"has {rows} rows, each with a missing field"
        if mistakes.count:
            what += f", and {mistakes.count} bad ones were skipped, the first for: {mistakes.listed[0]['reason']}"
        raise DataError(f"{source.interactions[0]}: {what}; expected {', '.join(source.columns.names)}")
    users.save(scratch / _USERS)
    items.save(scratch / _ITEMS)
    counts = {"rows": rows, "complete": complete, "users": len(users), "items": len(items)}
    return {"files": reader.entries, "columns": names, **counts, **mistakes.as_result()}


def filter_interactions(read: Result, scratch: Path, dataset: Path, config: DataConfig) -> Result:
    """The filter pass. Result: the steps with their counts, and how many users have no train interaction."""
    columns: dict[str, np.ndarray] = {
        name: np.memmap(_column_file(scratch, name), kind, "r") for name, kind in _COLUMNS.items() if name in read["columns"]
    }
    users, items = columns["user"], columns["item"]
    alive = np.ones(len(users), np.bool_)
    steps = _drop(read, columns, alive, config)
    new_user, old_user = renumber(users, alive, read["users"])
    new_item, old_item = renumber(items, alive, read["items"])
    rows = np.flatnonzero(alive).astype(np.int32 if len(alive) < 2**31 else np.int64)
    kept_users, decisive = new_user[users[rows]], columns.get("split" if config.split is SplitMethod.given else "time")
    order, split = split_rows(kept_users, rows, decisive, num_users=len(old_user), method=config.split, seed=config.split_seed)
    if not (split == Split.train).any():
        raise DataError(f"none of the {len(order)} interactions is in train; see tables.split")
    left = {name: steps[-1][name] for name in ("users", "items", "interactions")}
    steps.append({"step": "split", **left, **{part.name: int((split == part).sum()) for part in Split}})
    with pq.ParquetWriter(dataset / "interactions.parquet", _schema(columns)) as writer:
        for begin in range(0, len(order), _ROW_GROUP):
            places = order[begin : begin + _ROW_GROUP]
            chosen = rows[places]
            arrays = [kept_users[places], new_item[items[chosen]], split[begin : begin + _ROW_GROUP]]
            arrays += [columns[name][chosen] for name in ("time", "weight") if name in columns]
            writer.write_table(pa.table([pa.array(values) for values in arrays], schema=writer.schema))
    with pq.ParquetWriter(dataset / "users.parquet", pa.schema([("raw_user_id", pa.string())])) as writer:
        for ids in _taken(load_strings(scratch / _USERS), old_user):
            writer.write_table(pa.table([ids], schema=writer.schema))
    item_ids = Vocabulary()
    for ids in _taken(load_strings(scratch / _ITEMS), old_item):
        item_ids.add(ids)
    item_ids.save(scratch / ITEM_IDS)
    return {"steps": steps, "trainless": len(old_user) - len(np.unique(kept_users[order[split == Split.train]]))}


def _drop(read: Result, columns: dict[str, np.ndarray], alive: np.ndarray, config: DataConfig) -> list[dict[str, Any]]:
    """Clear in `alive` the rows that the preparation drops. Returns the steps with what is left after each.

    Raises DataError where nothing is left.
    """
    users, items, times = columns["user"], columns["item"], columns.get("time")
    num_users, num_items = read["users"], read["items"]
    steps = [{"step": "read", "users": num_users, "items": num_items, "interactions": read["rows"]}]

    def note(step: str, **more: int) -> None:
        left = {"users": distinct(users, alive, num_users), "items": distinct(items, alive, num_items)}
        left["interactions"] = int(np.count_nonzero(alive))
        logger.info("after %s: %d users, %d items, %d interactions", step, *left.values())
        steps.append({"step": step, **left, **more})

    note("missing fields")
    if times is not None:
        drop_repeats(users, items, times, alive)
    note("duplicates")
    if repeats_of(config) is Repeats.first:
        drop_repeats(users, items, None, alive)
        note("repeats")
    rounds = k_core(users, items, alive, k=config.k_core, num_users=num_users, num_items=num_items)
    note("k-core", rounds=rounds)
    before = steps[-2]
    if not alive.any():
        raise DataError(
            f"nothing is left of {before['interactions']} interactions of {before['users']} users and {before['items']} items:"
            f" all have fewer than data.k_core={config.k_core} sooner or later; lower it"
        )
    return steps


def repeats_of(config: DataConfig) -> Repeats:
    """What data.repeats=null stands for."""
    return config.repeats or (Repeats.first if config.format is DataFormat.tables else Repeats.keep)


def _schema(columns: Collection[str]) -> pa.Schema:
    """Of interactions.parquet, for a source with these columns."""
    fields = [("user", pa.int32()), ("item", pa.int32()), ("split", pa.int8())]
    fields += [("time", pa.int64())] if "time" in columns else []
    return pa.schema(fields + ([("weight", pa.float32())] if "weight" in columns else []))


def _tables(source: RawSource, reader: SourceReader, mistakes: Mistakes) -> Iterator[pa.Table]:
    for path in source.interactions:
        yield from source.interaction_tables(path, reader, mistakes)


def _column_file(scratch: Path, name: str) -> Path:
    return scratch / f"{name}.{_COLUMNS[name].str[1:]}"


def _taken(strings: pa.LargeStringArray, indices: np.ndarray) -> Iterator[pa.Array]:
    """The strings of these indices, some at a time."""
    for begin in range(0, len(indices), _ROW_GROUP):
        yield strings.take(pa.array(indices[begin : begin + _ROW_GROUP])).cast(pa.string())
