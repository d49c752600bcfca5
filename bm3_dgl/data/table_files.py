"""One table in a file: Parquet, CSV (comma or tab, with header) or JSON lines, plain or gzip -> tables of a Shape."""

from __future__ import annotations

import glob
import gzip
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bm3_dgl.data.blocks import SourceReader
from bm3_dgl.data.columns import Record, Shape, check_names
from bm3_dgl.data.dataset import MANIFEST
from bm3_dgl.data.mistakes import Mistake, Mistakes
from bm3_dgl.data.rows import CsvRows, JsonRows, json_object, split_header
from bm3_dgl.errors import DataError

_ENDINGS = (".parquet", ".csv", ".tsv", ".txt", ".inter", ".json", ".jsonl", ".ndjson")
_ROWS = 1 << 16  # of a Parquet file at once, fewer where they are wide:
_BATCH_BYTES = 1 << 25  # at once, counting 8 for a number
_BUFFER_BYTES = 1 << 16  # of a Parquet column; without buffers a column is read whole for each of its row groups
_GLANCE = 1000  # lines of a JSON file in which to look for an id

NumberedTable = tuple[int, pa.Table]  # number of its first record in the file, from 1


def read_table(path: Path, shape: Shape, reader: SourceReader, mistakes: Mistakes) -> Iterator[NumberedTable]:
    """The records of a file in its order, as tables of the shape. Raises DataError for what cannot be read.

    A table from around a line of text that was left out may be numbered too high by such lines among its own.
    """
    ending = _ending(path)
    if ending == ".parquet":
        yield from _read_parquet(path, shape, reader, mistakes)
        return
    rows = JsonRows(shape, mistakes) if "json" in ending else CsvRows(shape, mistakes, names=None)
    number, left_out = 1, mistakes.count
    for block in reader.blocks(path, quoted=rows.quoted):
        for table in rows.read(block):
            number += mistakes.count - left_out
            yield number, table
            number, left_out = number + table.num_rows, mistakes.count


def column_names(path: Path) -> list[str]:
    """Names of the columns of a Parquet or CSV file; of a JSON file, of its first object."""
    ending = _ending(path)
    if ending == ".parquet":
        return _parquet_schema(path).names
    block = next(SourceReader(lambda _: None).blocks(path, quoted="json" not in ending))
    if "json" in ending:
        lines = (json_object(line) for line in block.text.split(b"\n") if line.strip())
        return list(next((record for record in lines if isinstance(record, dict)), {}))
    return split_header(block)[0]


def find_files(source: Path, pattern: str, key: str, *, any_ending: bool = False) -> list[Path]:
    """The files of a name or pattern below `source`, in order of name. Raises DataError where there is none.

    A pattern does not match what is in a dataset: data.dir may lie below data.source.
    """
    exact = source / pattern
    found = {exact} if exact.is_file() else _matching(source, pattern)  # a file's own name may look like a pattern
    ours = {folder for folder in {path.parent for path in found} if (folder / MANIFEST).exists()} - {exact.parent}
    files = sorted(path for path in found if path.is_file() and not ours.intersection(path.parents))
    if not files:
        raise DataError(f"{exact}: no such file; {key}={pattern} is looked up in data.source")
    for path in [] if any_ending else files:
        _ending(path)
    return files


def check_id_kinds(paths: Sequence[Path], names: Sequence[str]) -> None:
    """Raise DataError where ids of one column are text in one of the files and numbers in another.

    They would be joined as text, 1 with "1", which may be two users. CSV does not tell the two apart: it goes with either.
    """
    met: dict[str, tuple[str, Path]] = {}
    for path in paths if len(paths) > 1 else ():
        for name, kind in _id_kinds(path, names).items():
            before, where = met.setdefault(name, (kind, path))
            if before != kind:
                raise DataError(f"{path}: {name} is {kind}, in {where} it is {before}; expected the same in all files")


def _matching(source: Path, pattern: str) -> set[Path]:
    return {Path(name) for name in glob.glob(os.path.join(glob.escape(str(source)), pattern), recursive=True)}


def _read_parquet(path: Path, shape: Shape, reader: SourceReader, mistakes: Mistakes) -> Iterator[NumberedTable]:
    schema = _parquet_schema(path)
    check_names(path, shape.names, schema.names)
    try:
        shape.table(schema.empty_table().select(shape.names))
    except (Mistake, pa.ArrowException) as error:  # of a type, so of every row
        raise DataError(f"{path}: {_reason(error)}") from None
    for _ in reader.pieces(path):  # for its hash
        pass
    for number, table in _parquet_tables(path, shape.names):
        yield from _fitting(path, number, table, shape, mistakes)


