"""Failing together: no process of a job outlives the others, and none leaves without a word.

DGL's remote calls have no time limit and its exit handler waits at a barrier, so a trainer whose peer or server has
died would hang for ever. Three things prevent that: the kernel kills a child whose parent is gone, a thread watches
the graph servers, and every uncaught exception ends the process at once, without exit handlers.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import NoReturn

from bm3_dgl.errors import JobError, UserError
from bm3_dgl.runtime.verdict import give_verdict

_PR_SET_PDEATHSIG = 1
_WATCH_SECONDS = 0.5
_SPEAK_FIRST_SECONDS = 2.0  # what a silent watcher leaves to the one that speaks, before torchrun ends them all


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies. Call from the main thread."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os.kill(os.getpid(), signal.SIGKILL)


def leave_at_once(error: BaseException, *, show: bool = True) -> NoReturn:
    """Report an exception and end the process without exit handlers: one line for a user's mistake, else a traceback."""
    if isinstance(error, UserError):
        code = error.exit_code
        message = f"error: {error}\n"
    elif isinstance(error, KeyboardInterrupt):
        code, message = 128 + signal.SIGINT, "error: interrupted\n"
    else:
        code, message = 1, "".join(traceback.format_exception(error))
    if show:
        sys.stderr.write(message)
        give_verdict(code, message.strip().splitlines()[-1])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def install_excepthook() -> None:
    """From here on an uncaught exception ends this process at once."""

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        leave_at_once(error)

    sys.excepthook = hook


class Watchdog:
    """A thread that ends this process when one of the named processes is gone before `stop`."""

    def __init__(self, processes: Mapping[str, int], *, speaks: bool) -> None:
        """processes: what each is, for the message -> its pid on this machine. speaks: whether this one says so."""
        self._processes = dict(processes)
        self._speaks = speaks
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """The processes may now end without harm."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(_WATCH_SECONDS):
            for name, pid in self._processes.items():
                if not _alive(pid) and not self._stopped.is_set():
                    if not self._speaks:
                        self._stopped.wait(_SPEAK_FIRST_SECONDS)
                    error = JobError(f"{name} (pid {pid}) died; this job cannot go on; see its log in run.dir/logs")
                    leave_at_once(error, show=self._speaks)


def _alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except OSError:
        return False
