"""What every launcher does around its job: parse, run, and turn a user's mistake into one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from bm3_dgl.config.load import command_line
from bm3_dgl.config.schema import JobConfig
from bm3_dgl.errors import UserError
from bm3_dgl.log import setup_logging

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
