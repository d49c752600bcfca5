"""A directory to build in, beside the one that is wanted: what is torn never has the final name.

The builder holds a lock on it, which the kernel drops when the process dies, however it dies. So the next build can
tell what a killed one left from what another process is writing now, and remove it.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bm3_dgl.log import logger


def sibling_name(directory: Path) -> Path:
    """A new hidden name beside `directory`; what bears it is removed by the next build unless it is locked."""
    return directory.with_name(f".{directory.name}.{uuid.uuid4().hex}.tmp")


@contextmanager
def temporary_sibling(directory: Path) -> Iterator[Path]:
    """A new hidden directory beside `directory`, locked while this process lives, and gone afterwards unless renamed."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(directory)
    temporary = sibling_name(directory)
    unlocked = temporary.with_suffix(".new")  # the name that is swept appears only when the lock is held
    unlocked.mkdir()
    lock = os.open(unlocked, os.O_RDONLY)
    try:
        _try_lock(lock)
        unlocked.rename(temporary)
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def _remove_leftovers(directory: Path) -> None:
    """Remove what killed builds of this directory left: the kernel has dropped their locks."""
    ours = re.compile(rf"\.{re.escape(directory.name)}\.[0-9a-f]{{32}}\.tmp")
    for left in [path for path in directory.parent.iterdir() if ours.fullmatch(path.name)]:
        try:
            lock = os.open(left, os.O_RDONLY)
        except OSError:  # gone meanwhile
            continue
        if _try_lock(lock):
            logger.info("%s: left by a build that was killed; removed", left)
            shutil.rmtree(left, ignore_errors=True)
        os.close(lock)


def _try_lock(descriptor: int) -> bool:
    """False when another process holds the lock, or the file system (some NFS) has none for directories."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
