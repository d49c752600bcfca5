"""Where the time of a rank goes, by phase of a step."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

from torch.autograd.profiler import record_function


class Phases:
    """Seconds per phase. A phase within another stops the outer one's clock, so no second counts twice."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = time.perf_counter()
        self.traced = False  # whether a profiler listens, which then sees the phases by name

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._turn()
        self._open.append(name)
        with record_function(name) if self.traced else contextlib.nullcontext():
            yield
        self._turn()
        self._open.pop()

    def total(self) -> dict[str, float]:
        """Seconds of each phase since the last `take`, which goes on counting."""
        self._turn()
        return dict(self._seconds)

    def take(self) -> dict[str, float]:
        """Seconds of each phase since the last call; what belongs to none is `other`."""
        self._turn()
        taken, self._seconds = dict(self._seconds), defaultdict(float)
        return taken

    def _turn(self) -> None:
        now = time.perf_counter()
        self._seconds[self._open[-1] if self._open else "other"] += now - self._since
        self._since = now
