"""The program's logger: one line per event on standard error, with the rank where there is more than one."""

from __future__ import annotations

import logging
import sys

logger = logging.getLogger("bm3_dgl")


def setup_logging(rank: int = 0, world_size: int = 1) -> None:
    """Log INFO from rank 0 and warnings from every rank."""
    prefix = f"[rank {rank}] " if world_size > 1 else ""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(message)s", datefmt="%H:%M:%S"))
    logger.handlers = [handler]
    logger.setLevel(logging.INFO if rank == 0 else logging.WARNING)
    logger.propagate = False
