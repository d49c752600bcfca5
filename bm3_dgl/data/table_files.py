"""One table in a file: Parquet, CSV (comma or tab, with header) or JSON lines, plain or gzip -> tables of a Shape."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bm3_dgl.data.blocks import SourceReader
from bm3_dgl.data.columns import Shape, check_names
from bm3_dgl.data.mistakes import Mistake, Mistakes
from bm3_dgl.data.rows import CsvRows, JsonRows, json_object, split_header
from bm3_dgl.errors import DataError

_ENDINGS = (".parquet", ".csv", ".tsv", ".txt", ".inter", ".json", ".jsonl", ".ndjson")
_ROWS = 1 << 16  # of a Parquet file at once


def read_table(path: Path, shape: Shape, reader: SourceReader, mistakes: Mistakes) -> Iterator[pa.Table]:
    """The records of a file in its order, as tables of the shape. Raises DataError for what cannot be read."""
    ending = _ending(path)
    if ending == ".parquet":
        yield from _read_parquet(path, shape, reader)
        return
    rows = JsonRows(shape, mistakes) if "json" in ending else CsvRows(shape, mistakes, names=None)
    for block in reader.blocks(path, quoted=rows.quoted):
        yield from rows.read(block)


def column_names(path: Path) -> list[str]:
    """Names of the columns of a Parquet or CSV file; of a JSON file, of its first object."""
    ending = _ending(path)
    if ending == ".parquet":
        return _open_parquet(path).schema_arrow.names
    block = next(SourceReader(lambda _: None).blocks(path))
    if "json" in ending:
        lines = (json_object(line) for line in block.text.split(b"\n") if line.strip())
        return list(next((record for record in lines if isinstance(record, dict)), {}))
    return split_header(block)[0]


def find_files(source: Path, pattern: str, key: str, *, any_ending: bool = False) -> list[Path]:
    """The files of a name or pattern below `source`, in order of name. Raises DataError where there is none."""
    found = sorted(Path(name) for name in glob.glob(str(source / pattern), recursive=True))
    files = [path for path in found if path.is_file()]
    if not files:
        raise DataError(f"{source / pattern}: no such file; {key}={pattern} is looked up in data.source")
    for path in [] if any_ending else files:
        _ending(path)
    return files


def _read_parquet(path: Path, shape: Shape, reader: SourceReader) -> Iterator[pa.Table]:
    file = _open_parquet(path)
    check_names(path, shape.names, file.schema_arrow.names)
    for _ in reader.pieces(path):  # for its hash
        pass
    row = 0
    try:
        for batch in file.iter_batches(_ROWS, columns=shape.names):
            yield shape.table(pa.Table.from_batches([batch]))
            row += len(batch)
    except Mistake as mistake:
        raise DataError(f"{path}, in rows {row + 1} to {row + _ROWS}: {mistake}") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}, behind row {row}: cannot be read ({str(error).splitlines()[0]})") from None


def _open_parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None


def _ending(path: Path) -> str:
    name = path.name.lower().removesuffix(".gz")
    for ending in _ENDINGS:
        if name.endswith(ending):
            return ending
    raise DataError(f"{path}: the name does not say what it is; expected one of {', '.join(_ENDINGS)}, text also with .gz")
