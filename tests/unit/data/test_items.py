"""Items: records in any order become one row per item, and are handed out in batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bm3_dgl.data import items as items_module
from bm3_dgl.data.items import ITEM_SCHEMA, ItemSpool, ItemTable
from bm3_dgl.data.raw import Item


@pytest.mark.parametrize("count", [1, 6, 7, 8, 50])
def test_records_in_any_order_come_out_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(items_module, "_TOGETHER", 7)
    spool, known = ItemSpool(tmp_path / "spool", count), {}
    for index in np.random.default_rng(count).permutation(count)[: count - 2].tolist():
        known[index] = Item(f"title {index}", None, "kind", "\u00e9" * index)
        assert spool.put(index, known[index])
    if known:
        index, item = next(iter(known.items()))
        assert spool.put(index, item) is None
        assert spool.put(index, item._replace(title="another")) is False
    found = [record for table in spool.in_order() for record in table.to_pylist()]
    assert found == [known.get(index, Item())._asdict() for index in range(count)]
    assert spool.found == len(known)


@pytest.mark.parametrize("begin", [0, 3, 10, 24, 25])
def test_batches_begin_anywhere(tmp_path: Path, begin: int) -> None:
    texts = [None if index % 4 == 0 else str(index) for index in range(25)]
    columns = [texts if name == "text" else [""] * 25 for name in ITEM_SCHEMA.names]
    pq.write_table(pa.table(columns, schema=ITEM_SCHEMA), tmp_path / "items.parquet", row_group_size=6)
    table = ItemTable(tmp_path / "items.parquet")
    batches = list(table.batches("text", begin=begin, size=4))
    assert [text for batch in batches for text in batch] == texts[begin:]
    assert all(len(batch) == 4 for batch in batches[:-1]) and table.num_items == 25
