"""The columns of an interaction, whatever they are called in a source, and what their values may be."""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bm3_dgl.config.schema import TimeUnit
from bm3_dgl.data.mistakes import Mistake
from bm3_dgl.data.times import milliseconds
from bm3_dgl.errors import DataError
from bm3_dgl.types import Split

_SHOWN = 60  # characters of a value that a message repeats
_LARGEST = float(np.finfo(np.float32).max)
Record = dict[str, Any]  # a source's column -> value, None where it is missing
Kinds = Mapping[str, pa.DataType]
SPLIT_WORDS = {word: int(split) for split in Split for word in (split.name, str(int(split)))} | {"validation": int(Split.valid)}
KINDS = {str: pa.string(), int: pa.int64(), float: pa.float64()}  # of a value in Python, as a fast parser is told


class Shape(ABC):
    """What is read of each record of a source: its columns there, and the common columns that they become."""

    @property
    @abstractmethod
    def names(self) -> list[str]:
        """Columns of the source that have to be there."""

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """Of the tables that come out."""

    @abstractmethod
    def table(self, source: pa.Table) -> pa.Table:
        """A table of the source -> the common columns. Raises Mistake or ArrowInvalid for what does not fit."""

    @abstractmethod
    def row(self, record: Record, kinds: Kinds) -> Record:
        """The same for one record. kinds: types that the records before had, as far as known. Raises Mistake."""

    def kind(self, name: str, value: Any) -> pa.DataType:
        """The type under which a fast JSON parser is to read a column of which `value` is one value."""
        return KINDS.get(type(value), pa.string())

    def text_kind(self, name: str) -> pa.DataType:
        """The same for CSV."""
        return pa.string()


@dataclass(frozen=True)
class InteractionColumns(Shape):
    """Who, what, when, how much and for what; empty: the source has no such column.

    Out: user, item, time, weight, split (int8, a Split); null: missing.

    time_unit: of times that are numbers; None: seconds or milliseconds by size.
    """

    user: str
    item: str
    time: str = ""
    weight: str = ""
    time_unit: TimeUnit | None = TimeUnit.s
    split: str = ""

    @property
    def names(self) -> list[str]:
        return [name for name in (self.user, self.item, self.time, self.weight, self.split) if name]

    @property
    def schema(self) -> pa.Schema:
        fields = [("user", pa.string()), ("item", pa.string())]
        fields += [("time", pa.int64())] if self.time else []  # milliseconds since 1970
        fields += [("weight", pa.float32())] if self.weight else []
        return pa.schema(fields + ([("split", pa.int8())] if self.split else []))

    def table(self, source: pa.Table) -> pa.Table:
        arrays = [id_column(source, self.user), id_column(source, self.item)]
        if self.time:
            arrays.append(milliseconds(whole_column(source, self.time), self.time_unit))
        if self.weight:
            arrays.append(_weights(whole_column(source, self.weight)))
        if self.split:
            arrays.append(_splits(whole_column(source, self.split)))
        return pa.table(arrays, schema=self.schema)

    def row(self, record: Record, kinds: Kinds) -> Record:
        row: Record = {"user": id_of(self.user, record, kinds), "item": id_of(self.item, record, kinds)}
        if self.time:
            row["time"] = time_of(self.time, record.get(self.time), self.time_unit)
        if self.weight:
            row["weight"] = number_of(self.weight, record.get(self.weight))
        if self.split:
            row["split"] = split_of(self.split, record.get(self.split))
        return row

    def kind(self, name: str, value: Any) -> pa.DataType:
        return pa.float64() if name == self.weight else super().kind(name, value)


def nearest_name(name: str, have: Sequence[str]) -> str:
    """What a message adds about the column that may be meant; empty where none is near."""
    near = difflib.get_close_matches(name.lower(), [other.lower() for other in have], n=1, cutoff=0.4)
    return next((f"; the nearest is {other!r}" for other in have if [other.lower()] == near), "")


