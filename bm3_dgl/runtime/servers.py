"""The graph servers of this machine, and the trainer's way in and out of DGL's distributed mode.

    with GraphCluster(...) as cluster:       COLLECTIVE: every rank enters and leaves
        dgl.distributed.DistGraph(cluster.graph_name, ...)

Each job gets a tag that is part of every shared-memory name it makes, so that jobs do not meet in /dev/shm, and a
janitor process deletes by that tag what a killed job leaves. Servers are children of each machine's local rank 0.
Order matters: DGL's `initialize` comes before `init_process_group`; and at the end: barrier, destroy the process
group, `exit_client`, wait for the servers.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from bm3_dgl.errors import JobError
from bm3_dgl.log import logger
from bm3_dgl.runtime import janitor
from bm3_dgl.runtime.lifeline import Watchdog
from bm3_dgl.runtime.ranks import Ranks, restart_count

_STORE_SECONDS = 24 * 3600  # how long ranks wait for rank 0 to prepare and partition; a death ends the wait at once
_CONNECT_TRIES = 400  # x 3 s between a trainer's attempts to reach a server; a death on this machine ends it at once
_SERVER_EXIT_SECONDS = 20.0
_SERVER_PROGRAM = """
import os
from bm3_dgl.runtime.lifeline import die_with_parent
die_with_parent()
import dgl
dgl.distributed.initialize(os.environ["DGL_IP_CONFIG"])
"""


def open_store(ranks: Ranks) -> dist.Store:
    """The key-value store of torchrun's agent, under keys of this attempt only."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_host = ranks.leads and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = dist.TCPStore(host, port, ranks.world_size, is_host, timeout=timedelta(seconds=_STORE_SECONDS))
    return dist.PrefixStore(f"bm3/{restart_count()}", store)


def publish(store: dist.Store, key: str, value: object) -> None:
    store.set(key, json.dumps(value))


def await_value(store: dist.Store, key: str) -> Any:
    """A value that another rank publishes, however long that takes."""
    return json.loads(store.get(key))


