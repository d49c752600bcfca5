"""Studies of fake jobs: side by side, killed at random moments and continued, failed, pruned, refused."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import ROOT

STUDY = """
study: {seeds: [1, 2], parallel: 3, dir: DIR/study, runs_dir: DIR/runs}
base: base.yaml
set: [debug=true]
grid: {model.dropout: [0.1, 0.3, 0.5]}
"""
SEARCH = """
study: {seeds: [1], parallel: 1, dir: DIR/study, runs_dir: DIR/runs, view: search}
base: base.yaml
set: [debug=true]
search: {trials: 8, startup_trials: 3, pruner: none, space: {model.dropout: {low: 0.0, high: 0.9}}}
"""


def declare(directory: Path, text: str = STUDY) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "base.yaml").write_text("train: {epochs: 3}\n")
    (directory / "study_fake.yaml").write_text(text.replace("DIR", str(directory)))
    return directory / "study_fake.yaml"


def start(file: Path, *overrides: str) -> subprocess.Popen:
    with open(file.parent / "study.log", "ab") as log:
        command = [sys.executable, "-m", "tests.unit.study.fake_study", str(file), *overrides]
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": python_path()})


def python_path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def finish(file: Path, *overrides: str) -> dict[str, Any]:
    assert start(file, *overrides).wait(120) == 0, log_of(file)
    return content(file)


def log_of(file: Path) -> str:
    return (file.parent / "study.log").read_text()


def content(file: Path) -> dict[str, Any]:
    return json.loads((file.parent / "study" / "study.json").read_text())


def wait_for_runs(directory: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(list((directory / "runs").glob("*/summary.json"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_call(directory: Path, study: subprocess.Popen) -> None:
    """Until one more job than before has begun, or the study has ended."""
    before, deadline = calls(directory), time.monotonic() + 60
    while calls(directory) <= before and study.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def calls(directory: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in (directory / "runs").glob("*/calls"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """study.json of an uninterrupted study."""
    return finish(declare(tmp_path_factory.mktemp("whole")))


def test_a_study_comes_to_its_end(whole: dict[str, Any]) -> None:
    assert whole["chosen"] == "dropout=0.3"
    assert {run["status"] for variant in whole["variants"] for run in variant["runs"]} == {"done"}
    assert whole["variants"][1]["valid"]["recall@20"]["mean"] == pytest.approx(0.5015)
    assert whole["variants"][1]["cost"]["total_seconds"]["mean"] == pytest.approx(2.0 + 5 * 1.5)
    assert len(whole["axes"][0]["values"]) == 3 and len(whole["conclusions"]) >= 2


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_moments_it_ends_as_uninterrupted(whole: dict[str, Any], tmp_path: Path, seed: int) -> None:
    """The study, or one of its runs, by SIGKILL, again and again."""
    file, chance = declare(tmp_path), random.Random(seed)
    deadline = time.monotonic() + 120
    for _ in range(3):
        study = start(file)
        wait_for_call(tmp_path, study)
        time.sleep(chance.uniform(0.0, 1.0))
        jobs = [pid for pid in children(study.pid) if chance.random() < 0.3]
        if jobs:
            with contextlib.suppress(ProcessLookupError):  # it has ended just now
                os.kill(jobs[0], signal.SIGKILL)
        else:
            study.kill()
        study.wait(60)
    while start(file).wait(60) != 0:  # a killed run was reported as failed, and is tried again
        assert time.monotonic() < deadline, log_of(file)
    found = content(file)
    assert found == whole | {"conclusions": found["conclusions"]}
    assert found["conclusions"] == whole["conclusions"]


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    file = declare(tmp_path)
    finish(file)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/*")}
    finish(file, "study.view=table")  # nothing of the declaration that changes a run
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*/*")} == before
    finish(file, "study.seeds=[1,2,3]")
    assert calls(tmp_path) == 9


def test_two_studies_share_a_run(tmp_path: Path) -> None:
    finish(declare(tmp_path))
    file = declare(tmp_path, STUDY.replace("DIR/study", "DIR/other").replace("[0.1, 0.3, 0.5]", "[0.5, 0.7]"))
    assert start(file).wait(60) == 0, log_of(file)
    assert calls(tmp_path) == 8
    other = json.loads((tmp_path / "other" / "study.json").read_text())
    assert other["variants"][0]["runs"][0]["dir"].startswith("../runs/")


@pytest.mark.parametrize(("text", "count"), [(STUDY, 6), (SEARCH, 8)], ids=["grid", "search"])
def test_two_studies_at_once_do_a_run_once(tmp_path: Path, text: str, count: int) -> None:
    files = [declare(tmp_path / "one", text), declare(tmp_path / "two", text)]
    shared = f"study.runs_dir={tmp_path}/runs"
    studies = [start(file, shared) for file in files]
    assert [study.wait(120) for study in studies] == [0, 0], log_of(files[0]) + log_of(files[1])
    assert calls(tmp_path) == count
    one, two = map(content, files)
    assert one["variants"] == two["variants"]
    assert {run["status"] for variant in one["variants"] for run in variant["runs"]} == {"done"}


def test_ctrl_c_ends_runs_and_says_how_to_go_on(tmp_path: Path) -> None:
    file = declare(tmp_path)
    study = start(file)
    wait_for_runs(tmp_path, 1)
    study.send_signal(signal.SIGINT)
    assert study.wait(30) == 130
    assert "call the study again" in log_of(file) and log_of(file).endswith("error: interrupted\n")
    assert not children(study.pid)
    done = len(list((tmp_path / "runs").glob("*/summary.json")))
    assert done < 6 and "still to come" in content(file)["conclusions"][-1]
    finish(file)


def test_a_failure_is_told_and_skipped(tmp_path: Path) -> None:
    file = declare(tmp_path)
    assert start(file, "study.seeds=[1,13]").wait(60) == 5
    statuses = [(run["status"], run["error"]) for variant in content(file)["variants"] for run in variant["runs"]]
    assert statuses == [("done", None), ("failed", "the loss is no longer finite")] * 3
    assert "error: study: 3 runs failed, the first with: the loss is no longer finite" in log_of(file)
    assert "Failed: dropout=0.1, seed 13" in " ".join(content(file)["conclusions"])


def test_two_calls_at_once_are_refused(tmp_path: Path) -> None:
    file = declare(tmp_path)
    first = start(file)
    wait_for_runs(tmp_path, 1)
    first.send_signal(signal.SIGSTOP)  # it could have ended before the second one begins
    assert start(file).wait(30) == 5
    assert "another call works on this study" in log_of(file)
    first.send_signal(signal.SIGCONT)
    assert first.wait(60) == 0


def test_a_killed_study_leaves_no_job(tmp_path: Path) -> None:
    file = declare(tmp_path)
    study = start(file)
    wait_for_runs(tmp_path, 1)
    jobs = children(study.pid)
    study.kill()
    study.wait(5)
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() for pid in jobs):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_killed_search_goes_on_where_it_was(tmp_path: Path) -> None:
    whole = finish(declare(tmp_path / "whole", SEARCH))
    file, chance = declare(tmp_path / "broken", SEARCH), random.Random(1)
    for _ in range(3):
        study = start(file)
        wait_for_call(file.parent, study)
        time.sleep(chance.uniform(0.0, 1.0))
        study.kill()
        study.wait(5)
    broken = finish(file)
    assert [v["values"] for v in broken["variants"]] == [v["values"] for v in whole["variants"]]
    assert broken["chosen"] == whole["chosen"] and len(broken["variants"]) == 8
    assert broken["variants"][0]["values"] == {"model.dropout": 0.5}


def test_a_hopeless_run_is_pruned(tmp_path: Path) -> None:
    """A run below the median of those before it, at the same epoch, is ended, and cannot be chosen."""
    file = declare(tmp_path, SEARCH.replace("pruner: none", "pruner: median, pruner_trials: 2, pruner_epochs: 1"))
    found = finish(file, "model.embedding_dim=8")  # slow epochs
    status = {variant["name"]: variant["runs"][0]["status"] for variant in found["variants"]}
    assert set(status.values()) == {"done", "pruned"}
    assert status[found["chosen"]] == "done"
