"""Who is served and with what: recall by activity of users and popularity of items, reach and bias of the lists.

A user's activity and an item's popularity are counts of train interactions. Bins double: 0, 1, 2, 3-4, 5-8, ...; at either
end they are joined until the outermost holds at least _LEAST_SHARE of what is counted.

    recall of a bin of users     mean over its users of hits@K / test items
    recall of a bin of items     hits@K / test interactions, over the test interactions with its items
    coverage                     share of the catalogue's items that stand in at least one list
    Gini                         of the numbers of lists that items stand in, over the whole catalogue: 0 all alike, 1 one item
    popularity percentile        share of the catalogue with fewer train interactions, ties counted half; in percent
    gain of a bin                mean difference of two models over the same users or test interactions, with Student's 95 %
                                 interval; a user's test interactions are no draws of their own, so their deviations
                                 are summed first (cluster-robust error)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from scipy import special

from bm3_dgl.data.dataset import Dataset
from bm3_dgl.errors import DataError
from bm3_dgl.types import Split

_LEAST_SHARE = 0.01  # of what is counted, in the first and the last bin: fewer say nothing
_AGREES = 1e-4  # mean recall as read against that of the lists


@dataclass(frozen=True)
class Lists:
    """Judged users and their lists at K. users int64 (n,), train_items int64 (n,), recall float64 (n,), items int64
    (n, K), -1 where a list has none; pair_row, pair_item int64 (m,): their test interactions; hit float64 (m,),
    1 for found, a share after averaging over seeds. popularity int64 (num_items,): train interactions."""

    cutoff: int
    users: np.ndarray
    train_items: np.ndarray
    recall: np.ndarray
    items: np.ndarray
    pair_row: np.ndarray
    pair_item: np.ndarray
    hit: np.ndarray
    popularity: np.ndarray


@dataclass(frozen=True)
class Bin:
    """error: standard error of the recall; None where there are fewer than two."""

    label: str
    count: int
    recall: float
    error: float | None


@dataclass(frozen=True)
class Gain:
    """Of a bin: mean difference, and its interval, None where it is of fewer than two users."""

    label: str
    count: int
    difference: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Reach:
    """Of lists, or of the test interactions themselves."""

    coverage: float
    gini: float
    train_interactions: float
    percentile: float


def read_lists(table: pa.Table, dataset: Dataset, cutoff: int) -> Lists:
    """Raises DataError where the table does not fit the dataset, or has no column of that cutoff."""
    name = f"recall@{cutoff}"
    if name not in table.column_names:
        raise DataError(f"users_test.parquet: no column {name}; evaluate with {cutoff} among evaluate.cutoffs")
    users = table["user"].to_numpy().astype(np.int64)
    items = _matrix(table["items"])[:, :cutoff].astype(np.int64)
    if len(users) and (users.max() >= dataset.num_users or items.max(initial=-1) >= dataset.num_items):
        raise DataError("users_test.parquet: names users or items that the dataset does not have; it is of another dataset")
    popularity = np.bincount(dataset.interactions(Split.train)[1], minlength=dataset.num_items)
    row_of = np.full(dataset.num_users, -1, np.int64)
    row_of[users] = np.arange(len(users))
    test_users, test_items = dataset.interactions(Split.test)
    rows = row_of[test_users]
    pair_row, pair_item = rows[rows >= 0], test_items[rows >= 0].astype(np.int64)
    width = dataset.num_items + 1  # so that -1 is no item of the row before
    listed = np.arange(len(users))[:, None] * width + np.where(items < 0, dataset.num_items, items)
    hit = np.isin(pair_row * width + pair_item, listed).astype(np.float64)
    recall = table[name].to_numpy().astype(np.float64)
    held = np.bincount(pair_row, minlength=len(users))
    found = np.bincount(pair_row, weights=hit, minlength=len(users)) / np.maximum(held, 1)
    if len(users) and abs(float(found.mean() - recall.mean())) > _AGREES:
        raise DataError(f"users_test.parquet: its {name} is not that of its lists on this dataset; it is of another one")
    train_items = table["train_items"].to_numpy().astype(np.int64)
    return Lists(cutoff, users, train_items, recall, items, pair_row, pair_item, hit, popularity)


def by_activity(lists: Lists) -> list[Bin]:
    """Recall by the users' train interactions."""
    return _bins(lists.train_items, lists.recall)


def by_popularity(lists: Lists) -> list[Bin]:
    """Recall by the test items' train interactions."""
    return _bins(lists.popularity[lists.pair_item], lists.hit)


def same_users(first: Lists, second: Lists) -> bool:
    """Whether both are of the same users, test interactions and catalogue."""
    names = ("users", "train_items", "pair_row", "pair_item", "popularity")
    return all(np.array_equal(getattr(first, name), getattr(second, name)) for name in names)


def mean_over_seeds(seeds: Sequence[Lists]) -> Lists:
    """Lists of the same users: recall and hits are the means, items those of the first."""
    assert all(same_users(seeds[0], other) for other in seeds), "seeds of a variant judge the same users"
    recall, hit = (np.mean([getattr(one, name) for one in seeds], axis=0) for name in ("recall", "hit"))
    return replace(seeds[0], recall=recall, hit=hit)


