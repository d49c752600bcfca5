"""Exported tables: content, row groups, and nothing left behind where writing fails."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bm3_dgl.errors import DataError
from bm3_dgl.evaluate.ranking import TopK
from bm3_dgl.export import recommendations
from bm3_dgl.export.recommendations import readable_list, write_embeddings, write_recommendations

USERS = ["AU1", "AU2", "AU3"]
ITEMS = ["B000", "B001", "B002", "B003"]


def lists() -> TopK:
    scores = torch.tensor([[0.5, 0.25], [1.5, -torch.inf], [-torch.inf, -torch.inf]], dtype=torch.float64)
    return TopK(torch.tensor([[3, 0], [2, -1], [-1, -1]]), scores)


@contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 4 KiB: the write error of a full disk. Print nothing inside: it may go to a file too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("group_rows", [1, 1 << 18])
def test_recommendations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_rows: int) -> None:
    monkeypatch.setattr(recommendations, "_GROUP_ROWS", group_rows)
    path = tmp_path / "new" / "recommendations.parquet"
    write_recommendations(path, USERS, ITEMS, torch.tensor([2, 0, 1]), lists())
    table = pq.read_table(path)
    assert table.to_pylist() == [
        {"user_id": "AU3", "item_id": "B003", "rank": 1, "score": 0.5},
        {"user_id": "AU3", "item_id": "B000", "rank": 2, "score": 0.25},
        {"user_id": "AU1", "item_id": "B002", "rank": 1, "score": 1.5},
    ]
    assert table.schema.types == [pa.string(), pa.string(), pa.int32(), pa.float32()]
    metadata = pq.ParquetFile(path).metadata
    assert metadata.num_row_groups == (3 if group_rows == 1 else 1)
    assert metadata.row_group(0).column(0).compression == "ZSTD"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_no_recommendations(tmp_path: Path) -> None:
    nobody = TopK(torch.zeros(0, 5, dtype=torch.int64), torch.zeros(0, 5, dtype=torch.float64))
    write_recommendations(tmp_path / "none.parquet", USERS, ITEMS, torch.zeros(0, dtype=torch.int64), nobody)
    assert pq.read_table(tmp_path / "none.parquet").column_names == ["user_id", "item_id", "rank", "score"]


@pytest.mark.parametrize("group_values", [1, 1 << 22])
def test_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_values: int) -> None:
    monkeypatch.setattr(recommendations, "_GROUP_VALUES", group_values)
    online_ND, latent_ND = torch.randn(4, 6), torch.randn(6, 4, requires_grad=True).T
    path = tmp_path / "items.parquet"
    write_embeddings(path, ITEMS, online_ND, latent_ND, id_column="item_id")
    table = pq.read_table(path)
    assert table.column_names == ["item_id", "embedding", "latent"]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 6)
    assert table["item_id"].to_pylist() == ITEMS
    assert torch.equal(torch.tensor(table["embedding"].to_pylist()), online_ND)
    assert torch.equal(torch.tensor(table["latent"].to_pylist()), latent_ND.detach())
    write_embeddings(path, ITEMS, online_ND)
    assert pq.read_table(path).column_names == ["id", "embedding"], "the old file is replaced"


def test_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    path.write_text("old")
    with small_files(), pytest.raises(DataError, match=r"items\.parquet: cannot be written \(.+\); free space") as caught:
        write_embeddings(path, [str(n) for n in range(5000)], torch.randn(5000, 16))
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path], "no temporary file stays behind"


def test_unwritable_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot be written"):
        write_recommendations(tmp_path / "file" / "top.parquet", USERS, ITEMS, torch.tensor([0, 1, 2]), lists())


def test_readable_list() -> None:
    titles = ["Cup\x1b[31m\nred", None, "Very long " * 20, "毛" * 80]
    seen = [f"Bib {number}" for number in range(7)]
    text = readable_list(
        "AU1", ITEMS, titles, torch.tensor([0, 1, 2, 3, -1]), torch.tensor([0.9, 0.8, 0.7, -12345.678, 0]), seen
    )
    lines = text.splitlines()
    assert lines[0] == "Recommendations for AU1"
    assert lines[1].split() == ["1", "Cup", "[31m", "red", "0.9000"], "a title cannot command the terminal"
    assert lines[2].split() == ["2", "B001", "0.8000"]
    assert lines[3].endswith("0.7000") and "…" in lines[3]
    assert "-1.235e+04" in lines[4] and len(lines[4]) + lines[4].count("毛") == len(lines[3])
    assert lines[5:] == ["Bought before:"] + [f"        Bib {number}" for number in range(5)] + ["        and 2 more"]
    assert max(map(len, lines)) <= 100


def test_readable_list_of_nothing() -> None:
    lines = readable_list("AU1" * 50, ITEMS, [None] * 4, [-1], [0.0], []).splitlines()
    assert len(lines[0]) == 100 and "none" in lines[1] and lines[2] == "Bought before: nothing"
