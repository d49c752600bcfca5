"""The guard by itself: with sleeping processes in the trainers' place, and guards of several machines on loopback."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bm3_dgl.runtime.guard import STOPPED_SECONDS
from bm3_dgl.runtime.processes import SHARED_MEMORY, process_state


class Machine:
    """A guard and what it watches."""

    def __init__(self, home: Path, tag: str, number: int = 0, machines: int = 1, silence_seconds: float = 60.0) -> None:
        self.tag = tag
        self.sleepers = [subprocess.Popen(["sleep", "600"]) for _ in range(4)]
        self.launcher, self.trainer, self.other, self.server = self.sleepers
        self.scratch = home / f"{tag}_{number}"
        self.scratch.mkdir()
        self.segment = SHARED_MEMORY / f"table_{tag}_{number}"
        self.segment.touch()
        orders = {
            "tag": tag,
            "scratch": str(self.scratch),
            "machine": number,
            "hosts": [f"host-{n}" for n in range(machines)],
            "launcher": self.launcher.pid,
            "trainers": {"rank 0": self.trainer.pid, "rank 1": self.other.pid},
            "address": "127.0.0.1",
            "silence_seconds": silence_seconds,
        }
        command = [sys.executable, "-P", "-m", "bm3_dgl.runtime.guard", json.dumps(orders)]
        environment = os.environ | {"BM3_VERDICT": str(self.scratch / "verdict")}
        self.guard = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.port = json.loads(self.guard.stdout.readline())["port"] if machines > 1 and number == 0 else 0
        self.tell(watch={"graph server": self.server.pid})

    def tell(self, **message: object) -> None:
        assert self.guard.stdin is not None
        self.guard.stdin.write(json.dumps(message).encode() + b"\n")
        self.guard.stdin.flush()

    def ended(self, seconds: float = 10.0) -> tuple[int, str]:
        """Exit code and what was said; nothing else may be left."""
        code = self.guard.wait(seconds)
        assert not self.segment.exists() and not self.scratch.exists()
        return code, self.guard.stderr.read().decode()

    def alive(self) -> list[bool]:
        """Of trainers and server."""
        return [process_state(sleeper.pid) is not None for sleeper in (self.trainer, self.other, self.server)]

    def clear(self) -> None:
        for process in (self.guard, *self.sleepers):
            process.kill()
            process.wait()
        self.segment.unlink(missing_ok=True)


@pytest.fixture
def machines(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[Machine]]:
    """As many as the test's parameter says, joined unless it says otherwise."""
    count, silence, *apart = getattr(request, "param", (1, 60.0))
    tag = f"bm3_test_{secrets.token_hex(4)}"
    made = [Machine(tmp_path, tag, number, count, silence) for number in range(count)]
    for machine in made[1:] if not apart else ():
        machine.tell(connect=["127.0.0.1", made[0].port])
    yield made
    for machine in made:
        machine.clear()


TWO = pytest.mark.parametrize("machines", [(2, 60.0)], indirect=True)


def settle(machines: list[Machine]) -> None:
    """Wait until all guards are joined and know that their servers may end."""
    for machine in reversed(machines):  # a guard answers after it has connected
        machine.tell(closing=True)
        assert machine.guard.stdout is not None
        assert json.loads(machine.guard.stdout.readline()) == {"closing": True}
    time.sleep(0.5)  # machine 0 hears who has connected


def say_verdict(machine: Machine, code: int, line: str) -> None:
    (machine.scratch / "verdict.0").write_text(json.dumps({"code": code, "line": line}))


@pytest.mark.parametrize("who", ["trainer", "other", "server", "launcher"])
def test_a_death_ends_all(machines: list[Machine], who: str) -> None:
    (machine,) = machines
    victim: subprocess.Popen = getattr(machine, who)
    victim.kill()
    victim.wait()
    code, said = machine.ended()
    name = {"trainer": "rank 0", "other": "rank 1", "server": "graph server", "launcher": "torchrun"}[who]
    assert code == 5
    assert said == (f"error: {name} (pid {victim.pid}) died; the job ends on all machines; go on with train.resume=true\n")
    assert machine.alive() == [False, False, False]


def test_the_leading_trainer_lets_go_of_the_pipe(machines: list[Machine]) -> None:
    (machine,) = machines
    assert machine.guard.stdin is not None
    machine.guard.stdin.close()
    assert machine.ended()[0] == 5 and machine.alive() == [False, False, False]


