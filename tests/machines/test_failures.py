"""Whatever dies, at whatever moment: the whole job ends soon on all machines, says why, and can go on.

A fault (tests/faults) holds one rank at a chosen moment, and the test strikes there. The cases below are a choice that
covers each role and each moment; `make kill-table` runs every pair and writes kill-table.md.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path

import pytest

from tests.jobs import parameters
from tests.machines.cluster import ClusterJob, assert_same_bits, boot, needs_machines, start
from tests.netns import Network, wait_until

pytestmark = [needs_machines, pytest.mark.timeout(300)]
MACHINES = 2

SETTINGS = ["train.epochs=3", "train.checkpoint_steps=1", "model.layers=2"]
# moment -> module, function and call at which a rank is held.
MOMENTS = {
    "start-up": ("bm3_dgl.jobs.agreement", "ensure_partition", 1),
    "opening the graph": ("bm3_dgl.graph.store", "GraphStore._lay_out", 1),
    "propagation": ("bm3_dgl.model.propagation.operator", "Propagator.forward", 3),
    "checkpoint": ("bm3_dgl.train.checkpoint", "Checkpoints._write_shard", 2),
    "evaluation": ("bm3_dgl.evaluate.evaluator", "Evaluator.evaluate", 2),
    "shutdown": ("bm3_dgl.runtime.servers", "GraphCluster.__exit__", 1),
}
# who is struck, and how; roles are of machine 1 unless they say otherwise.
BLOWS = [
    "trainer killed",
    "trainer of machine 0 killed",
    "trainer stopped",
    "trainer raises",
    "trainer out of memory",
    "graph server killed",
    "torchrun killed",
    "torchrun of machine 0 killed",
    "torchrun terminated",
    "guard killed",
    "machine killed",
    "machine 0 killed",
    "link cut",
]
CHOICE = [
    ("trainer killed", "start-up"),
    ("torchrun of machine 0 killed", "opening the graph"),
    ("graph server killed", "propagation"),
    ("trainer stopped", "propagation"),
    ("trainer out of memory", "propagation"),
    ("link cut", "evaluation"),
    ("guard killed", "evaluation"),
    ("trainer of machine 0 killed", "checkpoint"),
    ("torchrun terminated", "checkpoint"),
    ("machine killed", "checkpoint"),
    ("trainer killed", "shutdown"),
]
TABLE = os.environ.get("BM3_KILL_TABLE")  # a file to write a line to for each case
# At start-up there is no graph server yet.
EVERY = [case for case in itertools.product(BLOWS, MOMENTS) if case != ("graph server killed", "start-up")]
CASES = EVERY if "BM3_KILL_ALL" in os.environ else CHOICE
GONE_SECONDS = {"link cut": 30.0}
# What the last line names, on every machine that is still there to say it.
NAMED = {
    "trainer killed": "rank 1 on machine 1",
    "trainer of machine 0 killed": "rank 0 on machine 0",
    "trainer stopped": "rank 1 on machine 1",
    "trainer raises": "ArithmeticError",
    "trainer out of memory": "out of memory",
    "graph server killed": "graph server on machine 1",
    "torchrun killed": "torchrun on machine 1",
    "torchrun of machine 0 killed": "torchrun on machine 0",
    "torchrun terminated": "SIGTERM",
    "guard killed": "machine 1",
    "machine killed": "machine 1",
    "machine 0 killed": "machine 0",
    "link cut": "machine",
}


@pytest.fixture(scope="module")
def uninterrupted(network: Network, home: Path) -> Path:
    start(network, home, *SETTINGS, name="uninterrupted").finish()
    return home / "uninterrupted"


@pytest.mark.parametrize("blow, moment", CASES)
def test_the_job_ends_as_a_whole(network: Network, home: Path, uninterrupted: Path, blow: str, moment: str) -> None:
    name = f"{blow}-{moment}".replace(" ", "-")
    marks = home / f"{name}.marks"
    marks.mkdir()
    module, function, call = MOMENTS[moment]
    held = 0 if "machine 0" in blow or moment in ("start-up", "evaluation") else 1
    action = {"trainer raises": "raise", "trainer out of memory": "memory"}.get(blow, "hold")
    for number in range(2):
        boot(network, number)
    job = start(network, home, *SETTINGS, name=name, fault=f"{module}:{function}:{call}:{held}:{action}:{marks}")
    wait_until(lambda: (marks / "reached").exists() or job.processes[held].popen.poll() is not None, 120, "the moment")
    assert (marks / "reached").exists(), job.processes[held].text()
    if action == "hold":
        strike(job, blow)
    if "terminated" in blow:
        (marks / "release").touch()  # a rank is asked to end, and does so by itself
    took = watch_the_end(job, GONE_SECONDS.get(blow, 10.0))
    codes = [process.popen.returncode for process in job.processes]
    assert all(codes), f"exit codes {codes}"
    if "terminated" in blow and moment in ("propagation", "checkpoint", "evaluation"):
        assert codes == [143, 143], f"exit codes {codes}"
    lines = {n: job.last_line(n) for n in range(2) if network[n].alive()}
    for number, line in lines.items():
        assert named(blow, moment) in line, f"{blow}, machine {number}: {job.processes[number].text()}"
        said = [text for text in job.processes[number].text().splitlines() if text.startswith("error: ")]
        assert len(said) <= 1, said
    resumed = ""
    if moment in ("checkpoint", "evaluation"):
        network[1].join()
        for number in range(2):
            boot(network, number)
        start(network, home, *SETTINGS, "train.resume=true", name=name).finish()
        assert_same_bits(home / name, parameters(uninterrupted))
        resumed = "yes"
    report(blow, moment, took, codes, resumed, lines)


def named(blow: str, moment: str) -> str:
    if blow == "torchrun terminated" and moment in ("start-up", "opening the graph", "shutdown"):
        return ""  # its trainers end as by any signal: the launcher says SIGTERM, the other machine that a rank died
    return NAMED[blow]


def strike(job: ClusterJob, blow: str) -> None:
    machine = 0 if "machine 0" in blow else 1
    if blow == "link cut":
        job.network[1].cut()
    elif blow.startswith("machine"):
        job.network[machine].cut()  # as the power is: no word goes out any more
        job.network[machine].kill()
    else:
        role = "leading trainer" if blow.startswith("trainer") else blow.rsplit(" ", 1)[0].removesuffix(" of machine 0")
        number = {"stopped": signal.SIGSTOP, "terminated": signal.SIGTERM}.get(blow.rsplit(" ", 1)[1], signal.SIGKILL)
        os.kill(job.pid_of(machine, role), number)


def watch_the_end(job: ClusterJob, seconds: float) -> float:
    """Wait until nothing of the job is left on any machine; how long that took."""
    began = time.monotonic()
    try:
        for process in job.processes:
            process.popen.wait(max(0.1, began + seconds - time.monotonic()))
        wait_until(lambda: not job.left(), max(0.1, began + seconds - time.monotonic()), "everything of the job is gone")
    except Exception as error:
        texts = "\n".join(f"--- machine {n}\n{process.text()[-2000:]}" for n, process in enumerate(job.processes))
        left = job.left()
        for machine in job.network.machines:
            machine.kill()  # the next case boots it anew
        raise AssertionError(f"{error}\nleft after {seconds} s: {left}\n{texts}") from None
    return time.monotonic() - began


def report(blow: str, moment: str, took: float, codes: list[int], resumed: str, lines: dict[int, str]) -> None:
    if TABLE:
        last = lines.get(0, lines.get(1, "")).replace("|", "/")
        with open(TABLE, "a", encoding="utf-8") as file:
            file.write(f"| {blow} | {moment} | {took:.1f} | {codes[0]}, {codes[1]} | {resumed} | {last} |\n")
