"""The data report: report.html in the dataset directory, one file that needs no network, no script and no library.

It shows what a wrong file, column or join does to a dataset: counts before and after each step, degrees, splits, items
with their texts, nearest neighbours by each modality, and whether items bought together look alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from bm3_dgl.data import page
from bm3_dgl.data.chart import bar_chart, doubling_bins
from bm3_dgl.data.dataset import MANIFEST, Dataset, open_dataset
from bm3_dgl.data.page import code, escape, percent, section, soft, table
from bm3_dgl.data.survey import Interactions, Modality, choose_queries, own_rows, survey_interactions, survey_modality
from bm3_dgl.errors import DataError
from bm3_dgl.types import Split

PAGE = "report.html"
_TITLE_SHOWN, _TEXT_SHOWN = 120, 400  # characters
_ITEM_COLUMNS = ("raw_item_id", "title", "text", "category", "image")
_FLAGS = {"has_text": "with text", "has_image": "with image"}
_CHANCE_ERRORS = 3.0  # standard errors above one half up to which an agreement is called chance

ItemRows = Mapping[int, Mapping[str, Any]]


def write_report(directory: Path) -> Path:
    """Write report.html from the finished dataset in `directory` alone; its path. Raises DataError where it cannot."""
    text = _page(open_dataset(directory))
    path, part = directory / PAGE, directory / f".{PAGE}.tmp"
    try:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written ({error.strerror}); free space or mend the permissions") from None
    return path


def is_reported(directory: Path) -> bool:
    """Whether a report of the dataset as it is now is there."""
    path, manifest = directory / PAGE, directory / MANIFEST
    return path.is_file() and path.stat().st_mtime_ns >= manifest.stat().st_mtime_ns


def _page(dataset: Dataset) -> str:
    interactions = survey_interactions(dataset)
    flags = _flags(dataset)
    own = {name: own_rows(dataset.feature(name)) for name in dataset.modalities}
    queries = choose_queries(interactions.trained_items, [_titled(dataset), *own.values()])
    modalities = [survey_modality(dataset, name, rows, queries, interactions.together) for name, rows in own.items()]
    near = {item for modality in modalities for nearest in modality.neighbours.values() for item, _ in nearest}
    entries = _entries(dataset, sorted({*queries.tolist(), *near}))
    name = escape(dataset.directory.resolve().name)
    sections = [
        f"<h1>{name}</h1>",
        _summary(dataset, flags),
        _warnings(dataset, interactions, modalities),
        _steps(dataset),
        _splits(dataset, interactions),
        _degrees(interactions),
        _times(interactions),
        _features(dataset, modalities),
        _examples(queries, entries, interactions),
        _neighbours(modalities, queries, entries),
        _origin(dataset),
    ]
    return page.document(f"Data report: {name}", sections)


def _summary(dataset: Dataset, flags: Mapping[str, np.ndarray]) -> str:
    counts, reader = dataset.manifest["counts"], dataset.manifest["origin"].get("reader", "?")
    filled = counts["interactions"] / max(1, counts["users"] * counts["items"])
    numbers = [(f"{counts[name]:,}", name) for name in ("users", "items", "interactions")]
    numbers.append((percent(1 - filled, 3), "sparsity"))
    numbers += [(percent(column.mean()), f"of items {_FLAGS[name]}") for name, column in flags.items()]
    return f"<p>Read by {code(escape(reader))}, content hash {code(escape(dataset.hash[:12]))}.</p>" + page.tiles(numbers)


def _warnings(dataset: Dataset, interactions: Interactions, modalities: Sequence[Modality]) -> str:
    lines = [escape(line) for line in [*dataset.manifest["warnings"], *_judge(interactions, modalities)]]
    return section("Warnings", page.items(lines, mark="warn") if lines else "<p>None.</p>")


def _judge(interactions: Interactions, modalities: Sequence[Modality]) -> list[str]:
    """What the numbers say against the dataset, one sentence each."""
    lines = []
    if cold := int((interactions.trained_items == 0).sum()):
        lines.append(f"items without a train interaction: {cold:,}; the model knows them by their features alone")
    for modality in modalities:
        if modality.own < modality.promised:
            filled = f"{modality.promised - modality.own:,}"
            lines.append(
                f"{modality.name}: items that share one row, as if it was filled in: {filled}; it tells nothing about them"
            )
        if modality.zeros:
            lines.append(f"{modality.name}: rows of zeros only: {modality.zeros:,}; they have no direction to compare")
        tells = modality.agreement
        if tells is not None and tells.area < 0.5 + _CHANCE_ERRORS * tells.error:
            lines.append(
                f"{modality.name}: items bought together are no more alike than items paired by chance ({tells.area:.3f}, "
                f"chance is 0.5 ± {tells.error:.3f}); the rows may belong to other items, look at the neighbours below"
            )
    return lines


def _steps(dataset: Dataset) -> str:
    """Counts before and after each step of the preparation; empty where the reader had no steps."""
    rows, before = [], None
    for step in dataset.manifest.get("steps") or []:
        rest = {key: value for key, value in step.items() if key not in ("step", "users", "items", "interactions")}
        now = step.get("interactions")
        dropped = f"{before - now:,}" if before is not None and now is not None else ""
        counts = [f"{step[key]:,}" if step.get(key) is not None else "" for key in ("users", "items", "interactions")]
        rows.append(
            [escape(step["step"]), *counts, dropped, escape(", ".join(f"{key}: {value}" for key, value in rest.items()))]
        )
        before = before if now is None else now
    heads = ["after", "#users", "#items", "#interactions", "#dropped", ""]
    return section("From the source to the dataset", table(heads, rows)) if rows else ""


def _splits(dataset: Dataset, interactions: Interactions) -> str:
    counts = dataset.manifest["counts"]
    total = max(1, counts["interactions"])
    rows = [
        [split.name, f"{counts[split.name]:,}", percent(counts[split.name] / total), f"{interactions.split_users[split]:,}"]
        for split in Split
    ]
    return section("Splits", table(["split", "#interactions", "#share", "#users"], rows))


def _degrees(interactions: Interactions) -> str:
    charts, rows = [], []
    for side, degrees in (("user", interactions.user_degrees), ("item", interactions.item_degrees)):
        labels, values = doubling_bins(degrees)
        charts.append(bar_chart(labels, values, axis=f"interactions of one {side}", names=f"{side}s"))
        top = np.sort(degrees)[::-1][: max(1, len(degrees) // 100)].sum() / max(1, degrees.sum())
        quantiles = [f"{np.quantile(degrees, share):,.0f}" for share in (0, 0.5, 0.9, 0.99, 1)]
        rows.append([f"interactions of one {side}", f"{degrees.mean():.2f}", *quantiles, percent(top)])
    heads = ["", "#mean", "#least", "#median", "#90 %", "#99 %", "#most", "#share of the top 1 %"]
    return section("Degrees", page.columns(charts), table(heads, rows))


def _times(interactions: Interactions) -> str:
    if interactions.times is None:
        return ""
    borders, values = interactions.times
    labels = [datetime.fromtimestamp(border / 1000, tz=timezone.utc).strftime("%Y-%m-%d") for border in borders[:-1]]
    return section("Times", bar_chart(labels, values.tolist(), axis="from (UTC)", names="interactions"))


def _features(dataset: Dataset, modalities: Sequence[Modality]) -> str:
    rows = []
    for modality in modalities:
        tells = modality.agreement
        area = f"{tells.area:.3f} (chance 0.5 ± {tells.error:.3f})" if tells else "too few pairs"
        own = f"{modality.own:,} ({percent(modality.own / max(1, dataset.num_items))})"
        norms = " / ".join(f"{norm:.3g}" for norm in modality.norms)
        rows.append([escape(modality.name), f"{modality.width:,}", modality.dtype, own, norms, f"{modality.zeros:,}", area])
    heads = [
        "modality",
        "#width",
        "type",
        "#items with own row",
        "#least / median / largest norm",
        "#zero rows",
        "#bought together",
    ]
    note = (
        "<p>“Bought together”: how probable it is that two items of one user's train interactions are more alike (cosine) than "
        "the same items paired by chance. At 0.5 the rows tell nothing about taste, as rows of the wrong items would.</p>"
    )
    return section("Features", table(heads, rows), note) if rows else section("Features", "<p>None.</p>")


def _examples(queries: np.ndarray, entries: ItemRows, interactions: Interactions) -> str:
    rows = []
    for item in queries.tolist():
        entry = entries[item]
        about = (entry.get("text") or "").removeprefix(entry.get("title") or "").strip()
        more = "".join(f"<br>{soft(escape(line, _TEXT_SHOWN))}" for line in (about, entry.get("image")) if line)
        trained = f"{interactions.trained_items[item]:,}"
        rows.append([escape(entry["raw_item_id"]), _name(entry) + more, escape(entry.get("category") or ""), trained])
    return section("Examples of items", table(["item", "title, text, picture", "category", "#train interactions"], rows))


def _neighbours(modalities: Sequence[Modality], queries: np.ndarray, entries: ItemRows) -> str:
    parts = []
    for item in queries.tolist():
        columns = []
        for modality in modalities:
            nearest = modality.neighbours.get(item, [])
            lines = [f"{_name(entries[near])} {soft(f'{cosine:.3f}')}" for near, cosine in nearest]
            columns.append(soft(f"by {escape(modality.name)}") + page.items(lines, ordered=True))
        parts.append(f"<h3>{_name(entries[item])}</h3>" + page.columns(columns))
    note = "<p>The items of highest cosine. If none of them makes sense, the rows are joined to the wrong items.</p>"
    return section("Nearest neighbours", note, *parts) if modalities else ""


def _origin(dataset: Dataset) -> str:
    origin = dict(dataset.manifest["origin"])
    rows = []
    for role, entry in (origin.pop("files", None) or {}).items():
        rows.append([escape(role), code(escape(entry["path"])), f"{entry['bytes']:,}", code(escape(entry["sha256"][:12]))])
    files = table(["source file", "", "#bytes", "SHA-256"], rows) if rows else ""
    chosen = origin.pop("settings", None) or {}
    listed = {**origin, **{key: value for key, value in chosen.items() if value not in ("", [], {})}}
    settings = table(["", ""], [[escape(key), code(escape(value, _TEXT_SHOWN))] for key, value in listed.items()])
    return section("Origin", settings, files)


def _flags(dataset: Dataset) -> dict[str, np.ndarray]:
    """has_text and has_image, bool (num_items,), as far as the dataset knows them."""
    there = pq.read_schema(dataset.directory / "items.parquet").names
    read = pq.read_table(dataset.directory / "items.parquet", columns=[name for name in _FLAGS if name in there])
    return {name: read[name].to_numpy() for name in read.column_names if not read[name].null_count}


def _titled(dataset: Dataset) -> np.ndarray:
    """bool (num_items,): items with a title."""
    titles = pq.read_table(dataset.directory / "items.parquet", columns=["title"])["title"]
    return titles.is_valid().to_numpy()


def _entries(dataset: Dataset, items: Sequence[int]) -> dict[int, dict[str, Any]]:
    """What items.parquet says of some items; items: in order."""
    file = pq.ParquetFile(dataset.directory / "items.parquet")
    names = [name for name in _ITEM_COLUMNS if name in file.schema_arrow.names]
    wanted, begin = np.asarray(items, np.int64), 0
    entries: dict[int, dict[str, Any]] = {}
    for batch in file.iter_batches(1 << 14, columns=names):
        inside = wanted[(wanted >= begin) & (wanted < begin + len(batch))]
        entries.update(zip(inside.tolist(), batch.take(inside - begin).to_pylist(), strict=True))
        begin += len(batch)
    return entries


def _name(entry: Mapping[str, Any]) -> str:
    return escape(entry["title"], _TITLE_SHOWN) if entry.get("title") else code(escape(entry["raw_item_id"]))
