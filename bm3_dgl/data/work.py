"""Where a dataset is made before it gets its name: a directory beside it, with the passes that are done.

    .<name>.work/
        work.json       what is being made (a digest of settings and source files), and the result of each finished pass
        scratch/        what passes hand to later ones
        dataset/        what becomes data.dir at the end, by one rename

A pass that ended is not run again; one that was interrupted is. Where the settings or a source file changed meanwhile,
everything begins anew. One process at a time, by a lock that dies with it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bm3_dgl.errors import DataError
from bm3_dgl.log import logger

Result = dict[str, Any]  # of a pass: what JSON can hold


class Work:
    """The work on one dataset."""

    def __init__(self, directory: Path, plan: Result) -> None:
        self.directory = directory
        self.dataset = directory / "dataset"
        self.scratch = directory / "scratch"
        self._file = directory / "work.json"
        self._digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
        self._done = self._read()
        if self._done is None:
            self._file.unlink(missing_ok=True)  # first: it must not vouch for what is half removed
            for path in (self.dataset, self.scratch):
                shutil.rmtree(path, ignore_errors=True)
            self._done = {}
        (self.dataset / "features").mkdir(parents=True, exist_ok=True)
        self.scratch.mkdir(exist_ok=True)
        self._write()

    def run(self, name: str, make: Callable[[], Result]) -> Result:
        """The result of a pass, which is run where it has not ended before."""
        assert self._done is not None, "read at the start"
        if name in self._done:
            logger.info("%s: done before", name)
        else:
            result = make()
            self._done[name] = json.loads(json.dumps(result))
            self._write()
        return self._done[name]

    def forget(self) -> None:
        """A later call begins anew."""
        self._file.unlink()

    @property
    def is_empty(self) -> bool:
        """Whether no pass has ended yet."""
        return not self._done

    def _read(self) -> dict[str, Result] | None:
        """The passes that are done; None where there are none, where something else was made, or where it has its name."""
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(found, dict) or found.get("plan") != self._digest or not self.dataset.is_dir():
            return None
        return found["done"]

    def _write(self) -> None:
        part = self._file.with_suffix(".tmp")
        part.write_text(json.dumps({"plan": self._digest, "done": self._done}), encoding="utf-8")
        part.replace(self._file)


@contextmanager
def work_on(target: Path, plan: Result) -> Iterator[Work]:
    """Work towards the directory `target`, alone. What is there stays after a failure, for the next call to go on from.

    Raises DataError when another process works on it, or when nothing can be written there.
    """
    directory = work_directory(target)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise DataError(f"{directory}: cannot be written ({error.strerror or error}); choose another data.dir") from None
    work = None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        work = Work(directory, plan)
        yield work
    except BlockingIOError:
        raise DataError(f"{directory}: another process is preparing this dataset; wait for it") from None
    except OSError as error:
        where = error.filename or directory
        raise DataError(
            f"{where}: cannot be written ({error.strerror or error}); free space or choose another data.dir"
        ) from None
    finally:
        if work is not None and work.is_empty:  # nothing to go on from
            shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def publish(work: Work, target: Path) -> None:
    """Give the finished dataset its name, and take the rest away."""
    work.forget()
    work.dataset.rename(target)
    shutil.rmtree(work.directory, ignore_errors=True)


def clear_published(target: Path) -> None:
    """Take away what a process that was killed right after publishing `target` left beside it."""
    directory = work_directory(target)
    if directory.is_dir() and not (directory / "dataset").exists():
        shutil.rmtree(directory, ignore_errors=True)


def work_directory(target: Path) -> Path:
    return target.with_name(f".{target.name}.work")
