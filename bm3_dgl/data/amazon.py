"""Amazon's review data as published: the releases of 2014, 2018 and 2023, gzip or plain.

    2014   ratings_X.csv (no header: user, item, rating, time in s), reviews_X_5.json, reviews_X.json (an object a line),
           meta_X.json (a Python dict a line), image_features_X.b (10 bytes of asin + 4096 float32, record by record)
    2018   X.csv (no header: item, user, rating, time in s), X_5.json, X.json, meta_X.json (JSON)
    2023   X.csv (with header), X.jsonl, meta_X.jsonl; items go by parent_asin, times are in ms (or s)

X is data.category. `meta` and `image_features` are optional. A line of `meta` about an item that is not kept is told by its
asin and not parsed, which is most of the work.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bm3_dgl.config.schema import DataConfig, DataFormat, TimeUnit
from bm3_dgl.data.amazon_items import item_2014, item_2018, item_2023
from bm3_dgl.data.blocks import SourceReader
from bm3_dgl.data.columns import InteractionColumns, shown
from bm3_dgl.data.mistakes import Mistake, Mistakes
from bm3_dgl.data.raw import FeatureRows, Item, ItemRecord, RawSource
from bm3_dgl.data.rows import HALF_A_LETTER, CsvRows, JsonRows, check_letters, json_object
from bm3_dgl.errors import DataError

VISUAL = "visual"
_ASIN_BYTES, _WIDTH = 10, 4096  # of a record of image features
_RECORD = np.dtype([("asin", f"S{_ASIN_BYTES}"), ("row", "<f4", (_WIDTH,))])
_LONGEST_LITERAL = 1 << 20  # bytes of a Python dict that is parsed; real ones have up to 100,000
# Wherever it stands in the line: every item that is kept has been met in such a field.
_ASIN = re.compile(rb"""["'](?:parent_)?asin["']\s*:\s*["']([^"'\\]*)["']""")


@dataclass(frozen=True)
class Release:
    """How the files of one release are called and what is in them. X stands for the category."""

    ratings: str
    rating_names: list[str] | None
    reviews: list[str]
    meta: str
    columns: InteractionColumns
    item_key: str
    parse: Callable[[bytes], dict[str, Any] | Mistake]
    item: Callable[[dict[str, Any]], Item]


def python_literal(text: bytes) -> dict[str, Any] | Mistake:
    """A line's dict, written as Python writes it. Only literals are taken; nothing is evaluated."""
    if len(text) > _LONGEST_LITERAL:
        return Mistake(f"{len(text)} bytes; a line of at most {_LONGEST_LITERAL} is taken")
    try:
        found = ast.literal_eval(text.decode("utf-8").strip())
        check_letters(text, found)
    except UnicodeDecodeError:
        return Mistake("not valid UTF-8")
    except UnicodeEncodeError:
        return Mistake(HALF_A_LETTER)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return Mistake(f"not a Python dict of plain values: {shown(text.decode('utf-8'))}")
    return found if isinstance(found, dict) else Mistake(f"a {type(found).__name__}; expected one dict a line")


_OLD = InteractionColumns("reviewerID", "asin", "unixReviewTime", "overall", TimeUnit.s)
RELEASES = {
    DataFormat.amazon2014: Release(
        ratings="ratings_X.csv",
        rating_names=["reviewerID", "asin", "overall", "unixReviewTime"],
        reviews=["reviews_X_5.json", "reviews_X.json"],
        meta="meta_X.json",
        columns=_OLD,
        item_key="asin",
        parse=python_literal,
        item=item_2014,
    ),
    DataFormat.amazon2018: Release(
        ratings="X.csv",
        rating_names=["asin", "reviewerID", "overall", "unixReviewTime"],
        reviews=["X_5.json", "X.json"],
        meta="meta_X.json",
        columns=_OLD,
        item_key="asin",
        parse=json_object,
        item=item_2018,
    ),
    DataFormat.amazon2023: Release(
        ratings="X.csv",
        rating_names=None,
        reviews=["X.jsonl"],
        meta="meta_X.jsonl",
        columns=InteractionColumns("user_id", "parent_asin", "timestamp", "rating", None),
        item_key="parent_asin",
        parse=json_object,
        item=item_2023,
    ),
}


@dataclass(frozen=True)
class AmazonSource(RawSource):
    """One category of a release."""

    release: Release

    @property
    def columns(self) -> InteractionColumns:
        return self.release.columns

    def interaction_tables(self, path: Path, reader: SourceReader, mistakes: Mistakes) -> Iterator[pa.Table]:
        if path.name.removesuffix(".gz").endswith(".csv"):
            rows: CsvRows | JsonRows = CsvRows(self.columns, mistakes, names=self.release.rating_names, quoted=False)
        else:
            rows = JsonRows(self.columns, mistakes)
        for block in reader.blocks(path):
            yield from rows.read(block)

    def item_records(
        self, path: Path, reader: SourceReader, mistakes: Mistakes, known: Mapping[str, int]
    ) -> Iterator[ItemRecord]:
        for block in reader.blocks(path):
            for line, text in enumerate(block.text.split(b"\n"), block.first_line):
                text = text.strip()
                if text and not _is_of_others(text, known):
                    found = self._item(text, known)
                    if isinstance(found, Mistake):
                        mistakes.at(path, "line", line, str(found))
                    elif found is not None:
                        index, item = found
                        yield ItemRecord(index, item, "line", line)

    def _item(self, text: bytes, known: Mapping[str, int]) -> tuple[int, Item] | Mistake | None:
        entry = self.release.parse(text)
        if isinstance(entry, Mistake):
            return entry
        asin = entry.get(self.release.item_key)
        if not isinstance(asin, str) or not asin:
            return Mistake(f"{self.release.item_key} is {shown(asin)}; expected text")
        if asin not in known:
            return None
        try:
            return known[asin], self.release.item(entry)
        except Mistake as mistake:
            return mistake

    def feature_rows(
        self, modality: str, reader: SourceReader, mistakes: Mistakes, known: Mapping[str, int]
    ) -> Iterator[FeatureRows]:
        (path,) = self.features[modality]
        size, rest = divmod(path.stat().st_size, _RECORD.itemsize)
        if rest or size == 0:
            raise DataError(
                f"{path}: {path.stat().st_size} bytes are not whole records of {_RECORD.itemsize} ({_ASIN_BYTES} of asin,"
                f" {_WIDTH} float32); record {size + 1} is cut short; fetch the file again"
            )
        before, carry = 0, b""
        for piece in reader.pieces(path):
            carry += piece
            records = np.frombuffer(carry, _RECORD, len(carry) // _RECORD.itemsize)
            indices = np.array([known.get(asin.decode("latin-1"), -1) for asin in records["asin"].tolist()], np.int64)
            wanted = np.flatnonzero(indices >= 0)
            yield FeatureRows(indices[wanted], records["row"][wanted], before + 1 + wanted, path)
            before += len(records)
            carry = carry[records.nbytes :]


def _is_of_others(text: bytes, known: Mapping[str, int]) -> bool:
    """Whether a line is whole by its braces and names items, none of which is known."""
    if not (text.startswith(b"{") and text.endswith(b"}")):
        return False
    named = _ASIN.findall(text)
    return bool(named) and not any(asin.decode("utf-8", "replace") in known for asin in named)


def find_amazon(config: DataConfig) -> AmazonSource:
    """The files of data.category in data.source. Raises DataError for none, and for a choice that is left open."""
    release, source = RELEASES[config.format], Path(config.source)
    category = config.category or _only_category(release, source)
    if config.interactions:
        interactions = source / config.interactions
        if not interactions.is_file():
            raise DataError(
                f"{interactions}: no such file; data.interactions={config.interactions} is looked up in data.source"
            )
    else:
        interactions = _one_of([release.ratings, *release.reviews], source, category)
    meta = _present(release.meta, source, category)
    if len(meta) > 1:
        raise DataError(f"{source}: both {meta[0].name} and {meta[1].name}; take one of them away")
    features = {}
    visual = source / f"image_features_{category}.b"
    asked = config.modalities is None or VISUAL in config.modalities
    if config.format is DataFormat.amazon2014 and asked and visual.is_file():
        features[VISUAL] = [visual]
    return AmazonSource([interactions], meta, features, {"category": category}, release)


def _only_category(release: Release, source: Path) -> str:
    """The category of the files that are there."""
    found = set()
    for pattern in (release.ratings, *release.reviews):
        for name in (pattern, pattern + ".gz"):
            before, _, behind = name.partition("X")
            names = [
                path.name for path in source.glob(f"{before}*{behind}") if not (path.name.startswith("meta_") and not before)
            ]
            found |= {name[len(before) : len(name) - len(behind)].removesuffix("_5") for name in names}
    if not found:
        expected = ", ".join([release.ratings, *release.reviews])
        raise DataError(f"{source}: no interactions here; expected {expected} (or .gz), X being a category such as Baby")
    if len(found) > 1:
        raise DataError(f"{source}: several categories ({', '.join(sorted(found))}); choose one with data.category")
    return found.pop()


def _present(pattern: str, source: Path, category: str) -> list[Path]:
    names = [pattern.replace("X", category), pattern.replace("X", category) + ".gz"]
    return [source / name for name in names if (source / name).is_file()]


def _one_of(patterns: list[str], source: Path, category: str) -> Path:
    found = [path for pattern in patterns for path in _present(pattern, source, category)]
    if not found:
        names = ", ".join(pattern.replace("X", category) for pattern in patterns)
        raise DataError(f"{source}: no interactions of {category} here; expected {names} (or .gz)")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{source}: several files with interactions ({names}); choose one with data.interactions")
    return found[0]
