"""One trial of the real job, started as a user starts it: torchrun, launch/train.py, a dataset directory.

    python -m benchmarks.job --data DIR --ranks 2 --batch 8192 --steps 20 [key=value ...]

`train.max_steps` ends it. What is known comes from the run's own summary.json, but for start-up, which is counted from the
command to the moment when the run's journal is there (torchrun, interpreters and imports included), and for memory.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.electronics import default_work
from benchmarks.processes import Finished, run
from bm3_dgl.data.dataset import open_dataset

# The published settings on Electronics. Nothing is judged, and TensorBoard's event files are not needed.
MODEL = ("model.layers=2", "model.dropout=0.3", "model.reg_weight=0.1")
_QUIET = ("train.tensorboard=false", "train.progress=false")


@dataclass(frozen=True)
class Trial:
    """What some steps took; seconds. phases: per step, mean over the ranks, what belongs to none as `other`."""

    ranks: int
    batch: int
    step_seconds: float
    epoch_seconds: float
    startup_seconds: float
    pss_bytes: int
    phases: dict[str, float] = field(default_factory=dict)


def run_trial(
    data: Path, work: Path, *, ranks: int, batch: int, steps: int, settings: Sequence[str] = (), cores: int | None = None
) -> Trial:
    """cores: None for all that there are. batch: pairs of the whole batch, over all ranks.

    The dataset has to be partitioned (`partition`).
    """
    run_dir = work / "runs" / "trial"
    finished = train(
        run_dir,
        [*_dataset(data), *MODEL, f"train.max_steps={steps}", f"train.batch_size={batch // ranks}", *settings],
        ranks=ranks,
        cores=cores,
    )
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    steps_per_epoch = -(-open_dataset(data).manifest["counts"]["train"] // batch)
    step = summary["seconds"]["step"]
    return Trial(ranks, batch, step, step * steps_per_epoch, finished.moments["journal"], finished.pss_bytes, summary["phases"])


def train(
    run_dir: Path,
    settings: Sequence[str],
    *,
    ranks: int,
    limit_seconds: float = 900,
    cores: int | None = None,
    moments: Mapping[str, Callable[[], bool]] | None = None,
    stop_at: str | None = None,
) -> Finished:
    """A run of launch/train.py under torchrun in a fresh run_dir. Its moment "journal" comes before the first step."""
    shutil.rmtree(run_dir, ignore_errors=True)
    torchrun = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={ranks}", f"--master-port={_free_port()}"]
    return run(
        [*torchrun, "launch/train.py", f"run.dir={run_dir}", *_QUIET, *settings],
        log=run_dir.with_suffix(".log"),
        limit_seconds=limit_seconds,
        cores=cores,
        moments={"journal": (run_dir / "metrics.jsonl").exists} | dict(moments or {}),
        stop_at=stop_at,
    )


def valid_lines(run_dir: Path) -> list[dict]:
    """What the run's journal says of its evaluations so far."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return [line for line in whole if line["event"] == "valid"]


def evaluation_seconds(data: Path, work: Path, *, ranks: int) -> float:
    """One evaluation on the validation split, behind one epoch in few steps of a model without features."""
    run_dir = work / "runs" / "evaluation"
    settings = [*_dataset(data), *MODEL, "data.modalities=[]", "train.epochs=1", "train.batch_size=65536"]
    train(
        run_dir,
        settings,
        ranks=ranks,
        moments={"evaluated": lambda: bool(valid_lines(run_dir))},
        stop_at="evaluated",
    )
    return valid_lines(run_dir)[0]["seconds"]


def partition(data: Path, work: Path) -> float:
    """Partition a dataset into one part, anew; seconds of the whole command."""
    shutil.rmtree(data / "parts", ignore_errors=True)
    command = [sys.executable, "launch/partition.py", *_dataset(data)]
    return run(command, log=work / "runs" / "partition.log").seconds


def _dataset(data: Path) -> list[str]:
    return [f"data.dir={data}", "data.format=mmrec"]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=default_work())
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--cores", type=int, help="run on so many of the cores")
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    trial = run_trial(
        arguments.data,
        arguments.work,
        ranks=arguments.ranks,
        batch=arguments.batch,
        steps=arguments.steps,
        settings=arguments.settings,
        cores=arguments.cores,
    )
    print(json.dumps(asdict(trial), indent=2))


if __name__ == "__main__":
    main()
