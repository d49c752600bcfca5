"""What every launcher does around its job: parse, run, and turn a user's mistake into one line and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from bm3_dgl.config.load import command_line, load_config, parser_with_keys
from bm3_dgl.config.schema import JobConfig
from bm3_dgl.errors import DataError, JobError, UserError
from bm3_dgl.log import setup_logging
from bm3_dgl.runtime.lifeline import die_with_parent, end_with_starter, install_excepthook, is_guarded, leave_at_once
from bm3_dgl.runtime.meeting import open_store, report_failure
from bm3_dgl.runtime.ranks import Ranks, launched_by_torchrun, ranks_from_environment

_STORE_SECONDS = 3.0  # the store may be gone, with who failed before
_LEAD_SECONDS = 0.5  # rank 0 speaks for all where all met the same mistake
INTERRUPTED = 130  # 128 + SIGINT, as shells report Ctrl-C

Job = Callable[[Any], None]  # of what its Parse returns: a JobConfig, a study, pages
Parse = Callable[[str], Any]


def launch(description: str, main: Job, *, parse: Parse = command_line) -> NoReturn:
    """Parse `--config FILE key=value ...`, run `main`, and exit; 0 only when the job did what was asked."""
    setup_logging()
    end_with_starter()
    try:
        main(parse(description))
    except Exception as error:
        mistake = as_user_error(error)
        if not isinstance(mistake, UserError):
            raise
        print(f"error: {mistake}", file=sys.stderr, flush=True)
        sys.exit(mistake.exit_code)
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    sys.exit(0)


def launch_ranks(description: str, main: Job, *, parse: Parse = command_line) -> NoReturn:
    """As `launch`, for a job that torchrun starts in several processes: they end together, and one of them speaks."""
    if not launched_by_torchrun():
        launch(description, main, parse=parse)
    die_with_parent()
    install_excepthook()
    ranks = Ranks()
    try:
        ranks = ranks_from_environment()
        setup_logging(ranks.rank, ranks.world_size)
        main(parse(description))
    except Exception as error:
        mistake = as_user_error(error)
        first = is_guarded() or not isinstance(mistake, UserError) or _speaks_first(ranks, mistake)
        leave_at_once(mistake, show=first)
    except KeyboardInterrupt as error:
        leave_at_once(error, show=ranks.leads)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # all is written; exit handlers of the libraries take a second in which a peer may look dead


def as_user_error(error: Exception) -> Exception:
    """A full disk, a path that cannot be used, too little memory: for the user to mend. Others stay what they are."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return JobError(
            f"out of memory ({str(error).splitlines()[0] if str(error) else 'no more can be had'}); use more machines, or"
            " lower train.batch_size and evaluate.block_users; launch/partition.py --plan tells what is needed"
        )
    if isinstance(error, OSError) and (error.filename or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)):
        where = f"{error.filename}: " if error.filename else ""
        return JobError(f"{where}{error.strerror}; check the path, its permissions and the free space")
    return error


def run_command_line(description: str) -> JobConfig:
    """For jobs on a trained run: the settings saved in run.dir, changed by key=value alone.

    --config only says where run.dir is; --users NAME[,NAME...] sets recommend.users.
    """
    parser = parser_with_keys(description)
    parser.add_argument("--users", action="append", default=[], metavar="ID[,ID...]", help="users whose lists are printed")
    arguments = parser.parse_intermixed_args()
    run_dir = load_config(arguments.config, arguments.overrides).run.dir
    saved = Path(run_dir) / "config.yaml"
    if not saved.is_file() or saved.stat().st_size == 0:
        raise DataError(f"run.dir={run_dir}: no run here (config.yaml is missing); train first with launch/train.py")
    config = load_config(str(saved), [*arguments.overrides, f"run.dir={run_dir}"])
    if arguments.users:
        config.recommend.users = [user for names in arguments.users for user in names.split(",") if user]
    return config


def _speaks_first(ranks: Ranks, mistake: UserError) -> bool:
    """Whether this rank is the first of its machine to report a mistake, which all may have met alike."""
    if ranks.world_size == 1:
        return True
    time.sleep(0.0 if ranks.leads else _LEAD_SECONDS)
    try:
        return report_failure(open_store(ranks, seconds=_STORE_SECONDS), ranks, mistake)
    except (RuntimeError, UserError):  # the store went with torchrun: better twice than not at all
        return True
