"""The benchmark suite measures what it says: its yardstick is the published algorithm, its graph is as described, its memory
counts shared pages once, and nothing that it starts stays."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import cost, growth, propagation, report, suite
from benchmarks.electronics import ensure_dataset
from benchmarks.job import Trial
from benchmarks.processes import CommandFailedError, marked, run
from benchmarks.transcription import Evaluation, Transcription
from bm3_dgl.data.dataset import open_dataset
from bm3_dgl.types import Split
from tests.transcription import Parameters, loss

USERS, ITEMS, WIDTHS = 11, 7, {"visual": 9, "text": 5}


def trial(**changes: object) -> Trial:
    values = {"ranks": 2, "batch": 8192, "step_seconds": 0.1, "epoch_seconds": 20.0, "startup_seconds": 9.0, "pss_bytes": 10**9}
    return Trial(**(values | {"phases": {"propagate": 0.03, "propagate_back": 0.05}} | changes))  # type: ignore[arg-type]


def made_edges(generator: torch.Generator) -> torch.Tensor:
    """Every user and item at least once, no pair twice."""
    dense = torch.rand(USERS, ITEMS, generator=generator) < 0.3
    dense[torch.arange(USERS), torch.arange(USERS) % ITEMS] = True
    return dense.nonzero().T.contiguous()


@pytest.mark.parametrize("features", [True, False])
def test_the_yardstick_is_the_published_algorithm(features: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and every gradient against the dense float64 transcription of the equations, with the same dropout."""
    generator = torch.Generator().manual_seed(3)
    edges, default = made_edges(generator), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        widths = WIDTHS if features else {}
        rows = {name: torch.rand(ITEMS, width, generator=generator) for name, width in widths.items()}
        model = Transcription(edges, USERS, ITEMS, rows, layers=2, dropout=0.3, dim=6)
    finally:
        torch.set_default_dtype(default)
    counts = {"user": USERS, "item": ITEMS} | dict.fromkeys(widths, ITEMS)
    masks = {name: (torch.rand(n, 6, generator=generator).double() > 0.3) / 0.7 for name, n in counts.items()}
    monkeypatch.setattr(model, "drop", lambda name, h: h * masks[name])
    batch = edges[:, torch.randperm(edges.shape[1], generator=generator)[:8]]
    mine = model(*batch)
    mine.backward()

    def leaf(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().clone().requires_grad_()

    theirs = Parameters(
        leaf(model.user.weight),
        leaf(model.item.weight),
        (leaf(model.predictor.weight), leaf(model.predictor.bias)),
        {name: (leaf(model.projector[name].weight), leaf(model.projector[name].bias)) for name in widths},
        {name: leaf(model.feature[name]) for name in widths},
        {},
    )
    expected = loss(theirs, edges, batch, masks, layers=2, reg_weight=0.1, cl_weight=2.0, reference=True)
    expected.backward()
    torch.testing.assert_close(mine, expected, rtol=1e-10, atol=0)
    renamed = {re.sub("projectors.of_", "projector.", name): each.grad for name, each in theirs.leaves().items()}
    for name, parameter in model.named_parameters():
        gradient = renamed[name.replace("feature.", "feature_").replace("user.weight", "user").replace("item.weight", "item")]
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)


def test_electronics_has_the_statistics_it_names(tmp_path: Path) -> None:
    directory = ensure_dataset(tmp_path, scale=0.02, widths=(8, 4))
    dataset = open_dataset(directory)
    counts = dataset.manifest["counts"]
    assert (counts["users"], counts["items"], counts["interactions"]) == (3848, 1260, 33784)
    parts = [np.stack(dataset.interactions(split)) for split in Split]
    assert [part.shape[1] / 33784 for part in parts] == pytest.approx([0.8, 0.1, 0.1], abs=1e-3)
    pairs = np.concatenate(parts, axis=1)
    assert np.unique(pairs, axis=1).shape == pairs.shape
    degrees = [np.bincount(ends) for ends in pairs]
    assert min(degree.min() for degree in degrees) == 5
    assert degrees[1].max() > 20 * np.median(degrees[1])
    per_user = [np.bincount(part[0], minlength=3848) for part in parts]
    for held in per_user[1:]:  # of n interactions n / 10, rounded down or up
        assert (np.abs(held - degrees[0] / 10) < 1).all()
    written = (directory / "dataset.json").stat().st_mtime_ns
    assert ensure_dataset(tmp_path, scale=0.02, widths=(8, 4)) == directory
    assert (directory / "dataset.json").stat().st_mtime_ns == written


def test_recall_is_that_of_a_loop(tmp_path: Path) -> None:
    dataset = open_dataset(ensure_dataset(tmp_path, scale=0.005, widths=(2, 2)))
    generator = torch.Generator().manual_seed(1)
    users = torch.rand(dataset.num_users, 4, generator=generator)
    items = torch.rand(dataset.num_items, 4, generator=generator)
    train, held = (np.stack(dataset.interactions(split)) for split in (Split.train, Split.valid))
    recalls = []
    for user in range(dataset.num_users):
        wanted, seen = set(held[1][held[0] == user].tolist()), train[1][train[0] == user]
        if wanted and len(seen):
            scores = items @ users[user]
            scores[torch.from_numpy(seen).long()] = -torch.inf
            recalls.append(len(wanted & set(scores.argsort(descending=True)[:20].tolist())) / len(wanted))
    assert Evaluation(dataset, Split.valid).recall(users, items) == pytest.approx(np.mean(recalls), rel=1e-6)


