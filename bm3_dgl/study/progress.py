"""What a study tells while it goes on: a line for each run that has ended, and study.json with the tables up to date."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bm3_dgl.log import logger
from bm3_dgl.study.declare import Study
from bm3_dgl.study.results import Members, Results
from bm3_dgl.study.runs import DONE, Run, summary_of, write_json
from bm3_dgl.study.schedule import Source
from bm3_dgl.study.tables import write_tables


@dataclass
class Progress:
    """Tells of each finished run, and keeps study.json and the tables up to date."""

    study: Study
    source: Source
    members: Callable[[], Members]
    results: Results
    content: dict[str, Any] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)
    _ended: int = 0
    _timed: int = 0

    def report(self, run: Run, status: str, error: str | None, seconds: float) -> None:
        self._ended += 1
        self._timed += seconds > 0
        self.write()
        left = self.source.left()
        logger.info(
            "%d of %d: %s, seed %d: %s, %.0f s%s",
            *(self._ended, self._ended + left, run.variant, run.seed),
            *(self._told(run, status, error), seconds, f"; about {self._remaining(left):.0f} s to go" if left else ""),
        )

    def write(self) -> None:
        members = self.members()
        if members:
            self.content = self.results.collect(members)
            write_json(self.study.directory / "study.json", self.content)
            write_tables(self.study.directory / "tables", self.content)

    def _told(self, run: Run, status: str, error: str | None) -> str:
        summary, metric = summary_of(run), self.study.settings.metric
        if status != DONE or summary is None:
            return f"{status}: {error}" if error else status
        return ", ".join(f"{split} {metric} {summary[split][metric]:.4f}" for split in ("valid", "test") if summary[split])

    def _remaining(self, left: int) -> float:
        """Seconds, at the pace of this call so far."""
        return (time.monotonic() - self._began) / max(1, self._timed) * left
