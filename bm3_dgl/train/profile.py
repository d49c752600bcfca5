"""Where the time of each rank goes: a trace of some steps, and one page about it (train.profile=true).

run.dir/profile/rank-K.json.gz      torch.profiler's trace of rank K, for chrome://tracing or ui.perfetto.dev
run.dir/profile/breakdown.md        phases of all ranks side by side, and the costliest operators of rank 0
"""

from __future__ import annotations

import time
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from bm3_dgl.log import logger
from bm3_dgl.runtime.collectives import Team

_SKIP = 3  # steps before the trace: they compile and map memory
_STEPS = 10  # steps of the trace
_OPERATORS = 15


class Profiler:
    """Traces the first steps of a process, once it is warm."""

    def __init__(self, directory: Path, team: Team) -> None:
        self._directory, self._team = directory, team
        self._number = 0  # of the step to come
        self._began = 0.0
        self._before: dict[str, float] = {}
        self._trace: profile | None = None

    def tick(self) -> None:
        """Call before every step. COLLECTIVE."""
        if self._number == _SKIP:
            self._start()
        elif self._number == _SKIP + _STEPS:
            self.close()
        self._number += 1

    def close(self) -> None:
        """Write the files of what has been traced so far, once. COLLECTIVE."""
        if self._trace is None:
            return
        with self._team.phases("profile"):
            self._write(self._trace)
        self._trace = None

    def _write(self, trace: profile) -> None:
        seconds = time.perf_counter() - self._began
        trace.stop()
        self._team.phases.traced = False
        ranks, steps = self._team.ranks, self._number - _SKIP
        trace.export_chrome_trace(str(self._directory / f"rank-{ranks.rank}.json.gz"))
        spent = self._team.phases.total()
        spent.pop("profile")
        mine = {name: (value - self._before.get(name, 0.0)) / steps for name, value in spent.items()}
        all_ranks = self._team.gather_values({"step": seconds / steps, **mine})
        if ranks.leads:
            page = self._directory / "breakdown.md"
            page.write_text(_page(all_ranks, steps, trace), encoding="utf-8")
            logger.info("profile of %d steps: %s and rank-*.json.gz beside it", steps, page)

    def _start(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._team.barrier()
        self._team.phases.traced = True
        self._before = self._team.phases.total()
        self._began = time.perf_counter()
        self._trace = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
        self._trace.start()


def _page(ranks: list[dict[str, float]], steps: int, trace: profile) -> str:
    """Markdown. ranks: for each rank, seconds per step of each phase, and of the whole `step`."""
    names = sorted({name for rank in ranks for name in rank} - {"step"}, key=lambda name: -sum(r.get(name, 0) for r in ranks))
    head = "| phase | " + " | ".join(f"rank {k}, ms" for k in range(len(ranks))) + " | share |\n"
    whole = sum(rank["step"] for rank in ranks)
    lines = [
        f"# {steps} steps, traced\n\nMilliseconds of a step; a trace slows it down, summary.json has the untraced times.\n\n",
        head + "|---" * (len(ranks) + 2) + "|\n",
    ]
    for name in [*names, "step"]:
        cells = [rank.get(name, 0.0) for rank in ranks]
        text = " | ".join(f"{cell * 1e3:.2f}" for cell in cells)
        lines.append(f"| {'**whole step**' if name == 'step' else name} | {text} | {100 * sum(cells) / whole:.1f} % |\n")
    lines.append("\n`waiting`: for other ranks. `other`: between phases (order of the epoch, logging, asking for the end).\n")
    lines.append("\n## Operators of rank 0\n\n| operator | calls per step | own ms per step |\n|---|---|---|\n")
    operators = sorted(trace.key_averages(), key=lambda event: -event.self_cpu_time_total)[:_OPERATORS]
    for event in operators:
        lines.append(f"| `{event.key}` | {event.count / steps:.1f} | {event.self_cpu_time_total / steps / 1e3:.2f} |\n")
    lines.append("\nCompiled loops (neighbour sums, Adam) stand under the name of their phase.\n")
    return "".join(lines)
