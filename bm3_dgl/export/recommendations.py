"""Results with the raw ids back on them: ranked lists and embeddings as Parquet files, one user's list as text.

    recommendations.parquet   user_id string, item_id string, rank int32 from 1, score float32; by user, then by rank
    embeddings                id string, embedding fixed_size_list<float32>[D], and latent likewise where one is given

Files are written row group by row group under a temporary name and renamed at the end: one under its final name is whole.

Shape suffixes: U users of the lists, K top-k, N rows, D embedding width.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from torch import Tensor

from bm3_dgl.evaluate.ranking import TopK
from bm3_dgl.export.parquet import write_groups

_GROUP_ROWS = 1 << 18  # recommendations of one row group, about 10 MB in memory
_GROUP_VALUES = 1 << 22  # float32 of one row group of embeddings, 16 MiB
_LINE_COLUMNS = 100  # widest line for a terminal
_TITLE_COLUMNS = 72
_SEEN_SHOWN = 5


def write_recommendations(
    path: Path, raw_user_ids: Sequence[str], raw_item_ids: Sequence[str], user_indices: Tensor, top: TopK
) -> None:
    """Write ranked lists; places that hold no item (-1) are dropped.

    raw_user_ids, raw_item_ids: of all users and items, by index. user_indices: int (U,), whose lists the rows of `top`
    are, on the CPU. Raises DataError if the file cannot be written.
    """
    assert len(user_indices) == len(top.items), f"{len(user_indices)} users for {len(top.items)} lists"
    users, items = pa.array(raw_user_ids, pa.string()), pa.array(raw_item_ids, pa.string())
    schema = pa.schema([("user_id", pa.string()), ("item_id", pa.string()), ("rank", pa.int32()), ("score", pa.float32())])

    def groups() -> Iterator[pa.RecordBatch]:
        step = max(1, _GROUP_ROWS // max(1, top.items.shape[1]))
        for start in range(0, len(top.items), step):
            item_UK = top.items[start : start + step].numpy()
            row, column = np.nonzero(item_UK >= 0)
            user = user_indices[start : start + step].numpy()[row]
            score = top.scores[start : start + step].numpy()[row, column].astype(np.float32)
            rank = pa.array((column + 1).astype(np.int32))
            columns = [users.take(pa.array(user)), items.take(pa.array(item_UK[row, column])), rank, pa.array(score)]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    write_groups(Path(path), schema, groups(), dictionary=["user_id", "item_id"])


def write_embeddings(
    path: Path, raw_ids: Sequence[str], online_ND: Tensor, latent_ND: Tensor | None = None, *, id_column: str = "id"
) -> None:
    """Write one row per node: raw id, online embedding and, if given, the latent one.

    online_ND, latent_ND: float (N, D) in the order of raw_ids, on the CPU; written as float32. id_column: name of the id
    column. Raises DataError if the file cannot be written.
    """
    tables = {"embedding": online_ND} | ({} if latent_ND is None else {"latent": latent_ND})
    for name, table_ND in tables.items():
        assert table_ND.ndim == 2 and len(table_ND) == len(raw_ids), f"{name} is {tuple(table_ND.shape)} for {len(raw_ids)} ids"
    fields = [(name, pa.list_(pa.float32(), table_ND.shape[1])) for name, table_ND in tables.items()]
    schema = pa.schema([(id_column, pa.string()), *fields])

    def groups() -> Iterator[pa.RecordBatch]:
        step = max(1, _GROUP_VALUES // max(1, online_ND.shape[1]))
        for start in range(0, len(raw_ids), step):
            columns = [pa.array(raw_ids[start : start + step], pa.string())]
            for table_ND in tables.values():
                values = table_ND[start : start + step].detach().float().contiguous().numpy()
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1]))
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    # A dictionary of distinct floats only costs time, and the ids are distinct too.
    write_groups(Path(path), schema, groups(), dictionary=[])


def readable_list(
    raw_user_id: str,
    raw_item_ids: Sequence[str],
    titles: Sequence[str | None],
    items: Iterable[int],
    scores: Iterable[float],
    seen_titles: Sequence[str],
) -> str:
    """One user's recommendations for a terminal, lines of at most 100 columns.

    raw_item_ids, titles: of all items, by index; an item without title shows its raw id. items, scores: the user's list,
    best first; -1 ends it. seen_titles: titles (or raw ids) of what the user bought, of which at most 5 are shown.
    """
    listed = [(int(item), float(score)) for item, score in zip(items, scores, strict=True) if item >= 0]
    lines = [_fit(f"Recommendations for {_printable(raw_user_id)}", _LINE_COLUMNS).rstrip()]
    for rank, (item, score) in enumerate(listed, start=1):
        name = _fit(_printable(titles[item] or raw_item_ids[item]), _TITLE_COLUMNS)
        lines.append(f"{rank:>6}  {name}  {score:>#12.4g}")
    if not listed:
        lines.append("        (none: every item is already known to this user)")
    lines.append("Bought before:" if seen_titles else "Bought before: nothing")
    lines += ["        " + _fit(_printable(title), _TITLE_COLUMNS).rstrip() for title in seen_titles[:_SEEN_SHOWN]]
    if len(seen_titles) > _SEEN_SHOWN:
        lines.append(f"        and {len(seen_titles) - _SEEN_SHOWN} more")
    return "\n".join(lines)


def _printable(text: str) -> str:
    """Text in one line, without characters that a terminal would obey (titles are foreign input)."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _columns(char: str) -> int:
    """Terminal columns of a printable character."""
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def _fit(text: str, columns: int) -> str:
    """Text cut (with an ellipsis) or filled with blanks to exactly `columns` terminal columns."""
    if sum(map(_columns, text)) > columns:
        kept, used = [], 0
        for char in text:
            used += _columns(char)
            if used > columns - 1:
                break
            kept.append(char)
        text = "".join(kept) + "…"
    return text + " " * (columns - sum(map(_columns, text)))
