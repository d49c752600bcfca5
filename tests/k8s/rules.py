"""What must agree between the documents of a rendering, with the configuration and with the program; no schema knows it.

    python -m tests.k8s.rules k8s/overlays/mine       the mistakes of an own overlay

Every rule yields its mistakes, one line each.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from bm3_dgl.config import JobConfig, load_config
from bm3_dgl.errors import ConfigError, DataError, DivergedError, Terminated, UserError
from tests.k8s.fields import number_of_bytes
from tests.k8s.jobset import as_jobs
from tests.k8s.pod import Document, command_of, environment_of
from tests.pods import find, render

Mistakes = Iterator[str]
_NOT_SETTINGS = {"train.resume=true", "debug=true", "partition.dir=/part"}  # what a command may say besides the file
_BYTES_PER_PROCESS = 600 << 20  # measured: a trainer; torchrun and the graph server together


@dataclass
class Variant:
    """One overlay's rendering. A JobSet is taken for what its controller makes of it."""

    documents: Sequence[Document]

    @cached_property
    def expanded(self) -> list[Document]:
        jobsets = [d for d in self.documents if d["kind"] == "JobSet"]
        return [d for d in self.documents if d["kind"] != "JobSet"] + [made for jobset in jobsets for made in as_jobs(jobset)]

    @cached_property
    def job(self) -> Document:
        return find(self.expanded, "Job")

    @property
    def pod(self) -> Document:
        return self.job["spec"]["template"]["spec"]

    @property
    def container(self) -> Document:
        return self.pod["containers"][0]

    @property
    def containers(self) -> list[Document]:
        return [*self.pod.get("initContainers", []), *self.pod["containers"]]

    @cached_property
    def command(self) -> list[str]:
        return command_of(self.container, 0)

    @property
    def labels(self) -> Mapping[str, str]:
        return self.job["spec"]["template"]["metadata"]["labels"]

    def option(self, name: str) -> str | None:
        """The value of --name=value in the command."""
        return next((word.split("=", 1)[1] for word in self.command if word.startswith(f"--{name}=")), None)

    def volume_at(self, path: str) -> tuple[Document, Document] | None:
        """The mount of the container that a path lies in, and its volume."""
        volumes = {volume["name"]: volume for volume in self.pod["volumes"]}
        for mount in sorted(self.container["volumeMounts"], key=lambda mount: -len(mount["mountPath"])):
            if PurePosixPath(path).is_relative_to(mount["mountPath"]) and mount["name"] in volumes:
                return mount, volumes[mount["name"]]
        return None

    @cached_property
    def config(self) -> JobConfig | None:
        """What the container's command reads; None where it reads none."""
        if "--config" not in self.command:
            return None
        path = PurePosixPath(self.command[self.command.index("--config") + 1])
        found = self.volume_at(str(path))
        assert found is not None and "configMap" in found[1], f"{path}: no ConfigMap is mounted there"
        data = find(self.documents, "ConfigMap", found[1]["configMap"]["name"])["data"]
        assert path.name in data, f"{path}: the ConfigMap has only {', '.join(data)}"
        with TemporaryDirectory() as directory:
            file = Path(directory) / path.name
            file.write_text(data[path.name], encoding="utf-8")
            return load_config(str(file), [word for word in self.command if "=" in word and not word.startswith("-")])


@cache
def namespace() -> list[Document]:
    return render("k8s/namespace")


def config_mounted_is_config_read(variant: Variant) -> Mistakes:
    try:
        config = variant.config
    except (AssertionError, UserError) as error:
        yield str(error)
        return
    settings = {word for word in variant.command if "=" in word and not word.startswith("-")}
    if settings - _NOT_SETTINGS:
        yield f"settings belong into job.yaml, not into the command: {', '.join(sorted(settings - _NOT_SETTINGS))}"
    if config is None:
        return
    for key, path, claim in (("data.dir", config.data.dir, "data"), ("run.dir", config.run.dir, "runs")):
        found = variant.volume_at(path)
        if found is None or found[1].get("persistentVolumeClaim", {}).get("claimName") != claim:
            yield f"{key}={path}: is not on the claim {claim}"
        elif claim == "runs" and found[0].get("readOnly"):
            yield f"{key}={path}: is mounted read-only"


def pods_are_parts(variant: Variant) -> Mistakes:
    spec, parts = variant.job["spec"], variant.option("nnodes")
    if spec["completions"] != spec["parallelism"]:
        yield f"completions={spec['completions']} and parallelism={spec['parallelism']}: all pods must run at once"
    if parts is None:  # one process without torchrun
        if spec["completions"] != 1:
            yield f"completions={spec['completions']} of a job that runs in one process"
        return
    if spec["completions"] != int(parts):
        yield f"completions={spec['completions']} and MACHINES={parts}"
    if variant.config is not None and variant.config.partition.parts != int(parts):
        yield f"partition.parts={variant.config.partition.parts} and MACHINES={parts}"
    if variant.option("node_rank") != "0":
        yield "--node_rank is not JOB_COMPLETION_INDEX"
    if spec["backoffLimit"] % int(parts):
        yield f"backoffLimit={spec['backoffLimit']} is no multiple of {parts} pods, which fail together"