def _parquet_tables(path: Path, names: list[str]) -> Iterator[NumberedTable]:
    """Columns of a Parquet file as they are there, some rows at a time."""
    number = 1
    try:
        with _open_parquet(path) as file:
            for batch in file.iter_batches(_rows_at_once(file.metadata, set(names)), columns=names):
                yield number, pa.Table.from_batches([batch])
                number += len(batch)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}, behind row {number - 1}: cannot be read ({_reason(error)})") from None


def _rows_at_once(metadata: pq.FileMetaData, names: set[str]) -> int:
    """So many rows that these columns take about _BATCH_BYTES in the row group where they are widest."""
    widest = 1
    for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
        size = 0
        for column in (group.column(place) for place in range(group.num_columns)):
            path = column.path_in_schema  # of lists: such as vector.list.element
            if path in names or path.rsplit(".", 2)[0] in names or path.split(".")[0] in names:
                size += max(8 * column.num_values, column.total_uncompressed_size)
        widest = max(widest, size // max(1, group.num_rows))
    return min(_ROWS, max(1, _BATCH_BYTES // widest))


def _fitting(path: Path, number: int, source: pa.Table, shape: Shape, mistakes: Mistakes) -> Iterator[NumberedTable]:
    """The rows from `number` on as tables of the shape; where they do not fit, halved down to the row to blame."""
    try:
        source.validate(full=True)  # a file may hold broken UTF-8
        yield number, shape.table(source)
    except (Mistake, pa.ArrowException):
        if len(source) == 1:
            yield from _one(path, number, source, shape, mistakes)
            return
        half = len(source) // 2
        yield from _fitting(path, number, source.slice(0, half), shape, mistakes)
        yield from _fitting(path, number + half, source.slice(half), shape, mistakes)


def _one(path: Path, number: int, source: pa.Table, shape: Shape, mistakes: Mistakes) -> Iterator[NumberedTable]:
    """A row that the shape's table refuses, as the shape takes a record of text, or a mistake."""
    try:
        row = shape.row(_as_in_text(source), {})
        made = pa.Table.from_pylist([row], shape.schema)
    except UnicodeDecodeError:
        mistakes.at(path, "row", number, "not valid UTF-8")
    except (ValueError, pa.ArrowException) as error:
        mistakes.at(path, "row", number, _reason(error))
    else:
        yield number, made


def _as_in_text(row: pa.Table) -> Record:
    """A row's fields, times as ISO 8601."""
    columns = [column.cast(pa.string()) if pa.types.is_temporal(column.type) else column for column in row.columns]
    return pa.table(columns, names=row.column_names).to_pylist()[0]


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({_reason(error)})") from None


def _parquet_schema(path: Path) -> pa.Schema:
    with _open_parquet(path) as file:
        return file.schema_arrow


def _id_kinds(path: Path, names: Sequence[str]) -> dict[str, str]:
    """Column of ids -> what its ids are, as far as the file tells; what is no id is left to the reading."""
    ending, kinds = _ending(path), {}
    if ending == ".parquet":
        schema = _parquet_schema(path)
        for name in (name for name in names if name in schema.names):
            kind = schema.field(name).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if pa.types.is_integer(kind) or pa.types.is_floating(kind):
                kinds[name] = "a number"
            elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
                kinds[name] = "text"
    elif "json" in ending:
        words = {int: "a number", float: "a number", str: "text"}
        for record in _first_records(path):
            met = {name: words.get(type(record.get(name))) for name in names if record.get(name) not in (None, "")}
            kinds |= {name: word for name, word in met.items() if word and name not in kinds}
            if len(kinds) == len(names):
                break
    return kinds


def _first_records(path: Path) -> Iterator[Record]:
    """Objects among the first lines of a JSON file; of one that cannot be read, none: its reading will tell."""
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else open(path, "rb") as lines:
            for _ in range(_GLANCE):
                record = json_object(lines.readline(1 << 20))
                if isinstance(record, dict):
                    yield record
    except (OSError, EOFError, zlib.error):
        return


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0]


def _ending(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    for ending in _ENDINGS:
        if name.endswith(ending):
            return ending
    raise DataError(f"{path}: the name does not say what it is; expected one of {', '.join(_ENDINGS)}, text also with .gz")
