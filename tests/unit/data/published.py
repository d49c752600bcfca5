"""The published preparation as slowly as it is written down, and datasets made to be held against it; for tests."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from bm3_dgl.config.load import load_config
from bm3_dgl.data.dataset import Dataset
from bm3_dgl.data.prepare import prepare
from tests.unit.data.dumps import (
    Dump,
)  # fmt: skip


def made(source: Path, *keys: str, name: str = "dataset") -> Dataset:
    return prepare(load_config(None, [f"data.source={source}", f"data.dir={source.parent / name}", *keys]))


def published(rows: list[tuple[str, str, float, int]], k: int = 5) -> list[tuple[str, str, int]]:
    """The published preparation up to the k-core, as slowly as it is written down: user, item, time in s, in order."""
    kept, seen = [], set()
    for user, item, _, time in rows:
        if (user, item, time) not in seen:
            seen.add((user, item, time))
            kept.append((user, item, time))
    while True:
        of_user, of_item = Counter(user for user, _, _ in kept), Counter(item for _, item, _ in kept)
        left = [row for row in kept if of_user[row[0]] >= k and of_item[row[1]] >= k]
        if len(left) == len(kept):
            return kept
        kept = left


def published_split(count: int) -> list[int]:
    """Labels of a user's rows, as the published notebook computes them."""
    if count < 10:
        return [0] * (count - 2) + [1] + [2]
    held = int(count * 0.2)
    valid = held // 2
    return [0] * (count - held) + [1] * valid + [2] * (held - valid)


def table(dataset: Dataset) -> list[tuple[int, int, int, int]]:
    """user, item, split, time in s, in file order."""
    columns = pq.read_table(dataset.directory / "interactions.parquet").to_pydict()
    return list(
        zip(columns["user"], columns["item"], columns["split"], [time // 1000 for time in columns["time"]], strict=True)
    )


def assert_is_published(dataset: Dataset, dump: Dump) -> None:
    expected = published(dump.rows)
    assert 0 < len(expected) < len(dump.rows)
    users, items = (list(dict.fromkeys(column)) for column in list(zip(*expected, strict=True))[:2])
    assert dataset.raw_user_ids() == users and dataset.raw_item_ids() == items  # in order of first appearance
    rows = table(dataset)
    assert sorted((users[user], items[item], time) for user, item, _, time in rows) == sorted(expected)
    assert [user for user, *_ in rows] == sorted(user for user, *_ in rows)
    for user in range(len(users)):
        labels = [split for owner, _, split, _ in rows if owner == user]
        assert labels == published_split(len(labels))