def pods_have_names(variant: Variant) -> Mistakes:
    subdomain, parts = variant.pod.get("subdomain"), variant.option("nnodes")
    if parts is None:
        return
    services = [d for d in variant.expanded if d["kind"] == "Service" and d["metadata"]["name"] == subdomain]
    if not services:
        yield f"subdomain={subdomain}: there is no Service of that name"
        return
    service = services[0]["spec"]
    if service.get("clusterIP") != "None" or not service.get("publishNotReadyAddresses"):
        yield "the Service must be headless and publish the addresses of pods that are not ready"
    if not service["selector"].items() <= variant.labels.items():
        yield "the Service does not select the Job's pods"
    names = [f"{variant.job['metadata']['name']}-{index}.{subdomain}" for index in range(int(parts))]
    if variant.option("master_addr") != names[0]:
        yield f"--master_addr={variant.option('master_addr')}, but pod 0 is {names[0]}"
    if variant.config is not None and variant.config.cluster.peers != names:
        yield f"cluster.peers={variant.config.cluster.peers}, but the pods are {names}"


def shared_memory_fits(variant: Variant) -> Mistakes:
    found = variant.volume_at("/dev/shm")
    if found is None or found[1].get("emptyDir", {}).get("medium") != "Memory" or "sizeLimit" not in found[1]["emptyDir"]:
        yield "/dev/shm: is no memory-backed emptyDir with a sizeLimit"
        return
    size, limit = found[1]["emptyDir"]["sizeLimit"], variant.container["resources"]["limits"].get("memory", "0")
    processes = int(variant.option("nproc_per_node") or 1) + 1
    if number_of_bytes(size) + processes * _BYTES_PER_PROCESS > number_of_bytes(limit):
        yield f"/dev/shm may fill {size} of the memory limit {limit}, which leaves too little for the processes"


def volumes_are_there(variant: Variant) -> Mistakes:
    names = [volume["name"] for volume in variant.pod["volumes"]]
    used = {mount["name"] for container in variant.containers for mount in container["volumeMounts"]}
    if used != set(names) or len(set(names)) != len(names):
        yield f"volumes {sorted(names)}, mounted are {sorted(used)}"
    claims = {d["metadata"]["name"]: d for d in namespace() if d["kind"] == "PersistentVolumeClaim"}
    for volume in variant.pod["volumes"]:
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim is not None and claims.get(claim, {}).get("spec", {}).get("accessModes") != ["ReadWriteMany"]:
            yield f"the claim {claim} is not in k8s/namespace, or pods on several nodes cannot share it"
        name = volume.get("configMap", {}).get("name")
        if name is not None and name not in [d["metadata"]["name"] for d in variant.documents if d["kind"] == "ConfigMap"]:
            yield f"the ConfigMap {name} is not rendered"
    if (
        variant.option("nnodes")
        and not next(m for m in variant.container["volumeMounts"] if m["mountPath"] == "/data")["readOnly"]
    ):
        yield "/data: trainers must not write there"


