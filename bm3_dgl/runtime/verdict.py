"""Why a job ended, as its processes tell their launcher: one file with the exit code and the line that was printed.

Only `runtime/agent.py` asks for it; under plain torchrun nobody does, and nothing is written. Stdlib only.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

_VARIABLE = "BM3_VERDICT"  # path of the file, inherited by every process of the job on this machine


@dataclass(frozen=True)
class Verdict:
    """code: what the launcher exits with. line: what was said."""

    code: int
    line: str


@contextlib.contextmanager
def collect_verdicts(path: Path) -> Iterator[Callable[[], Verdict | None]]:
    """Ask the processes started within for their verdict; the function yielded returns the first, None without one."""
    os.environ[_VARIABLE] = str(path)
    try:
        yield lambda: _read(path)
    finally:
        del os.environ[_VARIABLE]


def give_verdict(code: int, line: str) -> None:
    """Say why the job ends, if somebody asked and nobody has said it before."""
    asked = os.environ.get(_VARIABLE)
    if asked is None:
        return
    part = f"{asked}.{os.getpid()}"
    try:
        with open(part, "w", encoding="utf-8") as file:
            json.dump(asdict(Verdict(code, line)), file)
        os.link(part, asked)  # fails where another was first
    except OSError:
        pass
    with contextlib.suppress(OSError):
        os.unlink(part)


def _read(path: Path) -> Verdict | None:
    try:
        return Verdict(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
