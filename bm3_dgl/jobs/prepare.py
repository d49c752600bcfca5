"""The job that turns a source into a dataset directory, and reports on it: wiring only."""

from __future__ import annotations

from bm3_dgl.config.schema import JobConfig
from bm3_dgl.data.prepare import prepare
from bm3_dgl.data.report import is_reported, write_report
from bm3_dgl.log import logger


def main(config: JobConfig) -> None:
    """Make the dataset in data.dir, or check that the one there is what the config asks for; report on it once."""
    directory = prepare(config).directory
    if not is_reported(directory):
        logger.info("report: %s", write_report(directory))
