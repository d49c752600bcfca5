"""Job `evaluate`: judge a trained run again, from its checkpoint, on both held-out splits."""

from __future__ import annotations

from bm3_dgl.config.schema import JobConfig
from bm3_dgl.errors import CheckpointError
from bm3_dgl.jobs.session import Session, open_session
from bm3_dgl.jobs.train import evaluate_split, make_evaluator, metrics_table, write_json
from bm3_dgl.runtime.ranks import launched_by_torchrun
from bm3_dgl.train.checkpoint import Progress
from bm3_dgl.types import Split


def main(config: JobConfig) -> None:
    """Print the metrics and write them to run.dir/evaluation.json. In one process, or in many under torchrun."""
    with open_session(config, alone=not launched_by_torchrun()) as session:
        progress = load_trained(session)
        evaluator = make_evaluator(session)
        # Test last: with evaluate.mask_validation its ranker hides more.
        metrics = {split.name: evaluate_split(session, evaluator, split) for split in (Split.valid, Split.test)}
        popularity = {split.name: evaluator.popularity(split) for split in (Split.valid, Split.test)}
        if session.team.ranks.leads:
            which = config.recommend.checkpoint.name
            result = {
                "model": config.model.name.name,
                "checkpoint": which,
                "step": progress.step,
                **metrics,
                "popularity": popularity,
            }
            write_json(session.run_dir / "evaluation.json", result)
            print(metrics_table(config.model.name, metrics, popularity))
            print(f"{which} checkpoint, step {progress.step}; written: {session.run_dir / 'evaluation.json'}")


def load_trained(session: Session) -> Progress:
    """Load the checkpoint that recommend.checkpoint names. COLLECTIVE. Raises CheckpointError where there is none."""
    progress = session.checkpoints(resuming=False).load(session.model, session.config.recommend.checkpoint.name)
    if progress is None:
        which = session.config.recommend.checkpoint.name
        raise CheckpointError(
            f"{session.run_dir}/checkpoints: no {which} checkpoint; train first, or choose recommend.checkpoint=latest"
        )
    return progress
