"""The job that fetches the source files of a dataset: wiring only."""

from __future__ import annotations

from bm3_dgl.config.schema import JobConfig
from bm3_dgl.data.download import download


def main(config: JobConfig) -> None:
    """Fetch what is not in data.source yet."""
    download(config.download, config.data)
