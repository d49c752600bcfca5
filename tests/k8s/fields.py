"""The fields of a manifest that tests/pods.py knows: what it does, and what has no meaning on one computer. It refuses others.

A shape is a mapping of field -> shape, which holds for each element where the field is a list; or a tuple of the values
that are known; or ANY.
"""

from __future__ import annotations

from typing import Any

ANY = object()

_METADATA = {"name": ANY, "namespace": ANY, "labels": ANY}
_SECURITY = ({"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},)
_CONTAINER = {
    "name": ANY,
    "image": ANY,
    "workingDir": ANY,
    "command": ANY,
    "args": ANY,
    "env": {"name": ANY, "value": ANY},
    "securityContext": _SECURITY,
    "resources": ANY,  # not enforced
    "volumeMounts": {"name": ANY, "mountPath": ANY, "readOnly": ANY},
}
_POD = {
    "subdomain": ANY,
    "restartPolicy": ("Never",),
    "terminationGracePeriodSeconds": ANY,
    "automountServiceAccountToken": (False,),
    "enableServiceLinks": (False,),
    "topologySpreadConstraints": ANY,  # scheduling
    "tolerations": ANY,
    "securityContext": {
        "runAsNonRoot": (True,),
        "runAsUser": ANY,
        "runAsGroup": ANY,
        "fsGroup": ANY,
        "fsGroupChangePolicy": ("OnRootMismatch",),
        "seccompProfile": ANY,  # not done
    },
    "initContainers": _CONTAINER,
    "containers": _CONTAINER,
    "volumes": {
        "name": ANY,
        "configMap": {"name": ANY},
        "persistentVolumeClaim": {"claimName": ANY},
        "emptyDir": {"medium": ("Memory",), "sizeLimit": ANY},  # a limit on disk is not enforced
    },
}
_RULE = {
    "action": ("FailJob", "Ignore", "Count"),
    "onExitCodes": {"containerName": ANY, "operator": ("In", "NotIn"), "values": ANY},
    "onPodConditions": {"type": ("DisruptionTarget",), "status": ("True",)},
}
_JOB = {
    "completionMode": ("Indexed",),
    "completions": ANY,
    "parallelism": ANY,
    "backoffLimit": ANY,
    "podReplacementPolicy": ("Failed",),
    "podFailurePolicy": {"rules": _RULE},
    "activeDeadlineSeconds": ANY,
    "ttlSecondsAfterFinished": ANY,  # nobody waits for that
    "template": {"metadata": {"labels": ANY}, "spec": _POD},
}
_SERVICE = {"clusterIP": ("None",), "publishNotReadyAddresses": (True,), "selector": ANY, "ports": ANY}

SHAPES: dict[str, Any] = {
    "Job": {"apiVersion": ("batch/v1",), "kind": ANY, "metadata": _METADATA, "spec": _JOB},
    "Service": {"apiVersion": ("v1",), "kind": ANY, "metadata": _METADATA, "spec": _SERVICE},
    "ConfigMap": {"apiVersion": ("v1",), "kind": ANY, "metadata": _METADATA, "data": ANY},
}


def check_fields(value: Any, shape: Any, where: str) -> None:
    """Assert that every field is in the shape."""
    if isinstance(shape, tuple):
        assert value in shape, f"{where}: {value!r} is not known here, only {', '.join(map(repr, shape))}"
    elif isinstance(shape, dict) and isinstance(value, list):
        for number, element in enumerate(value):
            check_fields(element, shape, f"{where}[{number}]")
    elif isinstance(shape, dict):
        assert isinstance(value, dict), f"{where}: {value!r} is not a mapping"
        for name, inner in value.items():
            assert name in shape, f"{where}.{name}: this field is not known here"
            check_fields(inner, shape[name], f"{where}.{name}")


def number_of_bytes(quantity: str) -> int:
    """1Gi -> 1073741824."""
    units = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}
    digits = quantity.rstrip("KMGTi")
    unit = quantity[len(digits) :]
    assert digits.isdigit() and unit in units, f"{quantity!r} is not known here: a whole number with Ki, Mi, Gi or Ti"
    return int(digits) * units[unit]
