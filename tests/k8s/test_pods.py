"""The tool that runs pods does what Kubernetes does: what a container gets, how a Job goes on, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.k8s.pod import Document, Pod
from tests.machines.cluster import needs_machines
from tests.pods import Cluster, JobRun, find, render

pytestmark = needs_machines

FACTS = """
import json, os, socket, time
def writable(path):
    try:
        open(path + '/probe', 'w').close()
        return True
    except OSError:
        return False
def address(name):
    for _ in range(100):
        try:
            return socket.gethostbyname(name)
        except OSError:
            time.sleep(0.05)
status = dict(line.split(':', 1) for line in open('/proc/self/status'))
print(json.dumps({
    'ids': [os.getuid(), os.getgid(), os.getgroups()], 'pid': os.getpid(), 'host': socket.gethostname(), 'cwd': os.getcwd(),
    'capabilities': [int(status['Cap' + kind], 16) for kind in ('Prm', 'Eff', 'Bnd', 'Inh', 'Amb')],
    'no_new_privileges': int(status['NoNewPrivs']), 'variables': sorted(os.environ),
    'arguments': os.environ['WORDS'].split(), 'config': open('/etc/bm3/job.yaml').read(),
    'writable': [path for path in ('/', '/app', '/opt/venv', '/usr', '/etc', '/etc/bm3', '/data', '/runs', '/tmp', '/dev/shm')
                 if writable(path)],
    'shm': os.statvfs('/dev/shm').f_blocks * os.statvfs('/dev/shm').f_frsize,
    'addresses': [address('bm3-0.bm3'), address('bm3-1.bm3'), address(socket.gethostname())],
}))
"""


def container(documents: list[Document]) -> Document:
    return find(documents, "Job")["spec"]["template"]["spec"]["containers"][0]


def running(documents: list[Document], home: Path, *command: str) -> Cluster:
    """The documents' Job with another command in its pods."""
    container(documents).update(command=list(command[:1]), args=list(command[1:]))
    claims = {"data": home / "data", "runs": home / "runs"}
    for path in claims.values():
        path.mkdir()
    return Cluster(documents, claims=claims, logs=home)


def ends(job: JobRun) -> list[tuple[int, int | None]]:
    return [(pod.index, pod.exit_code) for pod in job.pods]


def test_a_container_gets_what_its_specification_says(tmp_path: Path) -> None:
    documents = render("k8s/overlays/cpu")
    container(documents)["env"].append({"name": "WORDS", "value": "$(JOB_COMPLETION_INDEX) $(MACHINES) $(UNKNOWN)"})
    with running(documents, tmp_path, "python", "-c", FACTS + "time.sleep(2)") as cluster:
        job = cluster.start("bm3")
        assert job.wait(seconds=60) == "Complete", job.text()
    for index, pod in enumerate(job.pods):
        facts = json.loads(pod.text())
        assert facts["ids"] == [1000, 1000, [1000]] and facts["pid"] == 1
        assert facts["capabilities"] == [0] * 5 and facts["no_new_privileges"] == 1
        assert facts["host"] == f"bm3-{index}" and facts["cwd"] == "/app"
        assert facts["writable"] == ["/runs", "/tmp", "/dev/shm"] and facts["shm"] == 1 << 30
        assert facts["config"] == find(documents, "ConfigMap")["data"]["job.yaml"]
        own = [job.pods[0].machine.address, job.pods[1].machine.address]
        assert facts["addresses"] == [*own, own[index]]
        assert "UID_GID" not in facts["variables"] and "JOB_COMPLETION_INDEX" in facts["variables"]
        # The Job controller's variable is the last, so those before it do not know it; what nobody knows stays.
        assert facts["arguments"] == ["$(JOB_COMPLETION_INDEX)", "2", "$(UNKNOWN)"]


def test_failures_count_until_the_limit(tmp_path: Path) -> None:
    with running(render("k8s/overlays/cpu"), tmp_path, "sh", "-c", "exit $((5 * JOB_COMPLETION_INDEX))") as cluster:
        job = cluster.start("bm3", retry_seconds=0.01)
        assert job.wait(seconds=60) == "BackoffLimitExceeded"
        assert sorted(ends(job)) == [(0, 0)] + [(1, 5)] * 7, "an index that has succeeded is not tried again"


def test_a_users_mistake_fails_the_job_at_once(tmp_path: Path) -> None:
    script = "trap 'exit 143' TERM; [ $JOB_COMPLETION_INDEX = 0 ] && sleep 1 && exit 2; while :; do sleep 0.1; done"
    with running(render("k8s/overlays/cpu"), tmp_path, "sh", "-c", script) as cluster:
        job = cluster.start("bm3")
        assert job.wait(seconds=60) == "PodFailurePolicy"
        assert ends(job) == [(0, 2), (1, 143)], "the other pod is asked to end"


def test_a_disruption_is_ignored(tmp_path: Path) -> None:
    """And number 1 of a container does not end by a signal that it does not handle."""
    documents = render("k8s/overlays/cpu")
    find(documents, "Job")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 1
    find(documents, "Job")["spec"] |= {"completions": 1, "parallelism": 1}
    script = "if [ -e /runs/second ]; then exit 0; fi; touch /runs/second /tmp/once; exec sleep 1000"
    with running(documents, tmp_path, "sh", "-c", script) as cluster:
        job = cluster.start("bm3", retry_seconds=0.1)
        job.wait_for((tmp_path / "runs" / "second").exists, seconds=10)
        first: Pod = job.active[0]
        first.delete(disruption=True)
        assert job.wait(seconds=20) == "Complete"
        assert ends(job) == [(0, 137), (0, 0)] and job.failures == 0
        assert job.pods[1].machine.address != first.machine.address


def test_init_containers_come_first(tmp_path: Path) -> None:
    documents = render("k8s/overlays/cpu-own-part")
    pod = find(documents, "Job")["spec"]["template"]["spec"]
    pod["initContainers"][0]["args"] = ['echo "$PARTS" > /part/probe; exit $JOB_COMPLETION_INDEX']
    find(documents, "Job")["spec"]["backoffLimit"] = 0
    with running(documents, tmp_path, "cat", "/part/probe") as cluster:
        job = cluster.start("bm3")
        assert job.wait(seconds=30) == "BackoffLimitExceeded"
        assert (1, 1) in ends(job) and job.pods[1].last_container == "copy" and job.pods[1].text() == ""
        assert job.pods[0].text() in ("/data/shop/parts/metis-2\n", "")


@pytest.mark.parametrize(
    "place, message",
    [
        (lambda job: job["spec"], "Job/bm3.spec.foo: this field is not known here"),
        (lambda job: job["spec"]["template"]["spec"]["containers"][0], r"containers\[0\].foo: this field is not known here"),
        (lambda job: job["spec"]["template"]["spec"]["volumes"][0]["emptyDir"], r"volumes\[0\].emptyDir.foo: this field"),
    ],
)
def test_what_it_does_not_know_it_refuses(place, message: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    documents = render("k8s/overlays/cpu")
    place(find(documents, "Job"))["foo"] = 1
    with pytest.raises(AssertionError, match=message):
        Cluster(documents, claims={}, logs=tmp_path)


def test_a_weaker_container_is_refused(tmp_path: Path) -> None:
    documents = render("k8s/overlays/cpu")
    container(documents)["securityContext"]["capabilities"] = {"drop": ["NET_RAW"]}
    with pytest.raises(AssertionError, match=r"securityContext: .* is not known here"):
        Cluster(documents, claims={}, logs=tmp_path)
