"""Parquet files that are whole under their final name, written row group by row group."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bm3_dgl.errors import DataError


def write_groups(path: Path, schema: pa.Schema, groups: Iterable[pa.RecordBatch], *, dictionary: list[str]) -> None:
    """Write row groups to `path`, whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(part, schema, compression="zstd", use_dictionary=dictionary or False) as writer:
            for group in groups:
                writer.write_batch(group, row_group_size=max(1, group.num_rows))
        os.replace(part, path)
    except OSError as error:
        reason = " ".join(str(error.strerror or error).split())
        raise DataError(f"{path}: cannot be written ({reason}); free space or choose another directory") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
