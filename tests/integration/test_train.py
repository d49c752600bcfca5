"""The main job under torchrun: independent of the number of ranks, the same in debug mode, resumed without a trace."""

from __future__ import annotations

import gzip
import json
import os
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.jobs import SMALL_SHOP, parameters, run, shared_memory, start, summary, tag_of

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One dataset and partition for all runs, made by the first."""
    return tmp_path_factory.mktemp("train")


def train(home: Path, name: str, ranks: int | None, *overrides: str) -> Path:
    run_dir = home / name
    arguments = [*SMALL_SHOP, f"data.dir={home / 'data'}", f"run.dir={run_dir}", *overrides]
    run("train", *arguments, ranks=ranks, output=home / f"{name}.log")
    return run_dir


def assert_close(first: Path, second: Path) -> None:
    a, b = parameters(first), parameters(second)
    assert a.keys() == b.keys()
    for name, value in a.items():
        error = float((value.double() - b[name].double()).norm() / value.double().norm().clamp_min(1e-12))
        assert error <= TOLERANCE, f"{name}: relative difference {error}"
    for split in ("valid", "test"):
        assert summary(first)[split] == pytest.approx(summary(second)[split], abs=1e-9)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("residual", ["model.features=residual"]),
        ("trainable", ["model.features=trainable"]),
        ("sampled", ["propagation.engine=sampled", "propagation.fanouts=[3,2]"]),
    ],
)
def test_ranks_do_not_change_the_result(home: Path, name: str, settings: list[str]) -> None:
    """1 x 512, 2 x 256 and 4 x 128 pairs, dropout on, two layers; and debug mode, which has no server and no group."""
    settings = [*settings, "model.layers=2", "train.epochs=1", "model.dropout=0.3"]
    one = train(home, f"{name}-1", 1, *settings, "train.batch_size=512")
    two = train(home, f"{name}-2", 2, *settings, "train.batch_size=256")
    four = train(home, f"{name}-4", 4, *settings, "train.batch_size=128")
    debug = train(home, f"{name}-debug", None, *settings, "train.batch_size=512", "debug=true")
    assert summary(four)["world_size"] == 4
    assert_close(one, two)
    assert_close(one, four)
    assert_close(one, debug)
    moved = parameters(one)["embedding_user.moment"]
    assert float(moved.abs().max()) > 0, "nothing was trained"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["exact", "sampled"])
def test_killed_and_resumed_equals_uninterrupted(home: Path, engine: str) -> None:
    """One trainer is killed in mid-epoch; the resumed run ends with the same bits."""
    settings = [
        *SMALL_SHOP, f"data.dir={home / 'data'}", "train.epochs=8", "train.batch_size=32", "train.checkpoint_steps=7",
        "train.patience=3", f"propagation.engine={engine}", "propagation.fanouts=[3]",
    ]  # fmt: skip
    whole, broken = home / f"{engine}-whole", home / f"{engine}-broken"
    run("train", *settings, f"run.dir={whole}", ranks=2, output=home / f"{engine}-whole.log")
    job = start("train", *settings, f"run.dir={broken}", ranks=2, output=home / f"{engine}-broken.log")
    job.wait_for(lambda: mid_epoch_checkpoint(broken))
    tag = tag_of(job)
    os.kill(trainers_of(job.process.pid)[1], signal.SIGKILL)
    assert job.wait(30) != 0
    assert not (broken / "summary.json").exists()
    text = run("train", *settings, f"run.dir={broken}", "train.resume=true", ranks=2, output=home / f"{engine}-resumed.log")
    assert "resuming" in text
    first, second = parameters(whole), parameters(broken)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    keys = ("best_epoch", "epochs_run", "valid", "test")
    assert {key: summary(whole)[key] for key in keys} == {key: summary(broken)[key] for key in keys}
    for (epoch, expected), (again, found) in zip(losses(whole), losses(broken), strict=True):
        assert epoch == again and found == pytest.approx(expected, rel=1e-6)  # sums of other halves: not to the bit
    assert not shared_memory(tag)


def test_the_whole_line(home: Path) -> None:
    """Train, then evaluate and recommend from the run directory; the files say the same as the run did."""
    run_dir = train(home, "line", 2, "train.epochs=3", "train.batch_size=64")
    files = {path.name for path in run_dir.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "summary.json", "checkpoints", "logs"} <= files
    run("evaluate", f"run.dir={run_dir}", output=home / "evaluate.log")
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    for split in ("valid", "test"):
        assert evaluation[split] == pytest.approx(summary(run_dir)[split], abs=1e-9)
    arguments = [f"run.dir={run_dir}", "--users", "U00003,U00005", "recommend.top_k=7"]
    text = run("recommend", *arguments, output=home / "recommend.log")
    assert "Recommendations for U00003" in text and "Recommendations for U00005" in text
    table = pq.read_table(run_dir / "recommendations.parquet").to_pydict()
    assert len(table["user_id"]) == 400 * 7 and set(table["rank"]) == set(range(1, 8))
    assert pq.read_table(run_dir / "item_embeddings.parquet").num_rows == 200


def test_a_run_is_not_overwritten(home: Path) -> None:
    train(home, "taken", None, "debug=true", "train.epochs=1")
    arguments = [*SMALL_SHOP, f"data.dir={home / 'data'}", f"run.dir={home / 'taken'}", "debug=true", "train.epochs=1"]
    job = start("train", *arguments, output=home / "taken-again.log")
    assert job.wait() == 2
    last = job.text().strip().splitlines()[-1]
    assert last.startswith("error: run.dir=") and "train.resume=true" in last
    before = summary(home / "taken")
    text = run("train", *arguments, "train.resume=true", output=home / "taken-resumed.log")
    assert "nothing left to train" in text and summary(home / "taken") == before
    job = start("train", *arguments, "train.resume=true", "model.layers=2", output=home / "taken-other.log")
    assert job.wait() == 4
    assert "model.layers was 1 and is 2 now; set it back" in job.text().strip().splitlines()[-1]


def test_two_jobs_in_one_run_directory(home: Path) -> None:
    arguments = [*SMALL_SHOP, f"data.dir={home / 'data'}", f"run.dir={home / 'shared'}", "debug=true"]
    first = start("train", *arguments, "train.epochs=1000", "train.patience=1000", output=home / "first.log")
    first.wait_for((home / "shared" / "checkpoints" / "latest").exists)
    second = start("train", *arguments, "train.resume=true", output=home / "second.log")
    assert second.wait() == 5
    assert "another job is training here" in second.text().strip().splitlines()[-1]
    first.process.kill()
    first.wait()


def test_sigterm_saves_and_the_run_goes_on(home: Path) -> None:
    settings = ["train.batch_size=32", "train.epochs=3", "debug=true"]
    train(home, "unasked", None, *settings)
    arguments = [*SMALL_SHOP, f"data.dir={home / 'data'}", f"run.dir={home / 'asked'}", *settings]
    job = start("train", *arguments, output=home / "asked.log")
    job.wait_for(lambda: "epoch 1" in job.text())
    job.process.send_signal(signal.SIGTERM)
    assert job.wait() == 143
    last = job.text().strip().splitlines()[-1]
    step = int((home / "asked" / "checkpoints" / "latest").read_text().split("-")[1])
    assert last == f"error: train: ended by SIGTERM after step {step}, which is saved; go on with train.resume=true"
    run("train", *arguments, "train.resume=true", output=home / "asked-again.log")
    got, expected = parameters(home / "asked"), parameters(home / "unasked")
    assert got.keys() == expected.keys() and all(torch.equal(got[name], value) for name, value in expected.items())


@pytest.mark.parametrize("broken", ["a file", "not writable"])
def test_run_directory_that_cannot_be_used(home: Path, broken: str) -> None:
    place = home / broken.replace(" ", "-")
    place.write_text("in the way")
    run_dir = place if broken == "a file" else place / "run"
    job = start(
        "train", *SMALL_SHOP, f"data.dir={home / 'data'}", f"run.dir={run_dir}", "debug=true", output=home / "broken.log"
    )
    assert job.wait() == 5
    last = job.text().strip().splitlines()
    assert len(last) == 1 and last[0].startswith(f"error: {place}")


def test_a_trial_with_a_profile(home: Path) -> None:
    """A few steps, not judged: the times of the phases, a trace of each rank and a page; then the same run in earnest."""
    run_dir = home / "trial"
    settings = ["train.max_steps=20", "train.profile=true", "train.batch_size=32"]
    text = train(home, "trial", 2, *settings) and (home / "trial.log").read_text()
    assert "a trial of 19 steps on 2 ranks, not judged and not saved" in text
    report = summary(run_dir)
    assert report["trial_steps"] == 19 and "valid" not in report and not list((run_dir / "checkpoints").glob("step-*"))
    assert {"propagate", "propagate_back", "head", "backward", "waiting"} <= set(report["phases"])
    steps = sum(seconds for name, seconds in report["phases"].items() if name != "profile")
    assert 0.5 < steps / report["seconds"]["step"] < 5  # a mean, of which half was traced, and a median
    for rank in (0, 1):
        with gzip.open(run_dir / "profile" / f"rank-{rank}.json.gz") as file:
            names = {event.get("name") for event in json.load(file)["traceEvents"]}
        assert {"propagate", "backward", "aten::mm"} <= names
    page = (run_dir / "profile" / "breakdown.md").read_text()
    assert "# 10 steps" in page and "rank 1, ms" in page and "| propagate |" in page and "aten::" in page
    train(home, "trial", 2, "train.epochs=1", "train.batch_size=32")
    assert summary(run_dir)["epochs_run"] == 1


def mid_epoch_checkpoint(run_dir: Path) -> bool:
    pointer = run_dir / "checkpoints" / "latest"
    return pointer.exists() and int(pointer.read_text().split("-")[1]) % steps_per_epoch(run_dir) != 0


def steps_per_epoch(run_dir: Path) -> int:
    manifest = json.loads((run_dir.parent / "data" / "dataset.json").read_text())
    return -(-manifest["counts"]["train"] // 64)  # 2 ranks x 32 pairs


def losses(run_dir: Path) -> list:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(line["epoch"], line["losses"]) for line in lines if line["event"] == "train"]


def trainers_of(torchrun: int) -> list[int]:
    children = Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split()
    return sorted(int(child) for child in children)
