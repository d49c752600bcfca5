"""What a run records, and the pages about it: from real runs of a small shop, judged against their own files."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.jobs import SMALL_SHOP, parameters, run, start, summary
from tests.pages import check_page
from tests.reports import write_study, write_users


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one dataset, `with` and `without` modalities, with their lists."""
    home = tmp_path_factory.mktemp("report")
    shared = [*SMALL_SHOP, f"data.dir={home / 'data'}", "debug=true", "train.batch_size=256"]
    for name, settings in (
        ("with", ["train.epochs=3", "train.tensorboard=true"]),
        ("without", ["train.epochs=2", "data.modalities=[]"]),
    ):
        run("train", *shared, f"run.dir={home / name}", *settings, output=home / f"{name}.log")
        run("recommend", f"run.dir={home / name}", output=home / f"{name}-recommend.log")
        write_users(home / name, home / "data")
    return home


def lines_of(run_dir: Path, event: str) -> list[dict]:
    entries = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if entry["event"] == event]


def report(*arguments: str | Path, output: Path) -> str:
    return run("report", *map(str, arguments), output=output)


def refused(launcher: str, *arguments: str | Path, output: Path) -> str:
    """The one line of a refusal."""
    job = start(launcher, *map(str, arguments), output=output)
    assert job.wait() in (2, 3), job.text()
    (line,) = job.text().strip().splitlines()
    assert line.startswith("error: ")
    return line


def rows_of(folder: Path, table: str) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / f"{table}.csv").open(encoding="utf-8")))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("ranks", [None, 2])
def test_recorded_gradients_are_those_that_adam_met(home: Path, ranks: int | None) -> None:
    """After one step from zero, a moment is (1 - beta1) times the gradient. One epoch of one step."""
    run_dir = home / f"step-{ranks}"
    settings = [*SMALL_SHOP, f"data.dir={home / 'data'}", f"run.dir={run_dir}", "train.epochs=1"]
    settings += ["debug=true", "train.batch_size=100000"] if ranks is None else ["train.batch_size=50000"]
    run("train", *settings, ranks=ranks, output=home / f"step-{ranks}.log")
    (line,) = lines_of(run_dir, "train")
    state = parameters(run_dir)
    for table in ("embedding_user", "embedding_item", "residual_visual", "residual_text"):
        expected = 10 * float(state[f"{table}.moment"].double().norm())
        assert line["grad_norms"][table] == pytest.approx(expected, rel=1e-4) and expected > 0
        norms = state[table].double().norm(dim=1).numpy()
        assert line["embedding_norms"][table] == pytest.approx(np.quantile(norms, [0, 0.25, 0.5, 0.75, 1]).tolist(), rel=1e-5)
    for layer in ("predictor", "projectors.of_visual"):
        moments = [state[f"adam.exp_avg.{layer}.{name}"].double().flatten() for name in ("weight", "bias")]
        assert line["grad_norms"][layer] == pytest.approx(10 * float(torch.cat(moments).norm()), rel=1e-4)
    pairs = json.loads((home / "data" / "dataset.json").read_text())["counts"]["train"]
    assert line["pairs_per_second"] == pytest.approx(pairs / line["seconds"]) and line["learning_rate"] == 1e-3
    assert 1e8 < line["memory"]["pss_bytes"] == summary(run_dir)["memory"]["peak_pss_bytes"] < 1e11


def test_tensorboard_shows_what_metrics_jsonl_says(home: Path) -> None:
    board = EventAccumulator(str(home / "with" / "tensorboard"), size_guidance={"histograms": 0, "scalars": 0, "tensors": 0})
    board.Reload()
    train, valid = lines_of(home / "with", "train"), lines_of(home / "with", "valid")
    for line in train:
        assert {"propagate", "head", "backward"} <= set(line["phases"])
    assert len(train) == 3

    def scalars(tag: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in board.Scalars(tag)]

    def approximately(value: Callable[[dict], float], entries: list[dict]) -> list[tuple[int, object]]:
        return [(entry["step"], pytest.approx(value(entry), rel=1e-6)) for entry in entries]

    assert scalars("valid/recall@20") == approximately(lambda e: e["recall@20"], valid)
    for tag in ("losses/total", "grad_norms/predictor", "memory/pss_bytes", "phases/backward"):
        group, name = tag.split("/")
        assert scalars(f"train/{tag}") == approximately(lambda e, g=group, n=name: e[g][n], train)
    assert scalars("train/pairs_per_second") == approximately(lambda e: e["pairs_per_second"], train)
    assert scalars("train/learning_rate") == approximately(lambda e: 1e-3, train)
    histograms = board.Histograms("embedding_norms/embedding_user")
    assert [event.step for event in histograms] == [entry["step"] for entry in train]
    for event, entry in zip(histograms, train, strict=True):
        least, *_, most = entry["embedding_norms"]["embedding_user"]
        assert (event.histogram_value.min, event.histogram_value.max) == pytest.approx((least, most), rel=1e-5)
        assert event.histogram_value.num == 400
    (text,) = board.Tensors("config/text_summary")
    assert b"embedding_dim: 16" in text.tensor_proto.string_val[0]


