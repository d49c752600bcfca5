"""Records out of blocks of text: CSV or JSON lines -> tables of a Shape, such as interactions.

A block goes through pyarrow's parser as a whole. When that refuses, the block is halved until the piece with the bad
line is small, and Python reads it line by line to say which line it is and why, or to leave it out. JSON that pyarrow
takes but that is not one object a line goes the same way.
"""

from __future__ import annotations

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from bm3_dgl.data.blocks import Block
from bm3_dgl.data.columns import Record, Shape, check_names, shown
from bm3_dgl.data.mistakes import Mistake, Mistakes


class RowReader(ABC):
    """Reads the blocks of one file in order."""

    quoted = False  # whether a record may hold line ends between quotes

    def __init__(self, shape: Shape, mistakes: Mistakes) -> None:
        self._shape = shape
        self._mistakes = mistakes
        self._kinds: dict[str, pa.DataType] = {}  # of the source's columns, as far as known

    def read(self, block: Block) -> Iterator[pa.Table]:
        """The block's records in order, with nulls where a field is missing."""
        block = self._begin(block)
        if block.text:
            yield from self._read(block)

    def _read(self, block: Block) -> Iterator[pa.Table]:
        try:
            yield self._shape.table(self._parse(block))
        except (pa.ArrowException, Mistake):
            halves = block.halves(quoted=self.quoted)
            if halves is None:
                yield self._one_by_one(block)
                return
            for half in halves:
                yield from self._read(half)

    def _one_by_one(self, block: Block) -> pa.Table:
        rows = []
        for line, record in self._records(block):
            try:
                if isinstance(record, Mistake):
                    raise record
                rows.append(self._shape.row(record, self._kinds))
            except Mistake as mistake:
                self._mistakes.at(block.path, "line", line, str(mistake))
        return pa.Table.from_pylist(rows, self._shape.schema)

    def _begin(self, block: Block) -> Block:
        """A look at the first block of a file; returns what is left of it."""
        return block

    @abstractmethod
    def _parse(self, block: Block) -> pa.Table:
        """The block by the fast parser, under the source's names. Raises ArrowInvalid or Mistake."""

    @abstractmethod
    def _records(self, block: Block) -> Iterator[tuple[int, Record | Mistake]]:
        """Line number and content of every record, or what is wrong with it."""


class CsvRows(RowReader):
    """Separated values. names: of the columns of a file without header; None: the first line holds them."""

    def __init__(self, shape: Shape, mistakes: Mistakes, *, names: Sequence[str] | None, quoted: bool = True) -> None:
        super().__init__(shape, mistakes)
        self.quoted = quoted
        self._names = names
        self._delimiter = ","

    def _begin(self, block: Block) -> Block:
        if self._names is not None:
            return block
        self._names, self._delimiter, rest = split_header(block)
        check_names(block.path, self._shape.names, self._names)
        return rest

    def _parse(self, block: Block) -> pa.Table:
        kinds = {name: self._shape.text_kind(name) for name in self._shape.names}
        return parse_csv(block, self._names or [], kinds, delimiter=self._delimiter, quoted=self.quoted)

    def _records(self, block: Block) -> Iterator[tuple[int, Record | Mistake]]:
        names = self._names or []
        for line, cells in csv_cells(block, delimiter=self._delimiter, quoted=self.quoted):
            if isinstance(cells, Mistake):
                yield line, cells
            elif len(cells) != len(names):
                yield line, Mistake(f"{len(cells)} columns; expected {len(names)}: {', '.join(names)}")
            else:
                yield line, {name: cell or None for name, cell in zip(names, cells, strict=True)}


class JsonRows(RowReader):
    """One JSON object a line. The first whole one tells whether ids are text or numbers; the others have to agree."""

    def _begin(self, block: Block) -> Block:
        missing = [] if self._kinds else list(self._shape.names)
        for _, record in self._records(block) if missing else ():
            for name in missing:
                value = record.get(name) if isinstance(record, dict) else None
                if value not in (None, ""):
                    self._kinds[name] = self._shape.kind(name, value)
            missing = [name for name in missing if name not in self._kinds]
            if not missing:
                break
        return block

    def _parse(self, block: Block) -> pa.Table:
        kinds = [(name, self._kinds.get(name, pa.string())) for name in self._shape.names]
        options = pyarrow.json.ParseOptions(explicit_schema=pa.schema(kinds), unexpected_field_behavior="ignore")
        table = pyarrow.json.read_json(pa.BufferReader(block.text), parse_options=options)
        if table.num_rows != block.text.count(b"\n") + (not block.text.endswith(b"\n")):
            raise Mistake("not one object a line")
        table.validate(full=True)  # the parser lets broken UTF-8 pass
        return table

    def _records(self, block: Block) -> Iterator[tuple[int, Record | Mistake]]:
        for line, text in enumerate(block.text.split(b"\n"), block.first_line):
            if text.strip():
                yield line, json_object(text)


def split_header(block: Block) -> tuple[list[str], str, Block]:
    """Column names and delimiter (tab or comma) of a file's first block, and what is left of it."""
    head, _, rest = block.text.partition(b"\n")
    text = head.decode("utf-8", "replace").rstrip("\r")
    delimiter = "\t" if "\t" in text else ","
    return next(csv.reader([text], delimiter=delimiter), []), delimiter, Block(block.path, block.first_line + 1, rest)


def parse_csv(block: Block, names: Sequence[str], kinds: dict[str, pa.DataType], *, delimiter: str, quoted: bool) -> pa.Table:
    """The columns `kinds` of a block of CSV without header; empty cells are null."""
    return pyarrow.csv.read_csv(
        pa.BufferReader(block.text),
        read_options=pyarrow.csv.ReadOptions(column_names=list(names)),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted and b'"' in block.text
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=list(kinds), column_types=kinds, null_values=[""], strings_can_be_null=True
        ),
    )


def csv_cells(block: Block, *, delimiter: str, quoted: bool) -> Iterator[tuple[int, list[str] | Mistake]]:
    """Line number and cells of every record of a block of CSV; a quoted cell may hold line ends."""
    first, held, open_quotes = block.first_line, b"", 0
    for line, text in enumerate(block.text.split(b"\n"), block.first_line):
        held = held + b"\n" + text if open_quotes else text
        open_quotes = (open_quotes + quoted * text.count(b'"')) % 2
        if not open_quotes:
            if held.strip():
                yield first, _cells(held, delimiter, quoted)
            first = line + 1
    if open_quotes:
        yield first, Mistake("not valid CSV (a quote is opened and not closed)")


def _cells(text: bytes, delimiter: str, quoted: bool) -> list[str] | Mistake:
    try:
        line = text.decode("utf-8").removesuffix("\r")
        return next(csv.reader([line], delimiter=delimiter, strict=True)) if quoted else line.split(delimiter)
    except UnicodeDecodeError:
        return Mistake("not valid UTF-8")
    except csv.Error as error:
        return Mistake(f"not valid CSV ({error})")


def json_object(text: bytes) -> Record | Mistake:
    """A line's object, or what is wrong with it."""
    try:
        found = json.loads(text)
    except UnicodeDecodeError:
        return Mistake("not valid UTF-8")
    except (ValueError, RecursionError):
        return Mistake(f"not valid JSON: {shown(text.decode('utf-8', 'replace'))}")
    return found if isinstance(found, dict) else Mistake(f"a {type(found).__name__}; expected one object a line")
