"""Starting the launchers as a user does, and looking at what they leave."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
TIME_LIMIT_SECONDS = 240
SMALL_SHOP = ["shop.users=400", "shop.items=200", "train.tensorboard=false", "model.embedding_dim=16"]


@dataclass
class Job:
    """A launcher that runs."""

    process: subprocess.Popen
    output: Path

    def wait(self, seconds: float = TIME_LIMIT_SECONDS) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"still running after {seconds} s:\n{self.text()}") from None

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until something is true while the job runs."""
        deadline = time.monotonic() + TIME_LIMIT_SECONDS
        while not condition():
            assert self.process.poll() is None, f"ended with {self.process.returncode} before its time:\n{self.text()}"
            assert time.monotonic() < deadline, f"nothing happened:\n{self.text()}"
            time.sleep(0.05)


def start(launcher: str, *arguments: str, ranks: int | None = None, output: Path, torchrun: Path | None = None) -> Job:
    """Start launch/<launcher>.py, under torchrun (or the program given in its place) where ranks is given."""
    program = [sys.executable]
    if ranks is not None:
        program += [str(torchrun)] if torchrun is not None else ["-m", "torch.distributed.run"]
        program += [f"--nproc_per_node={ranks}", "--monitor-interval=0.2"]
        program += [f"--master-port={free_port()}"]
    command = [*program, str(ROOT / "launch" / f"{launcher}.py"), *arguments]
    environment = os.environ | {"BM3_TEST": str(output)}  # by which `processes_of` knows every process of the job
    with open(output, "wb") as file:
        process = subprocess.Popen(
            command,
            cwd=output.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Job(process, output)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run(launcher: str, *arguments: str, ranks: int | None = None, output: Path) -> str:
    """Run to the end, which must be a good one; returns what it printed."""
    job = start(launcher, *arguments, ranks=ranks, output=output)
    code = job.wait()
    assert code == 0, f"exit code {code}:\n{job.text()}"
    return job.text()


def parameters(run_dir: Path, which: str = "latest") -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, rows joined and put in the order of the dataset."""
    directory = run_dir / "checkpoints" / (run_dir / "checkpoints" / which).read_text(encoding="utf-8")
    shards = [load_file(path) for path in sorted(directory.glob("rows-*.safetensors"))]
    joined = {name: torch.cat([shard[name] for shard in shards]) for name in shards[0]}
    result = load_file(directory / "dense.safetensors")
    for name, rows in joined.items():
        if name.startswith("index."):
            continue
        ntype = "user" if name.split(".")[0].endswith("_user") else "item"
        result[name] = torch.empty_like(rows)
        result[name][joined[f"index.{ntype}"]] = rows
    return result


def summary(run_dir: Path) -> dict:
    return json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))


def processes_of(job: Job) -> dict[int, str]:
    """All processes of a job that still run, servers and guard included: pid -> command line."""
    mark = f"BM3_TEST={job.output}"
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                environment = (entry / "environ").read_bytes().decode(errors="replace")
                zombie = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
            except OSError:
                continue
            if mark in environment.split("\0") and not zombie:
                found[int(entry.name)] = command
    return found


def tag_of(job: Job) -> str:
    """The tag in the names of what a running job keeps in shared memory, out of its guard's orders."""
    command = next(line for line in processes_of(job).values() if "bm3_dgl.runtime.guard" in line)
    return json.loads(command[command.index("{") :])["tag"]


def shared_memory(tag: str) -> set[str]:
    return {name for name in os.listdir("/dev/shm") if tag in name}
