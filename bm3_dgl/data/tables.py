"""A shop's own tables: interactions, items and features, in one file or many of each.

Interactions come from data.interactions, items from tables.items; both are files or patterns below data.source. Features
(data.features) are, per modality, a column of lists of the item tables, a pattern of their number columns (`f_*`), or a
.npy or .safetensors file with a row for each record of the item tables, in their order.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError, safe_open

from bm3_dgl.config.schema import DataConfig, TablesConfig
from bm3_dgl.data.amazon_items import folded
from bm3_dgl.data.blocks import SourceReader
from bm3_dgl.data.columns import InteractionColumns, Shape, check_names, whole_column
from bm3_dgl.data.features import map_features
from bm3_dgl.data.mistakes import Mistakes
from bm3_dgl.data.raw import FeatureRows, Item, ItemRecord, RawSource
from bm3_dgl.data.table_files import column_names, find_files, read_table
from bm3_dgl.data.table_shapes import ListColumn, NumberColumns, TextColumns
from bm3_dgl.errors import ConfigError, DataError

_FILES = (".npy", ".safetensors")


@dataclass(frozen=True)
class TableSource(RawSource):
    """Tables with the columns that the configuration names."""

    tables: TablesConfig
    named: dict[str, str]  # modality -> what data.features says

    @property
    def columns(self) -> InteractionColumns:
        tables = self.tables
        return InteractionColumns(tables.user, tables.item, tables.time, tables.weight, tables.time_unit, tables.split)

    def interaction_tables(self, path: Path, reader: SourceReader, mistakes: Mistakes) -> Iterator[pa.Table]:
        yield from read_table(path, self.columns, reader, mistakes)

    def item_records(
        self, path: Path, reader: SourceReader, mistakes: Mistakes, known: Mapping[str, int]
    ) -> Iterator[ItemRecord]:
        tables = self.tables
        wanted = [tables.title, *tables.text, tables.category, tables.image]
        shape = TextColumns(_key(tables), tuple(dict.fromkeys(name for name in wanted if name)))
        for number, index, record in _known_records(path, shape, reader, mistakes, known):
            fields = {name: folded(text) for name, text in record.items() if text is not None}
            text = " ".join(part for name in tables.text if (part := fields.get(name)))
            item = Item(fields.get(tables.title), text or None, fields.get(tables.category), record.get(tables.image))
            yield ItemRecord(index, item, "record", number)

    def feature_rows(
        self, modality: str, reader: SourceReader, mistakes: Mistakes, known: Mapping[str, int]
    ) -> Iterator[FeatureRows]:
        if self.named[modality].endswith(_FILES):
            yield from self._rows_by_position(modality, reader, known)
            return
        shape = _feature_shape(modality, self.named[modality], _key(self.tables), self.items[0])
        width = None
        for path in self.items:
            number = 1
            for table in read_table(path, shape, reader, mistakes):
                some = _matrix(table, known, number, path, mistakes, width)
                number += table.num_rows
                if some is not None:
                    width = some.rows.shape[1]
                    yield some

    def _rows_by_position(self, modality: str, reader: SourceReader, known: Mapping[str, int]) -> Iterator[FeatureRows]:
        """Rows of a file that go by the position of the item's record in the item tables."""
        path = self.features[modality][0]
        rows = _open_rows(path, modality)
        for _ in reader.pieces(path):  # for its hash
            pass
        begin, quiet = 0, Mistakes(skip=True)  # the tables' own mistakes were met in the pass before
        for table_path in self.items:
            for table in read_table(table_path, TextColumns(_key(self.tables)), SourceReader(lambda _: None), quiet):
                indices = _indices(table["id"], known)
                wanted = np.flatnonzero(indices >= 0)
                if begin + len(indices) <= len(rows):
                    chosen = np.asarray(rows[begin : begin + len(indices)])[wanted]
                    yield FeatureRows(indices[wanted], chosen, begin + wanted + 1, path)
                begin += len(indices)
        if begin != len(rows):
            raise DataError(f"{path}: has {len(rows)} rows, the item tables have {begin} records; expected a row for each")


