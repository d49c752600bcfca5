"""The job that turns a source into a dataset directory: wiring only."""

from __future__ import annotations

from bm3_dgl.config.schema import JobConfig
from bm3_dgl.data.prepare import prepare


def main(config: JobConfig) -> None:
    """Make the dataset in data.dir, or check that the one there is what the config asks for."""
    prepare(config)
