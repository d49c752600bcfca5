"""Machines that do not fit together are refused before any training, in one line that names the one that differs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.jobs import ROOT, run
from tests.machines.cluster import ClusterJob, needs_machines, start
from tests.netns import Network

pytestmark = [needs_machines, pytest.mark.timeout(200)]
MACHINES = 2


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("refusals")
    # What machine 1 holds where its copy is of other data, and where it lacks its own part.
    for name, users in (("data", 400), ("other", 390)):
        settings = ["shop.items=200", f"shop.users={users}", f"data.dir={home / name}", "partition.parts=2"]
        run("partition", *settings, output=home / f"{name}.log")
    shutil.copytree(home / "data/parts/metis-2", home / "incomplete")
    shutil.rmtree(home / "incomplete/part1")
    shutil.copytree(home / "data/parts/metis-2", home / "own")
    shutil.rmtree(home / "own/part0")
    return home


@pytest.mark.parametrize(
    "name, arguments, own, code, message",
    [
        (
            "configuration",
            [],
            ["train.learning_rate=0.5"],
            2,
            "machine 1 (machine-1): train.learning_rate=0.5, and 0.001 on machine 0 (machine-0); start every machine",
        ),
        (
            "dataset",
            [],
            ["partition.dir={home}/other/parts/metis-2"],
            3,
            "machine 1 (machine-1): {home}/other/parts/metis-2: is not",
        ),
        ("missing", [], ["partition.dir={home}/nowhere"], 3, "machine 1 (machine-1): {home}/nowhere: no partition here"),
        ("part", [], ["partition.dir={home}/incomplete"], 3, "machine 1 (machine-1): {home}/incomplete/part1/"),
        ("run", [], ["run.dir={home}/elsewhere"], 2, "machine 1 (machine-1): run.dir={home}/elsewhere: is not the directory"),
        ("order", ["cluster.peers=[machine-1,machine-0]"], [], 2, "is no address of this machine, whose --node_rank is 0"),
        ("count", ["cluster.peers=[machine-1]"], [], 2, "cluster.peers: has 1 names, expected 2, one per machine"),
        ("loopback", ["cluster.peers=[machine-0,127.0.0.1]"], [], 2, "cluster.peers[1]=127.0.0.1: is 127.0.0.1, which other"),
        (
            "unknown",
            ["cluster.peers=[machine-0,machine-9]", "cluster.resolve_seconds=1"],
            [],
            5,
            "cluster.peers[1]=machine-9: no IPv4 address in 1 s",
        ),
        ("mistake", [], ["train.epoch=3"], 2, "machine 1 (machine-1): command line: unknown key train.epoch; did you mean"),
        ("own", [], ["partition.parts=3"], 2, "machine 1 (machine-1): partition.parts=3, and 2 on machine 0 (machine-0)"),
        ("taken", [], [], 2, "machine 0 (machine-0): run.dir={home}/taken: holds a run; continue it with train.resume=true"),
        ("parts", ["partition.parts=3"], [], 2, "partition.parts=3: expected 2, one part per machine"),
    ],
)
def test_refused_in_one_line(
    network: Network, home: Path, name: str, arguments: list[str], own: list[str], code: int, message: str
) -> None:
    if name == "taken":
        (home / name / "checkpoints" / "step-00000001").mkdir(parents=True)
    fill = [argument.format(home=home) for argument in own]
    job = start(network, home, *arguments, name=name, own={1: fill})
    assert job.wait(60.0) == [code, code]
    said = [error_lines(job, number) for number in range(2)]
    for lines in said:
        assert len(lines) == 1, said
    assert any(message.format(home=home) in line for lines in said for line in lines), said
    assert not (home / name / "checkpoints" / "latest").exists() and not list((home / name).glob(".*.sign"))


def test_a_machine_needs_only_its_own_part(network: Network, home: Path) -> None:
    start(network, home, "train.epochs=1", name="own-part", own={1: [f"partition.dir={home / 'own'}"]}).finish()


def test_the_other_machine_never_comes(network: Network, home: Path) -> None:
    command = ["--nnodes=2", "--node_rank=1", "--master_addr=machine-0", "--rdzv-conf=timeout=2", str(ROOT / "launch/train.py")]
    launcher = [str(ROOT / "launch/torchrun.py"), *command]
    process = network[1].start([sys.executable, *launcher], output=home / "alone.log", cwd=home)
    assert process.wait(60.0) == 5
    assert "error: --master_addr=machine-0 --master_port=29500: the machines did not meet there" in process.text()


def error_lines(job: ClusterJob, number: int) -> list[str]:
    return [line for line in job.processes[number].text().splitlines() if line.startswith("error: ")]