def test_the_page_of_a_run(home: Path) -> None:
    report(home / "with", output=home / "report.log")
    page = check_page(home / "with" / "report.html")
    folder = home / "with" / "report_files"
    told = summary(home / "with")
    for row in rows_of(folder, "results"):
        split = {"test": "test", "validation": "valid"}[row["split"]]
        expected = told["popularity"][split] if row["run"] == "popularity" else told[split]
        assert {name: float(row[name]) for name in expected} == expected
    (cost,) = rows_of(folder, "cost")
    assert float(cost["peak memory, GiB"]) == told["memory"]["peak_pss_bytes"] / 2**30
    assert float(cost["epoch, s"]) == told["seconds"]["train_epoch"]
    for row in rows_of(folder, "epochs"):
        (entry,) = [line for line in lines_of(home / "with", "train") if line["epoch"] == int(row["epoch"])]
        assert float(row["total"]) == entry["losses"]["total"]
    recall = sum(float(row["users"]) * float(row["recall"]) for row in rows_of(folder, "by_activity_bins"))
    assert recall / told["users"]["test"] == pytest.approx(told["test"]["recall@20"], abs=1e-6)
    for heading in ("Results", "Training", "Who is served", "Map of the items", "Time and memory", "Settings"):
        assert heading in page.text
    twin = (home / "with" / "report.md").read_text()
    for figure in folder.glob("*.svg"):
        assert f"(report_files/{figure.name})" in twin


def test_several_runs_and_their_comparison(home: Path) -> None:
    report(home / "with", home / "without", "--out", home / "both.html", output=home / "both.log")
    page = check_page(home / "both.html")
    settings = {row["setting"]: (row["with"], row["without"]) for row in rows_of(home / "both_files", "settings")}
    assert settings == {"data.modalities": ("null", "[]"), "train.epochs": ("3", "2"), "train.tensorboard": ("true", "false")}
    assert "no modality" in page.text and "<b>" in (home / "both.html").read_text()
    text = run("compare", str(home / "with"), str(home / "without"), output=home / "compare.log")
    assert "data.modalities    null  []" in text
    a, b = (summary(home / name)["test"]["recall@20"] for name in ("with", "without"))
    lines = [line.split() for line in text.splitlines() if line.startswith("recall@20")]
    assert lines[1][:4] == ["recall@20", f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}"]
    assert lines[2][1] == f"{b - a:+.4f}", "the mean over users is the difference of the means"
    assert lines[2][-1] == str(summary(home / "with")["users"]["test"])


@pytest.mark.parametrize(
    ("view", "axes", "values"),
    [
        ("table", [], []),
        ("lines", [{"key": "model.layers", "values": [1, 2]}], [{"model.layers": n} for n in (1, 2)]),
        (
            "heat",
            [{"key": "model.dropout", "values": [0.1, 0.3]}, {"key": "model.reg_weight", "values": [0.01, 0.1]}],
            [{"model.dropout": p, "model.reg_weight": w} for p in (0.1, 0.3) for w in (0.01, 0.1)],
        ),
        ("cost", [], []),
        ("search", [], [{"model.dropout": n / 10, "model.features": "fixed"} for n in range(8)]),
    ],
)
def test_the_page_of_a_study(home: Path, tmp_path: Path, view: str, axes: list, values: list) -> None:
    study = write_study(tmp_path / "study", [home / "with", home / "without"], view=view, axes=axes, values=values)
    content = json.loads((study / "study.json").read_text())
    content["conclusions"].append("Failed: v1, seed 2: the loss is <no> longer finite")  # as the study concludes
    (study / "study.json").write_text(json.dumps(content))
    report(study, output=tmp_path / "report.log")
    page = check_page(study / "report.html")
    assert content["conclusions"][0] in page.text
    assert page.text.count("the loss is <no> longer finite") == 1
    rows = {row["variant"].split()[0]: row for row in rows_of(study / "report_files", "metrics_test")}
    for variant in content["variants"]:
        assert float(rows[variant["name"]]["recall@20"]) == variant["test"]["recall@20"]["mean"]
    figures = {path.stem for path in (study / "report_files").glob("*.svg")}
    wanted = {
        "table": "variants_test",
        "lines": "lines",
        "heat": "map_valid",
        "cost": "cost_peak_pss_bytes",
        "search": "trials",
    }
    assert wanted[view] in figures
    if view == "table":
        rows = rows_of(study / "report_files", "gains_by_activity_bins")
        gain = sum(float(row["users"]) * float(row["v1"]) for row in rows) / sum(float(row["users"]) for row in rows)
        expected = [summary(home / name)["test"]["recall@20"] for name in ("with", "without")]
        assert gain == pytest.approx(expected[1] - expected[0], abs=1e-6)
    if view == "heat":
        cells = rows_of(study / "report_files", "map_test_cells")
        assert float(cells[1]["0.01"]) == content["variants"][2]["test"]["recall@20"]["mean"]


