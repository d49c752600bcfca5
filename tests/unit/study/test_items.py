"""Item embeddings for the maps of a study's page: of whom they are exported, and what becomes of a failure."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from bm3_dgl.config import load_config
from bm3_dgl.jobs.study import StudyJob
from bm3_dgl.study.declare import Variant
from bm3_dgl.study.runs import Run, make_run, take

RECOMMEND = """
import sys
from pathlib import Path
settings = dict(text.split("=", 1) for text in sys.argv[1:])
if "broken" in settings["run.dir"]:
    sys.exit("error: the checkpoint is damaged")
(Path(settings["recommend.dir"]) / "item_embeddings.parquet").write_text(settings["run.dir"])
"""


@pytest.fixture
def job(tmp_path: Path) -> StudyJob:
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "recommend.py").write_text(RECOMMEND)
    return StudyJob(tmp_path / "launch")


def run_of(directory: Path, name: str, *overrides: str, done: bool = True) -> Run:
    run = make_run(name, 1, name, load_config(None, overrides), ranks=1, runs_dir=str(directory / "runs"))
    run.directory.mkdir(parents=True)
    if done:
        (run.directory / "summary.json").write_text('{"valid": {}}')
    return run


def export(job: StudyJob, directory: Path, *runs: list[Run]) -> set[str]:
    """Names of runs that have item embeddings afterwards."""
    job._export_items([(Variant(each[0].variant, (), {}, 1), each) for each in runs], directory / "recommend.log")
    return {path.parent.name for path in directory.glob("runs/*/item_embeddings.parquet")}


def test_of_each_variants_first_finished_run(job: StudyJob, tmp_path: Path) -> None:
    full = [run_of(tmp_path, "failed", done=False), run_of(tmp_path, "first"), run_of(tmp_path, "second")]
    popularity = [run_of(tmp_path, "popularity", "model.name=popularity")]
    elsewhere = [run_of(tmp_path, "elsewhere")]
    lock = take(elsewhere[0])
    assert lock is not None
    assert export(job, tmp_path, full, popularity, [run_of(tmp_path, "other")], elsewhere) == {"first", "other"}
    lock.close()
    written = full[1].directory / "item_embeddings.parquet"
    written.write_text("as it was")
    assert export(job, tmp_path, full, elsewhere) == {"first", "other", "elsewhere"}
    assert written.read_text() == "as it was"


def test_a_failure_is_a_warning(job: StudyJob, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("bm3_dgl")
    logger.addHandler(caplog.handler)
    try:
        assert export(job, tmp_path, [run_of(tmp_path, "broken")], [run_of(tmp_path, "whole")]) == {"whole"}
    finally:
        logger.removeHandler(caplog.handler)
    assert "no item embeddings of broken" in caplog.text and "the checkpoint is damaged" in caplog.text
