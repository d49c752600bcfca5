"""Opening what every job on the graph needs, in one process or in many: dataset, partition, graph store, model."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from bm3_dgl.config.schema import Engine, Features, JobConfig
from bm3_dgl.data.dataset import Dataset
from bm3_dgl.data.prepare import prepare
from bm3_dgl.errors import ConfigError, JobError
from bm3_dgl.graph.measure import PartReport
from bm3_dgl.graph.partition import Partition, ensure_partition
from bm3_dgl.graph.plan import Job, modality_widths, shared_bytes
from bm3_dgl.graph.store import GraphStore
from bm3_dgl.jobs.agreement import agree_on_config, agree_on_partition, agree_on_run_dir
from bm3_dgl.model.head import Head
from bm3_dgl.model.propagation import base, counts, exact, sampled
from bm3_dgl.model.propagation.operator import dtype_of
from bm3_dgl.model.propagation.shares import Shares
from bm3_dgl.model.registry import HEADS
from bm3_dgl.runtime.collectives import HeadGradients, Team
from bm3_dgl.runtime.company import Company
from bm3_dgl.runtime.meeting import meet, open_store
from bm3_dgl.runtime.processes import give_back_memory
from bm3_dgl.runtime.ranks import Ranks, launched_by_torchrun, ranks_from_environment, threads_per_rank
from bm3_dgl.runtime.servers import GraphCluster, initialize_standalone
from bm3_dgl.train.checkpoint import Checkpoints
from bm3_dgl.train.step import Model


@dataclass(frozen=True)
class Session:
    """What a job works with on this rank. dataset: on rank 0 only."""

    config: JobConfig
    team: Team
    store: GraphStore
    shares: Shares
    model: Model
    dataset: Dataset | None
    began: float

    @property
    def run_dir(self) -> Path:
        return Path(self.config.run.dir)

    def checkpoints(self, *, resuming: bool) -> Checkpoints:
        """The run's checkpoints, which must be of this dataset and model; to resume, of this batch order too."""
        config, team = self.config, self.team
        identity: dict[str, Any] = {
            "dataset": self.store.partition.manifest["dataset_hash"],
            "model.name": config.model.name.name,
            "modalities": {name: raw.shape[1] for name, raw in self.model.raw.items()},
            "model.embedding_dim": config.model.embedding_dim,
            "model.layers": config.model.layers,
            "model.objective": config.model.objective.name,
            "model.features": config.model.features.name,
            "propagation.engine": config.propagation.engine.name,
        }
        if resuming:
            for name in ("dropout", "reg_weight", "cl_weight"):
                identity[f"model.{name}"] = getattr(config.model, name)
            identity["model.losses"] = [term.name for term in config.model.losses]
            identity["train.learning_rate"] = config.train.learning_rate
            identity["train.seed"] = config.train.seed
            identity["global batch (train.batch_size x ranks)"] = config.train.batch_size * team.ranks.world_size
        return Checkpoints(self.run_dir / "checkpoints", self.store, self.shares, identity=identity)


@contextlib.contextmanager
def open_session(config: JobConfig, *, alone: bool = False, claim: Callable[[], None] | None = None) -> Iterator[Session]:
    """Open everything; under torchrun COLLECTIVE. alone: one process without server, whatever the config says.

    claim: called on rank 0 before any slow work; its error is everybody's.

    Rank 0 prepares and partitions where that has not been done, while the others wait.
    """
    began = time.monotonic()
    if alone or config.debug:
        if launched_by_torchrun() and ranks_from_environment().world_size > 1:
            reason = "this job" if alone else "debug=true"
            raise ConfigError(f"{reason} runs in one process; start it with python, or with --nproc_per_node=1")
        if claim is not None:
            claim()
        yield _open_alone(config, began)
        return
    ranks = ranks_from_environment()
    attempt = meet(open_store(ranks), ranks)
    cluster = config.cluster
    company = Company(
        attempt, peers=cluster.peers, resolve_seconds=cluster.resolve_seconds, silence_seconds=cluster.silence_seconds
    )
    agree_on_config(attempt, config)
    attempt.of_machines("device", lambda: str(head_device(config.train.device, ranks)))
    if config.partition.parts != ranks.num_machines:
        raise ConfigError(f"partition.parts={config.partition.parts}: expected {ranks.num_machines}, one part per machine")
    if claim is not None:
        attempt.of_leader("claim", claim)
    agree_on_run_dir(attempt, config)
    dataset = prepare(config) if ranks.leads else None
    partition = agree_on_partition(attempt, config, dataset)
    torch.set_num_threads(threads_per_rank(ranks))
    if ranks.leads_machine:
        check_shared_memory(config, partition, ranks)
    log_dir = Path(config.run.dir) / "logs"
    with GraphCluster(company, part_config=partition.part_config, log_dir=log_dir, device=config.train.device) as servers:
        team = Team(ranks, tag=attempt.tag)
        graph_store = GraphStore(
            partition, team, part_config=servers.part_config, graph_name=servers.graph_name, tag=attempt.tag
        )
        yield _session(config, graph_store, dataset, began)
    company.leave()


