"""Memory and a barrier that the ranks of one machine share, without a message.

On one machine a collective of torch.distributed costs several switches between processes per rank; where ranks share
cores, that was more than half of a training step (docs/LOG.md). A POSIX barrier in shared memory is one futex.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable

from bm3_dgl.errors import JobError
from bm3_dgl.runtime.processes import SHARED_MEMORY
from bm3_dgl.runtime.ranks import Ranks

_BARRIER_BYTES = 64  # glibc's pthread_barrier_t takes 32
_PROCESS_SHARED = 1
_SERIAL_THREAD = -1  # what pthread_barrier_wait returns to one of the waiters


def map_shared(name: str, size: int, ranks: Ranks, barrier: Callable[[], None]) -> mmap.mmap:
    """`size` zero bytes that this machine's ranks share; the name is gone as soon as all have it. COLLECTIVE.

    Raises JobError where /dev/shm is full: at once, and not as a bus error at the first write.
    """
    path = SHARED_MEMORY / name
    if ranks.leads_machine:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise JobError(
                f"{path}: {size} bytes of shared memory cannot be had ({error.strerror}); enlarge /dev/shm"
            ) from None
    barrier()
    with open(path, "r+b") as file:
        memory = mmap.mmap(file.fileno(), size)
    barrier()
    if ranks.leads_machine:
        path.unlink()
    return memory


class SharedBarrier:
    """A barrier of this machine's ranks. COLLECTIVE to make and to wait at.

    A rank that dies never arrives: torchrun or the parent-death signal then ends those that wait.
    """

    def __init__(self, name: str, ranks: Ranks, barrier: Callable[[], None]) -> None:
        """barrier: any slower one, for the start."""
        self._memory = map_shared(name, _BARRIER_BYTES, ranks, barrier)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(self._memory)))
        if ranks.leads_machine:
            attributes = ctypes.create_string_buffer(_BARRIER_BYTES)
            self._libc.pthread_barrierattr_init(attributes)
            self._libc.pthread_barrierattr_setpshared(attributes, _PROCESS_SHARED)
            code = self._libc.pthread_barrier_init(self._address, attributes, ranks.local_world_size)
            assert code == 0, f"pthread_barrier_init returned {code}"
        barrier()

    def wait(self) -> None:
        code = self._libc.pthread_barrier_wait(self._address)
        assert code in (0, _SERIAL_THREAD), f"pthread_barrier_wait returned {code}"
