"""The life of a training run: steps, an evaluation now and then, checkpoints, an early end.

The loop knows neither the model's equations nor the engine nor how a ranking is judged: it is given a Stepper, a
function that evaluates, and the places to write to.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from bm3_dgl.config.schema import JobConfig
from bm3_dgl.errors import DivergedError, Terminated
from bm3_dgl.runtime.collectives import Team
from bm3_dgl.train.checkpoint import Checkpoints, Progress
from bm3_dgl.train.early_stop import EarlyStop
from bm3_dgl.train.journal import Journal
from bm3_dgl.train.order import EpochOrder, batches_per_epoch
from bm3_dgl.train.profile import Profiler
from bm3_dgl.train.step import Model, Stepper
from bm3_dgl.train.watch import View, Watch

Evaluate = Callable[[], dict[str, float]]


@dataclass
class Outcome:
    """What training came to, in this process. trial: ended by train.max_steps, so there is nothing to judge.

    phases: of all steps, summed, mean over ranks. peak_pss_bytes: the most that all processes of the job took at the end
    of any epoch, those before a resume too.
    """

    epochs_run: int = 0
    best_epoch: int = 0
    stopped_early: bool = False
    epoch_seconds: list[float] = field(default_factory=list)
    evaluate_seconds: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    phases: dict[str, float] = field(default_factory=dict)
    trial: bool = False
    network: dict[str, dict[str, float]] = field(default_factory=dict)  # of the last epoch, per step, by purpose
    peak_pss_bytes: int = 0


@dataclass
class _Epoch:
    """What is measured of the epoch that runs. pairs: of all ranks, in this process; phases: seconds per step."""

    pairs: int = 0
    phases: dict[str, float] = field(default_factory=dict)
    view: View | None = None


@dataclass
class Loop:
    """One run on this rank; every rank runs the same loop. journal: on rank 0 only."""

    config: JobConfig
    team: Team
    model: Model
    stepper: Stepper
    checkpoints: Checkpoints
    evaluate: Evaluate
    monitor: str
    num_train: int
    journal: Journal | None
    early_stop: EarlyStop
    profiler: Profiler | None = None
    watch: Watch | None = None
    _end_soon: bool = False
    _warm: bool = False  # a step has been done
    _saved: int = -1  # step of the newest checkpoint
    _peak_pss_bytes: int = 0
    sums: torch.Tensor = field(init=False)  # of the model's loss terms over this rank's steps of the epoch

    def __post_init__(self) -> None:
        self.sums = torch.zeros(len(self.model.terms), dtype=torch.float64)

    def end_soon(self) -> None:
        """Ask for a checkpoint and the end after this step; from a signal handler of any one rank."""
        self._end_soon = True

    def run(self, start: Progress | None) -> Outcome:
        """Train from `start`, or from the beginning, to the last epoch or an early stop. COLLECTIVE."""
        if not self.model.terms:
            return self._judge(start)
        train, outcome = self.config.train, Outcome()
        batch_size = train.batch_size * self.team.ranks.world_size
        batches = batches_per_epoch(self.num_train, batch_size)
        step = self._restore(start)
        limit = train.max_steps or train.epochs * batches
        while step < train.epochs * batches and not self.early_stop.stops and not outcome.trial:
            epoch = step // batches + 1
            order = EpochOrder(self.num_train, seed=train.seed, epoch=epoch)
            self.team.take_traffic()
            self.team.phases.take()
            began, first, measured = time.monotonic(), step % batches, _Epoch()
            timed = len(outcome.step_seconds)
            for number in range(first, batches):
                if self.profiler is not None:
                    self.profiler.tick()
                if self.watch is not None and number == batches - 1:
                    self.watch.arm()
                with self._timed(outcome):
                    ids = order.batch(number, batch_size)
                    losses = self.stepper.step(ids, step)
                    self.sums += losses.detached()
                step += 1
                measured.pairs += len(ids)
                if self.journal is not None:
                    self.journal.step(epoch, len(ids), losses)
                if step == limit < train.epochs * batches:
                    outcome.trial = True
                    break
                if step % batches:  # the last step of an epoch is followed by its evaluation first
                    self._between_steps(step)
            if self.profiler is not None:
                self.profiler.close()  # before the times are taken, and evaluation comes in between
            outcome.network = self._network(number + 1 - first)
            measured.phases = self._add_phases(outcome, len(outcome.step_seconds) - timed)
            if outcome.trial:
                self._look(None)
            else:
                outcome.epoch_seconds.append(time.monotonic() - began)
                self._end_epoch(epoch, step, batches, outcome, measured)
                self._end_if_asked(step)
        outcome.epochs_run, outcome.peak_pss_bytes = step // batches, self._peak_pss_bytes
        outcome.best_epoch, outcome.stopped_early = self.early_stop.best_epoch, self.early_stop.stops
        return outcome

    def _judge(self, start: Progress | None) -> Outcome:
        """The whole run of a model that is not trained: one evaluation, kept as the best."""
        outcome = Outcome()
        if start is None:
            began = time.monotonic()
            metrics = self.evaluate()
            outcome.evaluate_seconds.append(time.monotonic() - began)
            self._look(None)
            outcome.peak_pss_bytes = self._peak_pss_bytes
            if self.journal is not None:
                self.journal.record("valid", step=0, epoch=0, **metrics, seconds=outcome.evaluate_seconds[0])
            self.early_stop.update(metrics[self.monitor], 0)
            self._save(0, best=True)
        return outcome

    @contextlib.contextmanager
    def _timed(self, outcome: Outcome) -> Iterator[None]:
        """Time a step. The first of a process compiles and maps memory, and is not counted."""
        began = time.monotonic()
        yield
        if self._warm:
            outcome.step_seconds.append(time.monotonic() - began)
        else:
            self.team.phases.take()
        self._warm = True

    def _between_steps(self, step: int) -> None:
        self._end_if_asked(step)
        every = self.config.train.checkpoint_steps
        if every and step % every == 0:
            self._save(step, best=False)

    def _end_if_asked(self, step: int) -> None:
        """Save and raise Terminated where any rank has been asked to end; all ranks hear the same. COLLECTIVE."""
        if self.team.sum_few([float(self._end_soon)]) != [0.0]:
            if self._saved != step:
                self._save(step, best=False)
            raise Terminated(f"train: ended by SIGTERM after step {step}, which is saved; go on with train.resume=true")

    def _end_epoch(self, epoch: int, step: int, batches: int, outcome: Outcome, measured: _Epoch) -> None:
        losses = dict(zip(self.model.terms, (self._total_sums() / batches).tolist(), strict=True))
        self.sums.zero_()
        best, last = False, epoch == self.config.train.epochs
        if epoch % self.config.evaluate.every == 0 or last:
            began = time.monotonic()
            metrics = self.evaluate()
            outcome.evaluate_seconds.append(time.monotonic() - began)
            best = self.early_stop.update(metrics[self.monitor], epoch)
            self._look(measured)
            self._report(epoch, step, losses, metrics, best, outcome, measured)
        else:
            self._look(measured)
            self._record(epoch, step, losses, outcome, measured)
        if best or last or self.early_stop.stops or epoch % self.config.train.checkpoint_epochs == 0:
            self._save(step, best=best)

    def _look(self, measured: _Epoch | None) -> None:
        """Measure the model and the job's memory at the end of an epoch, of a trial (None) the memory. COLLECTIVE."""
        if self.watch is None:
            return
        if measured is not None:
            measured.view = self.watch.look()
        pss_bytes = self.watch.pss_bytes() if measured is None or measured.view is None else measured.view.pss_bytes
        self._peak_pss_bytes = max(self._peak_pss_bytes, pss_bytes)

    def _report(
        self,
        epoch: int,
        step: int,
        losses: dict[str, float],
        metrics: dict[str, float],
        best: bool,
        outcome: Outcome,
        measured: _Epoch,
    ) -> None:
        if self.journal is None:
            return
        seconds, evaluate_seconds = outcome.epoch_seconds[-1], outcome.evaluate_seconds[-1]
        self._record(epoch, step, losses, outcome, measured)
        self.journal.record("valid", step=step, epoch=epoch, **metrics, seconds=evaluate_seconds)
        self.journal.say(
            f"epoch {epoch}: loss {losses['total']:.4f}, validation {self.monitor} {metrics[self.monitor]:.4f}"
            f"{' *' if best else ''} (best {self.early_stop.best:.4f} at {self.early_stop.best_epoch}),"
            f" {seconds:.1f} s + {evaluate_seconds:.1f} s"
        )

    def _record(self, epoch: int, step: int, losses: dict[str, float], outcome: Outcome, measured: _Epoch) -> None:
        """The epoch's line of metrics.jsonl, and its histograms."""
        if self.journal is None:
            return
        seconds, view = outcome.epoch_seconds[-1], measured.view
        values: dict[str, Any] = {"losses": losses, "seconds": seconds, "pairs_per_second": measured.pairs / seconds}
        values |= {"learning_rate": self.config.train.learning_rate, "phases": measured.phases}
        if view is not None:
            values |= {"grad_norms": view.grad_norms, "embedding_norms": view.quantiles()}
            values |= {"memory": {"pss_bytes": view.pss_bytes}}
            for name, norms in view.row_norms.items():
                self.journal.histogram(f"embedding_norms/{name}", norms, step=step)
        if outcome.network:
            values["network"] = outcome.network
        self.journal.record("train", step=step, epoch=epoch, **values)

    def _network(self, steps: int) -> dict[str, dict[str, float]]:
        """Bytes that cross between machines, and seconds, per step and purpose. COLLECTIVE."""
        return {
            purpose: {"bytes": round(cost.num_bytes / steps), "seconds": round(cost.seconds / steps, 6)}
            for purpose, cost in self.team.take_traffic().items()
            if cost.num_bytes
        }

    def _add_phases(self, outcome: Outcome, steps: int) -> dict[str, float]:
        """Add what was spent since the last call; returns it per timed step, mean over ranks, largest first. COLLECTIVE."""
        parts = self.team.gather_values(self.team.phases.take())
        names = {name for part in parts for name in part}
        spent = {name: sum(part.get(name, 0.0) for part in parts) / len(parts) for name in names}
        for name, seconds in spent.items():
            outcome.phases[name] = outcome.phases.get(name, 0.0) + seconds
        return {name: round(seconds / max(1, steps), 6) for name, seconds in sorted(spent.items(), key=lambda entry: -entry[1])}

    def _total_sums(self) -> torch.Tensor:
        """Loss terms summed over the ranks. Raises DivergedError on every rank alike."""
        total = self.team.sum(self.sums.clone())
        if not bool(total.isfinite().all()):
            terms = ", ".join(name for name, value in zip(self.model.terms, total.tolist(), strict=True) if value - value != 0)
            raise DivergedError(
                f"train: the loss is no longer finite ({terms}); lower train.learning_rate={self.config.train.learning_rate},"
                " and resume from the last checkpoint with train.resume=true"
            )
        return total

    def _save(self, step: int, *, best: bool) -> None:
        state: dict[str, Any] = {"early_stop": self.early_stop.state(), "sums": self._total_sums().tolist()}
        state["peak_pss_bytes"] = self._peak_pss_bytes
        self.checkpoints.save(self.model, Progress(step, state), best=best, keep=self.config.train.keep_checkpoints)
        self._saved = step

    def _restore(self, start: Progress | None) -> int:
        if start is None:
            return 0
        self.early_stop.load_state(start.state["early_stop"])
        self._peak_pss_bytes = start.state.get("peak_pss_bytes", 0)  # runs of before did not note it
        if self.team.ranks.leads:
            self.sums.copy_(torch.tensor(start.state["sums"]))
        return start.step


def median(seconds: list[float]) -> float | None:
    """Median of what was measured, None where nothing was."""
    return round(statistics.median(seconds), 4) if seconds else None
