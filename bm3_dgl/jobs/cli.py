"""What every launcher does around its job: parse, run, and turn a user's mistake into one line and an exit code."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import NoReturn

import torch.distributed as dist

from bm3_dgl.config.load import command_line
from bm3_dgl.config.schema import JobConfig
from bm3_dgl.errors import UserError
from bm3_dgl.log import setup_logging
from bm3_dgl.runtime.lifeline import die_with_parent, leave_at_once
from bm3_dgl.runtime.ranks import Ranks, launched_by_torchrun, ranks_from_environment
from bm3_dgl.runtime.servers import open_store

_LEAD_SECONDS = 0.5  # rank 0 speaks for all where all met the same mistake
INTERRUPTED = 130  # 128 + SIGINT, as shells report Ctrl-C


def launch(description: str, main: Callable[[JobConfig], None]) -> NoReturn:
    """Parse `--config FILE key=value ...`, run `main`, and exit; 0 only when the job did what was asked."""
    setup_logging()
    try:
        main(command_line(description))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    sys.exit(0)


def launch_ranks(description: str, main: Callable[[JobConfig], None]) -> NoReturn:
    """As `launch`, for a job that torchrun starts in several processes: they end together, and one of them speaks."""
    if not launched_by_torchrun():
        launch(description, main)
    die_with_parent()
    ranks = Ranks()
    try:
        ranks = ranks_from_environment()
        setup_logging(ranks.rank, ranks.world_size)
        main(command_line(description))
    except BaseException as error:  # also SystemExit of --help, and Ctrl-C
        if isinstance(error, SystemExit):
            raise
        leave_at_once(error, show=not isinstance(error, UserError) or _speaks_first(ranks))
    sys.exit(0)


def _speaks_first(ranks: Ranks) -> bool:
    """Whether this rank is the first of the job to report a user's mistake, which all ranks may have met alike."""
    if ranks.world_size == 1:
        return True
    time.sleep(0.0 if ranks.leads else _LEAD_SECONDS)
    try:
        return open_store(ranks).add("error", 1) == 1
    except (RuntimeError, dist.DistError):
        return True
