"""Growth: seconds per edge and bytes per node of the exact engine at 1, 3 and 10 times Electronics' nodes and edges.

    python -m benchmarks.growth [--work DIR] [--scales 1,3,10]

Features are narrow, so that ten times as many items fit; two ranks, global batch 8192.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from benchmarks import electronics, job
from bm3_dgl.data.dataset import open_dataset

WIDTHS = (64, 32)
_BATCH, _RANKS = 8192, 2


def measure(work: Path, scales: Sequence[float], *, steps: int) -> list[dict]:
    """One entry per scale, in their order."""
    return [_at(work, scale, steps) for scale in scales]


def _at(work: Path, scale: float, steps: int) -> dict:
    data = electronics.ensure_dataset(work, scale=scale, widths=WIDTHS)
    partition_seconds = job.partition(data, work)
    trial = job.run_trial(data, work, ranks=_RANKS, batch=_BATCH, steps=steps)
    counts = open_dataset(data).manifest["counts"]
    nodes, edges = counts["users"] + counts["items"], counts["train"]
    propagation = trial.phases["propagate"] + trial.phases["propagate_back"]
    return {
        "scale": scale,
        "nodes": nodes,
        "edges": edges,
        "partition_seconds": partition_seconds,
        "startup_seconds": trial.startup_seconds,
        "step_seconds": trial.step_seconds,
        "step_ns_per_edge": trial.step_seconds / edges * 1e9,
        "propagation_ns_per_edge": propagation / edges * 1e9,
        "pss_bytes": trial.pss_bytes,
        "pss_bytes_per_node": trial.pss_bytes / nodes,
        "phases": trial.phases,
    }


def growth_per_edge(entries: Sequence[dict]) -> float:
    """Time per edge at the largest scale over that at the smallest. The whole step or its propagation, whichever grows
    more: the head's time is the same at every scale and would hide a growth."""
    first, last = entries[0], entries[-1]
    return max(last[name] / first[name] for name in ("step_ns_per_edge", "propagation_ns_per_edge"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=electronics.default_work())
    parser.add_argument("--scales", default="1,3,10")
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_args()
    entries = measure(arguments.work, [float(scale) for scale in arguments.scales.split(",")], steps=arguments.steps)
    print(json.dumps({"scales": entries, "growth_per_edge": growth_per_edge(entries)}, indent=2))


if __name__ == "__main__":
    main()
