"""One job on several machines of a test: started, watched, and looked at when it has ended."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.jobs import ROOT, SMALL_SHOP, parameters
from tests.netns import Machine, Network, Process, torchrun, why_not

needs_machines = pytest.mark.skipif(why_not() is not None, reason=f"no machines to test with: {why_not()}")


@dataclass
class ClusterJob:
    network: Network
    processes: list[Process]  # one torchrun per machine
    scratch: Path  # all machines' TMPDIR

    def wait(self, seconds: float = 240.0) -> list[int]:
        """Exit codes of all machines' torchruns."""
        deadline = time.monotonic() + seconds
        return [process.wait(max(1.0, deadline - time.monotonic())) for process in self.processes]

    def finish(self) -> None:
        codes = self.wait()
        assert codes == [0] * len(codes), "\n".join(process.text()[-3000:] for process in self.processes)

    def last_line(self, number: int) -> str:
        lines = [line for line in self.processes[number].text().splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def left(self) -> dict[str, object]:
        """What of the job is still there on the machines that live: processes, shared memory, scratch files."""
        found: dict[str, object] = {}
        for machine in self.network.machines:
            if machine.alive() and (processes := machine.processes()):
                found[f"processes on {machine.name}"] = [line[:120] for line in processes.values()]
            if machine.alive() and (segments := machine.shared_memory()):
                found[f"segments on {machine.name}"] = len(segments)
        if all(machine.alive() for machine in self.network.machines) and (files := sorted(self.scratch.iterdir())):
            found["scratch files"] = files  # those of a machine without power stay
        return found

    def pid_of(self, number: int, role: str) -> int:
        """Process of a machine: torchrun, leading trainer, last trainer, graph server or guard."""
        commands = self.network[number].processes()
        marks = {"torchrun": "launch/torchrun.py", "graph server": "dgl.distributed.initialize", "guard": "runtime.guard"}
        if role in marks:
            # A process that was forked and has not yet become its program shows its parent's command line.
            return min(pid for pid, line in commands.items() if marks[role] in line and "nsenter" not in line)
        trainers = sorted(pid for pid, line in commands.items() if "launch/train.py" in line and "torchrun.py" not in line)
        return trainers[0] if role == "leading trainer" else trainers[-1]


def start(
    network: Network,
    home: Path,
    *arguments: str,
    machines: int = 0,
    ranks: int = 1,
    fault: str | None = None,
    restarts: int = 0,
    name: str = "run",
    own: Mapping[int, Sequence[str]] | None = None,
) -> ClusterJob:
    """Train the small shop on the first `machines` of the network (0: all).

    fault: see tests/faults. own: further arguments of single machines, by number.
    """
    scratch = home / f"{name}.tmp"
    scratch.mkdir(exist_ok=True)
    environment = dict(os.environ) | {"TMPDIR": str(scratch)}
    if fault is not None:
        environment |= {"BM3_FAULT": fault, "PYTHONPATH": str(ROOT / "tests" / "faults")}
    machines = machines or len(network.machines)
    settings = [*SMALL_SHOP, f"data.dir={home / 'data'}", f"run.dir={home / name}", f"partition.parts={machines}"]
    processes = []
    for number in range(machines):
        launcher = torchrun(network, number, ranks=ranks, machines=machines, restarts=restarts)
        command = [*launcher, str(ROOT / "launch" / "train.py"), *settings, *arguments, *(own or {}).get(number, [])]
        log = home / f"{name}-{number}.log"
        processes.append(network[number].start(command, output=log, cwd=home, environment=environment))
    return ClusterJob(network, processes, scratch)


def boot(network: Network, number: int) -> Machine:
    """The machine, started again if it was killed."""
    return network[number] if network[number].alive() else network.replace(number)


def assert_same_bits(run_dir: Path, expected: Mapping[str, torch.Tensor]) -> None:
    """The newest checkpoint of a run holds exactly these parameters and moments."""
    got = parameters(run_dir)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(got[name], value), f"{name} differs from the uninterrupted run's"
