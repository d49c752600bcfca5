"""The page of a study: what its numbers allow to say, and what a variant is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bm3_dgl.errors import ConfigError
from bm3_dgl.jobs.report import report_command_line
from bm3_dgl.report import markdown, views
from bm3_dgl.report.document import Block, Figure, Listing, Points, Report, Section, Table, Text
from bm3_dgl.report.embedding import embeddings
from bm3_dgl.report.run import Run
from bm3_dgl.report.spent import cost_table as cost_of_runs
from bm3_dgl.report.spent import peak_bytes
from bm3_dgl.report.study import Stat, Study, Trial, Variant, open_study
from bm3_dgl.report.study_page import study_report

SEVERAL = {"std": 0.001, "low": 0.078, "high": 0.082, "n": 3}


def variant(name: str, level: float, seeds: int, **more: Any) -> Variant:
    known = {"recall@20": Stat(level, 0.001, level - 0.002, level + 0.002, seeds) if seeds > 1 else Stat(level, n=1)}
    cost = {"train_epoch_seconds": Stat(level * 10), "total_seconds": Stat(60.0), "peak_pss_bytes": Stat(level * 2**34)}
    trials = [Trial(seed, Path(name) / str(seed), "pruned", None) for seed in range(seeds)]
    made = Variant(
        name, {"model.layers": int(level * 100)}, [f"model.layers={int(level * 100)}"], 1, trials, known, known, cost
    )
    return replace(made, **more)


def study(*variants: Variant, view: str = "table", **more: Any) -> Study:
    made = Study(Path("s"), "s", "A study", "", "recall@20", "a", view, [], list(variants), "b", ["Failed: a, seed 1: no"])
    return replace(made, **more)


def blocks_of(made: Study) -> list[Block]:
    return [block for section in study_report(made).sections for block in section.blocks]


def captions(made: Study) -> str:
    return " ".join(block.caption for block in blocks_of(made) if isinstance(block, (Figure, Table)))


def table(made: Study, name: str) -> Table:
    return next(block for block in study_report(made).tables() if block.name == name)


def test_one_seed_has_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    axes = {"axes": [("model.layers", [8, 9])], "view": "lines"}
    one, three = ((variant("a", 0.08, seeds), variant("b", 0.09, seeds)) for seeds in (1, 3))
    for more in ({}, axes):
        said = captions(study(*one, **more))
        assert "one seed" in said and "95 %" not in said and "deviation" not in said
        assert "mean and 95 % interval over seeds" in captions(study(*three, **more))
    assert "(none where there is one seed)" in captions(study(one[0], three[1]))
    assert list(table(study(*one), "metrics_test").heads) == ["variant", "runs", "recall@20"]
    drawn: list[Any] = []
    monkeypatch.setattr(views, "intervals", lambda *rows, **_: drawn.append(rows) or "<svg/>")
    monkeypatch.setattr(views, "lines", lambda series, **_: drawn.append(series) or "<svg/>")
    views.view_blocks(study(*one))
    assert str(drawn[0][2:4]) == "([nan, nan], [nan, nan])", "no whiskers"
    views.view_blocks(study(*one, **axes))
    assert [line.band for line in drawn[-1]] == [None, None]


def test_times_compare_only_where_runs_are_alone() -> None:
    variants = variant("a", 0.08, 3), variant("b", 0.09, 3)
    beside, alone = (table(study(*variants, view=view), "cost") for view in ("table", "cost"))
    assert not any(cell.mark for row in beside.rows for cell in row) and "side by side" in beside.caption
    assert any(cell.mark == "best" for row in alone.rows for cell in row) and "side by side" not in alone.caption
    assert "start-up, epochs and evaluations, s" in alone.heads


def test_a_study_of_cost_makes_no_claim_about_recall() -> None:
    against = {"difference": 0.01, "low": 0.0, "high": 0.02, "p": 0.5, "p_corrected": 0.5}
    variants = variant("a", 0.08, 3), variant("b", 0.09, 3, against_base=against)
    said = {view: markdown.render(study_report(study(*variants, view=view)), "files") for view in ("table", "cost")}
    for claim in (
        "Chosen on validation",
        "variants_test.svg",
        "Difference in recall@20",
        "(base, chosen)",
        "A difference is shown",
    ):
        assert (claim in said["table"].replace("b (chosen)", "b (base, chosen)")) and claim not in said["cost"], claim
    assert said["cost"].index("## Time and memory") < said["cost"].index("## Every variant")
    cost = table(study(*variants, view="cost"), "metrics_test")
    assert not any(cell.mark for row in cost.rows for cell in row) and "no result" in cost.caption


def test_what_a_variant_is(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("study: {name: s}\nbase: ../baby.yaml\nset: [train.epochs=3]\nvariants: {a: []}\n")
    made = study(variant("a", 0.08, 3, overrides=[], ranks=2), variant("b", 0.09, 3), directory=tmp_path)
    settings = table(made, "settings")
    assert [[cell.value for cell in row] for row in settings.rows] == [["a", 2, ""], ["b", 1, "model.layers=9"]]
    (listing,) = (block for block in blocks_of(made) if isinstance(block, Listing))
    assert listing.text == "base: ../baby.yaml\nset:\n- train.epochs=3"
    (tmp_path / "study.yaml").write_text("base: [")
    assert not [block for block in blocks_of(made) if isinstance(block, Listing)], "the page can do without"


def test_a_failure_is_told_once() -> None:
    trials = [Trial(1, Path("a"), "failed", "no"), Trial(2, Path("a"), "pending", None), Trial(3, Path("a"), "lost", None)]
    lines = [line for block in blocks_of(study(variant("a", 0.08, 3, trials=trials))) if isinstance(block, Points)
             for line in block.lines]  # fmt: skip
    assert lines == ["Failed: a, seed 1: no", "Runs of an unknown state: lost."]


def run(directory: Path, *epochs: dict, **summary: Any) -> Run:
    return Run(directory, directory.name, {}, "", summary, list(epochs), [], None, None, None)


def test_no_memory_measured_is_a_dash(tmp_path: Path) -> None:
    popularity = run(tmp_path, memory={"peak_pss_bytes": 0})
    assert peak_bytes(popularity) is None and cost_of_runs([popularity]).rows[0][-1].text == "–"
    directory = write_study(tmp_path, cost={"peak_pss_bytes": {"mean": 0, "n": 1}, "best_epoch": {"mean": 0.0, "n": 1}})
    assert list(open_study(directory).variants[0].cost) == ["best_epoch"]


def write_study(directory: Path, **changes: Any) -> Path:
    """One variant, `a`, with a run that is done in ../run of the study's directory."""
    made = directory / "study"
    made.mkdir()
    entry = {"name": "a", "runs": [{"seed": 1, "dir": "../run", "status": "done", "error": None}]} | changes
    content = {"schema_version": 1, "name": "s", "metric": "recall@20", "view": "table", "variants": [entry]}
    (made / "study.json").write_text(json.dumps(content), encoding="utf-8")
    return made


