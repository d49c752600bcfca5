"""The interaction table `NAME.inter`: tab-separated text with a header, one interaction a line.

In: columns userID, itemID and x_label (0 train, 1 valid, 2 test), found by name; other columns are not read.
Out: three arrays in file order. Every complaint names the line of the file, from 1 with the header.

pyarrow parses the file but counts rows, not lines, and gives no position with a bad value. So the fast path only
finds out that something is wrong; a slow second pass over the text then finds the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from bm3_dgl.data.columns import nearest_name
from bm3_dgl.errors import DataError
from bm3_dgl.types import Split

USER_COLUMN, ITEM_COLUMN, LABEL_COLUMN = "userID", "itemID", "x_label"
COLUMNS = (USER_COLUMN, ITEM_COLUMN, LABEL_COLUMN)
MAX_ID = 2**31 - 2  # indices are int32 everywhere, and the count max + 1 must fit too
_LABELS = ", ".join(f"{split.value} ({split.name})" for split in Split)
_BLOCK_BYTES = 1 << 24  # pyarrow refuses a line longer than its block; the default is 1 MiB
_INTEGER = re.compile(r"\s*-?[0-9]{1,19}\s*")  # more digits are no id, and int() refuses thousands of them


def read_interactions(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users int32 (n,), items int32 (n,) and splits int8 (n,), n >= 1, in file order; no pair stands in it twice.

    Raises DataError for an unreadable or empty file, a missing column, a malformed line, a value that is not an id
    or a label, a pair that stands there twice, or when nothing is labelled train.
    """
    header = _read_header(path)
    table = _parse(path, header)
    users, items, labels = (table[column].to_numpy() for column in COLUMNS)
    for column, values, high in zip(COLUMNS, (users, items, labels), (MAX_ID, MAX_ID, max(Split)), strict=True):
        _check_values(path, column, values, high)
    _check_duplicates(path, users, items)
    if not (labels == Split.train).any():
        raise DataError(f"{path}: no row has {LABEL_COLUMN} {int(Split.train)}, so there is nothing to train on")
    return users, items, labels.astype(np.int8)


def line_of(path: Path, row: int) -> int:
    """Line number, from 1 with the header, of data row `row` (from 0; blank lines are no rows)."""
    for seen, (line, _) in enumerate(_rows(path)):
        if seen == row:
            return line
    raise AssertionError(f"{path} has no row {row}")


def _read_header(path: Path) -> list[str]:
    try:
        with open(path, encoding="utf-8-sig") as file:  # -sig: some exporters begin with a byte order mark
            first = file.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    header = first.rstrip("\r\n").split("\t")
    if not first.strip():
        where = "line 1 is blank" if first else "the file is empty"
        raise DataError(f"{path}: {where}; expected a header with the columns {', '.join(COLUMNS)}, separated by tabs")
    for column in COLUMNS:
        if header.count(column) > 1:
            raise DataError(f"{path}, line 1: column {column} stands in the header twice; expected it once")
        if column not in header:
            have = ", ".join(repr(name) for name in header[:8])
            raise DataError(
                f"{path}, line 1: no column {column}{nearest_name(column, header)} (the header has {have}, separated by tabs)"
            )
    return header


def _parse(path: Path, header: list[str]) -> pa.Table:
    try:
        table = pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES),
            parse_options=pyarrow.csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=list(COLUMNS), column_types=dict.fromkeys(COLUMNS, pa.int32()), null_values=[]
            ),
        )
    except (OSError, pa.ArrowException) as error:
        raise _explain(path, header) or DataError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    if table.num_rows == 0:
        raise DataError(f"{path}: has a header but no rows")
    return table


def _rows(path: Path) -> Iterator[tuple[int, str]]:
    """Line number and text of every data row, split into lines as pyarrow does."""
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for line, text in enumerate(file, start=1):
            text = text.rstrip("\n")
            if line > 1 and text:
                yield line, text


def _explain(path: Path, header: list[str]) -> DataError | None:
    """What is wrong with the first row that pyarrow cannot take."""
    places = [(column, header.index(column)) for column in COLUMNS]
    line = 0
    for line, text in _rows(path):
        cells = text.split("\t")
        if len(cells) != len(header):
            return DataError(
                f"{path}, line {line}: {len(cells)} columns, the header has {len(header)}; expected one tab between columns"
            )
        for column, place in places:
            if not _INTEGER.fullmatch(cells[place]):
                return DataError(f"{path}, line {line}: {column} is {cells[place]!r}; expected an integer from 0")
            if abs(int(cells[place])) > MAX_ID:
                return DataError(f"{path}, line {line}: {column} is {cells[place]}; expected 0 to {MAX_ID}")
    return None if line else DataError(f"{path}: has a header but no rows")


def _check_values(path: Path, column: str, values: np.ndarray, high: int) -> None:
    """Refuse a value outside 0..high. values: int32 (n,)."""
    wrong = np.flatnonzero((values < 0) | (values > high))
    if len(wrong):
        row = int(wrong[0])
        expected = f"one of {_LABELS}" if column == LABEL_COLUMN else f"an integer from 0 to {MAX_ID}"
        raise DataError(f"{path}, line {line_of(path, row)}: {column} is {values[row]}; expected {expected}")


def _check_duplicates(path: Path, users: np.ndarray, items: np.ndarray) -> None:
    """Refuse a (user, item) pair that stands in the file twice; of several, the one that repeats first."""
    pairs = users.astype(np.int64) * (int(items.max()) + 1) + items
    order = np.argsort(pairs, kind="stable")  # stable: equal pairs stay in file order
    repeats = np.flatnonzero(pairs[order][1:] == pairs[order][:-1])
    if len(repeats):
        place = repeats[np.argmin(order[repeats + 1])]
        first, second = int(order[place]), int(order[place + 1])
        raise DataError(
            f"{path}, line {line_of(path, second)}: user {users[second]} and item {items[second]} are in line "
            f"{line_of(path, first)} already; each pair may stand in the file once, in one split"
        )
