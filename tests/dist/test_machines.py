"""Several machines give what one gives: halo rows, remote users and gradients, with processes in the machines' place.

Every process is a rank of its own "machine", with the part that this machine would own. The tables, which DGL's servers
would hold, are memory-mapped files here, of which a machine writes its own rows only; everything else is the package.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from bm3_dgl.config import JobConfig, load_config
from bm3_dgl.config.schema import PartitionMethod
from bm3_dgl.data.dataset import Dataset, open_dataset
from bm3_dgl.data.prepare import prepare
from bm3_dgl.graph.local import build_local_graph, edges_of_part
from bm3_dgl.graph.partition import Partition, open_partition, partition
from bm3_dgl.graph.store import GraphStore, Table
from bm3_dgl.jobs.session import build_model
from bm3_dgl.model.propagation.shares import Shares
from bm3_dgl.runtime.collectives import Team
from bm3_dgl.runtime.ranks import Ranks
from bm3_dgl.train.checkpoint import Checkpoints, Progress
from bm3_dgl.train.order import EpochOrder
from bm3_dgl.train.step import Stepper
from bm3_dgl.types import NODE_TYPES, Split
from tests.jobs import parameters

STEPS, GLOBAL_BATCH = 5, 96
TOLERANCE = 1e-4  # Adam's first steps divide a gradient by its own size, so the rounding of tiny ones shows


class FileStore:
    """A GraphStore whose tables are files that all machines of the test map."""

    def __init__(self, part_of: Partition, team: Team, directory: Path, dataset: Dataset) -> None:
        import dgl

        self.partition, self.team, self.part = part_of, team, team.ranks.machine
        self._directory, self._dataset = directory, dataset
        graph, _, _, book, *_ = dgl.distributed.load_partition(str(part_of.part_config), self.part)
        counts = part_of.manifest["counts"]
        self.item_index = torch.from_numpy(part_of.node_map("item"))
        self.local = build_local_graph(
            edges_of_part(graph, book),
            part_range={ntype: part_of.part_range(self.part, ntype) for ntype in NODE_TYPES},
            num_nodes={"user": counts["users"], "item": counts["items"]},
            node_map={ntype: part_of.node_map(ntype) for ntype in NODE_TYPES},
            edge_map=part_of.edge_map(),
        )

    def table(self, name: str, ntype: str, width: int) -> Table:
        path = self._directory / f"{name}.table"
        if self.team.ranks.leads:
            np.zeros((self.local.num_nodes[ntype], width), np.float32).tofile(path)
        self.team.barrier()
        whole = torch.from_numpy(np.memmap(path, np.float32, "r+", shape=(self.local.num_nodes[ntype], width)))
        start = self.local.start[ntype]
        return Table(name, ntype, whole[start : start + self.local.num_own[ntype]], start, whole)

    def neighbors(self, ntype: str, nids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As graph servers would answer, out of the dataset."""
        assert ntype == "user"
        users, items = (torch.from_numpy(ends).long() for ends in self._dataset.interactions(Split.train))
        known = [items[users == user] for user in torch.from_numpy(self.partition.node_map("user"))[nids]]
        nid_of = self.item_index.argsort()
        return torch.tensor([len(own) for own in known]), nid_of[torch.cat(known)]

    machine_buffer = GraphStore.machine_buffer

    feature_rows = GraphStore.feature_rows


def work(rank: int, machines: int, ranks_each: int, home: str, name: str, tag: str, overrides: list[str]) -> None:
    """One rank: train a few steps and save a checkpoint."""
    torch.set_num_threads(1)
    world = machines * ranks_each
    run_dir = Path(home) / name
    dist.init_process_group("gloo", init_method=f"file://{run_dir}/rendezvous", rank=rank, world_size=world)
    ranks = Ranks(rank, world, rank % ranks_each, ranks_each, rank // ranks_each, machines)
    team = Team(ranks, tag=tag)
    dataset = open_dataset(Path(home) / "data")
    store: Any = FileStore(open_partition(Path(home) / f"parts-{machines}"), team, run_dir, dataset)
    config = load_config(None, [*settings(Path(home)), f"train.batch_size={GLOBAL_BATCH // world}", *overrides])
    shares = Shares(store.local, team)
    model = build_model(config, store, shares)
    team.barrier()
    stepper = Stepper(config, store, model)
    order = EpochOrder(store.local.num_train, seed=1, epoch=1)
    for step in range(STEPS):
        stepper.step(order.batch(step, GLOBAL_BATCH), step)
    team.barrier()
    Checkpoints(run_dir / "checkpoints", store, shares, identity={}).save(model, Progress(STEPS, {}), best=False, keep=1)
    dist.destroy_process_group()


def settings(home: Path) -> list[str]:
    return ["shop.users=150", "shop.items=80", "model.embedding_dim=16", f"data.dir={home / 'data'}", "model.reg_weight=0.5"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset, and its partition for one, two and three machines."""
    home = tmp_path_factory.mktemp("machines")
    config: JobConfig = load_config(None, settings(home))
    dataset = prepare(config)
    for parts in (1, 2, 3):
        partition(dataset, home / f"parts-{parts}", parts=parts, method=PartitionMethod.metis, seed=0)
    return home


def train(home: Path, machines: int, ranks_each: int, *overrides: str) -> dict[str, torch.Tensor]:
    name = f"run-{machines}x{ranks_each}-{secrets.token_hex(3)}"
    (home / name).mkdir()
    arguments = (machines, ranks_each, str(home), name, f"bm3_test_{secrets.token_hex(4)}", list(overrides))
    mp.start_processes(work, arguments, nprocs=machines * ranks_each, start_method="spawn")
    return parameters(home / name)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "overrides",
    [
        ["model.layers=3"],
        ["model.layers=1", "model.features=trainable", "model.objective=paper"],
        ["model.name=lightgcn", "model.layers=2"],
    ],
)
def test_machines_do_not_change_the_result(home: Path, overrides: list[str]) -> None:
    one = train(home, 1, 1, *overrides)
    assert float(one["embedding_user.moment"].abs().max()) > 0
    for machines, ranks_each in ((2, 1), (3, 1), (2, 2)):
        several = train(home, machines, ranks_each, *overrides)
        assert several.keys() == one.keys()
        for name, value in one.items():
            error = float((several[name].double() - value.double()).norm() / value.double().norm().clamp_min(1e-12))
            assert error <= TOLERANCE, f"{machines} x {ranks_each}: {name} differs by {error}"
