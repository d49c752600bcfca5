"""Why a job ended: one file per machine with the exit code and the line that was printed. The first word stands.

It goes from the process that failed to the guard, and from there to `runtime/agent.py`, where that started the job.
Stdlib only.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

_VARIABLE = "BM3_VERDICT"  # path of the file, inherited by every process of the job on this machine


@dataclass(frozen=True)
class Verdict:
    """code: what the launcher exits with. line: what was said."""

    code: int
    line: str


def verdict_path() -> str | None:
    return os.environ.get(_VARIABLE)


def ask_for_verdict(path: str) -> None:
    """From here on this process and those it starts leave their verdict there; what stands there is of another attempt."""
    os.environ[_VARIABLE] = path


def forget_verdict() -> None:
    with contextlib.suppress(OSError):
        os.unlink(os.environ[_VARIABLE])


def give_verdict(code: int, line: str) -> bool:
    """Say why the job ends. False where somebody on this machine was first; True also where nobody asks."""
    path = verdict_path()
    if path is None:
        return True
    part = f"{path}.{os.getpid()}"
    try:
        with open(part, "w", encoding="utf-8") as file:
            json.dump(asdict(Verdict(code, line)), file)
        os.link(part, path)  # fails where another was first
    except FileExistsError:
        return False
    except OSError:  # the directory is gone: the guard has ended, nobody asks any more
        return True
    finally:
        with contextlib.suppress(OSError):
            os.unlink(part)
    return True


def read_verdict() -> Verdict | None:
    path = verdict_path()
    try:
        return Verdict(**json.loads(Path(path).read_text(encoding="utf-8"))) if path is not None else None
    except OSError:
        return None
