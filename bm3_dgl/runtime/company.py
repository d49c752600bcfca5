"""The trainers' side of the guard: starting it, watching it, telling it what to watch, and leaving together."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bm3_dgl.errors import JobError
from bm3_dgl.runtime.addresses import interface_of, own_address
from bm3_dgl.runtime.guard import STOPPED_SECONDS, Orders, process_state, remove_segments
from bm3_dgl.runtime.lifeline import leave_at_once
from bm3_dgl.runtime.meeting import MEET_SECONDS, Attempt
from bm3_dgl.runtime.verdict import ask_for_verdict, forget_verdict, verdict_path

_WAIT_SECONDS = 24 * 3600.0  # preparing data may take long, and any death ends the wait
_WATCH_SECONDS = 0.5
_SPEAK_FIRST_SECONDS = 1.0
_LEAVE_SECONDS = 60.0  # for other machines to end well too


class Company:
    """This rank among the processes of an attempt, guarded from here to `leave`. COLLECTIVE to make and to leave.

    addresses: IPv4 of every machine. scratch: a directory of this machine's job, for its leading rank to write in.
    """

    def __init__(self, attempt: Attempt, *, peers: Sequence[str], resolve_seconds: float, silence_seconds: float) -> None:
        """Raises UserError where a machine cannot be reached, on every rank alike."""
        self.attempt = attempt
        ranks = attempt.ranks
        attempt.limit_waiting(resolve_seconds + MEET_SECONDS)
        self.addresses: list[str] = attempt.of_machines(
            "address", lambda: own_address(ranks, peers, resolve_seconds=resolve_seconds)
        )
        self._guard: subprocess.Popen | None = None
        if ranks.leads_machine:
            self._start_guard(silence_seconds)
        start = attempt.await_value(f"guard/{ranks.machine}")
        self.scratch, self._guard_pid = Path(start["scratch"]), int(start["pid"])
        ask_for_verdict(start["verdict"])
        attempt.limit_waiting(_WAIT_SECONDS)
        self._leaving, self._gone = threading.Event(), threading.Event()
        threading.Thread(target=self._watch_guard, name="guard's watch", daemon=True).start()
        if ranks.num_machines > 1:
            self._choose_interface()

    def watch(self, name: str, pid: int) -> None:
        """The job ends when this process of the machine does. For the leading rank."""
        self._tell(watch={name: pid})

    def closing(self) -> None:
        """Watched servers may end from now on. For the leading rank."""
        self._tell(closing=True)

    def leave(self) -> None:
        """All work of this rank is done: wait until that is so everywhere. A loss before that is the whole job's."""
        self._leaving.set()
        if self._guard is None:
            self._gone.wait(_LEAVE_SECONDS)
            return
        self._tell(end=True)
        assert self._guard.stdout is not None
        if b"done" not in self._guard.stdout.read():  # the guard has said why, and is killing this process
            time.sleep(_SPEAK_FIRST_SECONDS)
            leave_at_once(JobError("the job did not end well on all machines"))
        self._guard.wait()

    def _start_guard(self, silence_seconds: float) -> None:
        attempt, ranks = self.attempt, self.attempt.ranks
        scratch = tempfile.mkdtemp(prefix=f"{attempt.tag}_")
        ask_for_verdict(verdict_path() or f"{scratch}/verdict")
        forget_verdict()  # of the attempt before
        orders = Orders(
            tag=attempt.tag,
            scratch=scratch,
            machine=ranks.machine,
            hosts=attempt.hosts,
            launcher=os.getppid(),
            trainers={f"rank {rank}": attempt.pids[rank] for rank in attempt.local_ranks()},
            address=self.addresses[0],
            silence_seconds=silence_seconds,
        )
        self._guard = subprocess.Popen(
            [sys.executable, "-P", "-m", "bm3_dgl.runtime.guard", json.dumps(asdict(orders))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            start_new_session=True,  # Ctrl-C and a kill of the process group must not reach it
        )
        if ranks.num_machines > 1:
            if ranks.leads:
                assert self._guard.stdout is not None
                port = json.loads(self._guard.stdout.readline())["port"]
                attempt.publish("guard", [self.addresses[0], port])
            else:
                self._tell(connect=attempt.await_value("guard"))
        pid = self._guard.pid
        attempt.publish(f"guard/{ranks.machine}", {"pid": pid, "scratch": scratch, "verdict": verdict_path()})

    def _tell(self, **message: object) -> None:
        assert self._guard is not None and self._guard.stdin is not None, "the leading rank alone speaks to the guard"
        try:
            self._guard.stdin.write(json.dumps(message).encode() + b"\n")
            self._guard.stdin.flush()
        except BrokenPipeError:  # the watch sees that it is gone
            threading.Event().wait()

    def _watch_guard(self) -> None:
        """A thread. Without a guard nobody sees to the rest: leave, and clean up in its place."""
        stopped = 0.0
        while (state := process_state(self._guard_pid)) is not None and stopped < STOPPED_SECONDS:
            time.sleep(_WATCH_SECONDS)
            stopped = stopped + _WATCH_SECONDS if state == "T" else 0.0
        if self._leaving.is_set() and state is None:  # its end is what `leave` waits for
            self._gone.set()
            return
        if self._guard is not None:
            self._guard.kill()
            remove_segments(self.attempt.tag)
            shutil.rmtree(self.scratch, ignore_errors=True)
        else:
            time.sleep(_SPEAK_FIRST_SECONDS)
        leave_at_once(JobError(f"the guard of {self.attempt.name(self.attempt.ranks.machine)} (pid {self._guard_pid}) died"))

    def _choose_interface(self) -> None:
        """gloo and NCCL take the interface of the host name's address, which may be loopback."""
        interface = interface_of(self.addresses[self.attempt.ranks.machine])
        if interface is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
