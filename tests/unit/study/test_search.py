"""A search that is called again: as it was, with other settings, and over runs that another study has."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from bm3_dgl.config import load_config
from bm3_dgl.study import declare
from bm3_dgl.study.declare import Variant
from bm3_dgl.study.identity import run_identity
from bm3_dgl.study.runs import DONE, Run, make_run, take
from bm3_dgl.study.search import Search

DECLARED: dict[str, str] = {}
SEARCH = """
study: {seeds: [1], view: search}
base: base.yaml
search: {trials: 3, startup_trials: 9, pruner_trials: 1, pruner_epochs: 1, space: {model.dropout: {low: 0, high: 0.9}}}
"""


@pytest.fixture(scope="module", autouse=True)
def declared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The study's file, and settings that are read once: most trials of these tests are the same."""
    directory = tmp_path_factory.mktemp("declared")
    (directory / "base.yaml").write_text("train: {epochs: 3}\n")
    (directory / "study_mine.yaml").write_text(SEARCH)
    cached = functools.cache(lambda file, overrides: load_config(file, overrides))
    with mock.patch.object(declare, "load_config", lambda file, overrides=(): cached(file, tuple(overrides))):
        with mock.patch.dict(DECLARED, file=str(directory / "study_mine.yaml")):
            yield


def search_in(directory: Path, *overrides: str, dataset: str = "d", code: str = "c") -> Search:
    study = declare.load_study(DECLARED["file"], [f"study.dir={directory}", *overrides])

    def make(variant: Variant) -> Run:
        config = study.config(variant.overrides, study.settings.seeds[0])
        identity = run_identity(config, ranks=variant.ranks, dataset=dataset, modalities=[], code=code)
        runs_dir = str(directory / "runs")
        return make_run(variant.name, study.settings.seeds[0], identity, config, ranks=variant.ranks, runs_dir=runs_dir)

    return Search(study, make)


def end(search: Search, run: Run, value: float = 0.1) -> None:
    run.directory.mkdir(parents=True)
    (run.directory / "summary.json").write_text(json.dumps({"valid": {"recall@20": value}}))
    search.ended(run, DONE)


def finish(search: Search) -> int:
    """Number of runs that it gave."""
    count = 0
    while (run := search.next()) is not None:
        end(search, run)
        count += 1
    assert search.left() == 0
    return count


@pytest.mark.parametrize(
    ("overrides", "made"),
    [(["train.epochs=4"], {}), ([], {"dataset": "e"}), ([], {"code": "e"})],
    ids=["set", "dataset", "code"],
)
def test_with_other_runs_it_begins_anew_and_the_old_one_stays(
    tmp_path: Path, overrides: list[str], made: dict[str, Any]
) -> None:
    assert finish(search_in(tmp_path)) == 3
    new = search_in(tmp_path, *overrides, **made)
    assert new.left() == 3 and not new.members()  # nor does it learn from values of other runs
    assert finish(search_in(tmp_path, *overrides, **made)) == 3
    assert finish(search_in(tmp_path)) == 0


def test_a_run_that_is_no_longer_there_is_done_again(tmp_path: Path) -> None:
    search = search_in(tmp_path)
    finish(search)
    gone = search.members()[1][1][0]
    shutil.rmtree(gone.directory)
    again = search_in(tmp_path)
    assert again.left() == 1
    run = again.next()
    assert run is not None and run.identity == gone.identity and not again.hopeless(run)
    end(again, run)
    assert again.left() == 0 and again.next() is None


def test_it_waits_for_what_another_study_runs(tmp_path: Path) -> None:
    search = search_in(tmp_path)
    first = search.next()
    assert first is not None
    lock = take(first)
    assert lock is not None
    search.back(first)
    assert search.next() is None and search.left() == 3
    lock.close()
    assert search.next() is first


def test_the_base_comes_to_its_end(tmp_path: Path) -> None:
    """However bad it looks: without it the best one could not be compared with anything."""
    search = search_in(tmp_path)
    base, good, bad = (search.next() for _ in range(3))
    assert base is not None and good is not None and bad is not None
    for run, value in ((base, 0.01), (good, 0.5), (bad, 0.02)):
        run.directory.mkdir(parents=True)
        lines = [json.dumps({"event": "valid", "epoch": epoch, "recall@20": value}) for epoch in (1, 2, 3)]
        (run.directory / "metrics.jsonl").write_text("\n".join(lines))
    assert not search.hopeless(good)
    (good.directory / "summary.json").write_text(json.dumps({"valid": {"recall@20": 0.5}}))
    search.ended(good, DONE)
    assert search.hopeless(bad) and not search.hopeless(base)
