"""Every model through every job; ranks and a resume change nothing; a step of four ranks against the transcription."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from bm3_dgl.data.dataset import open_dataset
from bm3_dgl.model.propagation.adam import BETA1
from bm3_dgl.model.propagation.base import embedding_bound
from bm3_dgl.runtime.random import derive, hash_rows, uniform_rows
from bm3_dgl.types import Split
from tests.jobs import SMALL_SHOP, parameters, run, start, summary
from tests.small_graph import leaf, relative_error
from tests.transcription import negatives, ranking_loss

NUM_USERS, NUM_ITEMS, WIDTH = 400, 200, 16  # SMALL_SHOP


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("baselines")


def train(home: Path, name: str, *overrides: str, ranks: int | None = None) -> Path:
    alone = ["debug=true"] if ranks is None else []
    arguments = [*SMALL_SHOP, f"data.dir={home / 'data'}", f"run.dir={home / name}", *alone, *overrides]
    run("train", *arguments, ranks=ranks, output=home / f"{name}.log")
    return home / name


@pytest.mark.timeout(600)
@pytest.mark.parametrize("model, title", [("bpr", "BPR"), ("lightgcn", "LightGCN"), ("popularity", "popularity")])
def test_the_whole_line(home: Path, model: str, title: str) -> None:
    settings = ["train.batch_size=64", "train.learning_rate=0.01", f"model.name={model}"]
    run_dir = train(home, model, *settings, "train.epochs=5")
    found = summary(run_dir)
    assert found["model"] == model
    assert f"\ntest      {title}  " in (home / f"{model}.log").read_text()
    events = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [set(event["losses"]) for event in events if event["event"] == "train"]
    if model == "popularity":
        assert losses == [] and len(events) == 1
        assert {"valid": found["valid"], "test": found["test"]} == found["popularity"]
    else:
        assert losses == [{"ranking", "regulariser", "total"}] * 5
        assert found["test"]["recall@20"] > 1.5 * found["popularity"]["test"]["recall@20"]
    run("evaluate", f"run.dir={run_dir}", output=home / f"{model}-evaluate.log")
    assert json.loads((run_dir / "evaluation.json").read_text())["test"] == pytest.approx(found["test"], abs=1e-9)
    text = run("recommend", f"run.dir={run_dir}", "recommend.top_k=7", output=home / f"{model}-recommend.log")
    assert "Recommendations for U00000" in text
    assert pq.read_table(run_dir / "recommendations.parquet").num_rows == NUM_USERS * 7
    again = run(
        "train", *SMALL_SHOP, f"data.dir={home / 'data'}", f"run.dir={run_dir}", "debug=true", *settings, "train.epochs=5",
        "train.resume=true", output=home / f"{model}-again.log",
    )  # fmt: skip
    assert "nothing left to train" in again and summary(run_dir) == found
    assert [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()] == events
    assert found["memory"]["peak_pss_bytes"] > 2**26


def test_popularity_of_four_ranks(home: Path) -> None:
    alone, four = (train(home, f"popular-{ranks}", "model.name=popularity", ranks=ranks) for ranks in (None, 4))
    assert summary(four)["test"] == summary(alone)["test"] == summary(four)["popularity"]["test"]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["exact", "sampled"])
def test_a_step_of_four_ranks_is_that_of_the_equations(home: Path, engine: str) -> None:
    """One batch holds all of the train data, so an epoch is a step: its gradient stands in Adam's first moment."""
    settings = ["model.name=lightgcn", "model.layers=2", "model.reg_weight=0.2", "train.epochs=1", "train.seed=5"]
    settings += [f"propagation.engine={engine}", "propagation.fanouts=[-1,-1]", "train.batch_size=2000"]
    run_dir = train(home, f"step-{engine}", *settings, ranks=4)
    edges = torch.from_numpy(np.stack(open_dataset(home / "data").interactions(Split.train)).astype(np.int64))
    tables = {
        ntype: leaf(uniform_rows(derive(5, "embedding", ntype), torch.arange(count), WIDTH) * embedding_bound(count, WIDTH))
        for ntype, count in (("user", NUM_USERS), ("item", NUM_ITEMS))
    }
    chosen = torch.arange(edges.shape[1])
    hashes = hash_rows(derive(5, "negative", 0), chosen, 1)[:, 0].tolist()
    triples = negatives(edges, chosen, hashes, NUM_ITEMS)
    loss = ranking_loss(*tables.values(), edges, triples, edges.shape[1], layers=2, penalty=0.1)
    loss.backward()
    found = parameters(run_dir)
    for ntype, table in tables.items():
        assert table.grad is not None
        assert relative_error(found[f"embedding_{ntype}.moment"] / (1 - BETA1), table.grad) < 1e-4
    event = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[0])
    assert event["losses"]["total"] == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name, settings",
    [
        ("lightgcn", ["model.name=lightgcn"]),
        ("bpr", ["model.name=bpr", "propagation.engine=sampled", "propagation.fanouts=[]"]),
    ],
)
def test_ranks_and_a_resume_change_nothing(home: Path, name: str, settings: list[str]) -> None:
    whole = train(home, f"{name}-whole", *settings, "train.epochs=2", "train.batch_size=512")
    resumed = train(home, f"{name}-resumed", *settings, "train.epochs=1", "train.batch_size=512")
    train(home, f"{name}-resumed", *settings, "train.epochs=2", "train.batch_size=512", "train.resume=true")
    four = train(home, f"{name}-four", *settings, "train.epochs=2", "train.batch_size=128", ranks=4)
    expected, same, near = parameters(whole), parameters(resumed), parameters(four)
    for key, value in expected.items():
        assert torch.equal(value, same[key]), key
        assert relative_error(near[key], value.double()) < 1e-4, key
    assert summary(four)["test"] == pytest.approx(summary(whole)["test"], abs=1e-9)


def test_a_run_of_another_model_is_not_resumed(home: Path) -> None:
    run_dir = train(home, "other", "model.name=bpr", "train.epochs=1")
    arguments = [*SMALL_SHOP, f"data.dir={home / 'data'}", f"run.dir={run_dir}", "debug=true", "train.resume=true"]
    job = start("train", *arguments, "model.name=lightgcn", output=home / "other-again.log")
    assert job.wait() == 4
    assert "model.name was bpr and is lightgcn now" in job.text().strip().splitlines()[-1]
