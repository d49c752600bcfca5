"""A directory that one program at a time works in."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO

_LOCK = ".lock"  # the kernel lets go of it when its holder ends, however that happens


def lock_directory(directory: Path, *, seconds: float) -> IO[str] | None:
    """Take the directory, which is made where needed; None where another has it for so long. Held while the file is open."""
    directory.mkdir(parents=True, exist_ok=True)
    file = os.fdopen(os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o644), "r+", encoding="utf-8")
    deadline = time.monotonic() + seconds
    while not _lock(file):
        if time.monotonic() > deadline:
            file.close()
            return None
        time.sleep(0.2)
    return file


def is_locked(directory: Path) -> bool:
    """Whether a program has taken the directory."""
    try:
        with open(directory / _LOCK, "r+", encoding="utf-8") as file:
            return not _lock(file)
    except FileNotFoundError:
        return False


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
