"""Removes what a job leaves in shared memory, whatever killed it. Run as a script by `servers.py`; stdlib only.

    python janitor.py TAG SCRATCH PID...

Reads standard input, a pipe that only the machine's leading trainer holds open, until it ends: by a clean exit or a
death of any kind. Then waits for the graph servers (PID...) to be gone and deletes every /dev/shm segment whose name
holds TAG, and the job's scratch directory. Segments still mapped by a dying process vanish with it.
"""

import os
import shutil
import signal
import sys
import time

SHARED_MEMORY = "/dev/shm"
SERVER_GRACE_SECONDS = 3.0


def remove_segments(tag: str) -> None:
    for name in os.listdir(SHARED_MEMORY):
        if tag in name:
            try:
                os.unlink(os.path.join(SHARED_MEMORY, name))
            except FileNotFoundError:
                pass


def wait_or_kill(pid: int, deadline: float) -> None:
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def main() -> None:
    tag, scratch, *pids = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 4096):
        pass
    deadline = time.monotonic() + SERVER_GRACE_SECONDS
    for pid in pids:
        wait_or_kill(int(pid), deadline)
    remove_segments(tag)
    shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