def check_names(path: Path, wanted: Sequence[str], have: Sequence[str]) -> None:
    """Raise DataError, with the nearest there is, where a column is missing or stands in the header twice."""
    for name in wanted:
        if have.count(name) > 1:
            raise DataError(f"{path}: the column {name} is there twice; expected it once")
        if name not in have:
            listed = ", ".join(repr(other) for other in list(have)[:8])
            raise DataError(
                f"{path}: no column {name!r}{nearest_name(name, have)} (it has {listed or 'none'}); see tables.* in --help"
            )


def whole_column(table: pa.Table, name: str) -> pa.Array:
    """A column as one array."""
    column = table[name].combine_chunks()
    return pa.concat_arrays(column.chunks) if isinstance(column, pa.ChunkedArray) else column


def id_column(table: pa.Table, name: str) -> pa.Array:
    """Ids as strings; an empty one is missing. Raises Mistake for what is no id."""
    values = whole_column(table, name)
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_floating(kind):  # whole numbers with gaps, as some libraries write them
        values = values.cast(kind)
        values, kind = pc.if_else(pc.is_nan(values), pa.scalar(None, kind), values).cast(pa.int64()), pa.int64()
    kinds = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
    if not any(is_kind(kind) for is_kind in kinds):
        raise Mistake(f"ids of type {kind}; expected text or whole numbers")
    texts = values.cast(pa.string())
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def _weights(values: pa.Array) -> pa.Array:
    numbers = values.cast(pa.float64())
    numbers = pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers).cast(pa.float32())
    if pc.any(pc.is_inf(numbers)).as_py():
        raise Mistake("a weight that is infinite, or too large for float32")
    return numbers


def _splits(values: pa.Array) -> pa.Array:
    """Splits as int8. Raises Mistake for a word that is none."""
    texts = pc.utf8_lower(values.cast(pa.string()))
    texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
    place = pc.index_in(texts, pa.array(list(SPLIT_WORDS)))
    if place.null_count > texts.null_count:
        raise Mistake("a split that is none")
    return pa.array(list(SPLIT_WORDS.values()), pa.int8()).take(place)


def id_of(name: str, record: Record, kinds: Kinds) -> str | None:
    """One id as text, None where it is missing; raises Mistake."""
    value = record.get(name)
    if value is None or value == "":
        return None
    if type(value) is float and value.is_integer():  # as the fast parsers take it
        value, kinds = int(value), {}
    if type(value) not in (str, int):
        raise Mistake(f"{name} is {shown(value)}; expected text or a whole number")
    if name in kinds and pa.types.is_string(kinds[name]) != isinstance(value, str):
        raise Mistake(f"{name} is {shown(value)}, a {type(value).__name__}; ids of another type stand before it")
    return str(value)


def time_of(name: str, value: Any, unit: TimeUnit | None) -> int | None:
    """One time in milliseconds; raises Mistake."""
    if value is None or value == "":
        return None
    if type(value) not in KINDS:
        raise Mistake(f"{name} is {shown(value)}; expected a time")
    try:
        return milliseconds(pa.array([value]), unit)[0].as_py()
    except (Mistake, pa.ArrowException, OverflowError) as mistake:
        raise Mistake(f"{name} is {shown(value)}: {mistake}") from None


def number_of(name: str, value: Any) -> float | None:
    """One number that float32 can hold, None where it is missing or NaN; raises Mistake."""
    if value is None or value == "":
        return None
    try:
        number = math.inf if isinstance(value, (bool, list, dict)) else float(value)
    except (ValueError, OverflowError):
        number = math.inf
    if abs(number) > _LARGEST:
        raise Mistake(f"{name} is {shown(value)}; expected a number")
    return None if math.isnan(number) else number


def split_of(name: str, value: Any) -> int | None:
    """One split as a number; raises Mistake."""
    if value is None or value == "":
        return None
    split = SPLIT_WORDS.get(str(value).lower())
    if split is None:
        raise Mistake(f"{name} is {shown(value)}; expected train, valid or test, or 0, 1, 2")
    return split


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
