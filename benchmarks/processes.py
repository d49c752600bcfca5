"""Running a command and everything that it starts: how much memory it all takes, and that nothing of it stays.

Every process of a command carries a mark in its environment, by which it is found wherever it was put (a guard and a graph
server leave their parent's process group). Memory is the sum of proportional set sizes (PSS): a page that n processes
map counts 1/n for each, so what they share counts once. Linux.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_MARK = "BM3_BENCHMARK"
_TICK_SECONDS, _PSS_SECONDS = 0.05, 0.5  # between looks at the clock, and at the memory
_KILL_SECONDS = 10.0  # for killed processes to be gone


class CommandFailedError(Exception):
    """A command ended badly or outstayed its time; the text holds the end of its output."""


@dataclass(frozen=True)
class Finished:
    """output: stdout with stderr. pss_bytes: the most at any one look. moments: seconds from the start to each moment that
    came."""

    output: str
    seconds: float
    pss_bytes: int
    moments: dict[str, float]


def run(
    command: Sequence[str | Path],
    *,
    log: Path,
    limit_seconds: float = 900,
    moments: Mapping[str, Callable[[], bool]] | None = None,
    stop_at: str | None = None,
    grace_seconds: float = 10.0,
    cores: int | None = None,
) -> Finished:
    """Run from the project's root to a good end. Whatever happens, none of its processes is left.

    moments: name -> whether it has come; asked until it has. stop_at: the moment at which the command is ended, which is a
    good end. grace_seconds: between the wish to end and its enforcement. cores: on so many of the cores that there are.
    The output stays in `log`. Raises CommandFailedError.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    name, value = _MARK, secrets.token_hex(8)
    watch = _Watch(f"{name}={value}", dict(moments or {}), stop_at, time.monotonic())
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=ROOT,
            env=os.environ | {name: value},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=None if cores is None else lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores]),
        )
    try:
        watch.until_end(process, limit_seconds)
        seconds, ended = watch.seconds(), process.poll()
    finally:
        _end(process, watch.mark, grace_seconds)
    output = log.read_text(encoding="utf-8", errors="replace")
    if ended != 0 and stop_at not in watch.reached:
        reason = f"not done after {limit_seconds:g} s" if ended is None else f"exit code {ended}"
        raise CommandFailedError(f"{' '.join(map(str, command))}: {reason}\n{output[-3000:]}")
    return Finished(output, seconds, watch.pss_bytes, watch.reached)


@dataclass
class _Watch:
    """Looks at a running command. reached: seconds from `began` to each of the `moments`."""

    mark: str
    moments: dict[str, Callable[[], bool]]
    stop_at: str | None
    began: float
    pss_bytes: int = 0
    reached: dict[str, float] = field(default_factory=dict)

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def until_end(self, process: subprocess.Popen, limit_seconds: float) -> None:
        """Return when the process has ended, the moment to stop at has come, or the time is over."""
        next_look = 0.0
        while process.poll() is None and self.seconds() < limit_seconds and self.stop_at not in self.reached:
            for name, has_come in self.moments.items():
                if name not in self.reached and has_come():
                    self.reached[name] = self.seconds()
            if self.seconds() >= next_look:
                self.pss_bytes = max(self.pss_bytes, sum(_pss(pid) for pid in marked(self.mark)))
                next_look = self.seconds() + _PSS_SECONDS
            try:
                process.wait(_TICK_SECONDS)
            except subprocess.TimeoutExpired:
                pass


def _end(process: subprocess.Popen, mark: str, grace_seconds: float) -> None:
    """End what still runs: first by SIGTERM to the first process, which ends its own, then by SIGKILL."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            pass
    # Processes that the job leaves to end by themselves have a moment for it.
    deadline = time.monotonic() + grace_seconds
    while time.monotonic() < deadline and any(marked(mark)):
        time.sleep(_TICK_SECONDS)
    deadline = time.monotonic() + _KILL_SECONDS
    while (left := list(marked(mark))) and time.monotonic() < deadline:  # on a busy machine a killed process stays a while
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(_TICK_SECONDS)
    process.wait()


def marked(mark: str) -> Iterator[int]:
    """Processes that run and have `NAME=value` in their environment."""
    wanted = mark.encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:  # gone, or another user's
                continue
            if wanted in environment.split(b"\0"):
                yield int(entry.name)


def _pss(pid: int) -> int:
    """Bytes; 0 for a process that is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
