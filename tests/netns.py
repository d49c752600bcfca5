"""Machines of a cluster on one computer: namespaces with an own network, host name, processes and /dev/shm. Needs root.

    with Network(2) as network:                          names machine-0, machine-1; addresses 10.77.0.1, 10.77.0.2
        job = network[1].start(["torchrun", ...], output=path)
        network[1].cut()                                 the cable is pulled: packets vanish without a word
        network[1].kill()                                the power is cut: every process is gone at once

A machine shares the files of this computer, as with a common network drive. Its network reaches the other machines of
its Network and nothing else. All of it goes with the process that made it, however that ends.
"""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

LAUNCHER = Path(__file__).resolve().parent.parent / "launch" / "torchrun.py"
_BRIDGE = "cluster"
_SUBNET = "10.77.0"
# The first process of a machine: it ends with its standard input, and all others of the machine end with it.
_INIT = """
mount -t tmpfs -o size={shm} tmpfs /dev/shm
mount --bind {hosts} /etc/hosts
hostname {name}
echo ready
exec cat
"""


@functools.cache
def why_not() -> str | None:
    """Why machines cannot be made here, in one line; None where they can. Installs iproute2 where it is missing."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None and shutil.which("apt-get") is not None:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "-q", "update"], ["apt-get", "-qy", "install", "--no-install-recommends", "iproute2"]):
            subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=False)
    missing = [tool for tool in ("ip", "unshare", "nsenter", "mount") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not found, and not installed by apt-get"
    trial = subprocess.run(["unshare", "--net", "--mount", "--uts", "--pid", "--fork", "true"], capture_output=True, text=True)
    return f"namespaces are not allowed here ({trial.stderr.strip()})" if trial.returncode else None


@dataclass
class Process:
    """A program that runs on a machine, its standard output and error in a file."""

    popen: subprocess.Popen
    output: Path
    machine: Machine

    def wait(self, seconds: float) -> int:
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.machine.kill()
            raise AssertionError(f"{self.machine.name}: still running after {seconds:.0f} s:\n{self.text()}") from None

    def text(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")


@dataclass
class Machine:
    name: str
    address: str
    init: subprocess.Popen
    pid: int  # of the first process, as this computer counts
    network: Network = field(repr=False)
    processes_started: list[Process] = field(default_factory=list, repr=False)

    def enter(self, command: Sequence[str | Path], *, options: Sequence[str] = ()) -> list[str]:
        """The command line that runs `command` on this machine."""
        return ["nsenter", f"--target={self.pid}", "--all", *options, "--", *map(str, command)]

    def run(self, *command: str | Path) -> str:
        done = subprocess.run(self.enter(command), capture_output=True, text=True)
        assert done.returncode == 0, f"{self.name}: {' '.join(map(str, command))}: {done.stderr}"
        return done.stdout

    def start(
        self, command: Sequence[str | Path], *, output: Path, cwd: Path, environment: Mapping[str, str] | None = None
    ) -> Process:
        with open(output, "ab") as file:
            popen = subprocess.Popen(
                self.enter(command, options=[f"--wdns={cwd}"]),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(os.environ if environment is None else environment),
                start_new_session=True,
            )
        process = Process(popen, output, self)
        self.processes_started.append(process)
        return process

    def processes(self) -> dict[int, str]:
        """What runs on this machine besides its first process: pid as this computer counts -> command line."""
        space = _pid_space(self.pid)
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == self.pid:
                continue
            try:
                if _pid_space(int(entry.name)) != space:
                    continue
                if (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
        return found

    def shared_memory(self) -> set[str]:
        """Names in this machine's /dev/shm."""
        return set(os.listdir(f"/proc/{self.pid}/root/dev/shm")) if self.alive() else set()

    def alive(self) -> bool:
        return self.init.poll() is None

    def sent_bytes(self) -> int:
        """Bytes that have left this machine for others."""
        return int(self.run("cat", "/proc/net/dev").split("eth0:")[1].split()[8])

    def cut(self) -> None:
        self.network.configure("link", "set", f"to-{self.name}"[:15], "nomaster")

    def join(self) -> None:
        """Undo `cut`."""
        self.network.configure("link", "set", f"to-{self.name}"[:15], "master", _BRIDGE)

    def kill(self) -> None:
        """End all of the machine at once, as a power cut does."""
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)
        self.init.wait()


