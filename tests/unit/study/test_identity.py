"""What makes two runs the same one, and what does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import bm3_dgl
from bm3_dgl.config import load_config
from bm3_dgl.study.identity import code_hash, meaning, run_identity


def identity(*overrides: str, ranks: int = 1, dataset: str = "d", code: str = "c", alone: bool = False) -> str:
    config = load_config(None, overrides)
    return run_identity(config, ranks=ranks, dataset=dataset, modalities=["visual", "text"], code=code, alone=alone)


@pytest.mark.parametrize(
    "override",
    [
        "run.dir=x", "data.dir=x", "data.source=x", "partition.dir=x", "train.progress=false", "train.tensorboard=false",
        "train.resume=true", "train.checkpoint_steps=3", "evaluate.block_users=7", "recommend.top_k=3",
        "data.modalities=[visual,text]",
    ],
)  # fmt: skip
def test_what_changes_no_result_changes_no_identity(override: str) -> None:
    assert identity(override) == identity()


@pytest.mark.parametrize(
    "override",
    [
        "train.seed=2", "model.dropout=0.4", "train.epochs=3", "data.modalities=[text]", "data.modalities=[]",
        "propagation.engine=sampled,propagation.fanouts=[3]", "debug=true", "evaluate.cutoffs=[20]", "train.precision=bfloat16",
    ],
)  # fmt: skip
def test_what_changes_a_result_changes_the_identity(override: str) -> None:
    assert (
        identity(*override.split(",propagation", 1)[:1], *(["propagation.fanouts=[3]"] * ("sampled" in override))) != identity()
    )


def test_data_ranks_code_and_being_alone_belong_to_it() -> None:
    assert len({identity(), identity(dataset="e"), identity(ranks=2), identity(code="d"), identity(alone=True)}) == 5


def test_words_and_layout_of_the_code_do_not_count_but_what_it_does() -> None:
    source = 'def f(x):\n    """Doc."""\n    return x + 1  # why\n'
    assert meaning(source) == meaning("def f(x):\n\n    return (x +\n            1)\n")
    assert meaning(source) != meaning(source.replace("1", "2"))


def hash_with(package: Path, changed: str) -> str:
    """Of the code after a change in one file."""
    with open(package / changed, "a") as file:
        file.write("\nextra = 1\n")
    code_hash.cache_clear()
    return code_hash(package)


def test_the_code_hash_follows_what_computes(tmp_path: Path) -> None:
    package = tmp_path / "bm3_dgl"
    shutil.copytree(Path(bm3_dgl.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    before = code_hash(package)
    assert before == code_hash()
    for name in ("study/new.py", "train/journal.py", "train/profile.py", "train/watch.py", "export/parquet.py"):
        assert hash_with(package, name) == before, name
    for name in ("model/losses.py", "export/users.py", "train/step.py"):
        after = hash_with(package, name)
        assert after != before, name
        before = after
