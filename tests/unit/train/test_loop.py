"""The loop with a made-up stepper: it knows neither model nor ranking."""

from __future__ import annotations

import functools
import operator
from typing import Any

import pytest
import torch

from bm3_dgl.config import load_config
from bm3_dgl.errors import DivergedError
from bm3_dgl.model.head import Losses
from bm3_dgl.runtime.collectives import Team
from bm3_dgl.runtime.ranks import Ranks
from bm3_dgl.train.checkpoint import Progress
from bm3_dgl.train.early_stop import EarlyStop
from bm3_dgl.train.loop import Loop

NUM_TRAIN, BATCH = 10, 4


class Recorder:
    """Stands for Model, Stepper and Checkpoints; recall is scripted."""

    terms: tuple[str, ...] = ("ranking", "regulariser", "total")

    def __init__(self, recalls: list[float], *, bad_step: int = -1) -> None:
        self.steps: list[list[int]] = []
        self.saves: list[tuple[int, bool]] = []
        self._recalls, self._bad_step = iter(recalls), bad_step

    def step(self, ids: torch.Tensor, step: int) -> Losses:
        self.steps.append(ids.tolist())
        value = torch.tensor(float("nan") if step == self._bad_step else 1.0)
        return Losses({"ranking": value, "regulariser": value}, value)

    def save(self, model: Any, progress: Progress, *, best: bool, keep: int) -> None:
        self.saves.append((progress.step, best))

    def evaluate(self) -> dict[str, float]:
        return {"recall@20": next(self._recalls)}


def make(recorder: Recorder, *overrides: str) -> Loop:
    config = load_config(None, [f"train.batch_size={BATCH}", *overrides])
    stop = EarlyStop(config.train.patience, config.train.burn_in)
    fake: Any = recorder
    return Loop(config, Team(Ranks()), fake, fake, fake, recorder.evaluate, "recall@20", NUM_TRAIN, None, stop)


def test_a_model_without_losses_is_judged_once_and_kept() -> None:
    recorder = Recorder([0.4])
    recorder.terms = ()
    outcome = make(recorder, "train.epochs=50").run(None)
    assert recorder.steps == [] and recorder.saves == [(0, True)]
    assert (outcome.epochs_run, outcome.best_epoch, outcome.stopped_early) == (0, 0, False)
    again = make(recorder, "train.epochs=50").run(Progress(0, {}))
    assert again.evaluate_seconds == [] and recorder.saves == [(0, True)], "a resumed one is done"


def test_every_pair_once_an_epoch_and_an_early_end() -> None:
    recorder = Recorder([0.1, 0.3, 0.2, 0.3])
    outcome = make(recorder, "train.patience=2", "train.epochs=50").run(None)
    assert (outcome.epochs_run, outcome.best_epoch, outcome.stopped_early) == (4, 2, True)
    assert [len(ids) for ids in recorder.steps[:3]] == [4, 4, 2]
    for epoch in range(4):
        assert sorted(functools.reduce(operator.iadd, recorder.steps[3 * epoch : 3 * epoch + 3], [])) == list(range(NUM_TRAIN))
    assert recorder.saves == [(3, True), (6, True), (12, False)], "the best epochs, and the last"


def test_resume_meets_the_rest_of_the_epoch() -> None:
    whole = Recorder([0.1, 0.2])
    make(whole, "train.epochs=2").run(None)
    rest = Recorder([0.1, 0.2])
    state = {"early_stop": EarlyStop(1, 0).state(), "sums": [1.0] * 3}
    outcome = make(rest, "train.epochs=2").run(Progress(1, state))
    assert rest.steps == whole.steps[1:] and outcome.epochs_run == 2


def test_evaluation_every_few_epochs_and_after_the_last() -> None:
    recorder = Recorder([0.1, 0.2, 0.3])
    make(recorder, "train.epochs=5", "evaluate.every=2").run(None)
    assert [step for step, best in recorder.saves if best] == [6, 12, 15]


def test_checkpoints_in_mid_epoch() -> None:
    recorder = Recorder([0.1])
    make(recorder, "train.epochs=1", "train.checkpoint_steps=2").run(None)
    assert recorder.saves == [(2, False), (3, True)]


def test_a_loss_that_is_not_finite_is_never_saved() -> None:
    recorder = Recorder([0.1, 0.2], bad_step=4)
    with pytest.raises(DivergedError, match=r"no longer finite \(ranking, .*lower train.learning_rate=0.001"):
        make(recorder, "train.epochs=2").run(None)
    assert recorder.saves == [(3, True)]
