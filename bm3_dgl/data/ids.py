"""Names of users and items: raw ids from a mapping file, titles from JSON lines.

Both are optional beside the interactions. An index without a raw id is called by its number, an item without a title
has None. Line numbers in complaints count from 1.
"""

from __future__ import annotations

import csv
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path

from bm3_dgl.errors import DataError

_INDEX = re.compile(r"[0-9]{1,19}")  # more digits are no index, and int() refuses thousands of them


def numbered_ids(count: int) -> list[str]:
    """The raw ids where there is no mapping: "0", "1", ..."""
    return [str(index) for index in range(count)]


def read_raw_ids(path: Path, *, column: str, count: int) -> tuple[list[str], list[str]]:
    """Raw ids of the indices 0..count-1 from a mapping file, and warnings.

    The file has a header and two columns, separated by tabs or commas: `column` with the index, the other with the
    raw id. Raises DataError for anything else, for an index named twice, and for a raw id that two indices share.
    """
    raw_ids: list[str | None] = [None] * count
    lines: dict[int, int] = {}
    unknown = 0
    for line, index_text, raw_id in _mapping_rows(path, column):
        if not _INDEX.fullmatch(index_text):
            raise DataError(f"{path}, line {line}: {column} is {index_text!r}; expected an integer from 0")
        index = int(index_text)
        if index in lines:
            raise DataError(f"{path}, line {line}: {column} {index} is in line {lines[index]} already; expected it once")
        lines[index] = line
        if index < count:
            raw_ids[index] = raw_id
        else:
            unknown += 1
    warnings = []
    if unknown:
        warnings.append(f"{path}: ids that are not in the interactions: {unknown} (highest there: {count - 1}); ignored")
    if nameless := raw_ids.count(None):
        warnings.append(f"{path}: ids without a raw id: {nameless} of {count}; called by their number")
    named = [str(index) if raw_id is None else raw_id for index, raw_id in enumerate(raw_ids)]
    _check_distinct(path, column, named)
    return named, warnings


def read_titles(path: Path, count: int) -> tuple[list[str | None], list[str]]:
    """Titles of the items 0..count-1 from JSON lines {"itemID": 3, "title": "..."}, and warnings.

    HTML entities are unescaped and white space is folded; a missing, null or empty title is None.
    Raises DataError for a line that is not such an object and for an item that has two lines.
    """
    titles: list[str | None] = [None] * count
    lines: dict[int, int] = {}
    unknown = 0
    for line, text in _text_lines(path):
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError):
            raise DataError(f"{path}, line {line}: not valid JSON; expected one object a line") from None
        item_idx = entry.get("itemID") if isinstance(entry, dict) else None
        if type(item_idx) is not int or item_idx < 0:  # a bool is an int to isinstance
            raise DataError(f"{path}, line {line}: itemID is {item_idx!r}; expected an object with an integer itemID from 0")
        title = entry.get("title")
        if title is not None and not isinstance(title, str):
            raise DataError(f"{path}, line {line}: title is of type {type(title).__name__}; expected a string or null")
        if item_idx in lines:
            raise DataError(f"{path}, line {line}: itemID {item_idx} is in line {lines[item_idx]} already; expected it once")
        lines[item_idx] = line
        if item_idx < count:
            titles[item_idx] = " ".join(html.unescape(title or "").split()) or None
        else:
            unknown += 1
    ignored = f"{path}: items that are not in the interactions: {unknown} (highest id there: {count - 1}); ignored"
    return titles, [ignored] if unknown else []


def _mapping_rows(path: Path, column: str) -> Iterator[tuple[int, str, str]]:
    """Line number, index as text and raw id of every row of a mapping file."""
    numbered = _text_lines(path)
    header_line, header_text = next(numbered, (1, ""))
    delimiter = "\t" if "\t" in header_text else ","
    header = next(csv.reader([header_text], delimiter=delimiter), [])
    if len(header) != 2 or header.count(column) != 1:
        raise DataError(
            f"{path}, line {header_line}: the header is {header_text[:80]!r}; expected {column} and a column of raw ids, "
            "separated by a tab or a comma"
        )
    place = header.index(column)
    for line, text in numbered:
        try:
            (cells,) = csv.reader([text], delimiter=delimiter, strict=True)
        except csv.Error as error:
            raise DataError(f"{path}, line {line}: cannot be read ({error})") from None
        if len(cells) != 2 or not all(cells):
            raise DataError(f"{path}, line {line}: expected {column} and a raw id, got {text[:80]!r}")
        yield line, cells[place].strip(), cells[1 - place]


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not blank."""
    line = 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            for line, text in enumerate(file, start=1):
                if text.strip():
                    yield line, text.rstrip("\n")
    except UnicodeDecodeError:
        raise DataError(f"{path}, after line {line}: not valid UTF-8") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def _check_distinct(path: Path, column: str, raw_ids: list[str]) -> None:
    first: dict[str, int] = {}
    for index, raw_id in enumerate(raw_ids):
        if first.setdefault(raw_id, index) != index:
            raise DataError(f"{path}: raw id {raw_id!r} stands for {column} {first[raw_id]} and {index}; expected it once")
