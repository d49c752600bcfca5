"""The item embeddings in two dimensions, by principal components, coloured by category or else by popularity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bm3_dgl.data.dataset import Dataset
from bm3_dgl.errors import DataError
from bm3_dgl.report.document import Block, Figure, Points, Text
from bm3_dgl.report.figures import points, shaded_points
from bm3_dgl.report.run import ITEMS_FILE, Run
from bm3_dgl.types import Split

_SHOWN_ITEMS = 4000  # points that a chart shows, drawn at random; the components are those of all
_SHOWN_CATEGORIES = 6  # the most frequent; others are `other`
_SEED = 0


def embeddings(runs: Sequence[Run]) -> list[Block]:
    """A map for every run that has item_embeddings.parquet; for the others, a line with the command that makes it."""
    blocks: list[Block] = []
    missing = []
    for place, run in enumerate(runs):
        if not (run.directory / ITEMS_FILE).is_file():
            missing += [run] if run.train else []  # what has no epoch, as popularity, has no embeddings
            continue
        try:
            blocks.append(_map(run, f"items_{place + 1}"))
        except DataError as error:
            blocks.append(Points([f"{run.name}: {error}"], warning=True))
    if missing:
        names, others = ", ".join(run.name for run in missing), "; so for the others" if len(missing) > 1 else ""
        command = f"`python launch/recommend.py run.dir={missing[0].directory}`"
        blocks.append(Points([f"No map of {names}: {command} writes {ITEMS_FILE}{others}."]))
    if any(isinstance(block, Figure) for block in blocks):
        blocks.insert(0, Text("Online embeddings of the items, projected on the two directions in which they vary most."))
    return blocks or [Text("There are no item embeddings.")]


def principal_components(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates float64 (n, 2) on the first two principal components, and their shares of the variance.

    The sign of each is chosen so that its largest weight is positive.
    """
    centred = rows.astype(np.float64) - rows.mean(0, dtype=np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    first = vectors[:, ::-1][:, :2]
    first = first * np.sign(first[np.abs(first).argmax(0), np.arange(first.shape[1])])
    total = max(float(values.sum()), 1e-30)
    return centred @ first, values[::-1][:2] / total


def _map(run: Run, name: str) -> Figure:
    ids, rows = _read(run)
    places, shares = principal_components(rows)
    x, y = (f"component {n} ({100 * share:.0f} % of variance)" for n, share in enumerate(shares, start=1))
    shown = np.random.default_rng(_SEED).permutation(len(ids))[:_SHOWN_ITEMS]
    index = _dataset_index(run.dataset, ids)
    categories = _categories(run.dataset, index) if run.dataset is not None and index is not None else None
    few = f", {_SHOWN_ITEMS:,} of {len(ids):,}" if len(ids) > _SHOWN_ITEMS else ""
    modalities = run.settings.get("data.modalities")
    with_what = "all modalities" if modalities is None else " and ".join(map(str, modalities)) or "no modality"
    title = f"{run.name} ({with_what}): items{few}"
    if categories is not None:
        groups = {label: places[shown[categories[shown] == label]] for label in _largest(categories)}
        alt = f"{title}, by category: {', '.join(groups)}."
        return Figure(name, f"{title}, by category.", alt, points(groups, x=x, y=y))
    if run.dataset is not None and index is not None:
        counts = np.bincount(run.dataset.interactions(Split.train)[1], minlength=run.dataset.num_items)[index]
        svg = shaded_points(places[shown], np.log2(counts[shown] + 1.0), x=x, y=y, scale="log2(train interactions + 1)")
        return Figure(name, f"{title}, by popularity.", f"{title}, coloured by their train interactions.", svg)
    return Figure(name, f"{title}.", f"{title}.", points({"items": places[shown]}, x=x, y=y))


def _read(run: Run) -> tuple[list[str], np.ndarray]:
    """Raw ids, and online embeddings float32 (n, D)."""
    path = run.directory / ITEMS_FILE
    try:
        table = pq.read_table(path, columns=["item_id", "embedding"])
        column = table["embedding"].combine_chunks()
        rows = column.flatten().to_numpy().reshape(len(column), -1)
    except (OSError, pa.ArrowException, KeyError, ValueError):
        raise DataError(f"{ITEMS_FILE} is damaged; launch/recommend.py run.dir={run.directory} writes it again") from None
    if len(rows) < 2 or rows.shape[1] < 2 or not np.isfinite(rows).all():
        raise DataError(f"{ITEMS_FILE} holds nothing to draw: fewer than two finite rows or columns")
    return table["item_id"].to_pylist(), rows


def _dataset_index(dataset: Dataset | None, ids: list[str]) -> np.ndarray | None:
    """Item index of each raw id; None where the dataset is unknown or another one."""
    if dataset is None:
        return None
    place = {raw: index for index, raw in enumerate(dataset.raw_item_ids())}
    return np.array([place[raw] for raw in ids]) if all(raw in place for raw in ids) else None


def _categories(dataset: Dataset, index: np.ndarray) -> np.ndarray | None:
    """Category of each item, rare ones as `other`, unknown ones as `unknown`; None where the dataset knows none."""
    known = dataset.items("category")["category"].to_pylist()
    frequent = [name for name, _ in Counter(name for name in known if name).most_common(_SHOWN_CATEGORIES)]
    if not frequent:
        return None
    named = {name: name for name in frequent}
    return np.array([named.get(name, "other" if name else "unknown") for name in known], dtype=object)[index]


def _largest(categories: np.ndarray) -> list[str]:
    """Labels, the most frequent first, `other` and `unknown` last."""
    counted = [name for name, _ in Counter(categories.tolist()).most_common()]
    return sorted(counted, key=lambda name: (name in ("other", "unknown"), counted.index(name)))
