"""torchrun with two manners more: it exits with the job's own exit code, and the job's last line stays the last.

torchrun itself always exits with 1 and prints a trace of its own behind the job's error. Kubernetes decides by exit
code whether a pod is worth another try, so pods are started with this. It takes torchrun's options.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from bm3_dgl.errors import JobError
from bm3_dgl.runtime.lifeline import end_with_starter
from bm3_dgl.runtime.verdict import ask_for_verdict, give_verdict, read_last_verdict

_WORD_SECONDS = 4.0  # more than a guard takes to say why a process died


def main(arguments: Sequence[str]) -> NoReturn:
    """Run torchrun in this process, then exit: 0, the job's exit code, or 128 + the signal that ended the launcher."""
    # Until torchrun has handlers of its own: as the first process of a container it would else not hear SIGTERM at all.
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))

    end_with_starter()
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.ERROR)  # torchrun on workers that failed, and on threads, which the trainers set themselves
    options = run.parse_args(["--monitor-interval=1", *arguments])  # the default of 5 s is half of what an end may take
    with tempfile.TemporaryDirectory(prefix="bm3_verdict_") as scratch:
        ask_for_verdict(f"{scratch}/verdict")
        options.log_dir = options.log_dir or scratch  # its own default is a directory that it never removes
        try:
            run.run(options)
            code = 0
        except ChildFailedError as error:
            code = _judge(error)
        except SignalException as error:
            name = signal.Signals(error.sigval).name
            code = _say(128 + error.sigval, f"the job was ended by {name}")
        except (RuntimeError, TimeoutError) as error:  # torchrun's own network
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            code = _say(
                JobError.exit_code,
                f"--master_addr={options.master_addr} --master_port={options.master_port}: the machines did not meet there"
                f" ({reason}); check the name, the port, and that machine 0 runs",
            )
    sys.exit(code)


def _judge(error: Any) -> int:
    """The job's exit code. Where it comes to no word of its own, torchrun's knowledge of the first failure is told."""
    rank, failure = error.get_first_failure()
    deadline = time.monotonic() + (_WORD_SECONDS if failure.exitcode < 0 else 0.0)
    while (verdict := read_last_verdict()) is None and time.monotonic() < deadline:
        time.sleep(0.05)  # the guard is finding out
    if verdict is not None:
        return verdict.code
    if failure.exitcode > 0:
        return failure.exitcode
    return _say(JobError.exit_code, f"rank {rank} (pid {failure.pid}) was killed by {signal.Signals(-failure.exitcode).name}")


def _say(code: int, line: str) -> int:
    """Tell the user, unless a process of the job has; the exit code of what was told."""
    verdict = read_last_verdict()
    if verdict is not None:
        return verdict.code
    if give_verdict(code, line):
        sys.stderr.write(f"error: {line}\n")
        sys.stderr.flush()
    return code