def test_the_command_for_embeddings_has_a_plain_path_and_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (trial,) = open_study(write_study(tmp_path)).variants[0].trials
    assert str(trial.directory) == str(tmp_path / "run")
    popularity = run(tmp_path / "popularity")  # has no epoch and no embeddings
    (points,) = embeddings([popularity, run(trial.directory, {"epoch": 1}), run(tmp_path / "other", {"epoch": 1})])
    assert isinstance(points, Points) and len(points.lines) == 1
    assert points.lines[0].startswith("No map of run, other: ") and f"run.dir={tmp_path / 'run'}`" in points.lines[0]
    assert embeddings([popularity]) == [Text("There are no item embeddings.")]


def test_behind_a_link_the_path_stays(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    write_study(tmp_path / "far")
    (tmp_path / "far" / "run").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "study")
    (trial,) = open_study(tmp_path / "link").variants[0].trials
    assert trial.directory.samefile(tmp_path / "far" / "run")


def test_a_folder_of_any_name_is_a_link() -> None:
    figure, rows = Figure("f", "", "", "<svg/>"), Table("t", "", [""], [])
    twin = markdown.render(Report("r", [], [Section("s", [figure, rows, Text("")])]), "a (b) c_files")
    assert "(a%20%28b%29%20c_files/f.svg)" in twin and "(a%20%28b%29%20c_files/t.csv)" in twin


def test_a_wrong_command_line_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^command line: unrecognized arguments: --wide; --help"):
        report_command_line("Report.", ["run", "--wide"])
