"""The losses and metrics of a short run with a fixed seed, as they were. A refactoring leaves them as they are; a change of
numbers changes losses.json in the same commit and says why. Rewrite it with: python -m tests.golden.test_losses"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from tests.jobs import SMALL_SHOP, run

GOLDEN = Path(__file__).with_name("losses.json")
ENGINES = {"exact": ["model.layers=2"], "sampled": ["propagation.engine=sampled", "propagation.fanouts=[4]"]}


def short_run(home: Path, engine: str) -> list[dict]:
    arguments = [*SMALL_SHOP, f"data.dir={home / 'data'}", f"run.dir={home / engine}", "train.epochs=3", "train.batch_size=64"]
    run("train", *arguments, *ENGINES[engine], "debug=true", output=home / f"{engine}.log")
    lines = [json.loads(line) for line in (home / engine / "metrics.jsonl").read_text().splitlines()]
    return [line["losses"] for line in lines if line["event"] == "train"]


@pytest.mark.parametrize("engine", ENGINES)
def test_losses_are_as_they_were(tmp_path: Path, engine: str) -> None:
    expected = json.loads(GOLDEN.read_text())[engine]
    found = short_run(tmp_path, engine)
    assert len(found) == len(expected) == 3
    for before, now in zip(expected, found, strict=True):
        assert now == pytest.approx(before, rel=1e-4)  # processors round products differently


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        GOLDEN.write_text(json.dumps({engine: short_run(Path(home), engine) for engine in ENGINES}, indent=1) + "\n")
