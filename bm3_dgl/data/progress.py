"""How far a long pass over files is: a bar on a terminal, else a line of the log now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

from bm3_dgl.log import logger

_LINE_SECONDS = 10.0  # between two lines of the log


class Progress:
    """Counts up to `total` (None: unknown) from `done`; a context manager. unit: `B` is shown in kB, MB, GB."""

    def __init__(self, what: str, *, total: int | None, done: int = 0, unit: str) -> None:
        self._what, self._total, self._done, self._unit = what, total, done, unit
        self._begun_at, self._begun_with = time.monotonic(), done
        self._said_at = self._begun_at
        self._bar = tqdm(
            desc=what,
            total=total,
            initial=done,
            unit=unit if unit == "B" else f" {unit}",
            unit_scale=True,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()

    def advance(self, count: int) -> None:
        """`count` more are done."""
        self._done += count
        self._bar.update(count)
        now = time.monotonic()
        if self._bar.disable and now - self._said_at >= _LINE_SECONDS:
            self._said_at = now
            rate = (self._done - self._begun_with) / (now - self._begun_at)
            whole = f" of {self._amount(self._total)} ({self._done / self._total:.0%})" if self._total else ""
            logger.info("%s: %s%s, %s/s", self._what, self._amount(self._done), whole, self._amount(rate))

    def _amount(self, count: float) -> str:
        scaled = tqdm.format_sizeof(count) if self._unit == "B" or count >= 1e6 else f"{count:,.0f}"
        return f"{scaled}{'' if self._unit == 'B' else ' '}{self._unit}"