class GraphCluster:
    """This rank's part in the job's processes: servers, DGL client, process group, janitor."""

    def __init__(self, ranks: Ranks, store: dist.Store, *, part_config: Path, log_dir: Path, device: str) -> None:
        self.ranks = ranks
        self.tag = self._job_tag(store)
        self.graph_name = f"{self.tag}_graph"
        self._store = store
        self._servers: list[subprocess.Popen] = []
        log_dir.mkdir(parents=True, exist_ok=True)
        self._scratch = Path(tempfile.mkdtemp(prefix=f"{self.tag}_")) if ranks.leads_machine else None
        self._janitor: subprocess.Popen | None = None
        self._log_dir = log_dir
        self._backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        self.part_config = self._start(part_config)

    def __enter__(self) -> GraphCluster:
        import dgl

        logging.getLogger("dgl-distributed-socket").setLevel(logging.ERROR)  # interfaces without address are no news
        with _quiet("DGL client"):
            dgl.distributed.initialize(os.environ["DGL_IP_CONFIG"])
        # Die at once: DGL's handler runs exit functions that wait, and Python's waits for a rank that is in a barrier.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        dist.init_process_group(self._backend, store=self._store, rank=self.ranks.rank, world_size=self.ranks.world_size)
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Leave in order. After an exception nothing is waited for: the caller ends the process at once."""
        if error is not None:
            return
        import dgl

        dist.barrier()
        self._watchdog.stop()
        dist.destroy_process_group()
        with _quiet("DGL client"):
            dgl.distributed.exit_client()
        for server in self._servers:
            try:
                server.wait(_SERVER_EXIT_SECONDS)
            except subprocess.TimeoutExpired:
                logger.warning("graph server (pid %d) did not end by itself and is killed", server.pid)
                server.kill()
        if self._janitor is not None:
            self._janitor.communicate()

    def _job_tag(self, store: dist.Store) -> str:
        if self.ranks.leads:
            publish(store, "tag", f"bm3_{secrets.token_hex(6)}")
        return str(await_value(store, "tag"))

    def _start(self, part_config: Path) -> Path:
        """Start this machine's server, tell the other local ranks where things are, watch it. Returns DGL's JSON."""
        ranks, key = self.ranks, f"machine/{self.ranks.machine}"
        if self._scratch is not None:
            publish(self._store, f"{key}/address", _own_address(ranks))
            addresses = [await_value(self._store, f"machine/{m}/address") for m in range(ranks.num_machines)]
            ip_config = self._scratch / "ip_config.txt"
            ip_config.write_text("".join(f"{ip} {port}\n" for ip, port in addresses), encoding="utf-8")
            local_config = self._rename_graph(part_config)
            self._set_environment(ip_config, local_config)
            self._start_server()
            publish(self._store, key, [str(ip_config), str(local_config), [server.pid for server in self._servers]])
        paths, config, pids = await_value(self._store, key)
        self._set_environment(Path(paths), Path(config))
        # The servers' parent speaks: to the others a server is also gone when that parent ended, for its own reason.
        watched = {f"graph server {number} of this machine": pid for number, pid in enumerate(pids)}
        self._watchdog = Watchdog(watched, speaks=ranks.leads_machine)
        return Path(config)

    def _rename_graph(self, part_config: Path) -> Path:
        """A copy of DGL's JSON under this job's graph name, with absolute paths."""
        assert self._scratch is not None
        content = json.loads(part_config.read_text(encoding="utf-8"))
        content["graph_name"] = self.graph_name
        for name, part in content.items():
            if name.startswith("part-"):
                content[name] = {field: str((part_config.parent / path).resolve()) for field, path in part.items()}
        copy = self._scratch / "graph.json"
        copy.write_text(json.dumps(content), encoding="utf-8")
        return copy

    def _set_environment(self, ip_config: Path, part_config: Path) -> None:
        os.environ.update(
            DGL_ROLE="client",
            DGL_DIST_MODE="distributed",
            DGL_NUM_SERVER="1",
            DGL_NUM_CLIENT=str(self.ranks.world_size),
            DGL_NUM_SAMPLER="0",
            DGL_CONF_PATH=str(part_config),
            DGL_IP_CONFIG=str(ip_config),
            DGL_GRAPH_FORMAT="csc",
            DGL_DIST_MAX_TRY_TIMES=str(_CONNECT_TRIES),
        )
        if self.ranks.num_machines == 1:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the host name may resolve to an address that is not up

    def _start_server(self) -> None:
        torchrun_names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
        environment = {name: value for name, value in os.environ.items() if name not in torchrun_names}
        environment |= {"DGL_ROLE": "server", "DGL_SERVER_ID": str(self.ranks.machine), "OMP_NUM_THREADS": "1"}
        with open(self._log_dir / f"graph-server-{self.ranks.machine}.log", "ab") as log:
            # -P: no module of the working directory; a session of its own: Ctrl-C is for the trainers, who end it.
            command = [sys.executable, "-u", "-P", "-c", _SERVER_PROGRAM]
            server = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
            self._servers.append(server)
        self._janitor = subprocess.Popen(
            [sys.executable, "-I", "-S", janitor.__file__, self.tag, str(self._scratch), *(str(s.pid) for s in self._servers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C and a kill of the process group must not reach it
        )


def initialize_standalone() -> None:
    """DGL's standalone mode: one process, no server. A second call ends the store of the first, whose graph may differ."""
    import dgl
    from dgl.distributed.kvstore import close_kvstore

    os.environ.update(DGL_DIST_MODE="standalone", DGL_ROLE="client")
    with _quiet("DGL"):
        close_kvstore()
        dgl.distributed.initialize("")


def _own_address(ranks: Ranks) -> tuple[str, int]:
    """IPv4 address and free port on which this machine's server listens: loopback where there is one machine."""
    host = "127.0.0.1"
    if ranks.num_machines > 1:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # connects nothing, only picks the interface
            try:
                probe.connect((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
            except OSError as error:
                raise JobError(f"MASTER_ADDR={os.environ['MASTER_ADDR']}: not reachable from this machine ({error})") from None
            host = probe.getsockname()[0]
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((host, 0))
        return host, listener.getsockname()[1]


@contextlib.contextmanager
def _quiet(who: str) -> Iterator[None]:
    """Keep DGL's prints out of the user's output; they go to the debug log."""
    captured = io.StringIO()
    with contextlib.redirect_stdout(captured):
        yield
    for line in captured.getvalue().splitlines():
        logger.debug("%s: %s", who, line)