def find_tables(data: DataConfig, tables: TablesConfig) -> TableSource:
    """The files that the configuration names. Raises ConfigError for what is missing in it, DataError for missing files."""
    source = Path(data.source)
    if not data.interactions:
        raise ConfigError("data.interactions is empty: data.format=tables needs the file or pattern of the interactions")
    interactions = find_files(source, data.interactions, "data.interactions")
    items = find_files(source, tables.items, "tables.items") if tables.items else []
    chosen = list(data.features) if data.modalities is None else [name for name in data.modalities if name in data.features]
    if not items and (chosen or tables.title or tables.text or tables.category or tables.image):
        raise ConfigError("tables.items is empty: titles, texts and features need the table of the items")
    features = {}
    for modality in chosen:
        named = data.features[modality]
        is_file = named.endswith(_FILES)
        features[modality] = find_files(source, named, f"data.features.{modality}", any_ending=True) if is_file else items
    settings = {key: value.name if key == "time_unit" else value for key, value in asdict(tables).items()}
    settings["features"] = {modality: data.features[modality] for modality in chosen}
    return TableSource(interactions, items, features, settings, tables, dict(data.features))


def _key(tables: TablesConfig) -> str:
    return tables.item_key or tables.item


def _known_records(
    path: Path, shape: Shape, reader: SourceReader, mistakes: Mistakes, known: Mapping[str, int]
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Record number (from 1), item index and fields of the records of known items."""
    number = 1
    for table in read_table(path, shape, reader, mistakes):
        indices = _indices(table["id"], known)
        for position in np.flatnonzero(~table["id"].is_valid().to_numpy()).tolist():
            mistakes.at(path, "record", number + position, f"{shape.names[0]} is missing; every item needs one")
        wanted = np.flatnonzero(indices >= 0)
        for position, record in zip(wanted.tolist(), table.take(wanted).to_pylist(), strict=True):
            yield number + position, int(indices[position]), record
        number += table.num_rows


def _indices(ids: pa.ChunkedArray, known: Mapping[str, int]) -> np.ndarray:
    """Item index of each id, -1 for an unknown one, int64 (n,)."""
    return np.array([known.get(raw, -1) for raw in ids.to_pylist()], np.int64)


def _feature_shape(modality: str, named: str, key: str, path: Path) -> Shape:
    """What data.features.<modality> means in the item tables."""
    have = column_names(path)
    if named in have:
        return ListColumn(key, named)
    columns = tuple(name for name in have if fnmatch.fnmatchcase(name, named) and name != key)
    if not columns:
        check_names(path, [named], have)
    return NumberColumns(key, columns)


def _matrix(
    table: pa.Table, known: Mapping[str, int], number: int, path: Path, mistakes: Mistakes, width: int | None
) -> FeatureRows | None:
    """The rows of known items, all of one width; None where there is none. Null rows are as if not there."""
    indices = _indices(table["id"], known)
    rows = whole_column(table, "row")
    lengths = np.array([-1 if length is None else length for length in rows.value_lengths().to_pylist()], np.int64)
    wanted = np.flatnonzero((indices >= 0) & (lengths >= 0))
    if width is None and len(wanted):
        width = int(lengths[wanted[0]])
    for position in wanted[lengths[wanted] != width].tolist():
        mistakes.at(path, "record", number + position, f"{lengths[position]} features; the first item has {width}")
    wanted = wanted[lengths[wanted] == width]
    if not width or not len(wanted):
        return None
    values = rows.take(pa.array(wanted)).flatten().to_numpy(zero_copy_only=False)
    return FeatureRows(indices[wanted], values.reshape(-1, width), number + wanted, path)


def _open_rows(path: Path, modality: str) -> Any:
    """Rows of a .npy or .safetensors file, read as they are sliced: (rows, width)."""
    if path.suffix == ".npy":
        return map_features(path)
    try:
        file = safe_open(str(path), "numpy")
        names = list(file.keys())
        if modality not in names and len(names) != 1:
            raise DataError(
                f"{path}: its tensors are {', '.join(sorted(names)) or 'none'}; expected one, or one called {modality}"
            )
        rows = _TensorRows(file, modality if modality in names else names[0])
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as safetensors ({str(error).splitlines()[0]})") from None
    if rows.kind not in ("F16", "F32", "F64") or len(rows.shape) != 2 or rows.shape[1] < 1:
        raise DataError(f"{path}: holds {rows.kind} {rows.shape}; expected F16, F32 or F64 (records, width)")
    return rows


class _TensorRows:
    """A tensor of a safetensors file, of which only the rows asked for are read."""

    def __init__(self, file: Any, name: str) -> None:
        self._file = file  # has to stay open
        self._slice = file.get_slice(name)
        self.shape, self.kind = self._slice.get_shape(), self._slice.get_dtype()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._slice[rows]
