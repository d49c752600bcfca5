"""What happens at a bad line or record of a source: the end, in one line, or a place on a list (data.on_error)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bm3_dgl.errors import DataError

LISTED = 1000  # mistakes that are written down; all are counted


class Mistake(ValueError):
    """What is wrong with one record; who knows file and line turns it into a message."""


@dataclass
class Mistakes:
    """Counts and lists what is skipped, or raises at the first where `skip` is false."""

    skip: bool
    count: int = 0
    listed: list[dict[str, Any]] = field(default_factory=list)

    def at(self, path: Path, place: str, number: int, reason: str) -> None:
        """A mistake in `path` at, for example, line 7. Raises DataError unless mistakes are skipped."""
        if not self.skip:
            raise DataError(f"{path}, {place} {number}: {reason}; mend it, or leave such {place}s out with data.on_error=skip")
        self.count += 1
        if len(self.listed) < LISTED:
            self.listed.append({"file": str(path), place: number, "reason": reason})

    def as_result(self) -> dict[str, Any]:
        return {"skipped": self.count, "listed": self.listed}
