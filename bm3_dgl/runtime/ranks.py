"""Who am I: this process's place in the job. Nothing below `runtime/` reads the environment."""

from __future__ import annotations

import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from bm3_dgl.errors import JobError

_STARTER = "BM3_STARTER"  # process that the job is to end with
_CORES = "BM3_CORES"  # cores that who started this job leaves to it, beside other jobs on the machine
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # cgroup v2: quota and period in microseconds, or "max"


@dataclass(frozen=True)
class Ranks:
    """One process of the job. Ranks count on machine by machine: rank = first rank of the machine + local_rank."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    machine: int = 0
    num_machines: int = 1

    @property
    def leads(self) -> bool:
        """Rank 0 of the job: it prepares, evaluates, writes."""
        return self.rank == 0

    @property
    def leads_machine(self) -> bool:
        """Local rank 0: it starts this machine's graph servers."""
        return self.local_rank == 0


def launched_by_torchrun() -> bool:
    return "LOCAL_RANK" in os.environ and "RANK" in os.environ


def ranks_from_environment() -> Ranks:
    """Read what torchrun set. Raises JobError where it is missing or contradicts itself."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise JobError(f"environment: {', '.join(missing)} not set; start with torchrun, or use debug=true for one process")
    rank, world, local, local_world, machine, machines = (int(os.environ[name]) for name in names)
    if rank != machine * local_world + local or world != machines * local_world:
        raise JobError(
            f"environment: rank {rank} of {world} is not local rank {local} of {local_world} on machine {machine} of"
            f" {machines}; give every machine the same --nproc_per_node and its own static --node_rank"
        )
    return Ranks(rank, world, local, local_world, machine, machines)


def threads_per_rank(ranks: Ranks) -> int:
    """Cores of this machine that one rank may use, at least one."""
    return max(1, cores() // ranks.local_world_size)


def cores() -> int:
    """Cores that this job may use: those it may run on, within its container's quota and what its starter leaves to it."""
    granted = os.environ.get(_CORES, "")
    return max(1, min(len(os.sched_getaffinity(0)), _quota(), int(granted) if granted.isdecimal() else sys.maxsize))


def job_environment(cores: int) -> dict[str, str]:
    """This process's environment for a job that it starts, which is to use so many cores and to end with this process."""
    return os.environ | {_CORES: str(cores), "OMP_NUM_THREADS": str(cores), _STARTER: str(os.getpid())}


def starter_id() -> int | None:
    """The process that this job is to end with; asked once, and not known to the job's own children."""
    starter = os.environ.pop(_STARTER, "")
    return int(starter) if starter.isdecimal() else None


def _quota() -> int:
    """Whole cores that the control group grants; a large number where it sets no limit."""
    try:
        quota, period = _CPU_MAX.read_text(encoding="utf-8").split()
    except (OSError, ValueError):
        return sys.maxsize
    return sys.maxsize if quota == "max" else max(1, int(quota) // int(period))


def launcher_id() -> str:
    """Names the program that started this process: the same for every restart by one torchrun."""
    launcher = os.getppid() or os.getpid()  # the first process of a container has no parent
    # Its start tells one process 1 of a container from the next.
    started = Path(f"/proc/{launcher}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()[19]
    return f"{socket.gethostname()} {launcher} {started}"


def restart_count() -> int:
    """How often torchrun has restarted the job's processes; part of every rendezvous key."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
