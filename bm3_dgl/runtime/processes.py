"""Processes of this machine by their number, and what they leave in shared memory. Stdlib only."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")


def remove_segments(tag: str) -> None:
    """Delete every segment of this machine's /dev/shm whose name holds `tag`; what is still mapped goes with its user."""
    for path in SHARED_MEMORY.iterdir():
        if tag in path.name:
            path.unlink(missing_ok=True)


def process_state(pid: int) -> str | None:
    """The process's state letter, T where it is stopped; None where it is gone, a zombie too."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            letter = stat.read().rsplit(")", 1)[1].split()[0]
    except OSError:
        return None
    return None if letter in ("Z", "X") else letter


def kill_process(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def oom_kills() -> int:
    """How many processes of this control group the kernel has killed for memory; 0 where that is not told."""
    try:
        events = Path("/sys/fs/cgroup/memory.events").read_text(encoding="utf-8")
    except OSError:
        return 0
    return int(dict(line.split() for line in events.splitlines()).get("oom_kill", 0))


def available_memory() -> int:
    """Bytes that new processes can have: of the machine's memory, within this control group's limit."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text(encoding="utf-8") for name in ("max", "current"))
    except OSError:
        return free
    return free if limit.strip() == "max" else max(0, min(free, int(limit) - int(used)))


def give_back_memory() -> None:
    """Give what this process has freed back to the system, where the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
