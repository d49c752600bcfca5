"""Every variant renders, is what the API server takes, and agrees with itself, the configuration and the program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest

from bm3_dgl.data.prepare import prepare
from bm3_dgl.errors import JobError
from bm3_dgl.graph.partition import ensure_partition
from bm3_dgl.jobs import session
from bm3_dgl.runtime.ranks import Ranks
from tests.k8s.fields import number_of_bytes
from tests.k8s.jobset import as_jobs, check_jobset
from tests.k8s.pod import ROOT, Document
from tests.k8s.rules import Variant, mistakes
from tests.pods import find, render

OVERLAYS = sorted(f"k8s/overlays/{path.name}" for path in (ROOT / "k8s" / "overlays").iterdir())
KUBERNETES = ["1.31", "1.37"]  # the first where all that we use is on by default; the newest that has schemas here


@pytest.mark.parametrize("directory", ["k8s/namespace", "k8s/base", *OVERLAYS])
def test_the_api_server_would_take_it(directory: str) -> None:
    for document in render(directory):
        if document["kind"] == "JobSet":
            check_jobset(document)
        for each in as_jobs(document) if document["kind"] == "JobSet" else [document]:
            for version in KUBERNETES:
                kubernetes_validate.validate(each, version, strict=True)


@pytest.mark.parametrize("directory", OVERLAYS)
def test_the_rules_hold(directory: str) -> None:
    assert mistakes(render(directory)) == []


def test_an_unknown_field_is_refused() -> None:
    job = find(render("k8s/overlays/cpu"), "Job")
    job["spec"]["template"]["spec"]["subDomain"] = "bm3"
    with pytest.raises(kubernetes_validate.ValidationError, match="subDomain"):
        kubernetes_validate.validate(job, KUBERNETES[0], strict=True)
    jobset = find(render("k8s/overlays/jobset"), "JobSet")
    jobset["spec"]["failurePolicy"]["maxRestart"] = 3
    with pytest.raises(AssertionError, match="maxRestart"):
        check_jobset(jobset)


def set_in(kind: str, path: str, value: object) -> Callable[[list[Document]], None]:
    """A change of one field; in a path, ~1 is a slash, and an element of a list is named or counted. None removes the field."""

    def key(place: Any, word: str) -> Any:
        if not isinstance(place, list):
            return word.replace("~1", "/")
        return int(word) if word.isdigit() else [element["name"] for element in place].index(word)

    def change(documents: list[Document]) -> None:
        place: Any = find(documents, kind)
        *parents, last = path.split("/")
        for word in parents:
            place = place[key(place, word)]
        if value is None:
            del place[key(place, last)]
        else:
            place[key(place, last)] = value

    return change


def in_config(old: str, new: str) -> Callable[[list[Document]], None]:
    def change(documents: list[Document]) -> None:
        data = find(documents, "ConfigMap")["data"]
        assert old in data["job.yaml"]
        data["job.yaml"] = data["job.yaml"].replace(old, new)

    return change


POD, CONTAINER = "spec/template/spec", "spec/template/spec/containers/bm3"
BROKEN = {
    "a setting that is none": (in_config("epochs:", "epoch:"), "unknown key train.epoch"),
    "another file is read": (set_in("Job", f"{CONTAINER}/args/7", "/etc/bm3/other.yaml"), "the ConfigMap has only job.yaml"),
    "nothing is mounted": (
        set_in("Job", f"{CONTAINER}/volumeMounts/config/mountPath", "/etc/bm4"),
        "no ConfigMap is mounted there",
    ),
    "a setting in the manifest": (set_in("Job", f"{CONTAINER}/args/8", "train.epochs=3"), "settings belong into job.yaml"),
    "data elsewhere": (in_config("/data/shop", "/tmp/shop"), "is not on the claim data"),
    "runs elsewhere": (in_config("/runs/shop", "/data/runs"), "is not on the claim runs"),
    "fewer parts": (in_config("parts: 2", "parts: 1"), "partition.parts=1 and MACHINES=2"),
    "fewer pods at once": (set_in("Job", "spec/parallelism", 1), "must run at once"),
    "more pods": (set_in("Job", "spec/completions", 3), "completions=3 and MACHINES=2"),
    "odd tries": (set_in("Job", "spec/backoffLimit", 5), "no multiple of 2 pods"),
    "every pod is machine 0": (set_in("Job", f"{CONTAINER}/args/1", "--node_rank=1"), "not JOB_COMPLETION_INDEX"),
    "another Service": (set_in("Service", "metadata/name", "bm4"), "there is no Service of that name"),
    "a Service with an address": (set_in("Service", "spec/clusterIP", None), "must be headless"),
    "a Service for others": (set_in("Service", "spec/selector/app.kubernetes.io~1name", "x"), "does not select"),
    "another master": (set_in("Job", f"{CONTAINER}/env/MASTER/value", "bm3-1.bm3"), "but pod 0 is bm3-0.bm3"),
    "peers in another order": (in_config("bm3-0.bm3, bm3-1.bm3", "bm3-1.bm3, bm3-0.bm3"), "but the pods are"),
    "too much shared memory": (set_in("Job", f"{POD}/volumes/shm/emptyDir/sizeLimit", "3Gi"), "leaves too little"),
    "shared memory on disk": (set_in("Job", f"{POD}/volumes/shm/emptyDir/medium", None), "is no memory-backed emptyDir"),
    "another claim": (set_in("Job", f"{POD}/volumes/data/persistentVolumeClaim/claimName", "x"), "is not on the claim data"),
    "an old ConfigMap": (set_in("ConfigMap", "metadata/name", "bm3-config-old"), "0 documents ConfigMap"),
    "a volume for nobody": (set_in("Job", f"{CONTAINER}/volumeMounts/tmp/name", "shm"), "mounted are"),
    "data can be written": (set_in("Job", f"{CONTAINER}/volumeMounts/data/readOnly", False), "must not write"),
    "root": (set_in("Job", f"{POD}/securityContext/runAsUser", 0), "runs as root"),
    "a token": (set_in("Job", f"{POD}/automountServiceAccountToken", None), "service-account token"),
    "a writable root": (set_in("Job", f"{CONTAINER}/securityContext/readOnlyRootFilesystem", False), "securityContext is not"),
    "a path of the node": (set_in("Job", f"{POD}/volumes/tmp", {"name": "tmp", "hostPath": {"path": "/"}}), "not allowed"),
    "no limit": (set_in("Job", f"{CONTAINER}/resources/limits/memory", None), "limits of cpu"),
    "disk without end": (set_in("Job", f"{POD}/volumes/tmp/emptyDir/sizeLimit", "9Gi"), "may take more"),
    "GPUs for nobody": (set_in("Job", f"{CONTAINER}/resources/limits/nvidia.com~1gpu", 2), "nvidia.com/gpu=2"),
    "mistakes are tried again": (set_in("Job", "spec/podFailurePolicy/rules/0/onExitCodes/values", [3, 6]), "another try"),
    "lost peers are not": (set_in("Job", "spec/podFailurePolicy/rules/0/onExitCodes/values", [2, 3, 5, 6]), "another try"),
    "a farewell counts": (set_in("Job", "spec/podFailurePolicy/rules/1/action", "Count"), "was asked to end"),
    "drained nodes count": (set_in("Job", "spec/podFailurePolicy/rules/2/action", "Count"), "disruptions are not ignored"),
    "never deleted": (set_in("Job", "spec/ttlSecondsAfterFinished", None), "ttlSecondsAfterFinished is missing"),
    "no end": (set_in("Job", "spec/activeDeadlineSeconds", None), "activeDeadlineSeconds is missing"),
    "a short farewell": (set_in("Job", f"{POD}/terminationGracePeriodSeconds", 10), "terminationGracePeriodSeconds"),
    "a foreign label": (set_in("Job", "spec/template/metadata/labels/app.kubernetes.io~1name", "x"), "no NetworkPolicy"),
    "no trainer": (set_in("Job", "spec/template/metadata/labels/app.kubernetes.io~1component", "x"), "let these pods talk: []"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_the_rules_can_fail(what: str) -> None:
    change, expected = BROKEN[what]
    documents = render("k8s/overlays/cpu")
    change(documents)
    found = mistakes(documents)
    assert any(expected in mistake for mistake in found), found


def test_the_rule_of_the_own_part_can_fail() -> None:
    documents = render("k8s/overlays/cpu-own-part")
    container = find(documents, "Job")["spec"]["template"]["spec"]["initContainers"][0]
    container["env"][0]["value"] = "/data/shop/parts/random-2"
    assert "PARTS=/data/shop/parts/random-2" in mistakes(documents)[0]


@pytest.mark.parametrize("directory", ["k8s/overlays/cpu", "k8s/overlays/gpu", "k8s/overlays/jobset"])
def test_the_shop_fits_shared_memory(directory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the program's own check, with half of sizeLimit: the other half is for the graph, NCCL, and a larger shop."""
    variant = Variant(render(directory))
    config, found = variant.config, variant.volume_at("/dev/shm")
    assert config is not None and found is not None
    config.data.dir = str(tmp_path / "data")
    partition = ensure_partition(config, prepare(config))
    space = SimpleNamespace(free=number_of_bytes(found[1]["emptyDir"]["sizeLimit"]) // 2)
    monkeypatch.setattr(session.shutil, "disk_usage", lambda path: space)
    machines = [Ranks(machine=part, num_machines=partition.num_parts) for part in range(partition.num_parts)]
    for machine in machines:
        session.check_shared_memory(config, partition, machine)
    space.free = 1 << 20
    with pytest.raises(JobError, match="/dev/shm"):
        session.check_shared_memory(config, partition, machines[0])