def pods_are_restricted(variant: Variant) -> Mistakes:
    """Pod Security Standard "restricted", and a root file system that cannot be written to."""
    security = variant.pod["securityContext"]
    if not security.get("runAsNonRoot") or security.get("runAsUser", 0) == 0 or security.get("runAsGroup", 0) == 0:
        yield "the pod runs as root"
    if security.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "seccompProfile is not RuntimeDefault"
    if variant.pod.get("automountServiceAccountToken", True):
        yield "the pod gets a service-account token"
    if any(variant.pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        yield "the pod uses a namespace of its node"
    for volume in variant.pod["volumes"]:
        if not volume.keys() <= {"name", "configMap", "emptyDir", "persistentVolumeClaim"}:
            yield f"volume {volume['name']}: this kind is not allowed"
    wanted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    for container in variant.containers:
        if container.get("securityContext") != wanted:
            yield f"container {container['name']}: securityContext is not {wanted}"


def resources_are_limited(variant: Variant) -> Mistakes:
    for container in variant.containers:
        resources = container.get("resources", {})
        if not {"cpu", "memory", "ephemeral-storage"} <= resources.get("limits", {}).keys():
            yield f"container {container['name']}: limits of cpu, memory and ephemeral-storage are needed"
        elif resources.get("requests") != resources["limits"]:
            yield f"container {container['name']}: requests are not the limits"
    disk = [v["emptyDir"] for v in variant.pod["volumes"] if "emptyDir" in v and "medium" not in v["emptyDir"]]
    if not all("sizeLimit" in volume for volume in disk):
        yield "an emptyDir has no sizeLimit"
    elif sum(number_of_bytes(volume["sizeLimit"]) for volume in disk) > min(
        number_of_bytes(container["resources"]["limits"].get("ephemeral-storage", "0")) for container in variant.containers
    ):
        yield "the emptyDirs may take more than the limit of ephemeral-storage"
    gpus = variant.container["resources"]["limits"].get("nvidia.com/gpu", 0)
    cuda = variant.config is not None and variant.config.train.device == "cuda"
    if int(gpus) != (int(variant.option("nproc_per_node") or 1) if cuda else 0):
        yield f"nvidia.com/gpu={gpus} for {variant.option('nproc_per_node')} processes, train.device=cuda is {cuda}"


def failures_are_judged(variant: Variant) -> Mistakes:
    rules = variant.job["spec"]["podFailurePolicy"]["rules"]
    final = {error.exit_code for error in (ConfigError, DataError, DivergedError)}
    by_code = {code: rule["action"] for rule in reversed(rules) for code in rule.get("onExitCodes", {}).get("values", [])}
    if {code for code, action in by_code.items() if action == "FailJob"} != final:
        yield f"exit codes {by_code}: another try cannot mend {sorted(final)} and may mend others"
    if by_code.get(Terminated.exit_code) != "Ignore":
        yield "a pod that was asked to end, and did so, counts as a failure"
    disruption = [{"type": "DisruptionTarget", "status": "True"}]
    if not any(rule["action"] == "Ignore" and rule.get("onPodConditions") == disruption for rule in rules):
        yield "disruptions are not ignored"
    if variant.pod["restartPolicy"] != "Never":
        yield "podFailurePolicy needs restartPolicy: Never"


def jobs_end(variant: Variant) -> Mistakes:
    owner = next((d for d in variant.documents if d["kind"] == "JobSet"), variant.job)
    if "ttlSecondsAfterFinished" not in owner["spec"]:
        yield "ttlSecondsAfterFinished is missing"
    if "activeDeadlineSeconds" not in variant.job["spec"]:
        yield "activeDeadlineSeconds is missing"
    if variant.pod.get("terminationGracePeriodSeconds", 30) < 60:
        yield "terminationGracePeriodSeconds: saving a checkpoint at SIGTERM may take 60 s"


def only_trainers_talk(variant: Variant) -> Mistakes:
    policies = [d for d in namespace() if d["kind"] == "NetworkPolicy"]
    covering = [p for p in policies if p["spec"]["podSelector"]["matchLabels"].items() <= variant.labels.items()]
    if not any(sorted(p["spec"]["policyTypes"]) == ["Egress", "Ingress"] and "ingress" not in p["spec"] for p in covering):
        yield "no NetworkPolicy shuts the pods off"
    talking = [p for p in covering if "ingress" in p["spec"]]
    if bool(talking) != (variant.option("nnodes") is not None):
        yield f"NetworkPolicies that let these pods talk: {[p['metadata']['name'] for p in talking]}"
    for policy in talking:
        own = {"podSelector": policy["spec"]["podSelector"]}
        if policy["spec"]["ingress"] != [{"from": [own]}] or {"to": [own]} not in policy["spec"]["egress"]:
            yield f"{policy['metadata']['name']}: others than the job's pods are let in"


def own_part_is_the_config_s(variant: Variant) -> Mistakes:
    for container in variant.pod.get("initContainers", []):
        from bm3_dgl.graph.partition import partition_directory

        config = load_config(None, [])
        assert variant.config is not None
        config.data.dir, config.partition.parts = variant.config.data.dir, variant.config.partition.parts
        config.partition.method = variant.config.partition.method
        parts = environment_of(container, 0).get("PARTS")
        if parts != str(partition_directory(config)):
            yield f"PARTS={parts}, but the settings put the partition at {partition_directory(config)}"
        if variant.config.partition.dir not in {mount["mountPath"] for mount in container["volumeMounts"]}:
            yield f"partition.dir={variant.config.partition.dir}: the init container copies elsewhere"


RULES: list[Callable[[Variant], Mistakes]] = [
    config_mounted_is_config_read,
    pods_are_parts,
    pods_have_names,
    shared_memory_fits,
    volumes_are_there,
    pods_are_restricted,
    resources_are_limited,
    failures_are_judged,
    jobs_end,
    only_trainers_talk,
    own_part_is_the_config_s,
]


def mistakes(documents: Sequence[Document]) -> list[str]:
    """Everything that is wrong with a rendering; the first rule's mistakes alone where the configuration cannot be read."""
    found: list[str] = []
    for rule in RULES:
        found += [f"{rule.__name__}: {mistake}" for mistake in rule(Variant(documents))]
        if found and rule is config_mounted_is_config_read:
            break
    return found


if __name__ == "__main__":
    found = mistakes(render(sys.argv[1]))
    print("\n".join(found) or f"{sys.argv[1]}: all rules hold")
    sys.exit(bool(found))
