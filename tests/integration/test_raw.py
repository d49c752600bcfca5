"""From raw dumps to recommendations with titles: prepare, partition, train and recommend, as a user starts them."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.jobs import run, start, summary
from tests.unit.data.dumps import make_dump, write_2014


@pytest.mark.timeout(600)
def test_from_raw_dumps_to_recommendations(tmp_path: Path) -> None:
    """A dump of a few thousand lines with planted tastes, and float16 features."""
    dump = make_dump(4, users=400, items=120, mean=10)
    source = write_2014(tmp_path / "source", dump)
    keys = [
        "data.format=amazon2014", f"data.source={source}", f"data.dir={tmp_path / 'data'}", f"run.dir={tmp_path / 'run'}",
        "data.feature_dtype=float16", "train.epochs=25", "train.tensorboard=false", "train.batch_size=128",
        "model.embedding_dim=16", "train.learning_rate=0.01", "debug=true",
    ]  # fmt: skip
    assert len(dump.rows) > 3000
    text = run("prepare", *keys, output=tmp_path / "prepare.log")
    assert "prepared" in text and "peak memory" in text
    assert "nothing to prepare" in run("prepare", *keys, output=tmp_path / "again.log")
    run("partition", *keys, output=tmp_path / "partition.log")
    text = run("train", *keys, output=tmp_path / "train.log")
    assert "nothing to prepare" in text
    user = dump.rows[100][0]
    text = run("recommend", f"run.dir={tmp_path / 'run'}", "--users", user, output=tmp_path / "recommend.log")
    lines = text[text.index(f"Recommendations for {user}") :].splitlines()
    titled = [line for line in lines[1:21] if " & Co, it's no. " in line]
    assert len(titled) >= 15, text  # one item in ten has no title
    assert pq.read_table(tmp_path / "run" / "recommendations.parquet").num_rows > 0
    popular = next(line for line in (tmp_path / "train.log").read_text().splitlines() if "test      popularity" in line)
    assert summary(tmp_path / "run")["test"]["recall@20"] > 1.2 * float(popular.split()[3]), popular


def test_a_mistake_ends_in_one_line(tmp_path: Path) -> None:
    dump = make_dump(4)
    source = write_2014(tmp_path / "source", dump)
    with open(source / "ratings_Baby.csv", "ab") as file:
        file.write(b"A1,B1\n")
    keys = ["data.format=amazon2014", f"data.source={source}", f"data.dir={tmp_path / 'data'}"]
    job = start("prepare", *keys, output=tmp_path / "prepare.log")
    assert job.wait() == 3
    (line,) = job.text().strip().splitlines()
    assert f"ratings_Baby.csv, line {len(dump.rows) + 1}: 2 columns; expected 4" in line
    assert not (tmp_path / "data").exists()
    run("prepare", *keys, "data.on_error=skip", output=tmp_path / "skip.log")
    assert json.loads((tmp_path / "data" / "dataset.json").read_text())["skipped"] == {"interactions": 1}
