"""A shop's own tables: interactions, items and features, in one file or many of each.

Interactions come from data.interactions, items from tables.items; both are files or patterns below data.source. Features
(data.features) are, per modality, a column of lists of the item tables, a pattern of their number columns (`f_*`), or
.npy or .safetensors files that together have a row for each record of the item tables, in their order.

Ids are text in the end. The interaction files have to agree whether they are numbers or text (CSV has only text and goes
with either), and so do the item tables; between the two, 1 and "1" are the same item.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bm3_dgl.config.schema import DataConfig, TablesConfig
from bm3_dgl.data.blocks import SourceReader
from bm3_dgl.data.columns import InteractionColumns, Shape, check_names, whole_column
from bm3_dgl.data.mistakes import Mistakes
from bm3_dgl.data.raw import FeatureRows, Item, ItemRecord, RawSource
from bm3_dgl.data.row_files import ROW_FILES, RowFiles
from bm3_dgl.data.table_files import check_id_kinds, column_names, find_files, read_table
from bm3_dgl.data.table_shapes import FeatureShape, ListColumn, NumberColumns, TextColumns
from bm3_dgl.data.texts import folded
from bm3_dgl.errors import ConfigError, DataError


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
        for _, table in read_table(path, self.columns, reader, mistakes):
            yield table

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
        if self.named[modality].endswith(ROW_FILES):
            yield from self._rows_by_position(modality, reader, known)
            return
        shape = _feature_shape(self.named[modality], _key(self.tables), self.items[0])
        width = None
        for path in self.items:
            for number, table in read_table(path, shape, reader, _met_before()):
                some = _matrix(table, known, number, path, mistakes, width)
                if some is not None:
                    width = some.rows.shape[1]
                    yield some

    def _rows_by_position(self, modality: str, reader: SourceReader, known: Mapping[str, int]) -> Iterator[FeatureRows]:
        """Rows of files that go by the position of the item's record in the item tables."""
        paths, shape = self.features[modality], TextColumns(_key(self.tables))
        rows = RowFiles(paths, modality)
        for path in paths:
            for _ in reader.pieces(path):  # for its hash
                pass
        begin, met = 0, _met_before()
        for table_path in self.items:
            for _, table in read_table(table_path, shape, SourceReader(lambda _: None), met):
                indices = _indices(table["id"], known)
                for block in rows.blocks(begin, begin + len(indices)):
                    own = indices[block.begin - begin :][: len(block.rows)]
                    wanted = np.flatnonzero(own >= 0)
                    yield FeatureRows(own[wanted], block.rows[wanted], block.number + wanted, block.path)
                begin += len(indices)
        named = f"{paths[0]}" if len(paths) == 1 else f"{paths[0]} to {paths[-1].name}"
        if met.count:
            raise DataError(f"{named}: rows go by position, and records of the item tables are skipped: {met.count}; mend them")
        if begin != len(rows):
            raise DataError(f"{named}: has {len(rows)} rows, the item tables have {begin} records; expected a row for each")


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
    check_id_kinds(interactions, [tables.user, tables.item])
    check_id_kinds(items, [_key(tables)])
    features = {}
    for modality in chosen:
        named = data.features[modality]
        is_file = named.endswith(ROW_FILES)
        features[modality] = find_files(source, named, f"data.features.{modality}", any_ending=True) if is_file else items
    settings = {key: value.name if key == "time_unit" else value for key, value in asdict(tables).items()}
    settings["features"] = {modality: data.features[modality] for modality in chosen}
    return TableSource(interactions, items, features, settings, tables, dict(data.features))


def _key(tables: TablesConfig) -> str:
    return tables.item_key or tables.item


def _met_before() -> Mistakes:
    """For bad lines and ids of item tables in a pass over features: the pass over items has told of them already."""
    return Mistakes(skip=True)


def _known_records(
    path: Path, shape: Shape, reader: SourceReader, mistakes: Mistakes, known: Mapping[str, int]
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Record number (from 1), item index and fields of the records of known items."""
    for number, table in read_table(path, shape, reader, mistakes):
        indices = _indices(table["id"], known)
        for position in np.flatnonzero(~table["id"].is_valid().to_numpy()).tolist():
            mistakes.at(path, "record", number + position, f"{shape.names[0]} is missing; every item needs one")
        wanted = np.flatnonzero(indices >= 0)
        for position, record in zip(wanted.tolist(), table.take(wanted).to_pylist(), strict=True):
            yield number + position, int(indices[position]), record


def _indices(ids: pa.ChunkedArray, known: Mapping[str, int]) -> np.ndarray:
    """Item index of each id, -1 for an unknown one, int64 (n,)."""
    return np.array([known.get(raw, -1) for raw in ids.to_pylist()], np.int64)


def _feature_shape(named: str, key: str, path: Path) -> FeatureShape:
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
    rows, wrong = whole_column(table, "row"), whole_column(table, "wrong")
    for position in np.flatnonzero((indices >= 0) & wrong.is_valid().to_numpy(zero_copy_only=False)).tolist():
        mistakes.at(path, "record", number + position, wrong[position].as_py())
    lengths = pc.fill_null(pc.list_value_length(rows), -1).to_numpy()
    wanted = np.flatnonzero((indices >= 0) & (lengths >= 0))
    if width is None and len(wanted):
        width = int(lengths[wanted[0]])
    for position in wanted[lengths[wanted] != width].tolist():
        mistakes.at(path, "record", number + position, f"{lengths[position]} features; the first item has {width}")
    wanted = wanted[lengths[wanted] == width]
    if not width or not len(wanted):
        return None
    chosen = rows if len(wanted) == len(rows) else rows.take(pa.array(wanted))
    values = chosen.flatten().to_numpy(zero_copy_only=False)
    return FeatureRows(indices[wanted], values.reshape(-1, width), number + wanted, path)
