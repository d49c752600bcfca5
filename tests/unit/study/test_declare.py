"""Study files: what is read, what is refused before anything runs, and that every shipped study declares."""

from __future__ import annotations

from pathlib import Path

import pytest

from bm3_dgl.errors import ConfigError
from bm3_dgl.jobs.study import resolved
from bm3_dgl.study.declare import Study, load_study

CONFIGS = Path(__file__).parents[3] / "configs"
TABLE = "variants: {full: [], small: [model.embedding_dim=8]}\n"


def written(directory: Path, text: str) -> str:
    (directory / "base.yaml").write_text("train: {epochs: 3}\n")
    (directory / "study_mine.yaml").write_text(f"base: base.yaml\n{text}")
    return str(directory / "study_mine.yaml")


def study_of(directory: Path, text: str, *overrides: str) -> Study:
    return load_study(written(directory, text), overrides)


def refusal(directory: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        study_of(directory, text, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_table(tmp_path: Path) -> None:
    text = "study: {seeds: [4, 5]}\nset: [train.epochs=7]\n"
    text += 'variants: {full: [], "two ranks": {ranks: 2, set: [train.batch_size=64]}}\n'
    study = study_of(tmp_path, text, "study.parallel=3", "train.patience=2")
    assert (study.settings.name, study.settings.dir, study.settings.parallel) == ("mine", "runs/studies/mine", 3)
    assert [(variant.name, variant.ranks) for variant in study.variants] == [("full", 1), ("two ranks", 2)]
    assert study.baseline == "full"
    assert study.variants[1].values == {"train.batch_size": 64}
    config = study.config(study.variants[1].overrides, 5)
    train = config.train
    assert (train.epochs, train.patience, train.batch_size, train.seed, train.resume) == (7, 2, 64, 5, True)
    assert train.keep_checkpoints == 1  # a run of a study is at its end read from the best one alone


def test_a_grid_is_the_product_of_its_values(tmp_path: Path) -> None:
    study = study_of(tmp_path, "study: {view: heat}\ngrid: {model.dropout: [0.1, 0.30], data.modalities: [[], [text]]}\n")
    assert [variant.name for variant in study.variants][:2] == [
        "dropout=0.1, modalities=[]",
        "dropout=0.1, modalities=[text]",
    ]
    assert len(study.variants) == 4
    assert study.axes == {"model.dropout": [0.1, 0.3], "data.modalities": [[], ["text"]]}


def test_a_search_begins_with_the_base(tmp_path: Path) -> None:
    text = "study: {view: search, seeds: [1]}\nsearch: {trials: 5, space: {model.dropout: {low: 0.1, high: 0.9}}}\n"
    study = study_of(tmp_path, text, "search.trials=6")
    assert study.search is not None and study.search.trials == 6
    assert study.variants[0].values == {"model.dropout": 0.5}
    assert study.space["model.dropout"].high == 0.9


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("variants: {a: []}\ngrid: {model.layers: [1]}\n", "has variants and grid of variants, grid, search; one is expected"),
        ("", "has none of variants, grid, search"),
        ("study: {titel: x}\n" + TABLE, "line 2: unknown key study.titel; did you mean study.title?"),
        ("studdy: {}\n" + TABLE, "line 2: unknown key studdy in a study"),
        ("study: {seeds: []}\n" + TABLE, "study.seeds=[]: at least one"),
        ("study: {seeds: [1, 1]}\n" + TABLE, "study.seeds=[1,1]: 1 stands in it twice"),
        ("study: {ranks: 0}\n" + TABLE, "study.ranks=0: expected at least 1"),
        ("study: {metric: auc}\n" + TABLE, "study.metric=auc: expected recall@K or ndcg@K"),
        ("study: {metric: recall@7}\n" + TABLE, "study.metric=recall@7 is not measured by evaluate.cutoffs=[10,20]"),
        ("study: {baseline: big}\n" + TABLE, "study.baseline=big: is none of the variants, which are: full, small"),
        ("study: {view: heat}\n" + TABLE, "study.view=heat: needs a grid of 2 keys"),
        ("study: {view: search}\n" + TABLE, "study.view=search"),
        ("set: train.epochs=3\n" + TABLE, "set: expected a list of key=value"),
        ("set: [train.epoch=3]\n" + TABLE, "variant 'full': unknown key train.epoch; did you mean train.epochs?"),
        ("variants: {a: [], a: [train.epochs=2]}\n", "line 2: a stands twice in variants"),
        ("variants: {a: [], b: [train.epochs=0]}\n", "variant 'b': train.epochs=0: expected at least 1"),
        ("variants: {a: [], b: [train.epochs=3]}\n", "variants 'a' and 'b' have the same settings; keep one"),
        ("variants: {a: [], b: [train.seed=3]}\n", "variant 'b': train.seed cannot be set here"),
        ("variants: {a: [], b: {ranks: two}}\n", "variants.b.ranks=two: expected a whole number"),
        ("variants: {a: [], b: {rank: 2}}\n", "unknown key rank in variants.b (allowed here: set, ranks)"),
        ("variants: {a: {ranks: 2, set: [debug=true]}}\n", "debug=true runs one process, and ranks=2"),
        ("variants: {}\n", "variants: expected names with their values"),
        ("grid: {model.layers: 1}\n", "grid.model.layers: expected a list of values"),
        ("grid: {model.layers: [1, one]}\n", "variant 'model.layers=one': model.layers=one: expected a whole number"),
        ("grid: {model.layers: [1, 1]}\n", "variants 'layers=1' and 'layers=1' have the same settings"),
        ("study: {view: search}\nsearch: {space: {model.layers: {low: 1, high: 2}}}\n", "a search trains each trial once"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("{model.drop: {low: 0, high: 1}}", "search.space: unknown key model.drop"),
        ("{model.dropout: {low: 0}}", "search.space.model.dropout: expected low and high with low < high"),
        ("{model.dropout: {low: 0, high: 2}}", "variant 'model.dropout=2.0': model.dropout=2.0: expected 0.0 to 0.99"),
        ("{model.dropout: {low: 0, high: 0.3}}", "the base's value 0.5 lies outside"),
        ("{model.dropout: {low: 0, high: 0.9, log: true}}", "search.space.model.dropout.low=0: expected above 0"),
        ("{model.objective: {low: 0, high: 1}}", "search.space.model.objective: is no number; give choices"),
        ("{model.dropout: {lo: 0}}", "unknown key search.space.model.dropout.lo"),
    ],
)
def test_mistakes_of_a_space(tmp_path: Path, space: str, expected: str) -> None:
    assert expected in refusal(tmp_path, f"study: {{view: search, seeds: [1]}}\nsearch: {{space: {space}}}\n")


def test_a_missing_file_and_a_missing_base(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.yaml: cannot be read \(No such file"):
        load_study(str(tmp_path / "no.yaml"))
    (tmp_path / "study.yaml").write_text(TABLE)
    with pytest.raises(ConfigError, match=r"base is missing"):
        load_study(str(tmp_path / "study.yaml"))
    (tmp_path / "study.yaml").write_text("base: none.yaml\n" + TABLE)
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        load_study(str(tmp_path / "study.yaml"))


SHIPPED = sorted(CONFIGS.glob("study_*.yaml"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_every_shipped_study_declares_and_its_resolved_copy_is_the_same(file: Path, tmp_path: Path) -> None:
    study = load_study(str(file), [f"study.dir={tmp_path}", "train.patience=3"])
    (tmp_path / "study.yaml").write_text(resolved(study), encoding="utf-8")
    again = load_study(str(tmp_path / "study.yaml"))
    assert (again.settings, again.shared, again.axes, again.space) == (study.settings, study.shared, study.axes, study.space)
    assert [(v.name, v.values, v.ranks) for v in again.variants] == [(v.name, v.values, v.ranks) for v in study.variants]
