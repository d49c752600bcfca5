"""What the test split says of every user: users_test.parquet, for statistics over users and reports by kind of user.

    user int32 (dataset index), ascending; train_items, test_items int32 (how many); recall@K float32 and ndcg@K float32 for
    each cutoff K; items fixed_size_list<int32>[largest K], ranked dataset indices, -1 where a list ends early

The mean of a metric over the rows is the run's test metric (summary.json), but for the rounding to float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from bm3_dgl.evaluate.evaluator import Judged
from bm3_dgl.evaluate.metrics import per_user_metrics
from bm3_dgl.export.parquet import write_groups

_GROUP_USERS = 1 << 16  # rows of a row group: 5 MiB with lists of 20


def write_users(path: Path, judged: Judged, train_items: np.ndarray, cutoffs: Sequence[int]) -> None:
    """Write the file. train_items: int (U,), of all users of the dataset. Raises DataError if it cannot be written."""
    names = [f"{name}@{cutoff}" for cutoff in cutoffs for name in ("recall", "ndcg")]
    width = max(cutoffs)
    fields = [(name, pa.int32()) for name in ("user", "train_items", "test_items")] + [(name, pa.float32()) for name in names]
    schema = pa.schema([*fields, ("items", pa.list_(pa.int32(), width))])

    def groups() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(judged.users), _GROUP_USERS):
            block = slice(start, min(start + _GROUP_USERS, len(judged.users)))
            users, items = judged.users[block].numpy(), judged.items[block, :width]
            indptr = judged.truth_indptr[block.start : block.stop + 1]
            metrics = per_user_metrics(items, indptr - indptr[0], judged.truth_items[indptr[0] : indptr[-1]], cutoffs)
            counts = [users, train_items[users], indptr.diff().numpy()]
            columns = [pa.array(count.astype(np.int32)) for count in counts]
            columns += [pa.array(metrics[name].numpy().astype(np.float32)) for name in names]
            lists = pa.array(items.numpy().astype(np.int32).reshape(-1))
            yield pa.RecordBatch.from_arrays([*columns, pa.FixedSizeListArray.from_arrays(lists, width)], schema=schema)

    write_groups(path, schema, groups(), dictionary=[])
