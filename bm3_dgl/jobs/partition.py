"""Job `partition`: split the prepared dataset's graph for as many machines as `partition.parts`, and show the result."""

from __future__ import annotations

from bm3_dgl.config.schema import JobConfig
from bm3_dgl.data.prepare import prepare
from bm3_dgl.graph.measure import memory_bytes
from bm3_dgl.graph.partition import Partition, ensure_partition

_MIB = 1 << 20
_COLUMNS = {
    "users": "users",
    "items": "items",
    "rates": "rates_edges",
    "rated_by": "rated_by_edges",
    "halo users": "halo_users",
    "halo items": "halo_items",
}


def main(config: JobConfig) -> None:
    """Prepare the dataset where needed, partition it where needed, print the report."""
    partition = ensure_partition(config, prepare(config))
    print(report_table(partition, embedding_dim=config.model.embedding_dim))


def report_table(partition: Partition, *, embedding_dim: int) -> str:
    """The partition's report as an aligned table, one line per part, and a line for the whole."""
    rows = [["part", *_COLUMNS, "disk MiB", "memory MiB"]]
    widths = list(partition.manifest["features"].values())
    for number, part in enumerate(partition.report["parts"]):
        memory = memory_bytes(part, feature_widths=widths, embedding_dim=embedding_dim)["total"]
        counts = [f"{part[key]:,}" for key in _COLUMNS.values()]
        rows.append([str(number), *counts, f"{part['bytes_on_disk'] / _MIB:,.1f}", f"{memory / _MIB:,.1f}"])
    aligned = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, aligned, strict=True)) for row in rows]
    report = partition.report
    whole = (
        f"cut edges {report['cut_edges']:.1%}; max / mean of nodes {report['node_balance']:.3f}, "
        f"of edges {report['edge_balance']:.3f}; memory estimated for embedding_dim {embedding_dim}, features fixed"
    )
    return "\n".join([str(partition.directory), *lines, whole])