def broken(home: Path, tmp_path: Path, name: str = "with") -> Path:
    copy = tmp_path / "run"
    shutil.copytree(home / name, copy, ignore=shutil.ignore_patterns("checkpoints", "tensorboard", "report*"))
    return copy


def test_what_is_missing_or_torn_is_said(home: Path, tmp_path: Path) -> None:
    copy = broken(home, tmp_path)
    (copy / "summary.json").unlink()
    (copy / "item_embeddings.parquet").unlink()
    (copy / "users_test.parquet").write_bytes(b"PAR1 torn")
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    entry = json.loads(lines[2])
    entry["losses"]["total"] = float("nan")
    lines[2] = json.dumps(entry)
    (copy / "metrics.jsonl").write_text("\n".join(lines) + '\n{"event": "train", "st')
    report(copy, output=tmp_path / "report.log")
    text = check_page(copy / "report.html").text
    for part in (
        "The run has not ended (no summary.json)",
        "The last line of metrics.jsonl is cut off",
        "The loss is not finite from epoch 2 on (total)",
        "users_test.parquet is damaged and left out",
        "python launch/recommend.py run.dir=",
    ):
        assert part in text, part


def test_a_run_with_nothing_but_its_config(home: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bare"
    copy.mkdir()
    text = (home / "with" / "config.yaml").read_text().replace(str(home / "data"), "gone")
    (copy / "config.yaml").write_text(text)
    report(copy, output=tmp_path / "report.log")
    page = check_page(copy / "report.html").text
    assert (
        "metrics.jsonl is missing" in page and "data.dir=gone cannot be opened" in page and "No epoch has been recorded" in page
    )


def test_refusals_are_one_line_and_write_nothing(home: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert "no run here (config.yaml is missing)" in refused("report", tmp_path, output=log)
    assert "no run here" in refused("compare", home / "with", tmp_path / "nowhere", output=log)
    assert "need --out FILE.html" in refused("report", home / "with", home / "without", output=log)
    assert "expected a name that ends in .html" in refused("report", home / "with", "--out", tmp_path / "a.pdf", output=log)
    copy = broken(home, tmp_path)
    (copy / "summary.json").write_text("{")
    assert "summary.json: damaged" in refused("report", copy, output=log)
    study = write_study(tmp_path / "study", [home / "with"], view="table")
    assert "is a study, which has a report of its own" in refused(
        "report", study, home / "with", "--out", tmp_path / "x.html", output=log
    )
    content = json.loads((study / "study.json").read_text())
    for change, message in (
        ({"schema_version": 2}, "schema version 2, this program reads 1"),
        ({"view": "pie"}, "view 'pie', expected one of table, lines"),
        ({"variants": [{}]}, "study.json: damaged (KeyError: 'name')"),
    ):
        (study / "study.json").write_text(json.dumps(content | change))
        assert message in refused("report", study, output=log)
    assert not list(tmp_path.rglob("*.html")) and not list(tmp_path.rglob("*_files"))


def test_runs_of_different_datasets_do_not_compare(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    settings = [*SMALL_SHOP, f"data.dir={tmp_path / 'data'}", "shop.seed=8", f"run.dir={other}", "debug=true", "train.epochs=1"]
    run("train", *settings, output=tmp_path / "train.log")
    assert "are not comparable: trained on different datasets" in refused(
        "compare", home / "with", other, output=tmp_path / "log"
    )
