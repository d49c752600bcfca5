"""Breakdowns against loops over single users, items and pairs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bm3_dgl.errors import DataError
from bm3_dgl.report.breakdown import (
    Lists,
    bin_labels,
    bin_starts,
    by_activity,
    by_popularity,
    gini,
    popularity_shares,
    reach_of_lists,
    reach_of_test,
    read_lists,
)
from bm3_dgl.types import Split

USERS, ITEMS, K = 120, 60, 5


class Shop:
    """A made-up dataset and lists; user 0 has no test items and user 1 a short list."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self.num_users, self.num_items = USERS, ITEMS
        weight = 1.0 / np.arange(1, ITEMS + 1)
        self.train, self.test, self.lists = {}, {}, {}
        for user in range(USERS):
            drawn = rng.choice(ITEMS, size=int(rng.integers(4, 25)), replace=False, p=weight / weight.sum()).tolist()
            held = 0 if user == 0 else int(rng.integers(1, 4))
            self.test[user], self.train[user] = drawn[:held], drawn[held:]
            listed = rng.permutation([item for item in range(ITEMS) if item not in self.train[user]])[: K + 3].tolist()
            self.lists[user] = [listed[0]] + [-1] * (K + 2) if user == 1 else listed

    def interactions(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        content = {Split.train: self.train, Split.test: self.test}[split]
        pairs = [(user, item) for user, items in content.items() for item in items]
        users, items = zip(*pairs, strict=True)
        return np.array(users, np.int32), np.array(items, np.int32)

    def table(self) -> pa.Table:
        users = [user for user in range(USERS) if self.test[user]]
        flat = pa.array([item for user in users for item in self.lists[user]], pa.int32())
        recall = [self.recall(user) for user in users]
        return pa.table(
            {
                "user": pa.array(users, pa.int32()),
                "train_items": pa.array([len(self.train[user]) for user in users], pa.int32()),
                "test_items": pa.array([len(self.test[user]) for user in users], pa.int32()),
                f"recall@{K}": pa.array(recall, pa.float32()),
                "items": pa.FixedSizeListArray.from_arrays(flat, K + 3),
            }
        )

    def recall(self, user: int) -> float:
        return sum(item in self.lists[user][:K] for item in self.test[user]) / len(self.test[user])


@pytest.fixture(scope="module")
def shop() -> Shop:
    return Shop()


@pytest.fixture(scope="module")
def lists(shop: Shop) -> Lists:
    return read_lists(shop.table(), shop, K)  # type: ignore[arg-type]


def label_of(count: int, labels: list[str]) -> str:
    for label in labels:
        low, _, high = label.rstrip("+").partition("–")
        if int(low) <= count and (label.endswith("+") or count <= int(high or low)):
            return label
    raise AssertionError(f"{count} is in none of {labels}")


def test_recall_by_activity(shop: Shop, lists: Lists) -> None:
    bins = by_activity(lists)
    found: dict[str, list[float]] = {}
    for user in range(USERS):
        if shop.test[user]:
            found.setdefault(label_of(len(shop.train[user]), [bin.label for bin in bins]), []).append(shop.recall(user))
    assert {bin.label: bin.count for bin in bins} == {label: len(values) for label, values in found.items()}
    for bin in bins:
        values = found[bin.label]
        assert bin.recall == pytest.approx(sum(values) / len(values), abs=1e-7)
        assert bin.error == pytest.approx(np.std(values, ddof=1) / len(values) ** 0.5, abs=1e-7)


def test_recall_by_popularity(shop: Shop, lists: Lists) -> None:
    bins = by_popularity(lists)
    sold = Counter(item for items in shop.train.values() for item in items)
    hits: dict[str, list[bool]] = {}
    for user in range(USERS):
        for item in shop.test[user]:
            label = label_of(sold[item], [bin.label for bin in bins])
            hits.setdefault(label, []).append(item in shop.lists[user][:K])
    assert len(bins) > 3
    assert {bin.label: bin.count for bin in bins} == {label: len(values) for label, values in hits.items()}
    for bin in bins:
        assert bin.recall == pytest.approx(sum(hits[bin.label]) / bin.count)


def test_reach_of_the_lists_and_of_the_test_items(shop: Shop, lists: Lists) -> None:
    sold = Counter(item for items in shop.train.values() for item in items)
    judged = [user for user in range(USERS) if shop.test[user]]
    listed = [item for user in judged for item in shop.lists[user][:K] if item >= 0]
    taken = [item for user in judged for item in shop.test[user]]

    def percentile(item: int) -> float:
        below = sum(sold[other] < sold[item] for other in range(ITEMS))
        equal = sum(sold[other] == sold[item] for other in range(ITEMS))
        return 100 * (below + equal / 2) / ITEMS

    for reach, items in ((reach_of_lists(lists), listed), (reach_of_test(lists), taken)):
        times = Counter(items)
        assert reach.coverage == pytest.approx(len(times) / ITEMS)
        assert reach.train_interactions == pytest.approx(sum(sold[item] for item in items) / len(items))
        assert reach.percentile == pytest.approx(sum(map(percentile, items)) / len(items))
        counts = [times[item] for item in range(ITEMS)]
        differences = sum(abs(a - b) for a in counts for b in counts)
        assert reach.gini == pytest.approx(differences / (2 * ITEMS * sum(counts)))


def test_gini_of_extremes() -> None:
    assert gini(np.array([3, 3, 3, 3])) == pytest.approx(0.0)
    assert gini(np.array([0, 0, 0, 7])) == pytest.approx(3 / 4)
    assert gini(np.zeros(5)) == 0.0


def test_bins_are_joined_where_they_are_thin() -> None:
    assert bin_labels(bin_starts(np.array([1, 2, 3, 4, 5, 8, 9, 20]))) == ["1", "2", "3–4", "5–8", "9–16", "17+"]
    assert bin_labels(bin_starts(np.array([0] * 50 + [1] * 50))) == ["0", "1+"]
    many = np.array([1] + [3] * 150 + [6] * 150 + [500])
    assert bin_labels(bin_starts(many)) == ["1–4", "5+"]
    assert bin_starts(np.array([], np.int64)) == [] and bin_labels([]) == []


def test_shares_by_popularity() -> None:
    popularity = np.array([1, 1, 4, 9])
    assert popularity_shares(np.array([0, 2, 2, 3]), popularity, [1, 3, 9]).tolist() == [0.25, 0.5, 0.25]


def changed(shop: Shop, **columns: Any) -> pa.Table:
    table = shop.table()
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
    return table


def test_a_table_that_does_not_fit(shop: Shop, tmp_path: Path) -> None:
    judged = shop.table().num_rows
    other: Any = SimpleNamespace(num_users=USERS, num_items=10, interactions=shop.interactions)
    with pytest.raises(DataError, match="of another dataset"):
        read_lists(shop.table(), other, K)
    with pytest.raises(DataError, match=f"its recall@{K} is not that of its lists"):
        read_lists(changed(shop, **{f"recall@{K}": [1.0] * judged}), shop, K)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no column recall@7; evaluate with 7 among"):
        read_lists(shop.table(), shop, 7)  # type: ignore[arg-type]
