"""Job `train`: open the session, train, judge the best epoch on the test split, write the summary."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bm3_dgl.config import JobConfig, save_config
from bm3_dgl.config.schema import ModelName
from bm3_dgl.evaluate.evaluator import Evaluator, Judged, Ranker
from bm3_dgl.export.users import write_users
from bm3_dgl.jobs.run_dir import Claim, claim
from bm3_dgl.jobs.session import Session, open_session
from bm3_dgl.log import logger
from bm3_dgl.model.registry import HEADS
from bm3_dgl.runtime.lifeline import on_sigterm
from bm3_dgl.train.checkpoint import Checkpoints, Progress
from bm3_dgl.train.early_stop import EarlyStop
from bm3_dgl.train.journal import Journal
from bm3_dgl.train.loop import Loop, Outcome, median
from bm3_dgl.train.order import batches_per_epoch
from bm3_dgl.train.profile import Profiler
from bm3_dgl.train.step import Stepper
from bm3_dgl.train.watch import Watch
from bm3_dgl.types import USER, Split

_EARLY_PEAK_EPOCHS = 30  # a run that stops before may have stopped at popularity's peak; see EarlyStop


def main(config: JobConfig) -> None:
    """Train to the end and leave run.dir complete. Under torchrun every rank calls it."""
    claims: list[Claim] = []  # rank 0's, kept for as long as the process lives

    def take() -> None:
        claims.append(claim(Path(config.run.dir), resume=config.train.resume))

    with open_session(config, claim=take) as session:
        resume = bool(claims) and claims[0].resume
        checkpoints = session.checkpoints(resuming=True)
        start = _start(session, checkpoints, resume)
        evaluator = make_evaluator(session)
        journal = _open_journal(session, start.step if start else None)
        loop = Loop(
            config,
            session.team,
            session.model,
            Stepper(config, session.store, session.model),
            checkpoints,
            evaluate=lambda: evaluate_split(session, evaluator, Split.valid),
            monitor=f"recall@{monitor_cutoff(config)}",
            num_train=session.store.local.num_train,
            journal=journal,
            early_stop=EarlyStop(config.train.patience, config.train.burn_in),
            profiler=Profiler(session.run_dir / "profile", session.team) if config.train.profile else None,
            watch=Watch(session.model, session.team),
        )
        startup = time.monotonic() - session.began
        with on_sigterm(loop.end_soon):
            outcome = loop.run(start)
        if journal is not None:
            journal.close()
        _finish(session, checkpoints, evaluator, outcome, startup)


def make_evaluator(session: Session) -> Evaluator:
    """COLLECTIVE."""
    evaluate = session.config.evaluate
    ranker = Ranker(session.store, session.shares, block_users=evaluate.block_users)
    return Evaluator(ranker, session.team, session.dataset, evaluate, session.store.local.num_nodes[USER])


def evaluate_split(
    session: Session, evaluator: Evaluator, split: Split, *, keep: Callable[[Judged], None] | None = None
) -> dict[str, float]:
    """Metrics of the model as it stands; keep: is given the users' lists, on rank 0. COLLECTIVE."""
    model = session.model
    users, items = evaluator.ranker.factors(model.engine.latents(), model.factors)
    return evaluator.evaluate(split, users, items, keep=keep)


def users_writer(session: Session) -> Callable[[Judged], None] | None:
    """What writes users_test.parquet, on rank 0 where evaluate.users_file asks for it."""
    dataset, evaluate = session.dataset, session.config.evaluate
    if dataset is None or not evaluate.users_file:
        return None
    train_items = np.bincount(dataset.interactions(Split.train)[0], minlength=dataset.num_users)
    path = session.run_dir / "users_test.parquet"
    return lambda judged: write_users(path, judged, train_items, evaluate.cutoffs)


def monitor_cutoff(config: JobConfig) -> int:
    """K of the validation recall that decides."""
    cutoffs = config.evaluate.cutoffs
    return config.evaluate.monitor or (20 if 20 in cutoffs else max(cutoffs))


def _start(session: Session, checkpoints: Checkpoints, resume: bool) -> Progress | None:
    """Where to go on from: the newest whole checkpoint of a run that is resumed. resume: as rank 0 knows."""
    config, team = session.config, session.team
    start = checkpoints.load(session.model, "latest") if team.share(resume) else None
    if team.ranks.leads:
        save_config(config, session.run_dir / "config.yaml")
        if start is not None:
            logger.info("resuming %s at step %d", session.run_dir, start.step)
    return start


def _open_journal(session: Session, step: int | None) -> Journal | None:
    if not session.team.ranks.leads:
        return None
    train = session.config.train
    batches = batches_per_epoch(session.store.local.num_train, train.batch_size * session.team.ranks.world_size)
    journal = Journal(
        session.run_dir,
        total_steps=train.epochs * batches,
        step=step,
        world_size=session.team.ranks.world_size,
        progress=train.progress,
        tensorboard=train.tensorboard,
    )
    journal.show_config((session.run_dir / "config.yaml").read_text(encoding="utf-8"))
    return journal