def test_shared_memory_counts_once_and_a_child_counts(tmp_path: Path) -> None:
    program = (
        "import mmap, os, time\n"
        "shared = mmap.mmap(-1, 200 << 20)\n"
        "shared.write(b'x' * (200 << 20))\n"
        "if not os.fork():\n"
        "    own = b'y' * (100 << 20); sum(shared[::4096]); time.sleep(1.5); os._exit(0)\n"
        "os.wait()\n"
    )
    finished = run([sys.executable, "-c", program], log=tmp_path / "log")
    assert 300 << 20 < finished.pss_bytes < 450 << 20


def test_what_a_command_leaves_behind_is_ended(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, os\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "print(os.environ['BM3_BENCHMARK'], flush=True)\n"
        "sys.exit(3)\n"
    )
    with pytest.raises(CommandFailedError, match="exit code 3"):
        run([sys.executable, "-c", program], log=tmp_path / "log", limit_seconds=30, grace_seconds=0.5)
    mark = (tmp_path / "log").read_text().strip()
    assert mark
    assert not list(marked(f"BM3_BENCHMARK={mark}"))


def test_a_moment_is_timed_and_may_end_a_command(tmp_path: Path) -> None:
    program = f"import time, pathlib; time.sleep(0.5); pathlib.Path({str(tmp_path / 'there')!r}).touch(); time.sleep(600)"
    began = time.monotonic()
    moments = {"there": (tmp_path / "there").exists}
    finished = run([sys.executable, "-c", program], log=tmp_path / "log", moments=moments, stop_at="there")
    assert 0.5 <= finished.moments["there"] < time.monotonic() - began < 20


def test_the_cost_model_counts_what_a_loop_counts() -> None:
    """A propagation done by the book on a small graph, every touch counted."""
    shape = cost.Shape(users=5, items=4, train=9, batch=8, distinct=3, widths=(7,), layers=2, dim=3)
    touched = 0
    for _ in range(2):
        for _ in range(2 * 9):  # every edge, both directions
            touched += 4 + 3 * 2  # its index, and a row of halves
        for _ in range(5 + 4):
            touched += 3 * 4 + 3 * 2  # the base is read, the row written
    assert cost.propagation_bytes(shape, value_bytes=2) == touched


def test_expected_distinct_items() -> None:
    """Against drawing."""
    generator, degrees = np.random.default_rng(5), np.array([1, 2, 50, 400, 547])
    interactions = np.repeat(np.arange(5), degrees)
    drawn = np.mean([len(np.unique(generator.choice(interactions, 30))) for _ in range(4000)])
    assert cost.expected_distinct(degrees, 30) == pytest.approx(drawn, rel=0.02)


def test_ratios_and_report() -> None:
    """Targets are looked up where they are; a missing measurement is a dash and not a number."""
    exact = [trial(ranks=1, step_seconds=0.19), trial(), trial(batch=2048, epoch_seconds=60.0)]
    peer = {"epoch_seconds": 2400.0, "seconds_per_step": 3.7, "pss_bytes": 8 * 10**9}
    entries = [{"features": "residual", **vars(each), **suite.ratio_to(peer, [each])} for each in exact]
    results = {"exact": entries, "growth": None, "baby": None, "ranking": {"ratio": 3.0}, "cost": {"bandwidth_fraction": 0.6}}
    found = suite.headline(results)
    assert found["ratios"]["epoch_features_8192"] == pytest.approx(120)
    assert found["ratios"]["epoch_features_2048"] == pytest.approx(40)
    assert found["ratios"]["ranks_2_over_1"] == pytest.approx(1.9)
    assert found["ratios"]["epoch_nofeatures_8192"] is None
    lines = list(report._targets(results | found))
    assert "| 120 | >= 40 | >= 80 | moonshot |" in next(line for line in lines if "8192, against" in line and "with f" in line)
    assert "| 3 | >= 5 | >= 10 | no |" in next(line for line in lines if "ranking" in line)
    assert "| - | >= 18 | >= 40 | - |" in next(line for line in lines if "without features" in line)
    assert set(found["ratios"]) | set(found) - {"ratios"} == set(report.TARGETS)


def test_growth_is_the_worse_of_step_and_propagation() -> None:
    first = {"step_ns_per_edge": 10.0, "propagation_ns_per_edge": 4.0}
    assert growth.growth_per_edge([first, {"step_ns_per_edge": 9.0, "propagation_ns_per_edge": 8.0}]) == 2.0


def test_medians_go_into_dictionaries() -> None:
    entries = [
        {"name": "a", "x": 1.0, "in": {"y": 5}},
        {"name": "a", "x": 9.0, "in": {"y": 7}},
        {"name": "a", "x": 2.0, "in": {"y": 6}},
    ]
    assert suite.medians(entries) == {"name": "a", "x": 2.0, "in": {"y": 6}}


def test_the_kernel_against_the_library(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs as a user would run it, on a small graph; the module itself compares both results."""
    small = ["--users", "60", "--items", "40", "--edges", "300", "--dim", "12", "--repeats", "1"]
    monkeypatch.setattr("sys.argv", ["propagation", *small])
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    propagation.main()
    assert "ratio" in capsys.readouterr().out
