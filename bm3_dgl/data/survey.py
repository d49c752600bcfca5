"""The numbers that tell whether a dataset is what it should be: degrees, splits, features, neighbours, joins.

Everything is read in blocks, so memory grows with the numbers of users and items, not with interactions or widths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq

from bm3_dgl.data.dataset import Dataset
from bm3_dgl.types import Split

_BLOCK_BYTES = 1 << 25  # of features at once, as float32
_PAIRS = 20_000  # pairs of items bought together that `agreement` compares
_TIME_BINS = 40
_SEED = 20_220_705  # of what is drawn for show; another draw shows other examples and tells the same


@dataclass(frozen=True)
class Interactions:
    """user_degrees, item_degrees: int64 (num_users,), (num_items,), of all splits; trained_items: of train alone.

    split_users: users with a row in the split. times: ms since 1970 of the borders of bins, and rows in them; None
    where the dataset has no times. together: int32 (n, 2), pairs of items that one user has in train.
    """

    user_degrees: np.ndarray
    item_degrees: np.ndarray
    trained_items: np.ndarray
    split_users: dict[Split, int]
    times: tuple[np.ndarray, np.ndarray] | None
    together: np.ndarray


@dataclass(frozen=True)
class Agreement:
    """How well a modality tells items bought together from others.

    area: probability that of a pair bought together and a pair by chance the former is the more similar; 0.5 is chance.
    error: standard deviation of the area under chance. pairs: how many of each were compared.
    """

    area: float
    error: float
    pairs: int


@dataclass(frozen=True)
class Modality:
    """One modality's rows. own: items with a row of their own; promised: how many the manifest says there are.

    zeros: own rows of 0 only; norms: least, median and largest norm of the own rows.
    neighbours: queried item -> the most similar others, (item, cosine), best first.
    """

    name: str
    width: int
    dtype: str
    own: int
    promised: int
    zeros: int
    norms: tuple[float, float, float]
    agreement: Agreement | None
    neighbours: dict[int, list[tuple[int, float]]]


def survey_interactions(dataset: Dataset) -> Interactions:
    """One pass over interactions.parquet; a second over the times where there are any."""
    user_degrees, item_degrees = np.zeros(dataset.num_users, np.int64), np.zeros(dataset.num_items, np.int64)
    trained_items = np.zeros_like(item_degrees)
    seen = {split: np.zeros(dataset.num_users, bool) for split in Split}
    sample: list[np.ndarray] = []
    every = max(1, dataset.num_users // _PAIRS)
    for columns in _interaction_blocks(dataset, ["user", "item", "split"]):
        users, items, splits = columns["user"], columns["item"], columns["split"]
        train = splits == Split.train
        user_degrees += np.bincount(users, minlength=dataset.num_users)
        item_degrees += np.bincount(items, minlength=dataset.num_items)
        trained_items += np.bincount(items[train], minlength=dataset.num_items)
        for split, mask in seen.items():
            mask[users[splits == split]] = True
        drawn = train & (users % every == 0)
        sample.append(np.stack([users[drawn], items[drawn]], axis=1))
    return Interactions(
        user_degrees=user_degrees,
        item_degrees=item_degrees,
        trained_items=trained_items,
        split_users={split: int(mask.sum()) for split, mask in seen.items()},
        times=_times(dataset),
        together=_bought_together(np.concatenate(sample)),
    )


def own_rows(rows: np.ndarray) -> np.ndarray:
    """bool (n,): all but those that hold the one row that most hold, if that looks filled in: held by over 10 and 1 % of n.

    Where nothing was known of an item, it got the mean of the others, here or by whoever made the file.
    """
    digests = np.array([hash(row.tobytes()) for _, block in _feature_blocks(rows) for row in block], np.int64)
    values, place, counts = np.unique(digests, return_inverse=True, return_counts=True)
    if not len(values) or counts.max() <= max(10, len(rows) // 100):
        return np.ones(len(rows), bool)
    return place != np.argmax(counts)


def survey_modality(dataset: Dataset, name: str, own: np.ndarray, queries: np.ndarray, together: np.ndarray) -> Modality:
    """One pass over the rows of a modality for norms, one for neighbours, and look-ups of the pairs.

    own: bool (num_items,), see `own_rows`: only these count, as neighbours and in pairs. queries: int (q,).
    """
    rows = dataset.feature(name)
    norms = np.concatenate([np.linalg.norm(block, axis=1) for _, block in _feature_blocks(rows)])
    lengths = norms[own] if own.any() else norms
    return Modality(
        name=name,
        width=rows.shape[1],
        dtype=str(rows.dtype),
        own=int(own.sum()),
        promised=dataset.manifest["features"][name].get("found", dataset.num_items),
        zeros=int((lengths == 0).sum()),
        norms=(float(lengths.min()), float(np.median(lengths)), float(lengths.max())),
        agreement=agreement(rows, together[own[together].all(axis=1)]),
        neighbours=nearest(rows, norms, own, queries[own[queries]]),
    )


def nearest(
    rows: np.ndarray, norms: np.ndarray, found: np.ndarray, queries: np.ndarray, count: int = 5
) -> dict[int, list[tuple[int, float]]]:
    """The `count` found items of highest cosine to each query but itself, ties by item. norms: float (num_items,)."""
    if not len(queries):
        return {}
    with np.errstate(divide="ignore"):
        scale = np.where(norms > 0, 1 / norms, 0).astype(np.float32)
    wanted = np.asarray(rows[queries], np.float32) * scale[queries, None]
    cosines = np.concatenate([block @ wanted.T for _, block in _feature_blocks(rows)]) * scale[:, None]
    cosines[~found] = -np.inf
    cosines[queries, np.arange(len(queries))] = -np.inf
    best = {}
    for place, query in enumerate(queries):
        order = np.lexsort((np.arange(len(cosines)), -cosines[:, place]))[:count]
        best[int(query)] = [(int(item), float(cosines[item, place])) for item in order if np.isfinite(cosines[item, place])]
    return best


def agreement(rows: np.ndarray, together: np.ndarray) -> Agreement | None:
    """Compare pairs bought together, int (n, 2), with the same items paired by chance; None for fewer than 100 pairs.

    The area under the ROC curve, ties counted half: of all (pair together, pair by chance), those in order of cosine.
    Its deviation under chance, for n of each, is sqrt((2 n + 1) / (12 n^2)) (Mann and Whitney 1947).
    """
    together = together[:_PAIRS]
    if (size := len(together)) < 100:
        return None
    chance = together.copy()
    chance[:, 1] = np.random.default_rng(_SEED).permutation(chance[:, 1])
    area = _roc_area(_cosines(rows, together), _cosines(rows, chance[chance[:, 0] != chance[:, 1]]))
    return Agreement(area, float(np.sqrt((2 * size + 1) / (12 * size**2))), size)


def choose_queries(popularity: np.ndarray, wishes: Sequence[np.ndarray], count: int = 6) -> np.ndarray:
    """Items to show, int64 (<= count,): half the most popular, half drawn at random.

    popularity: int (num_items,). wishes: bool (num_items,) each, what an item should have; each holds as long as any item
    has it together with those before.
    """
    fit = np.ones(len(popularity), bool)
    for wish in wishes:
        fit = fit & wish if (fit & wish).any() else fit
    candidates = np.flatnonzero(fit)
    popular = candidates[np.argsort(-popularity[candidates], kind="stable")[: count // 2]]
    others = np.setdiff1d(candidates, popular)
    drawn = np.random.default_rng(_SEED).choice(others, min(len(others), count - len(popular)), replace=False)
    return np.concatenate([popular, np.sort(drawn)])


def _bought_together(sample: np.ndarray) -> np.ndarray:
    """Pairs of different items of one user: each row of the sample, int32 (n, 2), with the next of its user; shuffled."""
    random = np.random.default_rng(_SEED)
    sample = sample[random.permutation(len(sample))]
    sample = sample[np.argsort(sample[:, 0], kind="stable")]
    first, second = sample[:-1], sample[1:]
    same = (first[:, 0] == second[:, 0]) & (first[:, 1] != second[:, 1])
    pairs = np.stack([first[same, 1], second[same, 1]], axis=1)
    return pairs[random.permutation(len(pairs))]


def _roc_area(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive is above a negative, ties half."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left") + np.searchsorted(ordered, positive, side="right")
    return float(below.mean() / (2 * len(ordered)))


def _cosines(rows: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """float32 (n,); 0 where a row is 0."""
    step = max(1, _BLOCK_BYTES // (4 * rows.shape[1]))
    parts = []
    for begin in range(0, len(pairs), step):
        left, right = (np.asarray(rows[side], np.float32) for side in pairs[begin : begin + step].T)
        norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        parts.append((left * right).sum(axis=1) / np.where(norms > 0, norms, 1))
    return np.concatenate(parts)


def _times(dataset: Dataset) -> tuple[np.ndarray, np.ndarray] | None:
    """Borders, int64 ms (bins + 1,), and rows, int64 (bins,), of equal spans from the first to the last interaction."""
    file = pq.ParquetFile(dataset.directory / "interactions.parquet")
    if "time" not in file.schema_arrow.names:
        return None
    lowest, highest = np.iinfo(np.int64).max, np.iinfo(np.int64).min
    for columns in _interaction_blocks(dataset, ["time"]):
        if len(columns["time"]):
            lowest, highest = min(lowest, int(columns["time"].min())), max(highest, int(columns["time"].max()))
    if lowest >= highest:
        return None
    borders = np.linspace(lowest, highest, _TIME_BINS + 1).astype(np.int64)
    blocks = _interaction_blocks(dataset, ["time"])
    return borders, sum((np.histogram(block["time"], borders)[0] for block in blocks), np.zeros(_TIME_BINS, np.int64))


def _interaction_blocks(dataset: Dataset, names: list[str]) -> Iterator[dict[str, np.ndarray]]:
    """Columns of interactions.parquet, some 100,000 rows at a time; rows with a null are left out."""
    for batch in pq.ParquetFile(dataset.directory / "interactions.parquet").iter_batches(1 << 17, columns=names):
        yield {name: batch.column(name).drop_null().to_numpy(zero_copy_only=False) for name in names}


def _feature_blocks(rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """First item and rows, float32 (n, width), of one block after another."""
    step = max(1, _BLOCK_BYTES // (4 * rows.shape[1]))
    for begin in range(0, len(rows), step):
        yield begin, np.asarray(rows[begin : begin + step], np.float32)
