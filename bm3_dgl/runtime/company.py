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
from typing import Any, NoReturn

from bm3_dgl.errors import JobError
from bm3_dgl.runtime.addresses import interface_of, own_address
from bm3_dgl.runtime.guard import MEET_SECONDS, STOPPED_SECONDS, Orders
from bm3_dgl.runtime.lifeline import expect_guards_word, leave_at_once
from bm3_dgl.runtime.meeting import Attempt
from bm3_dgl.runtime.processes import kill_process, process_state, remove_segments
from bm3_dgl.runtime.verdict import ask_for_verdict, asked_path

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
        self._guard_pid = 0
        self._watched: list[int] = []
        if ranks.leads_machine:
            self._start_guard(silence_seconds)
        start = attempt.await_value(f"guard/{ranks.machine}")
        self.scratch, self._guard_pid = Path(start["scratch"]), int(start["pid"])
        ask_for_verdict(start["verdict"])
        expect_guards_word()
        attempt.limit_waiting(_WAIT_SECONDS)
        self._leaving, self._gone = threading.Event(), threading.Event()
        threading.Thread(target=self._watch_guard, name="guard's watch", daemon=True).start()
        if ranks.num_machines > 1:
            self._choose_interface()

    def watch(self, name: str, pid: int) -> None:
        """The job ends when this process of the machine does. For the leading rank."""
        self._watched.append(pid)
        self._tell(watch={name: pid})

    def closing(self) -> None:
        """Watched servers may end when this returns. For the leading rank."""
        self._tell(closing=True)
        self._hear("closing")

    def leave(self) -> None:
        """All work of this rank is done: wait until that is so everywhere. A loss before that is the whole job's."""
        self._leaving.set()
        if self._guard is None:
            self._gone.wait(_LEAVE_SECONDS)
            return
        self._tell(end=True)
        self._hear("done")
        self._guard.wait()

    def _start_guard(self, silence_seconds: float) -> None:
        attempt, ranks = self.attempt, self.attempt.ranks
        self.scratch = Path(tempfile.mkdtemp(prefix=f"{attempt.tag}_"))
        ask_for_verdict(asked_path() or f"{self.scratch}/verdict")
        orders = Orders(
            tag=attempt.tag,
            scratch=str(self.scratch),
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
        self._guard_pid = self._guard.pid
        if ranks.num_machines > 1:
            if ranks.leads:
                attempt.publish("guard", [self.addresses[0], self._hear("port")])
            else:
                self._tell(connect=attempt.await_value("guard"))
        attempt.publish(
            f"guard/{ranks.machine}", {"pid": self._guard_pid, "scratch": str(self.scratch), "verdict": asked_path()}
        )

    def _tell(self, **message: object) -> None:
        assert self._guard is not None and self._guard.stdin is not None, "the leading rank alone speaks to the guard"
        try:
            self._guard.stdin.write(json.dumps(message).encode() + b"\n")
            self._guard.stdin.flush()
        except BrokenPipeError:
            self._lose_guard()

    def _hear(self, word: str) -> Any:
        """The value of the guard's next message, which must be this one."""
        assert self._guard is not None and self._guard.stdout is not None, "the leading rank alone hears the guard"
        message = json.loads(self._guard.stdout.readline() or b"{}")
        if word not in message:
            self._lose_guard()
        return message[word]

    def _watch_guard(self) -> None:
        """A thread. Without a guard nobody sees to the rest: leave, and clean up in its place."""
        stopped = 0.0
        while (state := process_state(self._guard_pid)) is not None and stopped < STOPPED_SECONDS:
            time.sleep(_WATCH_SECONDS)
            stopped = stopped + _WATCH_SECONDS if state == "T" else 0.0
        if self._leaving.is_set() and state is None:  # its end is what `leave` waits for, or hears of
            self._gone.set()
            return
        self._lose_guard()

    def _lose_guard(self) -> NoReturn:
        if self._guard is None:
            time.sleep(_SPEAK_FIRST_SECONDS)
        else:
            for pid in (self._guard.pid, *self._watched):
                kill_process(pid)
            remove_segments(self.attempt.tag)
            shutil.rmtree(self.scratch, ignore_errors=True)
        name = self.attempt.name(self.attempt.ranks.machine)
        leave_at_once(JobError(f"the guard of {name} (pid {self._guard_pid}) died; go on with train.resume=true"))

    def _choose_interface(self) -> None:
        """gloo and NCCL take the interface of the host name's address, which may be loopback."""
        interface = interface_of(self.addresses[self.attempt.ranks.machine])
        if interface is not None:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