def _open_alone(config: JobConfig, began: float) -> Session:
    if config.partition.parts != 1:  # one process reads one part: the graph is small beside training it
        config = replace(config, partition=replace(config.partition, parts=1, dir=""))
    dataset = prepare(config)
    partition = ensure_partition(config, dataset)
    initialize_standalone()
    ranks = Ranks()
    torch.set_num_threads(threads_per_rank(ranks))
    store = GraphStore(
        partition,
        Team(ranks),
        part_config=partition.part_config,
        graph_name=partition.graph_name,
        tag=f"bm3_{secrets.token_hex(6)}",
    )
    return _session(config, store, dataset, began)


def _session(config: JobConfig, store: GraphStore, dataset: Dataset | None, began: float) -> Session:
    shares = Shares(store.local, store.team)
    model = build_model(config, store, shares)
    store.team.barrier()  # no rank reads tables before all are filled
    give_back_memory()  # laying the graph out took several times what it left
    return Session(config, store.team, store, shares, model, dataset, began)


def build_model(config: JobConfig, store: GraphStore, shares: Shares) -> Model:
    """Head, tables and engine at their initial values. COLLECTIVE."""
    kind = HEADS[config.model.name]
    names = config.data.modalities if config.data.modalities is not None else list(store.partition.manifest["features"])
    names = names if kind.needs.views else []
    # Trainable features become a float32 table; others are only read.
    read_only = config.model.features is not Features.trainable
    dtype = dtype_of(config.train.precision) if read_only else torch.float32
    raw = {name: store.feature_rows(name, dtype) for name in names}
    head = kind(config.model, {name: rows.shape[1] for name, rows in raw.items()}, seed=config.train.seed)
    device = head_device(config.train.device, store.team.ranks)
    head.to(device)
    weights = list(head.parameters())
    optimizer = torch.optim.Adam([{"params": weights}], lr=config.train.learning_rate)  # a group may be empty, a list not
    wrapped: torch.nn.Module = head
    if weights and not store.team.alone:
        wrapped = DistributedDataParallel(head, broadcast_buffers=False)
        wrapped.register_comm_hook(HeadGradients(weights), store.team.average_gradients)
    model = Model(head, wrapped, optimizer, _engine(config, store, shares, kind), device, raw=raw)
    sparse = config.propagation.engine is Engine.sampled
    for name, rows in raw.items():
        if config.model.features is Features.residual:
            width = config.model.embedding_dim
            model.item_rows[name] = base.ItemRows(store, shares, f"residual_{name}", width, initial=None, sparse=sparse)
        elif config.model.features is Features.trainable:
            model.item_rows[name] = base.ItemRows(store, shares, f"feature_{name}", rows.shape[1], initial=rows, sparse=sparse)
    return model


def _engine(config: JobConfig, store: GraphStore, shares: Shares, kind: type[Head]) -> base.Engine:
    if not kind.terms:
        return counts.CountEngine(store, shares)
    seed, threads, model, needs = config.train.seed, torch.get_num_threads(), config.model, kind.needs
    if config.propagation.engine is Engine.exact:
        return exact.ExactEngine(store, shares, model, needs, config.train.precision, seed=seed, threads=threads)
    return sampled.SampledEngine(store, shares, model, needs, config.propagation, seed=seed, threads=threads)


def check_shared_memory(config: JobConfig, partition: Partition, ranks: Ranks) -> None:
    """Raise JobError where this machine's tables will not fit /dev/shm; DGL would die of a bus error."""
    job = Job(config, modality_widths(config, partition.manifest["features"]), ranks.num_machines, ranks.local_world_size)
    part = PartReport(**partition.report["parts"][ranks.machine])
    needed = sum(shared_bytes(job, part, partition.report["cut_edges"]).values())
    free = shutil.disk_usage("/dev/shm").free
    if needed > free:
        raise JobError(f"/dev/shm: {needed / 2**20:.0f} MiB are needed and {free / 2**20:.0f} MiB are free; enlarge it")


def head_device(device: str, ranks: Ranks) -> torch.device:
    """The head's device on this rank: with `cuda`, each of a machine's ranks has its own.

    Raises ConfigError where that is not there.
    """
    if device == "cpu":
        return torch.device(device)
    index = int(device.split(":")[1]) if ":" in device else ranks.local_rank
    count = torch.cuda.device_count()
    if index >= count or (":" in device and ranks.local_world_size > 1):
        raise ConfigError(
            f"train.device={device}: this machine has {count} such devices for {ranks.local_world_size} ranks, one each;"
            " set train.device=cpu or start fewer ranks with train.device=cuda"
        )
    return torch.device("cuda", index)
