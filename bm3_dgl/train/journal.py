"""What a run tells while it trains: progress bar, log lines, metrics.jsonl and TensorBoard. Rank 0 only."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bm3_dgl.log import logger

_SHORT = {"reconstruction": "rec", "alignment": "align", "masking": "mask", "regulariser": "reg", "total": "loss"}
_REFRESH_STEPS = 10  # steps between two looks at the loss: each look waits for the device


class Journal:
    """Opened once per process. A resumed run drops the lines that come after its checkpoint."""

    def __init__(
        self, run_dir: Path, *, total_steps: int, step: int | None, world_size: int, progress: bool, tensorboard: bool
    ) -> None:
        """step: of the checkpoint that the run goes on from; None: it begins."""
        self._world_size = world_size
        self._path = run_dir / "metrics.jsonl"
        kept = [line for line in _read_lines(self._path) if line["step"] <= step] if step is not None else []
        part = self._path.with_suffix(".jsonl.tmp")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        part.replace(self._path)
        self._file = open(self._path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115, closed by `close`
        self._board = self._open_board(run_dir, step or 0) if tensorboard else None
        shown = progress and sys.stderr.isatty()
        self._bar = tqdm(total=total_steps, initial=step or 0, unit="step", disable=not shown, dynamic_ncols=True)
        self._tick = 0
        self._step = step or 0

    def step(self, epoch: int, num_pairs: int, losses: Any) -> None:
        """After each step; losses: rank 0's share, which times world_size stands for all ranks'."""
        self._bar.update()
        self._tick += 1
        if not self._bar.disable and self._tick % _REFRESH_STEPS == 0:
            rate = self._bar.format_dict["rate"] or 0.0
            values = (losses.detached() * self._world_size).tolist()
            names = (_SHORT.get(name, name) for name in (*losses.terms, "total"))
            terms = " ".join(f"{name} {value:.3f}" for name, value in zip(names, values, strict=True))
            self._bar.set_description(f"epoch {epoch}")
            self._bar.set_postfix_str(f"{rate * num_pairs:,.0f} pairs/s, {terms}")

    def record(self, event: str, *, step: int, epoch: int, **values: Any) -> None:
        """One line of metrics.jsonl, and its numbers to TensorBoard."""
        self._file.write(json.dumps({"event": event, "step": step, "epoch": epoch, **values}) + "\n")
        if self._board is not None:
            for name, number in _flatten(event, values):
                self._board.add_scalar(name, number, step)

    def show_config(self, text: str) -> None:
        """The resolved config, on TensorBoard's page of texts."""
        if self._board is not None:
            self._board.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()), self._step)

    def histogram(self, name: str, values: torch.Tensor, *, step: int) -> None:
        """To TensorBoard; values: float (n,), those that are finite are counted."""
        finite = values[values.isfinite()]
        if self._board is not None and len(finite):
            self._board.add_histogram(name, finite, step)

    def say(self, text: str) -> None:
        """A line for the user, without tearing the progress bar."""
        self._bar.clear()
        logger.info(text)
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()
        self._file.close()
        if self._board is not None:
            self._board.close()

    def _open_board(self, run_dir: Path, step: int) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # late: takes a second

        return SummaryWriter(str(run_dir / "tensorboard"), purge_step=step + 1 if step else None)


def _read_lines(path: Path) -> list[dict]:
    """Lines of a former process; the last one may be torn."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def _flatten(prefix: str, values: Mapping[str, Any]) -> list[tuple[str, float]]:
    pairs = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            pairs += _flatten(f"{prefix}/{name}", value)
        elif isinstance(value, (int, float)):
            pairs.append((f"{prefix}/{name}", float(value)))
    return pairs
