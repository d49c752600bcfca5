"""One pod: processes on a machine of tests/netns.py. Its containers run one after another; tests/pods.py is the rest."""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.k8s.dockerfile import ROOT, environment
from tests.netns import Machine, Process

APP, VENV = "/app", "/opt/venv"  # where the image has the repository and its packages
IMAGE_ENVIRONMENT = environment() | {"PYTHONPATH": APP}  # the Dockerfile's; the path stands for the package's installation

Document = dict[str, Any]

# Runs a command as number 1 of a new process space, in a mount space of its own, and ends with the exit code that the kubelet
# would report. (unshare of util-linux 2.38 makes 1 of a death by SIGKILL.)
_LAUNCH = """
import ctypes, os, sys
NEW_MOUNTS, NEW_PROCESSES = 0x20000, 0x20000000
assert ctypes.CDLL(None).unshare(NEW_MOUNTS | NEW_PROCESSES) == 0
child = os.fork()
if child == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
os._exit(code if code >= 0 else 128 - code)
"""
# What that command does first. Arguments: an empty directory for the root; pairs of what to bind there (ro:SOURCE or
# rw:SOURCE) and where; --; the container's command.
_CONTAINER = """
mount --make-rprivate /
root=$1; shift
mount -t tmpfs -o mode=755 tmpfs "$root"
cd "$root"
mkdir etc dev proc sys
for directory in bin sbin lib lib64; do ln -s "usr/$directory" "$directory"; done
for file in ld.so.cache nsswitch.conf localtime alternatives; do [ ! -e "/etc/$file" ] || cp -a "/etc/$file" etc; done
echo "bm3:x:$UID_GID::/tmp:/usr/sbin/nologin" > etc/passwd
for device in null zero full random urandom; do touch "dev/$device"; mount --bind "/dev/$device" "dev/$device"; done
ln -s /proc/self/fd dev/fd
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
while [ "$1" != -- ]; do
  if [ -d "${1#???}" ]; then mkdir -p "./$2"; else touch "./$2"; fi
  mount --bind "${1#???}" "./$2"
  case $1 in ro:*) mount -o remount,bind,ro "./$2";; esac
  shift 2
done
shift
mount -o remount,ro "$root"
exec env --unset=UID_GID chroot "$root" "$@"
"""


def environment_of(container: Document, index: int) -> dict[str, str]:
    """The variables of a container, with the one that the Job controller adds to those of an indexed Job."""
    environment: dict[str, str] = {}
    for entry in [*container.get("env", []), {"name": "JOB_COMPLETION_INDEX", "value": str(index)}]:
        environment[entry["name"]] = expand(entry["value"], environment)
    return environment


def expand(text: str, environment: Mapping[str, str]) -> str:
    """$(VAR) as the kubelet replaces it: an unknown one stays as it is."""
    return re.sub(r"\$\((\w+)\)", lambda match: environment.get(match[1], match[0]), text)


def command_of(container: Document, index: int) -> list[str]:
    environment = environment_of(container, index)
    return [expand(word, environment) for word in [*container["command"], *container.get("args", [])]]


@dataclass
class Pod:
    """One try at one index of a Job. Its containers run one after another; `poll` moves it on."""

    name: str
    host: str
    index: int
    spec: Document
    machine: Machine
    directory: Path  # volumes, roots, /etc/hosts
    volumes: dict[str, Path]
    log: Path
    exit_code: int | None = None
    last_container: str = ""
    disrupted: bool = False
    _process: Process | None = field(default=None, repr=False)
    _kill_at: float | None = None

    def __post_init__(self) -> None:
        self._waiting = [*self.spec.get("initContainers", []), *self.spec["containers"]]
        assert len(self.spec["containers"]) == 1, f"{self.name}: pods with several containers are not known here"

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def poll(self) -> bool:
        """Start the next container when one has ended well; whether the pod has ended."""
        if self.exit_code is not None:
            return True
        code = self._process.popen.poll() if self._process is not None else 0
        if code is None:
            if self._kill_at is not None and time.monotonic() > self._kill_at:
                self._kill_at = math.inf
                self.kill()
            return False
        if code == 0 and self._waiting:
            self._start(self._waiting.pop(0))
            return False
        self.exit_code = code
        self.machine.kill()
        shutil.rmtree(self.directory, ignore_errors=True)
        return True

    def kill(self) -> None:
        """The container's first process dies, and with it all others of the container."""
        self._signal(signal.SIGKILL)

    def delete(self, *, disruption: bool = False) -> None:
        """SIGTERM now, SIGKILL after the grace period. disruption: the pod is evicted, preempted or its node drained."""
        if self.exit_code is None and self._kill_at is None:
            self.disrupted |= disruption
            self._waiting.clear()
            self._kill_at = time.monotonic() + self.spec.get("terminationGracePeriodSeconds", 30)
            self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.kill(self._first_process(), number)
        except (FileNotFoundError, ProcessLookupError):
            pass  # it has just ended

    def _first_process(self) -> int:
        """Number 1 of the running container, as this computer counts: the child of nsenter's child."""
        assert self._process is not None and self.exit_code is None, f"{self.name}: no container runs"
        pid = self._process.popen.pid
        deadline = time.monotonic() + 5
        while not Path(f"/proc/{pid}/status").read_text().split("NSpid:")[1].splitlines()[0].endswith("\t1"):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            pid = int(children[0]) if children else pid
            if self._process.popen.poll() is not None:
                raise ProcessLookupError
            assert time.monotonic() < deadline, f"{self.name}: the container's first process is not to be found"
        return pid

    def _start(self, container: Document) -> None:
        self.last_container = container["name"]
        security = self.spec["securityContext"]
        user, group, fs_group = (security[name] for name in ("runAsUser", "runAsGroup", "fsGroup"))
        binds = [
            ("ro:/usr", "/usr"),
            (f"ro:{sys.prefix}", VENV),
            (f"ro:{ROOT}", APP),
            (f"ro:{self.directory}/hosts", "/etc/hosts"),
        ]
        if not Path(sys.base_prefix).is_relative_to("/usr"):
            binds.append((f"ro:{sys.base_prefix}", sys.base_prefix))
        for mount in sorted(container["volumeMounts"], key=lambda mount: mount["mountPath"]):
            binds.append((f"{'ro' if mount.get('readOnly') else 'rw'}:{self.volumes[mount['name']]}", mount["mountPath"]))
        root = Path(tempfile.mkdtemp(prefix="root-", dir=self.directory))
        command = [sys.executable, "-I", "-S", "-c", _LAUNCH, "sh", "-euc", _CONTAINER, "sh", str(root)]
        command += [word for bind in binds for word in bind]
        command += ["--", "env", f"--chdir={container['workingDir']}", "setpriv", f"--reuid={user}", f"--regid={group}"]
        command += [f"--groups={fs_group}", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        command += command_of(container, self.index)
        environment = IMAGE_ENVIRONMENT | environment_of(container, self.index) | {"UID_GID": f"{user}:{group}"}
        self._process = self.machine.start(command, output=self.log, cwd=Path("/"), environment=environment)
