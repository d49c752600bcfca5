"""How one process of a job ends: at once, with a word, and without exit handlers.

DGL's exit handler waits at a barrier and Python's for threads, so a process that failed would hang for ever. That the
others end with it is the guard's doing (guard.py), and the kernel's, which kills a child whose parent is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NoReturn

from bm3_dgl.errors import JobError, UserError
from bm3_dgl.runtime.ranks import starter_id
from bm3_dgl.runtime.verdict import give_verdict

_PR_SET_PDEATHSIG = 1
# What gloo and torchrun's store say when the other side of a connection has gone.
_LOST_PEER = re.compile(r"Connection (reset|closed|refused)|Broken pipe|recvValue|[Ss]ocket [Tt]imeout|Timed out waiting")
_GUARDS_SECONDS = 20.0  # more than the guards need to tell the cause
_SPEAK_SECONDS = 1.0
_guarded = threading.Event()


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies. Call from the main thread."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), signal.SIGKILL)


def end_with_starter() -> None:
    """Where the program that started this job wants that, ask the kernel for SIGTERM at that program's end.

    So the job saves its state when a study is killed. From the main thread, before any child is started.
    """
    starter = starter_id()
    if starter is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != starter:  # it died before we asked
        os.kill(os.getpid(), signal.SIGTERM)


def leave_at_once(error: BaseException, *, show: bool = True) -> NoReturn:
    """Report an exception and end the process without exit handlers: one line for a user's mistake, else a traceback.

    Of one machine's processes that meet the same mistake the first one speaks. One that has merely lost a peer gives
    the guards time to tell the cause, and to end this process.
    """
    if not isinstance(error, UserError) and _LOST_PEER.search(str(error)):
        if _guarded.is_set():
            time.sleep(_GUARDS_SECONDS)
        error = JobError(f"the connection to a peer is lost ({str(error).splitlines()[0]}); go on with train.resume=true")
    if isinstance(error, UserError):
        code, message = error.exit_code, f"error: {error}\n"
    elif isinstance(error, KeyboardInterrupt):
        code, message = 128 + signal.SIGINT, "error: interrupted\n"
    else:
        code, message = 1, "".join(traceback.format_exception(error))
    first = show and give_verdict(code, message.strip().splitlines()[-1].removeprefix("error: "))
    if first or (show and code == 1):  # our own mistakes are shown by each
        sys.stderr.write(message)
    elif show:
        time.sleep(_SPEAK_SECONDS)  # this death would end the one who is about to speak
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def expect_guards_word() -> None:
    """From here on there is a guard, who knows better why a connection is lost."""
    _guarded.set()


def is_guarded() -> bool:
    return _guarded.is_set()


def install_excepthook() -> None:
    """From here on an uncaught exception ends this process at once."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        leave_at_once(error)

    sys.excepthook = hook


@contextlib.contextmanager
def on_sigterm(act: Callable[[], None]) -> Iterator[None]:
    """Within, SIGTERM calls `act` instead of ending the process. From the main thread."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
