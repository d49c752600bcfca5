"""The variants' pods train the made-up shop: to the end, with a pod killed on the way, and not at all by mistake."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from tests.jobs import parameters, summary
from tests.k8s.jobset import as_jobs
from tests.k8s.pod import Document
from tests.machines.cluster import needs_machines
from tests.pods import Cluster, find, render

pytestmark = [needs_machines, pytest.mark.timeout(300)]

EPOCHS = 6
RETRY_SECONDS = 5.0  # half of the real time; the others of a lost pod have left by then
SHOP = {"shop": {"users": 400, "items": 200}, "train": {"epochs": EPOCHS, "batch_size": 64, "checkpoint_epochs": 1}}


@dataclass
class Claims:
    """What the pods' volumes are on this computer: data is shared by the tests, each has runs of its own."""

    data: Path
    runs: Path

    @property
    def run_dir(self) -> Path:
        return self.runs / "shop"

    def epochs(self) -> list[int]:
        journal = self.run_dir / "metrics.jsonl"
        lines = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
        return [entry["epoch"] for entry in map(json.loads, lines) if entry["event"] == "valid"]

    def apply(self, documents: list[Document]) -> Cluster:
        for path in (self.data, self.runs):
            path.mkdir(exist_ok=True)
        return Cluster(documents, claims={"data": self.data, "runs": self.runs}, logs=self.runs)


def small(overlay: str) -> list[Document]:
    """An overlay as it is rendered, with a smaller shop in its own settings."""
    documents = copy.deepcopy(render(f"k8s/overlays/{overlay}"))
    data = find(documents, "ConfigMap")["data"]
    settings = yaml.safe_load(data["job.yaml"])
    for section, values in SHOP.items():
        settings[section] = settings.get(section, {}) | values
    data["job.yaml"] = yaml.safe_dump(settings)
    return documents


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the partition Job makes on the data claim."""
    home = tmp_path_factory.mktemp("partition")
    with Claims(home / "data", home / "runs").apply(small("partition")) as cluster:
        job = cluster.start("bm3-partition")
        assert job.wait(seconds=120) == "Complete", job.text()
    assert "cut edges" in job.text() and (home / "data" / "shop" / "parts" / "metis-2" / "parts.json").is_file()
    return home / "data"


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Claims:
    """What two pods that nothing happens to leave on the runs claim."""
    claims = Claims(data, tmp_path_factory.mktemp("trained") / "runs")
    with claims.apply(small("cpu")) as cluster:
        job = cluster.start("bm3")
        assert job.wait(seconds=200) == "Complete", job.text()
    print(job.text())
    return claims


def test_two_pods_train_to_the_end(trained: Claims) -> None:
    assert trained.epochs() == list(range(1, EPOCHS + 1))
    found = summary(trained.run_dir)
    assert found["epochs_run"] == EPOCHS and found["world_size"] == 4
    assert found["test"]["recall@20"] > found["popularity"]["test"]["recall@20"]
    assert (trained.run_dir / "checkpoints" / "latest").is_file() and (trained.run_dir / "config.yaml").is_file()
    owners = {path.stat().st_uid for path in trained.run_dir.rglob("*")}
    assert owners == {1000}, "the pods' user"


def test_recommendations_come_out(trained: Claims) -> None:
    with trained.apply(small("recommend")) as cluster:
        job = cluster.start("bm3-recommend")
        assert job.wait(seconds=120) == "Complete", job.text()
    assert "Recommendations for U0" in job.text() and (trained.run_dir / "recommendations.parquet").is_file()


def test_a_killed_pod_changes_nothing(trained: Claims, tmp_path: Path) -> None:
    claims = Claims(trained.data, tmp_path / "runs")
    with claims.apply(small("cpu")) as cluster:
        job = cluster.start("bm3", retry_seconds=RETRY_SECONDS)
        job.wait_for(lambda: len(claims.epochs()) >= 2, seconds=120)
        job.active[1].kill()
        job.wait_for(lambda: len(job.pods) == 4, seconds=30)
        assert [(pod.index, pod.exit_code) for pod in job.pods[:2]] == [(0, 5), (1, 137)], "the other pod ends by itself"
        assert job.wait(seconds=150) == "Complete", job.text()
    print(job.text())
    assert job.failures == 2 and "resuming /runs/shop at step" in job.text()
    assert claims.epochs() == list(range(1, EPOCHS + 1))
    assert equal(parameters(claims.run_dir), parameters(trained.run_dir))


def test_a_drained_node_changes_nothing(trained: Claims, tmp_path: Path) -> None:
    """One of a JobSet's pods is evicted: all save and leave, none counts (the JobSet's limit is 0), and all go on."""
    documents = small("jobset")
    documents = [d for d in documents if d["kind"] != "JobSet"] + as_jobs(find(documents, "JobSet"))
    claims = Claims(trained.data, tmp_path / "runs")
    with claims.apply(documents) as cluster:
        job = cluster.start("bm3-train-0", retry_seconds=RETRY_SECONDS)
        job.wait_for(lambda: len(claims.epochs()) >= 2, seconds=120)
        job.active[1].delete(disruption=True)
        assert job.wait(seconds=200) == "Complete", job.text()
    assert [(pod.index, pod.exit_code) for pod in job.pods[:2]] == [(0, 143), (1, 143)] and job.failures == 0
    assert "which is saved" in job.pods[0].text()
    assert equal(parameters(claims.run_dir), parameters(trained.run_dir))


def test_pods_train_from_their_own_part(trained: Claims, tmp_path: Path) -> None:
    claims = Claims(trained.data, tmp_path / "runs")
    with claims.apply(small("cpu-own-part")) as cluster:
        job = cluster.start("bm3")
        assert job.wait(seconds=200) == "Complete", job.text()
    assert equal(parameters(claims.run_dir), parameters(trained.run_dir))


def test_one_process_for_a_debugger(tmp_path: Path) -> None:
    """It needs no partition Job: it prepares its data itself."""
    claims = Claims(tmp_path / "data", tmp_path / "runs")
    with claims.apply(small("debug")) as cluster:
        job = cluster.start("bm3-debug")
        assert job.wait(seconds=120) == "Complete", job.text()
    assert summary(claims.runs / "debug")["world_size"] == 1


def test_a_mistake_is_not_tried_again(data: Path, tmp_path: Path) -> None:
    documents = small("cpu")
    settings = find(documents, "ConfigMap")["data"]
    settings["job.yaml"] = settings["job.yaml"].replace("  epochs:", "  epoch:")
    with Claims(data, tmp_path / "runs").apply(documents) as cluster:
        job = cluster.start("bm3", retry_seconds=0.1)
        assert job.wait(seconds=100) == "PodFailurePolicy", job.text()
    assert len(job.pods) == 2 and job.failures == 0
    assert "unknown key train.epoch" in job.text() and 2 in {pod.exit_code for pod in job.pods}
