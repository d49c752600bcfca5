"""Running training jobs as processes, as many at a time as fit, until all have ended or this program is asked to end.

A Source gives the runs, one after another, and hears how each ended. A job is started as a user would start it, in a
session of its own (so that Ctrl-C reaches the study alone), with its share of the cores, and with the kernel's promise of
SIGTERM should this program be killed (runtime/lifeline.py). SIGTERM makes a job save its state and end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import IO, Protocol

from bm3_dgl.log import logger
from bm3_dgl.runtime.ranks import job_environment
from bm3_dgl.study.runs import DONE, FAILED, PENDING, PRUNED, Run, is_taken, last_line, note, request, status_of, take

_TICK_SECONDS = 0.2
_LOOK_SECONDS = 2.0  # between two looks at how a run does
_GRACE_SECONDS = 60.0  # for a job to save its state; afterwards it is killed, and goes on from the checkpoint before


class Source(Protocol):
    """Where runs come from. next: the next one, None where there is none now. back: takes one that could not be started,
    since another study has it. left: how many have not ended, at most."""

    def next(self) -> Run | None: ...
    def back(self, run: Run) -> None: ...
    def ended(self, run: Run, status: str) -> None: ...
    def hopeless(self, run: Run) -> bool: ...
    def left(self) -> int: ...


class Fixed:
    """Runs that are all known beforehand. Those that are done are not given."""

    def __init__(self, runs: Iterable[Run]) -> None:
        unique: dict[str, Run] = {}
        for run in runs:
            unique.setdefault(run.identity, run)
        self._waiting = deque(run for run in unique.values() if status_of(run)[0] != DONE)
        self._left = len(self._waiting)

    def next(self) -> Run | None:
        """One that no other study is running; None where there is none."""
        for run in list(self._waiting):
            if not is_taken(run):
                self._waiting.remove(run)
                return run
        return None

    def back(self, run: Run) -> None:
        self._waiting.append(run)

    def ended(self, run: Run, status: str) -> None:
        self._left -= 1

    def hopeless(self, run: Run) -> bool:
        return False

    def left(self) -> int:
        return self._left


@dataclass(frozen=True)
class Room:
    """What the machine has for runs. parallel: most at a time, 0: what fits. memory: bytes. need: those of a run."""

    cores: int
    parallel: int
    memory: int
    need: Callable[[Run], int]

    def is_full(self, others: Sequence[Run]) -> bool:
        """Whether not even the smallest run has a place beside these."""
        taken = len(others) if self.parallel else sum(other.ranks for other in others)
        return taken >= (self.parallel or self.cores)

    def fits(self, run: Run, others: Sequence[Run]) -> bool:
        if not others:
            return True  # one too large for the machine fails by itself, and says why
        if self.is_full(others):
            return False
        if not self.parallel and sum(other.ranks for other in others) + run.ranks > self.cores:
            return False
        return sum(map(self.need, others)) + self.need(run) <= self.memory

    def share(self, run: Run, runs_left: int) -> int:
        """Cores of a run when all that fit, of those that are left, run side by side."""
        at_once = self.parallel or max(1, self.cores // run.ranks)
        at_once = min(at_once, max(1, self.memory // max(1, self.need(run))))
        return max(run.ranks, self.cores // max(1, min(at_once, runs_left)))


@dataclass
class _Process:
    """lock: this study's hold on the run, from before its start until its end is noted."""

    run: Run
    lock: IO[str]
    popen: subprocess.Popen
    began: float
    looked: float
    asked: str | None = None  # the status that it was asked to end with
    deadline: float = 0.0


@dataclass
class Schedule:
    """command: what starts a run, from its settings file and cores. report: told of each end: run, status, error, seconds."""

    source: Source
    room: Room
    command: Callable[[Run, str], list[str]]
    report: Callable[[Run, str, str | None, float], None]
    _running: list[_Process] = field(default_factory=list)
    _waiting: Run | None = None
    _signal: int | None = None

    def run(self) -> int | None:
        """Run all; returns the signal that asked for an end, where one did, when no job is left."""
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while True:
                self._reap()
                if self._signal is None:
                    self._fill()
                    self._look()
                    if not self._running and self.source.left() == 0:
                        return None
                elif not self._running:
                    return self._signal
                else:
                    self._end_all()
                time.sleep(_TICK_SECONDS)
        finally:
            for process in self._running:  # a mistake of ours: leave nothing behind
                process.popen.terminate()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        self._signal = number

    def _fill(self) -> None:
        """Start what fits. The run in turn waits for its place, so that small ones never keep a large one out.

        The source is not asked before there is a place: a search draws the better, the more trials have ended.
        """
        while True:
            others = [process.run for process in self._running]
            if self._waiting is None and not self.room.is_full(others):
                self._waiting = self.source.next()
            run = self._waiting
            if run is None or not self.room.fits(run, others):
                return
            self._waiting, lock = None, take(run)
            if lock is None:  # another study has begun it since
                self.source.back(run)
                return
            if status_of(run)[0] == DONE:  # another study has done it meanwhile
                lock.close()
                self._ended(run, DONE, None, 0.0)
            else:
                self._start(run, lock)

    def _start(self, run: Run, lock: IO[str]) -> None:
        settings = request(run)
        with open(run.directory / "run.log", "ab") as log:
            popen = subprocess.Popen(
                self.command(run, str(settings)),
                env=job_environment(self.room.share(run, self.source.left())),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        logger.info("started %s, seed %d (%s)", run.variant, run.seed, run.directory)
        self._running.append(_Process(run, lock, popen, time.monotonic(), time.monotonic()))

    def _look(self) -> None:
        now = time.monotonic()
        for process in self._running:
            if process.asked is None and now - process.looked >= _LOOK_SECONDS:
                process.looked = now
                if self.source.hopeless(process.run):
                    _ask(process, PRUNED)
            elif process.asked is not None:
                _enforce(process)

    def _end_all(self) -> None:
        for process in self._running:
            if process.asked is None:
                _ask(process, PENDING)
            _enforce(process)

    def _reap(self) -> None:
        for process in [process for process in self._running if process.popen.poll() is not None]:
            self._running.remove(process)
            status, error = _judge(process)
            note(process.run, status, error)
            process.lock.close()
            self._ended(process.run, status, error, time.monotonic() - process.began)

    def _ended(self, run: Run, status: str, error: str | None, seconds: float) -> None:
        if status != PENDING:
            self.source.ended(run, status)
            self.report(run, status, error, seconds)


def _judge(process: _Process) -> tuple[str, str | None]:
    """How a run has ended: done, with or without being asked; as it was asked to; or badly, with its last line."""
    code, run = process.popen.returncode, process.run
    if status_of(run)[0] == DONE:
        return DONE, None
    if process.asked is not None:
        return process.asked, None
    if code < 0:
        return FAILED, f"ended by {signal.Signals(-code).name}"
    return FAILED, last_line(run.directory / "run.log") if code else "it ended well, but without a summary"


def _ask(process: _Process, status: str) -> None:
    process.asked, process.deadline = status, time.monotonic() + _GRACE_SECONDS
    process.popen.terminate()


def _enforce(process: _Process) -> None:
    if process.popen.poll() is None and time.monotonic() > process.deadline:
        try:
            os.killpg(process.popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
