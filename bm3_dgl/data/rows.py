"""Records out of blocks of text: CSV or JSON lines -> tables of a Shape, such as interactions.

A block goes through pyarrow's parser as a whole. When that refuses, the block is halved until the piece with the bad
line is small, and Python reads it line by line to say which line it is and why, or to leave it out. JSON that pyarrow
takes but that is not one object a line goes the same way.
"""

from __future__ import annotations

import csv
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from bm3_dgl.data.blocks import LONGEST_LINE, Block, line_end
from bm3_dgl.data.columns import Record, Shape, check_names, shown
from bm3_dgl.data.mistakes import Mistake, Mistakes
from bm3_dgl.errors import DataError

_EMPTY_LINE = re.compile(rb"(?:^|\n)[ \t\r]*(?:\n|$)")
HALF_A_LETTER = "half a letter (a lone surrogate), which no text can hold"


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
            halves = block.halves()
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
        """A look at a block before it is parsed; returns what is to be parsed of it."""
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
        self._header = b""
        csv.field_size_limit(LONGEST_LINE)

    def _begin(self, block: Block) -> Block:
        if self._names is None:
            self._header = block.text.partition(b"\n")[0].rstrip(b"\r")
            self._names, block = split_header(block)
            check_names(block.path, self._shape.names, self._names)
        return self._without_header(block) if self._header else block

    def _without_header(self, block: Block) -> Block:
        """Joined files repeat their header; an empty line takes its place, so that lines keep their numbers."""
        text = b"\n" + block.text
        for line in (b"\n" + self._header + b"\n", b"\n" + self._header + b"\r\n"):
            text = text.replace(line, b"\n\n")
        return replace(block, text=text[1:])

    def _parse(self, block: Block) -> pa.Table:
        kinds = {name: self._shape.text_kind(name) for name in self._shape.names}
        return parse_csv(block, self._names or [], kinds)

    def _records(self, block: Block) -> Iterator[tuple[int, Record | Mistake]]:
        names = self._names or []
        for line, cells in csv_cells(block):
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
        if table.num_rows != _lines(block.text):
            raise Mistake("not one object a line")
        table.validate(full=True)  # the parser lets broken UTF-8 pass
        return table

    def _records(self, block: Block) -> Iterator[tuple[int, Record | Mistake]]:
        for line, text in enumerate(block.text.split(b"\n"), block.first_line):
            if text.strip():
                yield line, json_object(text)


def _lines(text: bytes) -> int:
    """Lines that are not empty."""
    lines = text.count(b"\n") + (not text.endswith(b"\n"))
    return lines if not _EMPTY_LINE.search(text) else sum(1 for line in text.split(b"\n") if line.strip())


def split_header(block: Block) -> tuple[list[str], Block]:
    """Column names of a file's first block, and what is left of it."""
    head, _, rest = block.text.partition(b"\n")
    text = head.decode("utf-8", "replace").rstrip("\r")
    try:
        names = next(csv.reader([text], delimiter=block.delimiter or ","), [])
    except csv.Error as error:
        raise DataError(f"{block.path}, line 1: not the header of a table ({error}); is it a text file?") from None
    return names, replace(block, first_line=block.first_line + 1, text=rest)


def parse_csv(block: Block, names: Sequence[str], kinds: dict[str, pa.DataType]) -> pa.Table:
    """The columns `kinds` of a block of CSV without header; empty cells are null."""
    quoted = bool(block.delimiter)
    return pyarrow.csv.read_csv(
        pa.BufferReader(block.text),
        read_options=pyarrow.csv.ReadOptions(column_names=list(names)),
        parse_options=pyarrow.csv.ParseOptions(
            delimiter=block.delimiter or ",",
            quote_char='"' if quoted else False,
            newlines_in_values=quoted and b'"' in block.text,
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=list(kinds), column_types=kinds, null_values=[""], strings_can_be_null=True
        ),
    )


def csv_cells(block: Block) -> Iterator[tuple[int, list[str] | Mistake]]:
    """Line number and cells of every record of a block of CSV; a quoted cell may hold line ends."""
    first, held = block.first_line, b""
    for line, text in enumerate(block.text.split(b"\n"), block.first_line):
        held += text
        if line_end(held + b"\n", block.delimiter) == 0:  # within quotes
            held += b"\n"
            continue
        if held.strip():
            yield first, _cells(held, block.delimiter)
        first, held = line + 1, b""


def _cells(text: bytes, delimiter: str) -> list[str] | Mistake:
    try:
        line = text.decode("utf-8").removesuffix("\r")
        return next(csv.reader([line], delimiter=delimiter, strict=True)) if delimiter else line.split(",")
    except UnicodeDecodeError:
        return Mistake("not valid UTF-8")
    except csv.Error as error:
        return Mistake(f"not valid CSV ({error})")


def json_object(text: bytes) -> Record | Mistake:
    """A line's object, or what is wrong with it."""
    try:
        found = json.loads(text)
        check_letters(text, found)
    except UnicodeDecodeError:
        return Mistake("not valid UTF-8")
    except UnicodeEncodeError:
        return Mistake(HALF_A_LETTER)
    except (ValueError, RecursionError):
        return Mistake(f"not valid JSON: {shown(text.decode('utf-8', 'replace'))}")
    return found if isinstance(found, dict) else Mistake(f"a {type(found).__name__}; expected one object a line")


def check_letters(text: bytes, found: Any) -> None:
    """Raise UnicodeEncodeError where an escape in a line stands for no letter. found: what the line was read as."""
    if b"\\u" in text or b"\\U" in text:
        json.dumps(found, ensure_ascii=False, default=str, skipkeys=True).encode("utf-8")