def _finish(session: Session, checkpoints: Checkpoints, evaluator: Evaluator, outcome: Outcome, startup: float) -> None:
    """Go back to the best epoch, judge it on both splits, and write summary.json."""
    seconds = {
        "startup": round(startup, 2),
        "step": median(outcome.step_seconds),
        "train_epoch": median(outcome.epoch_seconds),
        "evaluation": median(outcome.evaluate_seconds),
    }
    if outcome.trial:
        _finish_trial(session, outcome, seconds)
        return
    best = checkpoints.load(session.model, "best")
    assert best is not None, "the last epoch is always evaluated, so there is a best one"
    valid = evaluate_split(session, evaluator, Split.valid)
    popular_valid = evaluator.popularity(Split.valid)
    test = evaluate_split(session, evaluator, Split.test, keep=users_writer(session))
    popular_test = evaluator.popularity(Split.test)
    if not session.team.ranks.leads:
        return
    path = session.run_dir / "summary.json"
    if not outcome.epoch_seconds and path.is_file():
        logger.info("nothing left to train; raise train.epochs to go on")
        print(report(json.loads(path.read_text(encoding="utf-8")), session.run_dir))
        return
    summary = {
        "model": session.config.model.name.name,
        "best_epoch": outcome.best_epoch,
        "epochs_run": outcome.epochs_run,
        "world_size": session.team.ranks.world_size,
        "stopped_early": outcome.stopped_early,
        "valid": valid,
        "test": test,
        "popularity": {"valid": popular_valid, "test": popular_test},
        "users": {"valid": evaluator.users(Split.valid), "test": evaluator.users(Split.test)},
        "seconds": seconds,
        "phases": phases_per_step(outcome),
        "memory": {"peak_pss_bytes": outcome.peak_pss_bytes},
    }
    if outcome.network:
        # A machine draws the edges of the items that it owns, so no feature row leaves its machine.
        summary["network_per_step"] = outcome.network | {"features": {"bytes": 0, "seconds": 0.0}}
    if outcome.stopped_early and outcome.epochs_run <= _EARLY_PEAK_EPOCHS:
        summary["note"] = (
            f"stopped after {outcome.epochs_run} epochs, where recall can stand at popularity's peak;"
            " train.burn_in=50 looks past it"
        )
    write_json(path, summary)
    print(report(summary, session.run_dir))


def _finish_trial(session: Session, outcome: Outcome, seconds: dict[str, float | None]) -> None:
    """Write down what some steps took."""
    if not session.team.ranks.leads:
        return
    summary = {
        "model": session.config.model.name.name,
        "trial_steps": len(outcome.step_seconds),
        "world_size": session.team.ranks.world_size,
        "seconds": seconds,
        "phases": phases_per_step(outcome),
        "memory": {"peak_pss_bytes": outcome.peak_pss_bytes},
    }
    write_json(session.run_dir / "summary.json", summary)
    parts = ", ".join(f"{name} {value * 1e3:.1f}" for name, value in phases_per_step(outcome).items())
    print(f"a trial of {len(outcome.step_seconds)} steps on {session.team.ranks.world_size} ranks, not judged and not saved")
    print(f"start-up {seconds['startup']} s, a step {(seconds['step'] or 0) * 1e3:.1f} ms: {parts}")
    print(f"written: {session.run_dir}/summary.json")


def phases_per_step(outcome: Outcome) -> dict[str, float]:
    """Mean seconds of each phase per step, largest first, mean over ranks."""
    steps = max(1, len(outcome.step_seconds))
    return {name: round(total / steps, 6) for name, total in sorted(outcome.phases.items(), key=lambda entry: -entry[1])}


def report(summary: dict, run_dir: Path) -> str:
    """The run's result for a terminal: the model beside the popularity ranking."""
    seconds, name = summary["seconds"], ModelName[summary["model"]]
    lines = [metrics_table(name, {split: summary[split] for split in ("valid", "test")}, summary["popularity"])]
    trained = f"best epoch {summary['best_epoch']} of {summary['epochs_run']}" if HEADS[name].terms else "nothing to train"
    epoch = f", epoch {seconds['train_epoch']}" if HEADS[name].terms else ""
    lines.append(
        f"{trained}, {summary['world_size']} ranks;"
        f" seconds: start-up {seconds['startup']}{epoch}, evaluation {seconds['evaluation']}"
    )
    if "network_per_step" in summary:
        costs = summary["network_per_step"].items()
        lines.append(
            "between machines, per step: "
            + ", ".join(f"{purpose} {cost['bytes'] / 1e3:.1f} kB in {cost['seconds'] * 1e3:.1f} ms" for purpose, cost in costs)
        )
    if "note" in summary:
        lines.append(f"note: {summary['note']}")
    lines.append(f"written: {run_dir}/summary.json, metrics.jsonl, checkpoints/")
    return "\n".join(lines)


def metrics_table(model: ModelName, metrics: dict[str, dict[str, float]], popularity: dict[str, dict[str, float]]) -> str:
    """Metrics per split, the model above the popularity ranking."""
    metrics = {split: values for split, values in metrics.items() if values}  # a split may have no users
    names = list(next(iter(metrics.values())))
    width = max(len(name) for name in names) + 2
    lines = [" " * 24 + "".join(f"{name:>{width}}" for name in names)]
    for split, values in metrics.items():
        for label, row in {HEADS[model].title: values, "popularity": popularity[split]}.items():
            lines.append(f"{split:10}{label:14}" + "".join(f"{row[name]:>{width}.4f}" for name in names))
    return "\n".join(lines)


def write_json(path: Path, content: dict) -> None:
    """Write a small JSON file, whole or not at all."""
    part = path.with_name(f".{path.name}.tmp")
    part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    part.replace(path)
