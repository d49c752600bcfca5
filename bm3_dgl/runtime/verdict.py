"""Why a job ended: one file per machine with the exit code and the line that was printed. The first word stands.

It goes from the process that failed to the guard, and from there to `runtime/agent.py`, where that started the job.
Stdlib only.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

_VARIABLE = "BM3_VERDICT"  # path of the file, inherited by every process of the job on this machine


@dataclass(frozen=True)
class Verdict:
    """code: what the launcher exits with. line: what was said."""

    code: int
    line: str


def verdict_path() -> str | None:
    """Where this attempt's verdict goes: torchrun's restarts each have their own. None where nobody asks."""
    asked = os.environ.get(_VARIABLE)
    return f"{asked}.{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}" if asked is not None else None


def ask_for_verdict(path: str) -> None:
    """From here on this process and those it starts leave their verdicts there."""
    os.environ[_VARIABLE] = path


def asked_path() -> str | None:
    return os.environ.get(_VARIABLE)


def give_verdict(code: int, line: str) -> bool:
    """Say why the job ends. True for the first on this machine, who also tells the user; True where nobody asks."""
    path = verdict_path()
    if path is None:
        return True
    part = f"{path}.{os.getpid()}.tmp"
    try:
        with open(part, "w", encoding="utf-8") as file:
            json.dump(asdict(Verdict(code, line)), file)
        os.link(part, path)  # fails where another was first
    except OSError:  # also where the directory is gone: who asked has ended, and has told the user why
        return False
    finally:
        with contextlib.suppress(OSError):
            os.unlink(part)
    return True


def read_verdict() -> Verdict | None:
    """This attempt's verdict, None as long as there is none."""
    path = verdict_path()
    return _read(Path(path)) if path is not None else None


def read_last_verdict() -> Verdict | None:
    """That of the last attempt that has come to one; for the launcher, which has seen them all."""
    asked = Path(os.environ[_VARIABLE])
    attempts = [int(path.suffix[1:]) for path in asked.parent.glob(f"{asked.name}.*") if path.suffix[1:].isdigit()]
    return _read(asked.with_name(f"{asked.name}.{max(attempts)}")) if attempts else None


def forget_verdicts() -> None:
    """Remove the directory that was made for them, in the place of a launcher that was killed."""
    asked = os.environ.get(_VARIABLE)
    if asked is not None:
        shutil.rmtree(Path(asked).parent, ignore_errors=True)


def _read(path: Path) -> Verdict | None:
    try:
        return Verdict(**json.loads(path.read_text(encoding="utf-8")))
    except OSError:
        return None
