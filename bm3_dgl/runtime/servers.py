"""The graph servers of this machine, and the trainer's way in and out of DGL's distributed mode.

    with GraphCluster(...) as cluster:       COLLECTIVE: every rank enters and leaves
        dgl.distributed.DistGraph(cluster.graph_name, ...)

Servers are children of each machine's leading rank, under the eyes of its guard. Order matters: DGL's `initialize`
comes before `init_process_group`; and at the end: barrier, destroy the process group, `exit_client`, wait for servers.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch.distributed as dist

from bm3_dgl.log import logger
from bm3_dgl.runtime.addresses import LOOPBACK, free_port
from bm3_dgl.runtime.company import Company

_CONNECT_TRIES = 400  # x 3 s between a trainer's attempts to reach a server; a death anywhere ends it at once
_SERVER_EXIT_SECONDS = 20.0
_SERVER_PROGRAM = """
import os
from bm3_dgl.runtime.lifeline import die_with_parent
die_with_parent()
import dgl
import bm3_dgl.graph.sampling
dgl.distributed.initialize(os.environ["DGL_IP_CONFIG"])
"""


class GraphCluster:
    """This rank's part in the job's graph store: server, DGL client, process group."""

    def __init__(self, company: Company, *, part_config: Path, log_dir: Path, device: str) -> None:
        """part_config: DGL's JSON of this machine's partition directory. COLLECTIVE."""
        self._company, self._attempt = company, company.attempt
        self.graph_name = f"{self._attempt.tag}_graph"
        self.part_config = company.scratch / "graph.json"
        self._ip_config = company.scratch / "ip_config.txt"
        self._log_dir = log_dir
        self._backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        self._server: subprocess.Popen | None = None
        self._start(part_config)

    def __enter__(self) -> GraphCluster:
        import dgl

        logging.getLogger("dgl-distributed-socket").setLevel(logging.ERROR)  # interfaces without address are no news
        with _quiet("DGL client"):
            dgl.distributed.initialize(str(self._ip_config))
        # Die at once: DGL's handler runs exit functions that wait, and Python's waits for a rank that is in a barrier.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ranks = self._attempt.ranks
        dist.init_process_group(self._backend, store=self._attempt.store, rank=ranks.rank, world_size=ranks.world_size)
        # Held beyond its end: the group's destructor joins gloo's threads under the interpreter's lock, and one of them may
        # want that lock to drop the tensors of the last barrier. DDP holds the group too, but a model may have no weights.
        self._group = dist.group.WORLD
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Leave in order. After an exception nothing is waited for: the caller ends the process at once."""
        if error is not None:
            return
        import dgl

        dist.barrier()
        if self._server is not None:
            self._company.closing()
        dist.barrier()  # no server ends before all guards know that it may
        dist.destroy_process_group()
        with _quiet("DGL client"):
            dgl.distributed.exit_client()
        if self._server is not None:
            try:
                self._server.wait(_SERVER_EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                logger.warning("graph server (pid %d) did not end by itself and is killed", self._server.pid)
                self._server.kill()

    def _start(self, part_config: Path) -> None:
        """Start this machine's server as soon as all machines have said where theirs will listen."""
        ranks, address = self._attempt.ranks, self._company.addresses[self._attempt.ranks.machine]
        ports = self._attempt.of_machines("port", lambda: free_port(address))
        if ranks.leads_machine:
            listeners = zip(self._company.addresses, ports, strict=True)
            self._ip_config.write_text("".join(f"{ip} {port}\n" for ip, port in listeners), encoding="utf-8")
            self._rename_graph(part_config)
            self._set_environment()
            self._server = self._start_server()
            self._company.watch("graph server", self._server.pid)
            self._attempt.publish(f"server/{ranks.machine}", True)
        self._attempt.await_value(f"server/{ranks.machine}")
        self._set_environment()

    def _rename_graph(self, part_config: Path) -> None:
        """A copy of DGL's JSON under this job's graph name, with absolute paths."""
        content = json.loads(part_config.read_text(encoding="utf-8"))
        content["graph_name"] = self.graph_name
        for name, part in content.items():
            if name.startswith("part-"):
                content[name] = {field: str((part_config.parent / path).resolve()) for field, path in part.items()}
        self.part_config.write_text(json.dumps(content), encoding="utf-8")

    def _set_environment(self) -> None:
        os.environ.update(
            DGL_ROLE="client",
            DGL_DIST_MODE="distributed",
            DGL_NUM_SERVER="1",
            DGL_NUM_CLIENT=str(self._attempt.ranks.world_size),
            DGL_NUM_SAMPLER="0",
            DGL_CONF_PATH=str(self.part_config),
            DGL_IP_CONFIG=str(self._ip_config),
            DGL_GRAPH_FORMAT="csc",
            DGL_DIST_MAX_TRY_TIMES=str(_CONNECT_TRIES),
        )
        if self._company.addresses == [LOOPBACK]:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the host name may resolve to an address that is not up

    def _start_server(self) -> subprocess.Popen:
        machine = self._attempt.ranks.machine
        torchrun_names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
        environment = {name: value for name, value in os.environ.items() if name not in torchrun_names}
        environment |= {"DGL_ROLE": "server", "DGL_SERVER_ID": str(machine), "OMP_NUM_THREADS": "1"}
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what it frees after reading its part goes back to the system
        self._log_dir.mkdir(parents=True, exist_ok=True)
        with open(self._log_dir / f"graph-server-{machine}.log", "ab") as log:
            # -P: no module of the working directory; a session of its own: Ctrl-C is for the trainers, who end it.
            command = [sys.executable, "-u", "-P", "-c", _SERVER_PROGRAM]
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )


def initialize_standalone() -> None:
    """DGL's standalone mode: one process, no server. A second call ends the store of the first, whose graph may differ."""
    import dgl
    from dgl.distributed.kvstore import close_kvstore

    os.environ.update(DGL_DIST_MODE="standalone", DGL_ROLE="client")
    with _quiet("DGL"):
        close_kvstore()
        dgl.distributed.initialize("")
    dgl.utils.set_num_threads(1)  # as `initialize` does for trainers: what is drawn depends on the number of threads


@contextlib.contextmanager
def _quiet(who: str) -> Iterator[None]:
    """Keep DGL's prints out of the user's output; they go to the debug log."""
    captured = io.StringIO()
    with contextlib.redirect_stdout(captured):
        yield
    for line in captured.getvalue().splitlines():
        logger.debug("%s: %s", who, line)
