"""Search over a continuous space with optuna: which settings to try next, and which runs are not worth going on with.

The trials are kept in a journal file, so a killed search goes on: trials that had not ended are given again first, and their
runs go on from their checkpoints. Each trial is drawn by a sampler of its own, seeded by its number, so that what is drawn
depends on the trials before it alone and not on how often the search was interrupted. Extra `[study]`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bm3_dgl.config.fields import choices, optional, spell, walk
from bm3_dgl.config.schema import JobConfig
from bm3_dgl.errors import ConfigError
from bm3_dgl.study.declare import Study, Variant
from bm3_dgl.study.runs import DONE, PRUNED, Run, is_taken, metric_lines, status_of, summary_of, write_text
from bm3_dgl.study.settings import Pruner

_JOURNAL = "trials.jsonl"


class Search:
    """A Source of runs (schedule.py). make: the run of a variant with the study's seed."""

    def __init__(self, study: Study, make: Callable[[Variant], Run]) -> None:
        assert study.search is not None, "a study with a search"
        self._study, self._settings, self._make = study, study.search, make
        self._optuna = import_optuna()
        self._state = self._optuna.trial.TrialState
        self._trials = self._open(make(study.variants[0]).identity)
        self._numbers: dict[str, int] = {}  # identity -> trial
        self._reported: dict[int, int] = {}  # trial -> last epoch told
        self._members: dict[int, tuple[Variant, Run]] = {}
        self._failed = 0  # in this call; the next one tries these again
        self._again: deque[Run] = deque()
        self._repeated: set[str] = set()  # identities of runs whose trials had ended, but which are no longer there
        for frozen in self._trials.get_trials(deepcopy=False):
            if frozen.state != self._state.WAITING:
                self._take_up(frozen)

    def next(self) -> Run | None:
        for run in list(self._again):
            if not is_taken(run):
                self._again.remove(run)
                return run
        if self._again:
            return None  # what another study runs is worth waiting for: the next trial is drawn with its value known
        while (number := len(self._begun())) < self._settings.trials:
            self._trials.sampler = self._sampler(number)
            trial = self._trials.ask()
            run = self._member(trial)
            if self._numbers[run.identity] == trial.number:
                return run
            self._trials.tell(trial.number, state=self._state.FAIL)  # drawn before: nothing new to learn
        return None

    def back(self, run: Run) -> None:
        self._again.append(run)

    def ended(self, run: Run, status: str) -> None:
        """Tell optuna; a value is of validation alone."""
        if run.identity in self._repeated:
            self._repeated.remove(run.identity)
            return
        number, summary = self._numbers[run.identity], summary_of(run)
        if status == DONE and summary is not None:
            self._trials.tell(number, summary["valid"][self._study.settings.metric])
        elif status == PRUNED:
            self._trials.tell(number, state=self._state.PRUNED)
        else:
            self._failed += 1

    def hopeless(self, run: Run) -> bool:
        """Tell the pruner how the run does, and ask it. A value is the best so far, as the run's end would report it.

        The base, which the best one is compared with, always comes to its end.
        """
        if run.identity in self._repeated:
            return False
        number = self._numbers[run.identity]
        trial, told = self._trial(number), self._reported.get(number, 0)
        best = float("-inf")
        for line in metric_lines(run, "valid"):
            best = max(best, line[self._study.settings.metric])
            if line["epoch"] > told:
                trial.report(best, line["epoch"])
                self._reported[number] = line["epoch"]
        return number > 0 and number in self._reported and trial.should_prune()

    def left(self) -> int:
        finished = sum(trial.state.is_finished() for trial in self._begun())
        return len(self._repeated) + max(0, self._settings.trials - self._failed - finished)

    def members(self) -> list[tuple[Variant, list[Run]]]:
        """Trials so far, as variants of one run each."""
        return [(variant, [run]) for _, (variant, run) in sorted(self._members.items())]

    def _take_up(self, frozen: Any) -> None:
        """A trial of an earlier call."""
        running = frozen.state == self._state.RUNNING
        if running:
            self._trials.sampler = self._sampler(frozen.number)  # it may have been killed while it was being drawn
            run = self._member(self._trial(frozen.number))
            self._again.append(run)
            self._reported[frozen.number] = frozen.last_step or 0
        else:
            run = self._add(frozen.number, frozen.params)
            if frozen.state == self._state.COMPLETE and status_of(run)[0] != DONE:
                self._again.append(run)
                self._repeated.add(run.identity)

    def _member(self, trial: Any) -> Run:
        """Draw what is not drawn yet."""
        return self._add(trial.number, {key: self._suggest(trial, key) for key in self._study.space})

    def _add(self, number: int, params: dict[str, Any]) -> Run:
        overrides = [f"{key}={spell(value)}" for key, value in params.items()]
        variant = self._study.variants[0]  # the base, as trial 0
        if number:
            variant = self._study.variant(f"trial {number}", overrides, self._study.settings.ranks)
        run = self._make(variant)
        if run.identity not in self._numbers:
            self._numbers[run.identity] = number
            self._members[number] = variant, run
        return run

    def _suggest(self, trial: Any, key: str) -> Any:
        dimension = self._study.space[key]
        if dimension.choices:
            return trial.suggest_categorical(key, dimension.choices)
        kind = next(optional(field.type)[0] for name, field, _ in walk(JobConfig()) if name == key)
        low, high = dimension.low, dimension.high
        if kind is int:
            return trial.suggest_int(key, int(low or 0), int(high or 0), log=dimension.log)
        return trial.suggest_float(key, low, high, log=dimension.log)

    def _begun(self) -> list[Any]:
        return [trial for trial in self._trials.get_trials(deepcopy=False) if trial.state != self._state.WAITING]

    def _trial(self, number: int) -> Any:
        frozen = self._trials.get_trials(deepcopy=False)[number]
        return self._optuna.trial.Trial(self._trials, frozen._trial_id)

    def _sampler(self, number: int) -> Any:
        return self._optuna.samplers.TPESampler(
            seed=self._settings.seed + number, n_startup_trials=self._settings.startup_trials
        )

    def _open(self, base: str) -> Any:
        """base: identity of the base's run. Another one, or another space, begins another search: values would not compare."""
        optuna, settings = self._optuna, self._settings
        path = self._study.directory / _JOURNAL
        mend_journal(path)
        backend = optuna.storages.journal.JournalFileBackend(str(path), lock_obj=_no_lock(optuna))
        pruner: Any = optuna.pruners.NopPruner()
        if settings.pruner is Pruner.median:
            pruner = optuna.pruners.MedianPruner(n_startup_trials=settings.pruner_trials, n_warmup_steps=settings.pruner_epochs)
        space = ", ".join(f"{key} {spell(vars(dimension))}" for key, dimension in self._study.space.items())
        trials = optuna.create_study(
            storage=optuna.storages.JournalStorage(backend),
            study_name=f"{self._study.settings.metric} over {space}, from {base}",
            direction="maximize",
            pruner=pruner,
            load_if_exists=True,
        )
        if not trials.get_trials(deepcopy=False):
            trials.enqueue_trial(_first(self._study))
        return trials


def import_optuna() -> Any:
    """Raises ConfigError where it is not installed."""
    try:
        import optuna
    except ImportError:
        raise ConfigError("search: needs optuna, which is not installed; install the extra: pip install '.[study]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def mend_journal(path: Path) -> None:
    """Take off a last line that was being written when the search was killed."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text and not text.endswith("\n"):
        write_text(path, text[: text.rfind("\n") + 1])


def _first(study: Study) -> dict[str, Any]:
    """The base's own values."""
    have = {key: (field, value) for key, field, value in walk(study.config([], study.settings.seeds[0]))}
    first = {}
    for key, dimension in study.space.items():
        field, value = have[key]
        first[key] = spell(value) if dimension.choices or choices(field.type) else value
    return first


def _no_lock(optuna: Any) -> Any:
    """The study's directory is locked as a whole, by a lock that a killed study does not leave behind, as optuna's would be."""

    class NoLock(optuna.storages.journal._file.BaseJournalFileLock):
        def acquire(self) -> bool:
            return True

        def release(self) -> None:
            pass

    return NoLock()
