"""What the raw formats have in common: where interactions, items and features come from, file by file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from bm3_dgl.data.blocks import SourceReader
from bm3_dgl.data.columns import Shape
from bm3_dgl.data.mistakes import Mistakes


class Item(NamedTuple):
    """What is known of an item; None: missing. image: a URL or path as the source has it."""

    title: str | None = None
    text: str | None = None
    category: str | None = None
    image: str | None = None


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """An item and where it stands: `place` number `number` of its file, such as line 7."""

    index: int
    item: Item
    place: str
    number: int


class FeatureRows(NamedTuple):
    """Some rows of a modality. indices: int64 (b,), of items; rows: float (b, width); numbers: int64 (b,), of the records."""

    indices: np.ndarray
    rows: np.ndarray
    numbers: np.ndarray
    path: Path


@dataclass(frozen=True)
class RawSource(ABC):
    """The files of a raw source, found and named, and how each kind is read.

    columns: what interactions have, under the source's names. features: modality -> the files that its rows come from.
    settings: what in the configuration decides the outcome, for the record.
    """

    interactions: list[Path]
    items: list[Path]
    features: Mapping[str, list[Path]]
    settings: dict[str, Any]

    @property
    @abstractmethod
    def columns(self) -> Shape: ...

    @abstractmethod
    def interaction_tables(self, path: Path, reader: SourceReader, mistakes: Mistakes) -> Iterator[pa.Table]:
        """The interactions of a file in its order, as tables of `columns`."""

    @abstractmethod
    def item_records(
        self, path: Path, reader: SourceReader, mistakes: Mistakes, known: Mapping[str, int]
    ) -> Iterator[ItemRecord]:
        """The records of a file about items in `known` (raw id -> index); all others are passed over."""

    @abstractmethod
    def feature_rows(
        self, modality: str, reader: SourceReader, mistakes: Mistakes, known: Mapping[str, int]
    ) -> Iterator[FeatureRows]:
        """The rows of a modality for items in `known`, all of one width, some at a time. Values are not checked yet."""

    def files(self) -> dict[str, Path]:
        """Role -> file, of all that is read."""
        listed = {"interactions": self.interactions, "items": self.items}
        listed |= {f"features.{modality}": paths for modality, paths in self.features.items()}
        return {
            role if len(paths) == 1 else f"{role} {number}": path
            for role, paths in listed.items()
            for number, path in enumerate(paths, 1)
        }
