"""The guard of one machine: a small process that sees to it that a job ends as a whole, on every machine.

DGL's remote calls have no time limit and a collective waits for ever for a peer that is stopped, so the trainers cannot
see to that themselves. The guard stands beside them, started by the machine's leading trainer before any slow work:

- it watches this machine's trainers, graph servers and torchrun: a death, or a stop (SIGSTOP) for STOPPED_SECONDS;
- it is joined to the guard of machine 0 by a connection that carries a beat every second: its end, or a silence of
  `silence_seconds` (a cut link), is the loss of that machine;
- what went wrong is told to all machines; every guard prints it, kills its trainers and servers, and removes their
  shared memory and scratch files.

    python -m bm3_dgl.runtime.guard ORDERS     ORDERS: the fields of `Orders` as JSON

The leading trainer speaks to it in JSON lines on standard input: {"watch": {name: pid}}, {"connect": [address, port]},
{"closing": true} when the servers may end, {"end": true}; end of file without "end" is that trainer's death. Standard
output carries the port that the guard of machine 0 listens on, and "done" when all machines have ended well. Stdlib
only: it starts fast, and no lock of Python's or DGL's stops it.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import Any

from bm3_dgl.errors import JobError
from bm3_dgl.runtime.processes import kill_process, oom_kills, process_state, remove_segments
from bm3_dgl.runtime.verdict import Verdict, forget_verdicts, give_verdict, read_verdict
from bm3_dgl.runtime.wire import Wire

STOPPED_SECONDS = 4.0  # a stopped process is as good as dead after that
_TICK_SECONDS = 0.2
_BEAT_SECONDS = 1.0
_PAUSE_SECONDS = 3.0  # a tick that took longer: the guard itself was stopped, so it can blame nobody for silence
_CAUSE_SECONDS = 1.5
_HELLO_SECONDS = 5.0  # for a connection to say which machine it is from
MEET_SECONDS = 60.0  # for all ranks, and then for all guards, to find one another
_GONE_SECONDS = 3.0  # for servers to end by themselves
_SPEAK_SECONDS = 0.2
_PART_SECONDS = 1.0  # for another guard to read what this one has told it last


@dataclass(frozen=True)
class Orders:
    """What a guard is told at its start. hosts: name of every machine; address: where machine 0's guard listens."""

    tag: str
    scratch: str
    machine: int
    hosts: list[str]
    launcher: int
    trainers: dict[str, int]
    address: str
    silence_seconds: float