def gains_by_activity(lists: Lists, base: Lists) -> list[Gain]:
    """lists - base, of the same users."""
    return _gains(base.train_items, lists.recall - base.recall, np.arange(len(base.users)))


def gains_by_popularity(lists: Lists, base: Lists) -> list[Gain]:
    """lists - base, of the same test interactions."""
    return _gains(base.popularity[base.pair_item], lists.hit - base.hit, base.pair_row)


def reach_of_lists(lists: Lists) -> Reach:
    return _reach(lists.items[lists.items >= 0], lists.popularity)


def reach_of_test(lists: Lists) -> Reach:
    """Of what users took: what the lists are held against."""
    return _reach(lists.pair_item, lists.popularity)


def popularity_shares(items: np.ndarray, popularity: np.ndarray, starts: Sequence[int]) -> np.ndarray:
    """Share of `items`, int (n,), in each popularity bin that begins at starts[b]; float64 (len(starts),)."""
    place = np.searchsorted(starts, popularity[items], side="right") - 1
    return np.bincount(place, minlength=len(starts)) / max(1, len(items))


def bin_starts(counts: np.ndarray) -> list[int]:
    """First counts of the doubling bins, joined at both ends; [] for no counts."""
    if not len(counts):
        return []
    edges = [0, 1, 2] + [2**power + 1 for power in range(1, 40)]
    starts = [edge for edge in edges if edge <= counts.max()]
    while len(starts) > 1 and (counts >= starts[-1]).mean() < _LEAST_SHARE:
        starts.pop()
    while len(starts) > 1 and counts.min() >= starts[1]:
        starts.pop(0)
    while len(starts) > 1 and (counts < starts[1]).mean() < _LEAST_SHARE:
        starts.pop(1)
    return starts


def bin_labels(starts: Sequence[int]) -> list[str]:
    ends = [start - 1 for start in starts[1:]]
    labels = [str(start) if start == end else f"{start}–{end}" for start, end in zip(starts, ends, strict=False)]
    return [*labels, f"{starts[-1]}+"] if starts else []


def _bins(counts: np.ndarray, values: np.ndarray) -> list[Bin]:
    starts = bin_starts(counts)
    place = np.searchsorted(starts, counts, side="right") - 1
    bins = []
    for number, label in enumerate(bin_labels(starts)):
        inside = values[place == number]
        if len(inside):
            error = float(inside.std(ddof=1) / np.sqrt(len(inside))) if len(inside) > 1 else None
            bins.append(Bin(label, len(inside), float(inside.mean()), error))
    return bins


def _gains(counts: np.ndarray, differences: np.ndarray, owner: np.ndarray) -> list[Gain]:
    """counts int, differences float64 and owner int, row of the user, all (n,)."""
    starts = bin_starts(counts)
    place = np.searchsorted(starts, counts, side="right") - 1
    gains = []
    for number, label in enumerate(bin_labels(starts)):
        inside = differences[place == number]
        if not len(inside):
            continue
        mean, half = float(inside.mean()), None
        _, user = np.unique(owner[place == number], return_inverse=True)
        sums = np.bincount(user, weights=inside - mean)
        if (users := len(sums)) > 1:
            error = np.sqrt((sums**2).sum() * users / (users - 1)) / len(inside)
            half = float(special.stdtrit(users - 1, 0.975) * error)
        gains.append(Gain(label, len(inside), mean, *((None, None) if half is None else (mean - half, mean + half))))
    return gains


def _reach(items: np.ndarray, popularity: np.ndarray) -> Reach:
    times = np.bincount(items, minlength=len(popularity))
    ordered = np.sort(popularity)
    below = np.searchsorted(ordered, popularity, side="left")
    upto = np.searchsorted(ordered, popularity, side="right")
    percentile = 100.0 * (below + upto) / (2 * max(1, len(popularity)))
    some = max(1, len(items))
    return Reach(
        coverage=float((times > 0).mean()) if len(times) else 0.0,
        gini=gini(times),
        train_interactions=float(popularity[items].sum() / some),
        percentile=float(percentile[items].sum() / some),
    )


def gini(counts: np.ndarray) -> float:
    """Gini coefficient of counts (n,) >= 0: sum_i (2 i - n - 1) x_i / (n sum x), x ascending, i from 1; 0 for none."""
    total, n = float(counts.sum()), len(counts)
    if total == 0:
        return 0.0
    place = np.arange(1, n + 1)
    return float(((2 * place - n - 1) * np.sort(counts)).sum() / (n * total))


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    """A column of lists of one length as (n, length)."""
    joined = column.combine_chunks()
    if pa.types.is_fixed_size_list(joined.type):
        return joined.flatten().to_numpy(zero_copy_only=False).reshape(len(joined), joined.type.list_size)
    raise DataError("users_test.parquet: its column items is not of lists of one length; let the job write it again")
