"""What crosses the network per step: by the job's own count, and by the network interfaces' counters.

    python -m benchmarks.machines                                                    # the made-up shop
    python -m benchmarks.machines configs/amazon_baby_standin.yaml data.source=DIR data.dir=DIR

As root: two machines in network namespaces of this computer, one rank each, for both ways of partitioning. Each job
runs for one epoch and for three, without evaluation in between, so that start and end fall out of the difference.
Seconds are of processes that share this computer's cores, without a real network's latency: read them as ratios.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.jobs import ROOT
from tests.netns import Network, torchrun

FEW, MANY = 1, 3
PURPOSES = ["halo rows", "pulled rows", "row gradients", "head gradients", "features"]


def measure(network: Network, home: Path, config: list[str], method: str) -> dict:
    """Bytes and seconds per step and purpose (count), and bytes per step at both interfaces (wire)."""
    sent, summary = {}, {}
    for epochs in (FEW, MANY):
        run_dir = home / f"{method}-{epochs}"
        settings = [*config, f"run.dir={run_dir}", f"partition.method={method}", "partition.parts=2", "evaluate.every=1000"]
        settings += [f"train.epochs={epochs}", "train.checkpoint_epochs=1000", "train.tensorboard=false"]
        before = sum(machine.sent_bytes() for machine in network.machines)
        jobs = [
            network[number].start(
                [*torchrun(network, number, ranks=1), ROOT / "launch" / "train.py", *settings],
                output=home / f"{run_dir.name}-{number}.log",
                cwd=ROOT,
            )
            for number in range(2)
        ]
        for job in jobs:
            if job.wait(3600) != 0:
                sys.exit(job.text())
        sent[epochs] = sum(machine.sent_bytes() for machine in network.machines) - before
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    last = [line for line in lines if line["event"] == "train"][-1]
    steps = last["step"] // last["epoch"]
    return {
        "count": summary["network_per_step"],
        "wire": (sent[MANY] - sent[FEW]) / (MANY - FEW) / steps,
        "step": summary["seconds"]["train_epoch"] / steps,
    }


def main() -> None:
    arguments = sys.argv[1:]
    config = ["--config", *arguments] if arguments else []
    print(f"| parts | {' | '.join(PURPOSES)} | counted | at the interfaces | ms per step |")
    print("|---" * (len(PURPOSES) + 4) + "|")
    with tempfile.TemporaryDirectory() as scratch, Network(2, shm="4g") as network:
        home = Path(scratch)
        config += [] if any(word.startswith("data.dir=") for word in arguments) else [f"data.dir={home / 'data'}"]
        for method in ("metis", "random"):
            part = [*config, f"partition.method={method}", "partition.parts=2"]
            subprocess.run([sys.executable, ROOT / "launch" / "partition.py", *part], stdout=subprocess.DEVNULL, check=True)
            found = measure(network, home, config, method)
            costs = [found["count"].get(purpose, {"bytes": 0, "seconds": 0.0}) for purpose in PURPOSES]
            cells = [f"{cost['bytes'] / 1e3:.1f} kB, {cost['seconds'] * 1e3:.1f} ms" for cost in costs]
            counted = sum(cost["bytes"] for cost in costs)
            cells += [f"{counted / 1e3:.1f} kB", f"{found['wire'] / 1e3:.1f} kB", f"{found['step'] * 1e3:.1f}"]
            print(f"| {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
