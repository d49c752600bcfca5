"""How much memory the job takes on this machine: the sum of proportional set sizes (PSS) of its processes. Linux.

A page that n processes map counts 1/n for each of them, so what ranks share counts once.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from bm3_dgl.runtime.ranks import Ranks, launched_by_torchrun

_PROC = Path("/proc")


def job_pss_bytes(ranks: Ranks) -> int:
    """This rank's part: its own PSS and that of what it started (graph server, guard), bytes; of the machine's leading
    rank also torchrun's. The parts of all ranks add up to the job. 0 for a process that is gone."""
    pids = [os.getpid(), *_descendants(os.getpid())]
    if launched_by_torchrun() and ranks.leads_machine:
        pids.append(os.getppid())
    return sum(pss_bytes(pid) for pid in pids)


def pss_bytes(pid: int) -> int:
    """PSS of one process, bytes; 0 where it is gone or may not be read."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def _descendants(pid: int) -> Iterator[int]:
    """Processes that this one's threads started, theirs too."""
    for children in (_PROC / str(pid) / "task").glob("*/children"):
        try:
            found = [int(word) for word in children.read_text(encoding="ascii").split()]
        except OSError:  # the thread has just ended
            continue
        for child in found:
            yield child
            yield from _descendants(child)
