"""A job comes back by itself, and what it ends with is what an uninterrupted one ends with, bit for bit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.jobs import ROOT, SMALL_SHOP, parameters
from tests.machines.cluster import assert_same_bits, needs_machines, start
from tests.netns import Network, torchrun, wait_until

pytestmark = [needs_machines, pytest.mark.timeout(300)]
MACHINES = 2

SETTINGS = ["train.epochs=3", "train.checkpoint_steps=1"]
LAUNCH_TRAIN = str(ROOT / "launch" / "train.py")


@pytest.fixture(scope="module")
def expected(network: Network, home: Path) -> dict[str, torch.Tensor]:
    start(network, home, *SETTINGS, name="uninterrupted").finish()
    return parameters(home / "uninterrupted")


def test_torchrun_restarts_both_machines(network: Network, home: Path, expected: dict[str, torch.Tensor]) -> None:
    fault = f"bm3_dgl.model.propagation.operator:Propagator.forward:5:1:kill:{home}"
    job = start(network, home, *SETTINGS, fault=fault, restarts=1, name="restarted")
    job.finish()
    assert "resuming" in job.processes[0].text()
    assert_same_bits(home / "restarted", expected)


def test_a_machine_is_replaced(network: Network, home: Path, expected: dict[str, torch.Tensor]) -> None:
    """The other machine's torchrun lives on and restarts its trainers, which wait for the new one's."""
    marks = home / "marks"
    marks.mkdir()
    fault = f"bm3_dgl.train.checkpoint:Checkpoints._write_shard:3:1:hold:{marks}"
    job = start(network, home, *SETTINGS, fault=fault, restarts=3, name="replaced")
    wait_until((marks / "reached").exists, 120, "the second checkpoint")
    network.replace(1)
    settings = [*SMALL_SHOP, f"data.dir={home / 'data'}", f"run.dir={home / 'replaced'}", "partition.parts=2", *SETTINGS]
    command = [*torchrun(network, 1, ranks=1, restarts=3), LAUNCH_TRAIN, *settings]
    job.processes[1] = network[1].start(command, output=home / "replaced-1-again.log", cwd=home)
    job.finish()
    assert_same_bits(home / "replaced", expected)


def test_a_full_disk_while_saving(network: Network, home: Path) -> None:
    """The checkpoint before stays, the error says what to do, and done so the run goes on as if nothing had been."""
    machine, disk = network[0], home / "disk"
    disk.mkdir()
    machine.run("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk)
    settings = [*SMALL_SHOP, f"data.dir={home / 'data'}", "debug=true", "train.batch_size=64", "train.checkpoint_epochs=1"]

    def train(run_dir: Path, epochs: int, log: str) -> tuple[int, str]:
        arguments = [*settings, f"run.dir={run_dir}", f"train.epochs={epochs}", "train.resume=true"]
        process = machine.start([sys.executable, LAUNCH_TRAIN, *arguments], output=home / log, cwd=home)
        return process.wait(120), process.text()

    assert train(disk / "run", 1, "fits.log")[0] == 0
    machine.run("sh", "-c", f"head -c 10m /dev/zero >{disk}/filler; true")
    code, text = train(disk / "run", 3, "full.log")
    assert code in (4, 5) and "free space" in text.strip().splitlines()[-1], text
    names = machine.run("ls", disk / "run" / "checkpoints").split()
    assert "step-00000056" in names and machine.run("cat", disk / "run" / "checkpoints" / "latest") in names
    machine.run("rm", disk / "filler")
    code, text = train(disk / "run", 3, "again.log")
    assert code == 0 and "resuming" in text, text
    assert train(home / "roomy", 3, "roomy.log")[0] == 0
    machine.run("cp", "-r", disk / "run", home / "from-disk")
    assert_same_bits(home / "from-disk", parameters(home / "roomy"))
