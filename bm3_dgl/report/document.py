"""A report before it has a form: sections of text, tables and figures. html.py, markdown.py and files.py give it one.

All text is plain: it may come from outside (titles, ids, names of directories), and each form escapes it in its own way.
`words between backticks` are shown as code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Value = float | int | str | None
Mark = Literal["", "best", "second"]
SPLITS = {"test": "test", "valid": "validation"}  # as files name them -> as a reader is told


@dataclass(frozen=True)
class Cell:
    """value: what a CSV holds, unrounded. text: what a reader sees of it."""

    value: Value
    text: str
    mark: Mark = ""


@dataclass(frozen=True)
class Table:
    """name: of its CSV file, unique in the report. The first column of each row says what the row is."""

    name: str
    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Figure:
    """name: of its SVG file, unique. alt: what it shows, for who does not see it. svg: with the palette of figures.py."""

    name: str
    caption: str
    alt: str
    svg: str


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Points:
    """A list of sentences; warning: they say what is missing or wrong."""

    lines: Sequence[str]
    warning: bool = False


@dataclass(frozen=True)
class Listing:
    """Preformatted text behind a title that unfolds it."""

    title: str
    text: str


Block = Table | Figure | Text | Points | Listing


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    """sources: the directories that it was made of."""

    title: str
    sources: Sequence[str]
    sections: Sequence[Section] = field(default_factory=list)

    def tables(self) -> list[Table]:
        return [block for section in self.sections for block in section.blocks if isinstance(block, Table)]

    def figures(self) -> list[Figure]:
        return [block for section in self.sections for block in section.blocks if isinstance(block, Figure)]


def words(text: object) -> Cell:
    return Cell(str(text), str(text))


def number(value: float | int | None, form: str = ".4f", *, unit: str = "", mark: Mark = "") -> Cell:
    """A number shown by a format specification; a dash for None, `not a number` for one that is not finite."""
    if value is None:
        return Cell(None, "–")
    if not math.isfinite(value):
        return Cell(value, "not a number")
    return Cell(value, f"{value:{form}}{unit}", mark)


def ranked(values: Sequence[float | None], *, smaller: bool = False) -> list[Mark]:
    """Marks of the best value and the second best; ties share a mark. None where fewer than two can be compared."""
    usable = sorted({v for v in values if v is not None and math.isfinite(v)}, reverse=not smaller)
    if len(usable) < 2:
        return [""] * len(values)
    return ["best" if v == usable[0] else "second" if v == usable[1] else "" for v in values]


def unique_names(names: Sequence[str]) -> list[str]:
    """The same names; those that come again get a number."""
    seen: dict[str, int] = {}
    result = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return result
