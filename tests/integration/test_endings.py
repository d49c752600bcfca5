"""However a job ends, it ends whole: every process of it, soon, with a word, and nothing in shared memory."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

import pytest

from tests.jobs import ROOT, SMALL_SHOP, Job, processes_of, shared_memory, start, tag_of

GONE_SECONDS = 15.0


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("endings")


def begin(home: Path, name: str, torchrun: Path | None = None) -> Job:
    """A job of two ranks that would train for long, running its first epochs."""
    arguments = [
        *SMALL_SHOP,
        f"data.dir={home / 'data'}",
        f"run.dir={home / name}",
        "train.patience=100000",
        "train.epochs=100000",
    ]
    job = start("train", *arguments, ranks=2, output=home / f"{name}.log", torchrun=torchrun)
    journal = home / name / "metrics.jsonl"
    job.wait_for(lambda: journal.exists() and journal.read_text().count("\n") >= 4)
    return job


def pids(job: Job) -> dict[str, int]:
    """Who is who among the job's processes."""
    trainers = sorted(children(job.process.pid))
    helpers = [(pid, Path(f"/proc/{pid}/cmdline").read_bytes()) for trainer in trainers for pid in children(trainer)]
    server = next(pid for pid, command in helpers if b"dgl.distributed.initialize" in command)
    return {"torchrun": job.process.pid, "leading trainer": trainers[0], "trainer": trainers[1], "graph server": server}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize(
    "who, number",
    [
        ("trainer", signal.SIGKILL),
        ("leading trainer", signal.SIGKILL),
        ("graph server", signal.SIGKILL),
        ("torchrun", signal.SIGKILL),
        ("torchrun", signal.SIGTERM),
        ("torchrun", signal.SIGINT),
        ("everyone in the foreground", signal.SIGINT),  # what Ctrl-C in a terminal does
    ],
)
def test_everything_ends(home: Path, who: str, number: signal.Signals) -> None:
    name = f"{who.replace(' ', '-')}-{number.name}"
    job = begin(home, name)
    assert len(processes_of(job)) >= 5, "the job has a torchrun, two trainers, a server and a guard"
    tag = tag_of(job)
    assert shared_memory(tag), "and tables in shared memory"
    if who == "everyone in the foreground":
        os.killpg(job.process.pid, number)
    else:
        os.kill(pids(job)[who], number)
    assert job.wait(GONE_SECONDS) != 0
    deadline = time.monotonic() + GONE_SECONDS
    while (left := processes_of(job)) or shared_memory(tag):
        assert time.monotonic() < deadline, f"left behind: {left} {shared_memory(tag)}\n{job.text()}"
        time.sleep(0.1)
    if who == "graph server":
        assert "error: graph server (pid" in job.text()
    assert not list(Path(tempfile.gettempdir()).glob(f"{tag}*")), "the job's scratch directory"
    checkpoints = home / name / "checkpoints"
    assert (checkpoints / (checkpoints / "latest").read_text()).is_dir()


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_our_torchrun_says_it_once(home: Path, number: signal.Signals, code: int) -> None:
    job = begin(home, f"ours-{number.name}", torchrun=ROOT / "launch" / "torchrun.py")
    tag = tag_of(job)
    if number is signal.SIGINT:
        os.killpg(job.process.pid, number)  # Ctrl-C
    else:
        os.kill(job.process.pid, number)
    assert job.wait(GONE_SECONDS) == code, job.text()
    lines = job.text().strip().splitlines()
    assert lines[-1].startswith("error: ") and number.name in lines[-1], job.text()
    assert sum(line.startswith("error: ") for line in lines) == 1, job.text()
    deadline = time.monotonic() + GONE_SECONDS
    while processes_of(job) or shared_memory(tag):
        assert time.monotonic() < deadline, f"left behind: {processes_of(job)} {shared_memory(tag)}"
        time.sleep(0.1)
    assert job.text().strip().splitlines() == lines, "nothing is said behind it"


def test_a_users_mistake_is_said_once(home: Path) -> None:
    job = start("train", "train.epoch=3", ranks=2, output=home / "mistake.log")
    assert job.wait() != 0
    lines = [line for line in job.text().splitlines() if "unknown key" in line]
    assert len(lines) == 1 and "train.epochs" in lines[0]


def test_without_torchrun(home: Path) -> None:
    arguments = [*SMALL_SHOP, f"data.dir={home / 'data'}", f"run.dir={home / 'alone'}"]
    job = start("train", *arguments, output=home / "alone.log")
    assert job.wait() == 5
    assert "start with torchrun, or use debug=true" in job.text().strip().splitlines()[-1]
