"""A real study on a tiny shop: killed half way and continued, finished runs untouched; ranks as an axis of cost."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.jobs import SMALL_SHOP, processes_of, run, start, summary

STUDY = """
study: {title: Tiny, seeds: [1, 2], parallel: 2}
base: base.yaml
variants:
  both: []
  without text: ["data.modalities=[visual]"]
"""


def declared(home: Path, text: str = STUDY) -> list[str]:
    (home / "base.yaml").write_text("debug: true\ntrain: {epochs: 6, batch_size: 64, checkpoint_steps: 5}\n")
    (home / "study_tiny.yaml").write_text(text)
    return ["--config", str(home / "study_tiny.yaml"), *SMALL_SHOP]


def content(home: Path) -> dict[str, Any]:
    return json.loads((home / "runs/studies/tiny/study.json").read_text())


@pytest.mark.timeout(600)
def test_killed_half_way_and_continued(tmp_path: Path) -> None:
    arguments = declared(tmp_path)
    runs = tmp_path / "runs/studies/runs"
    job = start("study", *arguments, output=tmp_path / "first.log")
    job.wait_for(lambda: any(runs.glob("*/summary.json")))
    os.kill(job.process.pid, signal.SIGKILL)
    job.process.wait()
    deadline = time.monotonic() + 30
    while processes_of(job):
        assert time.monotonic() < deadline, "runs outlive their study"
        time.sleep(0.2)
    done = [path.parent for path in runs.glob("*/summary.json")]
    assert 1 <= len(done) < 4
    before = {path: path.stat().st_mtime_ns for directory in done for path in directory.rglob("*") if path.is_file()}
    before = {path: when for path, when in before.items() if path.name != "run.json"}  # the end may have been on its way
    text = run("study", *arguments, output=tmp_path / "second.log")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    found = content(tmp_path)
    assert [run["status"] for variant in found["variants"] for run in variant["runs"]] == ["done"] * 4
    against = found["variants"][1]["against_base"]
    both, without = (entry["test"]["recall@20"]["mean"] for entry in found["variants"])
    assert against["difference"] == pytest.approx(without - both, abs=1e-6)
    assert found["conclusions"][0] in text and "without text" in found["conclusions"][0]
    first = {Path(variant["runs"][0]["dir"]).name for variant in found["variants"]}
    assert {path.parent.name for path in runs.glob("*/item_embeddings.parquet")} == first, text
    for directory in runs.iterdir():
        users = pq.read_table(directory / "users_test.parquet")
        for name, value in summary(directory)["test"].items():
            assert np.mean(users[name].to_numpy(), dtype=np.float64) == pytest.approx(value, abs=1e-6)
        assert users.num_rows == summary(directory)["users"]["test"]


@pytest.mark.timeout(600)
def test_ranks_as_variants_of_a_study_of_cost(tmp_path: Path) -> None:
    text = "study: {seeds: [1], view: cost}\nbase: base.yaml\nset: [train.epochs=2]\n"
    text += "variants: {one: [], two: {ranks: 2, set: [debug=false, train.batch_size=32]}}\n"
    run("study", *declared(tmp_path, text), output=tmp_path / "cost.log")
    one, two = content(tmp_path)["variants"]
    assert one["test"]["recall@20"]["mean"] == pytest.approx(two["test"]["recall@20"]["mean"], abs=1e-9)
    assert (two["ranks"], one["cost"]["train_epoch_seconds"]["n"]) == (2, 1)


def test_a_dataset_that_cannot_be_made_ends_before_any_run(tmp_path: Path) -> None:
    job = start("study", *declared(tmp_path), "data.format=mmrec", "data.source=nowhere", output=tmp_path / "log")
    assert job.wait() == 3
    assert job.text().strip().splitlines()[-1].startswith("error: ")
    assert not list((tmp_path / "runs").rglob("run.json"))
