"""torchrun with two manners more: it exits with the job's own exit code, and the job's last line stays the last.

torchrun itself always exits with 1 and prints a trace of its own behind the job's error. Kubernetes decides by exit
code whether a pod is worth another try, so pods are started with this. It takes torchrun's options.
"""

from __future__ import annotations

import logging
import signal
import sys
import tempfile
from collections.abc import Sequence
from typing import Any, NoReturn

from bm3_dgl.errors import JobError
from bm3_dgl.runtime.verdict import Verdict, ask_for_verdict, read_verdict


def main(arguments: Sequence[str]) -> NoReturn:
    """Run torchrun in this process, then exit: 0, the job's exit code, or 128 + the signal that ended the launcher."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.ERROR)  # torchrun on workers that failed, and on threads, which the trainers set themselves
    options = run.parse_args(list(arguments))
    with tempfile.TemporaryDirectory(prefix="bm3_verdict_") as scratch:
        ask_for_verdict(f"{scratch}/verdict")
        try:
            run.run(options)
            code = 0
        except ChildFailedError as error:
            code = _judge(read_verdict(), error)
        except SignalException as error:
            verdict = read_verdict()
            code = verdict.code if verdict is not None else 128 + error.sigval
            if verdict is None:
                _say(f"the launcher was ended by {signal.Signals(error.sigval).name}")
        except (RuntimeError, TimeoutError, OSError) as error:  # torchrun's own network
            verdict = read_verdict()
            code = verdict.code if verdict is not None else JobError.exit_code
            if verdict is None:
                reason = str(error).splitlines()[0]
                _say(
                    f"--master_addr={options.master_addr} --master_port={options.master_port}: the machines did not meet there"
                    f" ({reason}); check the name, the port, and that machine 0 runs"
                )
    sys.exit(code)


def _judge(verdict: Verdict | None, error: Any) -> int:
    """The job's exit code. Where it came to no word of its own, torchrun's knowledge of the first failure is told."""
    if verdict is not None:
        return verdict.code
    rank, failure = error.get_first_failure()
    if failure.exitcode > 0:
        return failure.exitcode
    _say(f"rank {rank} (pid {failure.pid}) was killed by {signal.Signals(-failure.exitcode).name}")
    return JobError.exit_code


def _say(line: str) -> None:
    sys.stderr.write(f"error: {line}\n")
    sys.stderr.flush()