class Network:
    """Machines that reach one another and nothing else."""

    def __init__(self, machines: int | Sequence[str], *, shm: str = "512m", hosts: Mapping[str, str] | None = None) -> None:
        """machines: how many, or their names. hosts: further names of addresses."""
        reason = why_not()
        assert reason is None, reason
        names = [f"machine-{n}" for n in range(machines)] if isinstance(machines, int) else list(machines)
        self.addresses = {name: f"{_SUBNET}.{number + 1}" for number, name in enumerate(names)}
        self._directory = Path(tempfile.mkdtemp(prefix="bm3-network-"))
        self._shm = shm
        self.hosts = self._directory / "hosts"  # every machine's /etc/hosts
        known = {"localhost": "127.0.0.1"} | self.addresses | dict(hosts or {})
        self.hosts.write_text("".join(f"{address} {name}\n" for name, address in known.items()), encoding="utf-8")
        self._switch = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo ready; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        _await_ready(self._switch)
        self.configure("link", "add", _BRIDGE, "type", "bridge")
        self.configure("link", "set", _BRIDGE, "up")
        self.machines = [self._make(name) for name in names]

    def __getitem__(self, number: int) -> Machine:
        return self.machines[number]

    def __enter__(self) -> Network:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for machine in self.machines:
            machine.kill()
            for process in machine.processes_started:
                process.popen.wait()
        self._switch.kill()
        self._switch.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def replace(self, number: int) -> Machine:
        """Boot a machine anew after it was killed: same name and address, empty /dev/shm."""
        old = self.machines[number]
        old.kill()
        self.machines[number] = self._make(old.name)
        return self.machines[number]

    def configure(self, *arguments: str) -> None:
        subprocess.run(["nsenter", f"--target={self._switch.pid}", "--net", "ip", *arguments], check=True)

    def _make(self, name: str) -> Machine:
        script = _INIT.format(shm=self._shm, hosts=self.hosts, name=name)
        command = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        init = subprocess.Popen(
            [*command, "sh", "-ec", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        _await_ready(init)
        pid = int(Path(f"/proc/{init.pid}/task/{init.pid}/children").read_text().split()[0])
        machine = Machine(name, self.addresses[name], init, pid, self)
        port = f"to-{name}"[:15]
        subprocess.run(
            ["nsenter", f"--target={self._switch.pid}", "--net", "ip", "link", "del", port], stderr=subprocess.DEVNULL
        )
        self.configure("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        self.configure("link", "set", port, "master", _BRIDGE, "up")
        machine.run("ip", "link", "set", "lo", "up")
        machine.run("ip", "address", "add", f"{machine.address}/24", "dev", "eth0")
        machine.run("ip", "link", "set", "eth0", "up")
        return machine


def torchrun(
    network: Network, number: int, *, ranks: int, machines: int = 0, port: int = 29500, restarts: int = 0
) -> list[str]:
    """The command that starts machine `number`'s part of a job; what torchrun is to run follows it. machines: 0 for all."""
    return [
        *(sys.executable, str(LAUNCHER)),
        f"--nnodes={machines or len(network.machines)}",
        f"--node_rank={number}",
        f"--nproc_per_node={ranks}",
        f"--master_addr={network[0].name}",
        f"--master_port={port}",
        f"--max-restarts={restarts}",
        "--monitor-interval=0.2",
    ]


def wait_until(condition, seconds: float, what: str) -> float:  # type: ignore[no-untyped-def]
    """Wait until condition() is true and return how long that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + seconds, f"not within {seconds} s: {what}"
        time.sleep(0.05)
    return time.monotonic() - began


def _await_ready(process: subprocess.Popen) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == b"ready\n", f"a namespace could not be set up ({line!r})"


def _pid_space(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/pid")
