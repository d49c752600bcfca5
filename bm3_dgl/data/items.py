"""What is known of the items, from the records of a source in any order to one row per item.

Records are spooled to a scratch file as they come and put in order at the end, some items at a time, so that memory holds a
number or two per item and never all texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bm3_dgl.data.blocks import SourceReader
from bm3_dgl.data.mistakes import Mistakes
from bm3_dgl.data.progress import Progress
from bm3_dgl.data.raw import Item, RawSource
from bm3_dgl.data.vocabulary import load_strings
from bm3_dgl.data.work import Result
from bm3_dgl.errors import DataError

ITEM_SCHEMA = pa.schema([(name, pa.string()) for name in ("raw_item_id", *Item._fields)])
_SPOOL_SCHEMA = pa.schema([(name, pa.large_string()) for name in Item._fields])
_TOGETHER = 1 << 14  # items written at once


class ItemTable:
    """The items of a dataset that is being made: a Parquet file with ITEM_SCHEMA, row number = item index."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = pq.ParquetFile(path)
        self.num_items: int = self._file.metadata.num_rows

    def batches(self, column: str, *, begin: int = 0, size: int = 1024) -> Iterator[list[str | None]]:
        """The values of a column for items begin.., in order, `size` at a time."""
        held: list[str | None] = []
        first = 0
        for group in range(self._file.num_row_groups):
            rows = self._file.metadata.row_group(group).num_rows
            if first + rows > begin:
                values = self._file.read_row_group(group, columns=[column])[column].to_pylist()
                held += values[max(0, begin - first) :]
            first += rows
            while len(held) >= size:
                yield held[:size]
                held = held[size:]
        if held:
            yield held


class ItemSpool:
    """Records as they come; the first of each item counts."""

    def __init__(self, path: Path, num_items: int) -> None:
        self._path = path
        self._position = np.full(num_items, -1, np.int64)  # of each item's record in the spool
        self._content = np.zeros(num_items, np.int64)  # hash of it, to tell a repeated record from another one
        self._held: list[Item] = []
        self._written = 0
        self._writer = pa.ipc.new_file(str(path), _SPOOL_SCHEMA)

    def put(self, index: int, item: Item) -> bool | None:
        """Keep a record. False: the item has another one already; None: it has the same one."""
        content = hash(item)
        if self._position[index] >= 0:
            return None if self._content[index] == content else False
        self._position[index] = self._written + len(self._held)
        self._content[index] = content
        self._held.append(item)
        if len(self._held) == _TOGETHER:
            self._flush()
        return True

    def in_order(self) -> Iterator[pa.Table]:
        """The records of all items, some at a time, in order of index; nulls where there is none. Ends the writing."""
        self._flush()
        self._writer.close()
        spool = pa.ipc.open_file(pa.memory_map(str(self._path)))
        for begin in range(0, len(self._position), _TOGETHER):
            yield _gather(spool, self._position[begin : begin + _TOGETHER])

    @property
    def found(self) -> int:
        """Items with a record."""
        return int(np.count_nonzero(self._position >= 0))

    def _flush(self) -> None:
        columns = list(zip(*self._held, strict=True)) or [()] * len(Item._fields)
        arrays = [pa.array(values, pa.large_string()) for values in columns]
        self._writer.write_batch(pa.record_batch(arrays, schema=_SPOOL_SCHEMA))
        self._written += len(self._held)
        self._held = []


def _gather(spool: pa.ipc.RecordBatchFileReader, positions: np.ndarray) -> pa.Table:
    """The records at these positions, in their order, nulls for -1. A take from the whole spool would copy all of it."""
    known = np.flatnonzero(positions >= 0)
    known = known[np.argsort(positions[known])]
    batches, places = np.divmod(positions[known], _TOGETHER)
    numbers, begins = np.unique(batches, return_index=True)
    pieces = [
        spool.get_batch(int(number)).take(pa.array(own))
        for number, own in zip(numbers, np.split(places, begins)[1:], strict=True)
    ]
    row = np.full(len(positions), -1, np.int64)
    row[known] = np.arange(len(known))
    return pa.Table.from_batches(pieces, _SPOOL_SCHEMA).combine_chunks().take(pa.array(row, mask=row < 0))


def read_items(source: RawSource, item_ids: Path, scratch: Path, *, skip: bool) -> Result:
    """The items pass: writes scratch/items.parquet. Result: files, items with a record, repeated ones, what was skipped."""
    ids = load_strings(item_ids)
    known = {raw: index for index, raw in enumerate(ids.to_pylist())} if source.items else {}
    mistakes, spool, same = Mistakes(skip), ItemSpool(scratch / "spool.arrow", len(ids)), 0
    total = sum(path.stat().st_size for path in source.items)
    with Progress("reading items", total=total, unit="B") as progress:
        reader = SourceReader(progress.advance)
        for path in source.items:
            for record in source.item_records(path, reader, mistakes, known):
                fresh = spool.put(record.index, record.item)
                same += fresh is None
                if fresh is False:
                    raw_id = ids[record.index].as_py()
                    mistakes.at(path, record.place, record.number, f"{raw_id!r} has another record before; expected one")
    with pq.ParquetWriter(scratch / "items.parquet", ITEM_SCHEMA) as writer:
        begin = 0
        for fields in spool.in_order():
            own = ids.slice(begin, len(fields))
            table = pa.table([own, *fields.columns], names=ITEM_SCHEMA.names).cast(ITEM_SCHEMA)
            writer.write_table(table)
            begin += len(fields)
    (scratch / "spool.arrow").unlink()
    if source.items and spool.found == 0:
        raise DataError(f"{source.items[0]}: has a record of none of the {len(ids)} items; do the ids match the interactions'?")
    return {"files": reader.entries, "found": spool.found, "same": same, **mistakes.as_result()}


def write_items(table: ItemTable, target: Path, found: dict[str, np.ndarray]) -> Result:
    """Write items.parquet of a dataset: the columns of `table`, has_text and has_image.

    found: modality -> bool (num_items,), items with a row of their own. has_image is null without a modality `visual` or
    `image`. Result: how many have a text, an image.
    """
    pictures = [found[name] for name in ("visual", "image") if name in found]  # the modalities that are of pictures
    pictured = np.any(pictures, axis=0) if pictures else None
    schema = pa.schema([*ITEM_SCHEMA, ("has_text", pa.bool_()), ("has_image", pa.bool_())])
    counts, begin = {"text": 0, "image": 0}, 0
    with pq.ParquetWriter(target, schema) as writer:
        for batch in pq.ParquetFile(table.path).iter_batches(_TOGETHER):
            has_text, has_image = batch["text"].is_valid(), pa.nulls(len(batch), pa.bool_())
            if pictured is not None:
                has_image = pa.array(pictured[begin : begin + len(batch)])
                counts["image"] += has_image.true_count
            writer.write_table(pa.table([*batch.columns, has_text, has_image], schema=schema))
            counts["text"] += has_text.true_count
            begin += len(batch)
    return counts
