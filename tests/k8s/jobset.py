"""JobSet, of which no JSON schema is at hand: the fields of its API as we use it, and what its controller makes of one.

Written from api/jobset/v1alpha2/jobset_types.go of kubernetes-sigs/jobset (fields, enumerations, the rule for names of
rules; unknown fields are refused there too) and from its concepts page (names of Jobs and pods, the Service).
"""

from __future__ import annotations

import copy
import re

from tests.k8s.fields import ANY, check_fields
from tests.k8s.pod import Document

_ACTIONS = ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts", "RestartJob", "RestartJobAndIgnoreMaxRestarts")
_REASONS = ("BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy")
_JOBSET = {
    "apiVersion": ("jobset.x-k8s.io/v1alpha2",),
    "kind": ("JobSet",),
    "metadata": {"name": ANY, "namespace": ANY, "labels": ANY, "annotations": ANY},
    "spec": {
        "replicatedJobs": {
            "name": ANY,
            "groupName": ANY,
            "replicas": ANY,
            "dependsOn": {"name": ANY, "status": ("Ready", "Complete")},
            "template": {"metadata": ANY, "spec": ANY},  # a Job's: checked as a Job
        },
        "network": {"enableDNSHostnames": (True, False), "subdomain": ANY, "publishNotReadyAddresses": (True, False)},
        "successPolicy": {"operator": ("All", "Any"), "targetReplicatedJobs": ANY},
        "failurePolicy": {
            "maxRestarts": ANY,
            "restartStrategy": ("Recreate", "BlockingRecreate", "InPlaceRestart"),
            "rules": {
                "name": ANY,
                "action": _ACTIONS,
                "onJobFailureReasons": ANY,
                "onJobFailureMessagePatterns": ANY,
                "targetReplicatedJobs": ANY,
            },
        },
        "startupPolicy": {"startupPolicyOrder": ("AnyOrder", "InOrder")},
        "suspend": (True, False),
        "coordinator": {"replicatedJob": ANY, "jobIndex": ANY, "podIndex": ANY},
        "managedBy": ANY,
        "ttlSecondsAfterFinished": ANY,
    },
}


def check_jobset(document: Document) -> None:
    """Assert that the API server would take it, as far as its own fields go."""
    check_fields(document, _JOBSET, "JobSet")
    spec = document["spec"]
    names = [job["name"] for job in spec["replicatedJobs"]]
    assert len(set(names)) == len(names) > 0, "replicatedJobs: each needs a name of its own"
    policy = spec.get("failurePolicy", {})
    assert isinstance(policy.get("maxRestarts", 0), int) and policy.get("maxRestarts", 0) >= 0, "maxRestarts: a number"
    for rule in policy.get("rules", []):
        assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"]), f"{rule['name']}: no name for a rule"
        assert set(rule.get("onJobFailureReasons", [])) <= set(_REASONS), f"{rule['name']}: unknown reason"
        assert set(rule.get("targetReplicatedJobs", [])) <= set(names), f"{rule['name']}: unknown replicated job"


def as_jobs(document: Document) -> list[Document]:
    """The headless Service and the Jobs that the controller makes of a JobSet."""
    name, network = document["metadata"]["name"], document["spec"]["network"]
    subdomain = network.get("subdomain", name)
    metadata = {key: document["metadata"][key] for key in ("namespace",) if key in document["metadata"]}
    made: list[Document] = []
    if network.get("enableDNSHostnames", True):
        service = {"clusterIP": "None", "publishNotReadyAddresses": network.get("publishNotReadyAddresses", True)}
        service["selector"] = {"jobset.sigs.k8s.io/jobset-name": name}
        made.append({"apiVersion": "v1", "kind": "Service", "metadata": {"name": subdomain} | metadata, "spec": service})
    for replicated in document["spec"]["replicatedJobs"]:
        for number in range(replicated.get("replicas", 1)):
            spec = copy.deepcopy(replicated["template"]["spec"])
            spec.setdefault("completionMode", "Indexed")
            spec["template"]["spec"]["subdomain"] = subdomain
            labels = spec["template"].setdefault("metadata", {}).setdefault("labels", {})
            labels["jobset.sigs.k8s.io/jobset-name"] = name
            job = {"name": f"{name}-{replicated['name']}-{number}", "labels": labels} | metadata
            made.append({"apiVersion": "batch/v1", "kind": "Job", "metadata": job, "spec": spec})
    return made
