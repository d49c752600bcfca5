"""A run of a study and what its directory says of it.

    STUDY.runs_dir/<id>/    the run directory of launch/train.py, with, beside what that writes,
        request.yaml        the settings it is started with
        run.json            variant and seed that asked for it first, identity, status, error, ranks
        run.log             what the job printed, call by call
        .study/             its lock is held by the study that has the run, from before the job's start until its end is noted

The status is the study's word for a run: `pending` (not ended), `done`, `failed`, `pruned`. That a run is done is read off its
summary.json alone, which the job writes last; so it holds whatever was killed when.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from bm3_dgl.config import JobConfig, save_config
from bm3_dgl.errors import DataError
from bm3_dgl.runtime.locks import is_locked, lock_directory

PENDING, DONE, FAILED, PRUNED = "pending", "done", "failed", "pruned"
_ID_DIGITS = 16  # of the identity, in the directory's name
_HELD = ".study"  # beside the job's own lock, which comes seconds after its start
_LAST_BYTES = 8192  # of a log, in which its last line is looked for


@dataclass(frozen=True)
class Run:
    """One training. identity: see identity.py. config: with its run.dir."""

    variant: str
    seed: int
    identity: str
    config: JobConfig
    ranks: int

    @property
    def directory(self) -> Path:
        return Path(self.config.run.dir)


def make_run(variant: str, seed: int, identity: str, config: JobConfig, *, ranks: int, runs_dir: str) -> Run:
    directory = Path(runs_dir) / identity[:_ID_DIGITS]
    return Run(variant, seed, identity, replace(config, run=replace(config.run, dir=str(directory))), ranks)


def take(run: Run) -> IO[str] | None:
    """The right to work on a run, held while open; None where another study has it, or a job of one is still ending."""
    lock = lock_directory(run.directory / _HELD, seconds=0.0)
    if lock is not None and is_locked(run.directory):
        lock.close()
        return None
    return lock


def is_taken(run: Run) -> bool:
    """Whether another study has the run, or a job works on it."""
    return is_locked(run.directory / _HELD) or is_locked(run.directory)


def request(run: Run) -> Path:
    """Lay out the run's directory; returns the file of settings to start it with."""
    run.directory.mkdir(parents=True, exist_ok=True)
    path = run.directory / "request.yaml"
    save_config(run.config, path)
    note(run, PENDING)
    return path


def note(run: Run, status: str, error: str | None = None) -> None:
    """Write run.json; who asked first stays in it."""
    before = _read_json(run.directory / "run.json") or {}
    if before.get("identity", run.identity) != run.identity:
        raise DataError(f"{run.directory}: holds another run ({before['identity'][:16]}); choose another study.runs_dir")
    first = {"variant": run.variant, "seed": run.seed} | {key: before[key] for key in ("variant", "seed") if key in before}
    write_json(
        run.directory / "run.json",
        first | {"identity": run.identity, "status": status, "error": error, "ranks": run.ranks},
    )


def status_of(run: Run) -> tuple[str, str | None]:
    """Status, and the last line of a failure."""
    if summary_of(run) is not None:
        return DONE, None
    noted = _read_json(run.directory / "run.json") or {}
    return noted.get("status", PENDING), noted.get("error")


def summary_of(run: Run) -> dict[str, Any] | None:
    """The summary of a run that has come to its end."""
    summary = _read_json(run.directory / "summary.json")
    return summary if summary is not None and "valid" in summary else None


def metric_lines(run: Run, event: str) -> list[dict[str, Any]]:
    """The run's lines of metrics.jsonl of one event, also while it is being written."""
    path = run.directory / "metrics.jsonl"
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            line = json.loads(text)
        except ValueError:  # the last one, which is just being written
            continue
        if line.get("event") == event:
            found.append(line)
    return found


def last_line(log: Path) -> str:
    """The last line that says something."""
    with open(log, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _LAST_BYTES))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    said = [line.strip() for line in lines if line.strip()]
    return said[-1].removeprefix("error: ") if said else "it said nothing"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError:
        raise DataError(f"{path}: is not valid JSON; remove it, and the run goes on from its checkpoint") from None
    return content if isinstance(content, dict) else None
