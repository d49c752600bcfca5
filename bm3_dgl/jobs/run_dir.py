"""Whose run directory it is: one training job at a time, and never overwritten."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bm3_dgl.errors import ConfigError, JobError
from bm3_dgl.runtime.locks import lock_directory
from bm3_dgl.runtime.ranks import launcher_id, restart_count

_DYING_SECONDS = 20.0  # a job that goes on may meet what is left of the one before it


@dataclass(frozen=True)
class Claim:
    """lock: held while open; its text names the launcher that began the run. resume: whether to go on from the checkpoints."""

    lock: IO[str]
    resume: bool


def claim(run_dir: Path, *, resume: bool) -> Claim:
    """Take run_dir for this job.

    A directory with checkpoints is taken only to resume it: on request, or when torchrun restarts the job that it began
    itself. Raises ConfigError where it holds another run, JobError where another job trains there; OSError where it
    cannot be used.
    """
    restarted = restart_count() > 0
    lock = lock_directory(run_dir, seconds=_DYING_SECONDS if resume or restarted else 0.0)
    if lock is None:
        raise JobError(f"run.dir={run_dir}: another job is training here; wait for its end or choose another")
    restarted = restarted and lock.read() == launcher_id()
    if any((run_dir / "checkpoints").glob("step-*")) and not (resume or restarted):
        raise ConfigError(f"run.dir={run_dir}: holds a run; continue it with train.resume=true or choose another")
    lock.seek(0)
    lock.truncate()
    lock.write(launcher_id())
    lock.flush()
    return Claim(lock, resume or restarted)
