"""Time to accuracy: how long until validation Recall@20 is what the transcription reaches at its best.

    python -m benchmarks.baby --data DIR     # Amazon Baby, as configs/amazon_baby_standin.yaml reads it
    python -m benchmarks.baby                # a made-up shop in its place

The transcription trains with patience 20. The job (2 ranks, otherwise the same settings) trains until it has reached the same
value. Evaluations, and the job's checkpoints, are included in both; start-up is given apart.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import job
from benchmarks.electronics import default_work
from benchmarks.processes import CommandFailedError, run

# Global batch and learning rate: the published ones, and four times both.
SETTINGS = ((2048, 1e-3), (8192, 4e-3))
_RANKS = 2
# The published model on Baby; the shop has it too.
_LAYERS, _DROPOUT, _REG_WEIGHT = 1, 0.5, 0.1


def measure(source: Path | None, work: Path, *, limit_seconds: float = 900, epochs: int = 1000, quick: bool = False) -> dict:
    """source: directory of Amazon Baby; None: the shop. limit_seconds: of each training. epochs: the transcription's most."""
    data = work / ("shop" if source is None else "baby")
    config = ["--config", "configs/shop.yaml" if source is None else "configs/amazon_baby_standin.yaml", f"data.dir={data}"]
    config += [] if source is None else [f"data.source={source}"]
    run([sys.executable, "launch/partition.py", *config], log=work / "runs" / "baby_partition.log")
    peer = _transcription(data, work, epochs=epochs, limit_seconds=limit_seconds)
    chosen = SETTINGS[:1] if quick else SETTINGS
    ours = [_job(config, work, peer["best_recall"], setting, limit_seconds) for setting in chosen]
    seconds = [entry["seconds"] for entry in ours if entry["seconds"] is not None]
    return {
        "data": "made-up shop (configs/shop.yaml)" if source is None else "Amazon Baby, stand-in features",
        "transcription": peer,
        "job": ours,
        "ratio": peer["seconds_to_best"] / min(seconds) if seconds else None,
    }


def _transcription(data: Path, work: Path, *, epochs: int, limit_seconds: float) -> dict:
    model = ["--layers", _LAYERS, "--dropout", _DROPOUT, "--reg-weight", _REG_WEIGHT]
    limits = ["--epochs", epochs, "--limit-seconds", limit_seconds]
    command = [sys.executable, "-m", "benchmarks.transcription", "--data", data, *model, *limits]
    finished = run(
        [str(word) for word in command], log=work / "runs" / "baby_transcription.log", limit_seconds=2 * limit_seconds
    )
    result = json.loads(finished.output.splitlines()[-1])
    trained = result["history"][-1][0]
    return result | {"startup_seconds": finished.seconds - trained, "pss_bytes": finished.pss_bytes}


def _job(config: list[str], work: Path, recall: float, setting: tuple[int, float], limit_seconds: float) -> dict:
    """seconds: from the first step to the evaluation that reached `recall`, None where none did."""
    batch, learning_rate = setting
    run_dir = work / "runs" / f"baby_{batch}"
    settings = [*config, f"train.batch_size={batch // _RANKS}", f"train.learning_rate={learning_rate}", "train.epochs=1000"]
    settings += [f"model.layers={_LAYERS}", f"model.dropout={_DROPOUT}", f"model.reg_weight={_REG_WEIGHT}"]
    entry = {"batch": batch, "learning_rate": learning_rate, "seconds": None, "seconds_with_startup": None}
    moments = {"reached": _reaches(run_dir, recall)}
    try:
        finished = job.train(run_dir, settings, ranks=_RANKS, limit_seconds=limit_seconds, moments=moments, stop_at="reached")
    except CommandFailedError as error:
        return entry | {"failed": str(error).splitlines()[0]}
    lines = job.valid_lines(run_dir)
    entry |= {"epochs": len(lines), "recall": max(line["recall@20"] for line in lines), "pss_bytes": finished.pss_bytes}
    if "reached" in finished.moments:
        reached, began = finished.moments["reached"], finished.moments["journal"]
        entry |= {"seconds": reached - began, "seconds_with_startup": reached}
    return entry


def _reaches(run_dir: Path, recall: float) -> Callable[[], bool]:
    return lambda: any(line["recall@20"] >= recall for line in job.valid_lines(run_dir))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory with baby.inter and the stand-in features")
    parser.add_argument("--work", type=Path, default=default_work())
    parser.add_argument("--limit-seconds", type=float, default=900)
    arguments = parser.parse_args()
    result = measure(arguments.data, arguments.work, limit_seconds=arguments.limit_seconds)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
