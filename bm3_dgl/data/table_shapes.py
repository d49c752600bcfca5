"""What is read of a shop's item tables: names and texts, or features in columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bm3_dgl.data.columns import Kinds, Record, Shape, id_column, id_of, number_of, shown, whole_column
from bm3_dgl.data.mistakes import Mistake

_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


@dataclass(frozen=True)
class TextColumns(Shape):
    """The item's id and columns of text. Out: id, then the columns under their own names; null: missing."""

    key: str
    texts: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        return [self.key, *(name for name in self.texts if name != self.key)]

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([("id", pa.string()), *((name, pa.string()) for name in self.names[1:])])

    def table(self, source: pa.Table) -> pa.Table:
        arrays = [id_column(source, self.key)]
        for name in self.names[1:]:
            values = whole_column(source, name)
            if pa.types.is_nested(values.type) or pa.types.is_binary(values.type):
                raise Mistake(f"{name} is of type {values.type}; expected text")
            arrays.append(values.cast(pa.string()))
        return pa.table(arrays, schema=self.schema)

    def row(self, record: Record, kinds: Kinds) -> Record:
        row: Record = {"id": id_of(self.key, record, kinds)}
        for name in self.names[1:]:
            value = record.get(name)
            if value is not None and type(value) not in (str, int, float):
                raise Mistake(f"{name} is {shown(value)}; expected text")
            row[name] = None if value is None else str(value)
        return row


@dataclass(frozen=True)
class ListColumn(Shape):
    """The item's id and a column of lists of numbers. Out: id, row."""

    key: str
    column: str

    @property
    def names(self) -> list[str]:
        return [self.key, self.column]

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([("id", pa.string()), ("row", pa.list_(pa.float64()))])

    def table(self, source: pa.Table) -> pa.Table:
        values = whole_column(source, self.column)
        if not (
            pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type)
        ):
            raise Mistake(f"{self.column} is of type {values.type}; expected lists of numbers")
        return pa.table([id_column(source, self.key), values.cast(pa.list_(pa.float64()))], schema=self.schema)

    def row(self, record: Record, kinds: Kinds) -> Record:
        values = record.get(self.column)
        if values is not None and not isinstance(values, list):
            raise Mistake(f"{self.column} is {shown(values)}; expected a list of numbers")
        row = None if values is None else [number_of(self.column, value) for value in values]
        return {"id": id_of(self.key, record, kinds), "row": row}

    def kind(self, name: str, value: Any) -> pa.DataType:
        return pa.list_(pa.float64()) if name == self.column else super().kind(name, value)


@dataclass(frozen=True)
class NumberColumns(Shape):
    """The item's id and several columns of one number each. Out: id, row."""

    key: str
    columns: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return [self.key, *self.columns]

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([("id", pa.string()), ("row", pa.list_(pa.float64()))])

    def table(self, source: pa.Table) -> pa.Table:
        numbers = [pc.fill_null(whole_column(source, name).cast(pa.float64()), np.nan) for name in self.columns]
        rows_RW = np.stack([values.to_numpy() for values in numbers], axis=1) if source.num_rows else np.empty((0, 1))
        ends = np.arange(source.num_rows + 1, dtype=np.int32) * len(self.columns)
        rows = pa.ListArray.from_arrays(pa.array(ends), pa.array(rows_RW.ravel()))
        return pa.table([id_column(source, self.key), rows], schema=self.schema)

    def row(self, record: Record, kinds: Kinds) -> Record:
        row = [number_of(name, record.get(name)) for name in self.columns]
        return {"id": id_of(self.key, record, kinds), "row": [np.nan if value is None else value for value in row]}

    def kind(self, name: str, value: Any) -> pa.DataType:
        return super().kind(name, value) if name == self.key else pa.float64()

    def text_kind(self, name: str) -> pa.DataType:
        return pa.string() if name == self.key else pa.float64()