class Lost(Exception):
    """The job cannot go on."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.line)
        self.verdict = verdict


class Guard:
    """One machine's guard: its processes, its connections to other guards, and what to do when one of them is lost."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._watched = dict(orders.trainers)
        self._stopped_since: dict[int, float] = {}
        self._wires: list[Wire] = []  # machine 0: one per other machine; elsewhere: the one to machine 0
        self._listener: socket.socket | None = None
        self._began = self._beaten = time.monotonic()
        self._closing = False  # servers may end
        self._ended = False  # this machine has ended well
        self._input: bytes | None = b""  # begun line of the leading trainer's; None after its end of file
        self._oom_kills = oom_kills()
        if orders.machine == 0 and len(orders.hosts) > 1:
            self._listener = socket.create_server((orders.address, 0))
            self._listener.setblocking(False)
            _tell(port=self._listener.getsockname()[1])

    def run(self) -> None:
        """Return when all machines have ended well; raise Lost otherwise."""
        last = time.monotonic()
        while not (self._ended and self._complete() and all(wire.ended for wire in self._guards())):
            sources: list[Any] = [wire.socket for wire in self._wires if not wire.closed]
            sources += [0] if self._input is not None else []
            sources += [self._listener] if self._listener is not None else []
            ready, _, _ = select.select(sources, [], [], _TICK_SECONDS)
            now = time.monotonic()
            if now - last > _PAUSE_SECONDS:
                self._forgive(now)
            last = now
            if 0 in ready:
                self._hear_trainer()
            if self._listener in ready:
                self._welcome()
            for wire in [wire for wire in self._wires if wire.socket in ready]:
                self._hear_guard(wire)
            self._beat(now)
            self._check_processes(now)
        if self._orders.machine == 0:  # the others wait for this word: until then a loss anywhere is everybody's
            for wire in self._guards():
                wire.send(end=True)

    def tell_all(self, verdict: Verdict) -> None:
        for wire in self._guards():
            wire.send(abort=[verdict.code, verdict.line])

    def clear(self, *, kill: bool) -> None:
        """End this machine's processes (they end by themselves unless `kill`) and remove what they leave."""
        deadline = time.monotonic() + _GONE_SECONDS
        servers = {name: pid for name, pid in self._watched.items() if name not in self._orders.trainers}
        for pid in self._watched.values() if kill else ():
            kill_process(pid)
        if kill and process_state(self._orders.launcher) == "T":
            kill_process(self._orders.launcher)
        for pid in servers.values():
            while process_state(pid) is not None and time.monotonic() < deadline:
                time.sleep(0.02)
            kill_process(pid)
        remove_segments(self._orders.tag)
        shutil.rmtree(self._orders.scratch, ignore_errors=True)
        if process_state(self._orders.launcher) is None:
            forget_verdicts()

    def part(self) -> None:
        """See to it that the other guards have read what they were told."""
        for wire in self._guards():
            wire.hang_up()
        deadline = time.monotonic() + _PART_SECONDS
        for wire in self._guards():
            wire.close(deadline)

    def _complete(self) -> bool:
        """Whether the guards of all machines have come to this one, or this one to machine 0's."""
        return not self._absent()

    def _absent(self) -> list[int]:
        others = range(1, len(self._orders.hosts)) if self._orders.machine == 0 else [0]
        return sorted(set(others) - {wire.machine for wire in self._guards()})

    def _guards(self) -> list[Wire]:
        """Connections to guards of this job; who has not said so yet is a stranger."""
        return [wire for wire in self._wires if wire.machine >= 0]

    def _hear_trainer(self) -> None:
        assert self._input is not None
        data = os.read(0, 1 << 16)
        if not data:
            if not self._ended:
                self._lose(*next(iter(self._orders.trainers.items())), "died")
            self._input = None
            return
        *lines, self._input = (self._input + data).split(b"\n")
        for message in map(json.loads, lines):
            self._watched |= message.get("watch", {})
            if "connect" in message:
                self._connect(*message["connect"])
            if "closing" in message:
                self._closing = True
                _tell(closing=True)
            if "end" in message:
                self._ended = True
                if self._orders.machine > 0:
                    self._wires[0].send(end=True)

    def _connect(self, address: str, port: int) -> None:
        try:
            connection = socket.create_connection((address, port), timeout=_HELLO_SECONDS)
        except OSError as error:
            raise self._lost(
                f"{self._name(self._orders.machine)}: the guard of machine 0 does not answer at {address}:{port} ({error});"
                " let the job's machines reach one another on all ports"
            ) from None
        self._wires = [Wire(connection)]
        self._wires[0].machine = 0
        self._wires[0].send(tag=self._orders.tag, machine=self._orders.machine)

    def _welcome(self) -> None:
        assert self._listener is not None
        connection, _ = self._listener.accept()
        strangers = [wire for wire in self._wires if wire.machine < 0]
        if len(strangers) > len(self._orders.hosts):
            self._dismiss(strangers[0])
        self._wires.append(Wire(connection))

    def _hear_guard(self, wire: Wire) -> None:
        messages, wire.closed = wire.receive()
        if wire.machine < 0:  # it has yet to say who it is, and strangers are not talked to
            if messages and messages[0].get("tag") == self._orders.tag and messages[0].get("machine") in self._absent():
                wire.machine = messages.pop(0)["machine"]
                if self._complete() and self._listener is not None:
                    self._listener.close()
                    self._listener = None
            elif messages or wire.closed:
                self._dismiss(wire)
                return
        for message in messages:
            if "abort" in message:
                raise Lost(Verdict(*message["abort"]))
            wire.ended |= "end" in message
        if wire.closed and not wire.ended:
            raise self._lost(f"{self._name(wire.machine)} is gone: it was shut down, or its processes were killed")

    def _dismiss(self, wire: Wire) -> None:
        wire.socket.close()
        self._wires.remove(wire)

    def _beat(self, now: float) -> None:
        if now - self._beaten >= _BEAT_SECONDS:
            self._beaten = now
            for wire in self._guards():
                wire.send(beat=True)
        for wire in [wire for wire in self._wires if wire.machine < 0 and now - wire.accepted > _HELLO_SECONDS]:
            self._dismiss(wire)
        for wire in self._guards():
            silence = now - wire.heard
            if silence > self._orders.silence_seconds and not wire.ended:
                raise self._lost(
                    f"{self._name(wire.machine)} has been silent for {silence:.0f} s: it, or the network to it, is down"
                )
        if not self._complete() and now - self._began > MEET_SECONDS:
            absent = ", ".join(self._name(machine) for machine in self._absent())
            raise self._lost(f"{absent}: no word from the guard there in {MEET_SECONDS:.0f} s")

    def _check_processes(self, now: float) -> None:
        watched = {"torchrun": self._orders.launcher} | (self._orders.trainers if self._closing else self._watched)
        states = {name: process_state(pid) for name, pid in watched.items()}
        if not self._ended:
            for name, state in states.items():
                if state is None:
                    self._lose(name, watched[name], "died")
        stopped = {name for name, state in states.items() if state == "T"}
        own = {"torchrun", *self._orders.trainers}
        if len(self._orders.hosts) == 1 and own <= stopped:
            stopped -= own  # Ctrl-Z in a terminal stops the foreground as a whole, and may let it go on
        self._stopped_since = {pid: t for pid, t in self._stopped_since.items() if pid in {watched[n] for n in stopped}}
        for name in sorted(stopped):
            since = self._stopped_since.setdefault(watched[name], now)
            if now - since > STOPPED_SECONDS:
                self._lose(name, watched[name], f"has been stopped for {now - since:.0f} s")

    def _lose(self, name: str, pid: int, what: str) -> None:
        """Raise Lost for a process of this machine, with its own last words where it left any."""
        own = self._orders.machine
        if process_state(self._orders.launcher) is None:  # its trainers die with it
            name, pid = "torchrun", self._orders.launcher
        where = f" on {self._name(own)}" if len(self._orders.hosts) > 1 else ""
        deadline = time.monotonic() + _CAUSE_SECONDS
        while (said := read_verdict()) is None and what == "died" and time.monotonic() < deadline:
            self._check_abort()
            time.sleep(0.05)
        if said is not None:
            named = len(self._orders.hosts) == 1 or said.line.startswith("machine ")
            raise Lost(Verdict(said.code, said.line if named else f"{self._name(own)}: {said.line}"))
        if what == "died" and oom_kills() > self._oom_kills:
            what = "was killed for want of memory"
        raise self._lost(f"{name}{where} (pid {pid}) {what}; the job ends on all machines; go on with train.resume=true")

    def _check_abort(self) -> None:
        """A process that died without a word may have died of what another machine knows, or of the launcher's signal."""
        for wire in self._guards():
            for message in wire.receive()[0]:
                if "abort" in message:
                    raise Lost(Verdict(*message["abort"]))

    def _forgive(self, now: float) -> None:
        self._stopped_since.clear()
        for wire in self._wires:
            wire.heard = max(wire.heard, now)

    def _name(self, machine: int) -> str:
        return f"machine {machine} ({self._orders.hosts[machine]})"

    def _lost(self, line: str) -> Lost:
        return Lost(Verdict(JobError.exit_code, line))


def _tell(**message: Any) -> None:
    """Tell the leading trainer."""
    os.write(1, json.dumps(message).encode() + b"\n")


def _say(line: str) -> None:
    """To the user, who may have closed the terminal."""
    try:
        os.write(2, line.encode())
    except OSError:
        pass


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the job, after all others
    guard = Guard(Orders(**json.loads(sys.argv[1])))
    try:
        guard.run()
    except Lost as lost:
        guard.tell_all(lost.verdict)
        if give_verdict(lost.verdict.code, lost.verdict.line):  # no trainer here has said it, or something like it, before
            _say(f"error: {lost.verdict.line}\n")
        else:
            time.sleep(_SPEAK_SECONDS)  # it may be about to
        guard.clear(kill=True)
        guard.part()
        os._exit(lost.verdict.code)
    guard.clear(kill=False)
    guard.part()
    _tell(done=True)


if __name__ == "__main__":
    main()
