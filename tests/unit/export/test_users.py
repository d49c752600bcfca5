"""users_test.parquet: its columns, and that its means are the metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bm3_dgl.evaluate.evaluator import Judged
from bm3_dgl.evaluate.metrics import ranking_metrics
from bm3_dgl.export import users as users_file
from bm3_dgl.export.users import write_users


def judged(num_users: int, width: int, seed: int = 0) -> Judged:
    random = np.random.default_rng(seed)
    users = torch.from_numpy(np.sort(random.choice(1000, num_users, replace=False)))
    items = torch.from_numpy(np.stack([random.permutation(50)[:width] for _ in range(num_users)]))
    counts = random.integers(1, 6, num_users)
    truth = np.concatenate([np.sort(random.permutation(50)[:count]) for count in counts])
    indptr = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]))
    return Judged(users, items, indptr, torch.from_numpy(truth))


@pytest.mark.parametrize("group", [3, 1000])
def test_means_are_the_metrics_however_many_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: int) -> None:
    monkeypatch.setattr(users_file, "_GROUP_USERS", group)
    lists, train = judged(20, 8), np.arange(1000) % 7
    write_users(tmp_path / "users.parquet", lists, train, [2, 8])
    table = pq.read_table(tmp_path / "users.parquet")
    expected = ranking_metrics(lists.items, lists.truth_indptr, lists.truth_items, [2, 8])
    assert {name: np.mean(table[name].to_numpy(), dtype=np.float64) for name in expected} == pytest.approx(expected, abs=1e-7)
    assert table["user"].to_numpy().tolist() == lists.users.tolist()
    assert table["train_items"].to_numpy().tolist() == train[lists.users].tolist()
    assert table["test_items"].to_numpy().tolist() == lists.truth_indptr.diff().tolist()
    assert table["items"].to_pylist() == lists.items.tolist()


def test_the_schema_is_the_documented_one(tmp_path: Path) -> None:
    write_users(tmp_path / "users.parquet", judged(5, 8), np.zeros(1000, np.int64), [2, 8])
    types = {"user": pa.int32(), "train_items": pa.int32(), "test_items": pa.int32()}
    types |= {name: pa.float32() for name in ("recall@2", "ndcg@2", "recall@8", "ndcg@8")} | {"items": pa.list_(pa.int32(), 8)}
    schema = pq.read_schema(tmp_path / "users.parquet")
    assert {field.name: field.type for field in schema} == types
    assert [path.name for path in tmp_path.iterdir()] == ["users.parquet"]
