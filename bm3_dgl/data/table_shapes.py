"""What is read of a shop's item tables: names and texts, or features in columns."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from bm3_dgl.data.columns import Kinds, Record, Shape, id_column, id_of, number_of, shown, whole_column
from bm3_dgl.data.mistakes import Mistake

_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_NUMBERS = (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal, pa.types.is_null)


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
class FeatureShape(Shape):
    """The item's id and a row of numbers. Out: id; row, lists of floats as wide as in the source; wrong: null, or what is
    wrong with the numbers, and row is null.

    So a bad number leaves its record countable, and what still raises is a bad id, which the names and texts raise too.
    """

    key: str

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([("id", pa.string()), ("row", pa.list_(pa.float64())), ("wrong", pa.string())])

    def table(self, source: pa.Table) -> pa.Table:
        columns = {"id": id_column(source, self.key), "row": self.rows(source), "wrong": pa.nulls(len(source), pa.string())}
        return pa.table(columns)

    def row(self, record: Record, kinds: Kinds) -> Record:
        row: Record = {"id": id_of(self.key, record, kinds), "row": None, "wrong": None}
        try:
            return row | {"row": self.numbers(record)}
        except Mistake as mistake:
            return row | {"wrong": str(mistake)}

    @abstractmethod
    def rows(self, source: pa.Table) -> pa.Array:
        """Lists of floats, of a table's records."""

    @abstractmethod
    def numbers(self, record: Record) -> list[float | None] | None:
        """The same of one record. Raises Mistake."""


@dataclass(frozen=True)
class ListColumn(FeatureShape):
    """The numbers are a column of lists."""

    column: str

    @property
    def names(self) -> list[str]:
        return [self.key, self.column]

    def rows(self, source: pa.Table) -> pa.Array:
        values = whole_column(source, self.column)
        kind = values.type
        if not any(is_list(kind) for is_list in _LISTS) or not any(is_number(kind.value_type) for is_number in _NUMBERS):
            raise Mistake(f"{self.column} is of type {kind}; expected lists of numbers")
        return values if pa.types.is_floating(kind.value_type) else values.cast(pa.list_(_float_for(kind.value_type)))

    def numbers(self, record: Record) -> list[float | None] | None:
        values = record.get(self.column)
        if values is not None and not isinstance(values, list):
            raise Mistake(f"{self.column} is {shown(values)}; expected a list of numbers")
        return None if values is None else [number_of(self.column, value) for value in values]

    def kind(self, name: str, value: Any) -> pa.DataType:
        return pa.list_(pa.float64()) if name == self.column else super().kind(name, value)


@dataclass(frozen=True)
class NumberColumns(FeatureShape):
    """The numbers are several columns, in this order; a missing one is NaN."""

    columns: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return [self.key, *self.columns]

    def rows(self, source: pa.Table) -> pa.Array:
        columns = (whole_column(source, name) for name in self.columns)
        floats = [values.cast(_float_for(values.type)).to_numpy(zero_copy_only=False) for values in columns]
        rows_RW = np.stack(floats, axis=1)
        return pa.FixedSizeListArray.from_arrays(pa.array(rows_RW.ravel()), len(self.columns))

    def numbers(self, record: Record) -> list[float | None] | None:
        return [np.nan if (value := number_of(name, record.get(name))) is None else value for name in self.columns]

    def kind(self, name: str, value: Any) -> pa.DataType:
        return super().kind(name, value) if name == self.key else pa.float64()

    def text_kind(self, name: str) -> pa.DataType:
        return pa.string() if name == self.key else pa.float64()


def _float_for(kind: pa.DataType) -> pa.DataType:
    """The narrowest float that holds every number of a type; float64 where the type does not tell, as of text."""
    if pa.types.is_floating(kind):
        return kind
    return pa.float32() if pa.types.is_integer(kind) and kind.bit_width <= 16 else pa.float64()