@TWO
def test_last_words_are_told_everywhere(machines: list[Machine]) -> None:
    say_verdict(machines[1], 3, "items.parquet: row 7 has no id")
    machines[1].other.kill()
    machines[1].other.wait()
    assert machines[1].ended() == (3, ""), "the trainer itself has said it here"
    assert machines[0].ended() == (3, "error: machine 1 (host-1): items.parquet: row 7 has no id\n")
    assert machines[0].alive() == machines[1].alive() == [False, False, False]


@pytest.mark.parametrize("machines", [(3, 60.0)], indirect=True)
def test_a_machine_that_is_gone(machines: list[Machine]) -> None:
    settle(machines)
    machines[2].guard.kill()
    for machine in machines[:2]:
        code, said = machine.ended()
        assert code == 5 and said.startswith("error: machine 2 (host-2) is gone")


@pytest.mark.parametrize("machines", [(2, 3.0)], indirect=True)
def test_silence(machines: list[Machine]) -> None:
    settle(machines)
    machines[1].guard.send_signal(signal.SIGSTOP)
    code, said = machines[0].ended()
    assert code == 5 and said.startswith("error: machine 1 (host-1) has been silent for 3 s")


def test_a_stopped_trainer(machines: list[Machine]) -> None:
    (machine,) = machines
    began = time.monotonic()
    machine.other.send_signal(signal.SIGSTOP)
    code, said = machine.ended()
    assert code == 5 and f"rank 1 (pid {machine.other.pid}) has been stopped for" in said
    assert STOPPED_SECONDS < time.monotonic() - began < STOPPED_SECONDS + 3
    assert machine.alive() == [False, False, False]


def test_a_stopped_foreground_may_go_on(machines: list[Machine]) -> None:
    """Ctrl-Z stops torchrun and trainers alike; on one machine nobody waits for them."""
    (machine,) = machines
    foreground = (machine.launcher, machine.trainer, machine.other)
    for process in foreground:
        process.send_signal(signal.SIGSTOP)
    time.sleep(STOPPED_SECONDS + 1.5)
    assert machine.guard.poll() is None
    for process in foreground:
        process.send_signal(signal.SIGCONT)
    time.sleep(0.5)
    assert machine.guard.poll() is None


@TWO
def test_a_good_end_waits_for_all(machines: list[Machine]) -> None:
    first, second = machines
    settle(machines)
    for machine in machines:
        machine.server.terminate()
        machine.server.wait()
    first.tell(end=True)
    time.sleep(1.0)
    assert first.guard.poll() is None, "machine 1 has not ended yet"
    second.tell(end=True)
    assert first.ended() == second.ended() == (0, "")
    assert b"done" in first.guard.stdout.read() and b"done" in second.guard.stdout.read()
    assert first.alive() == [True, True, False], "trainers leave by themselves"


@TWO
def test_a_loss_before_the_common_end(machines: list[Machine]) -> None:
    settle(machines)
    machines[0].tell(end=True)
    machines[1].trainer.kill()
    machines[1].trainer.wait()
    assert [machine.ended()[0] for machine in machines] == [5, 5]


@pytest.mark.parametrize("machines", [(2, 60.0, "apart")], indirect=True)
def test_strangers_are_not_listened_to(machines: list[Machine]) -> None:
    first, second = machines
    other_job = b'{"tag": "bm3_other", "machine": 1}\n'
    no_machine = json.dumps({"tag": first.tag, "machine": 7}).encode() + b"\n"
    deep = b"[" * 30000 + b"\n"
    words = (b"GET / HTTP/1.0\n\n", other_job, no_machine, b'{"abort": [0, "x"]}\n', b"[1]\n", b"x" * 99999, deep, b"")
    strangers = []
    for word in words:
        strangers.append(socket.create_connection(("127.0.0.1", first.port)))
        strangers[-1].sendall(word)
        time.sleep(0.3)
        assert first.guard.poll() is None, word
    second.tell(connect=["127.0.0.1", first.port])
    settle(machines)
    for machine in machines:
        machine.tell(end=True)
        machine.server.kill()
    assert first.ended() == second.ended() == (0, "")
    for stranger in strangers:
        stranger.close()
