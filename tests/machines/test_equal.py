"""Several machines, joined by a network, compute what one computes; and a run moves from some to others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.jobs import parameters, summary
from tests.machines.cluster import needs_machines, start
from tests.netns import Network

pytestmark = [needs_machines, pytest.mark.timeout(400)]
MACHINES = 3

GLOBAL_BATCH = 192
EXACT = ["model.layers=2", "train.epochs=2", "model.reg_weight=0.5"]
SAMPLED = [*EXACT, "propagation.engine=sampled", "propagation.fanouts=[-1,-1]"]
TOLERANCE = 1e-4  # Adam's first steps divide a gradient by its own size, so the rounding of tiny ones shows


def train(network: Network, home: Path, machines: int, ranks: int, *arguments: str, name: str) -> Path:
    batch = f"train.batch_size={GLOBAL_BATCH // (machines * ranks)}"
    start(network, home, batch, *arguments, machines=machines, ranks=ranks, name=name).finish()
    return home / name


@pytest.fixture(scope="module")
def one_machine(network: Network, home: Path) -> Path:
    return train(network, home, 1, 1, *EXACT, name="exact-1x1")


@pytest.mark.parametrize(
    "machines, ranks, settings",
    [(2, 1, EXACT), (2, 2, [*EXACT, "cluster.peers=[machine-0,10.77.0.2]"]), (3, 1, EXACT), (2, 1, SAMPLED)],
    ids=["2x1", "2x2 by peers", "3x1", "2x1 sampled"],
)
def test_machines_do_not_change_the_result(
    network: Network, home: Path, one_machine: Path, machines: int, ranks: int, settings: list[str]
) -> None:
    sampled = "propagation.engine=sampled" in settings
    # The sampled engine's embeddings move by sparse Adam, so it has a single machine of its own to be compared with.
    expected = train(network, home, 1, 1, *settings, name="sampled-1x1") if sampled else one_machine
    several = train(network, home, machines, ranks, *settings, name=f"{'sampled' if sampled else 'exact'}-{machines}x{ranks}")
    assert_close(several, expected)
    costs = summary(several)["network_per_step"]
    assert costs["head gradients"]["bytes"] > 0 and costs["row gradients"]["bytes"] > 0
    assert costs["features"]["bytes"] == 0
    assert sampled or costs["halo rows"]["bytes"] == halo_bytes(several, machines)


def test_neighbours_drawn_on_the_other_machine_are_drawn_again(network: Network, home: Path) -> None:
    """Two runs of the sampled engine that draw some neighbours: the same bits, though servers draw for both ranks."""
    settings = ["model.layers=2", "train.epochs=2", "propagation.engine=sampled", "propagation.fanouts=[3,2]"]
    first, second = (parameters(train(network, home, 2, 1, *settings, name=f"drawn-{name}")) for name in ("once", "twice"))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_a_run_moves_to_other_machines_and_ranks(network: Network, home: Path) -> None:
    """1 machine -> 2 machines -> 1 machine with 4 ranks, an epoch each, gives what 3 epochs on one machine give."""
    three = [*EXACT, "train.epochs=3"]
    expected = train(network, home, 1, 1, *three, name="unmoved")
    for epochs, (machines, ranks) in enumerate(((1, 1), (2, 1), (1, 4)), 1):
        train(network, home, machines, ranks, *EXACT, f"train.epochs={epochs}", "train.resume=true", name="moved")
    assert_close(home / "moved", expected)


def assert_close(got_dir: Path, expected_dir: Path) -> None:
    got, expected = parameters(got_dir), parameters(expected_dir)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        error = float((got[name].double() - value.double()).norm() / value.double().norm().clamp_min(1e-12))
        assert error <= TOLERANCE, f"{got_dir.name}: {name} differs by {error}"
    assert not torch.equal(got["embedding_user"], torch.zeros_like(got["embedding_user"]))
    for split in ("valid", "test"):
        assert summary(got_dir)[split] == pytest.approx(summary(expected_dir)[split], abs=1e-6), split


def halo_bytes(run_dir: Path, machines: int) -> int:
    """Per step: every halo row of every machine, once per layer, forward and backward."""
    (report,) = (run_dir.parent / "data" / "parts").glob(f"metis-{machines}/parts.json")
    parts = json.loads(report.read_text(encoding="utf-8"))["report"]["parts"]
    return sum(part["halo_users"] + part["halo_items"] for part in parts) * 16 * 4 * 2 * 2  # width 16, 2 layers


def test_negatives_of_users_of_another_machine(network: Network, home: Path) -> None:
    """Which items such a user knows, only that machine's graph server can tell."""
    settings = ["model.name=lightgcn", "model.layers=2", "train.epochs=2", "model.reg_weight=0.1"]
    one, two = (train(network, home, machines, 1, *settings, name=f"lightgcn-{machines}x1") for machines in (1, 2))
    assert_close(two, one)
