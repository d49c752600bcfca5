"""When to stop: validation recall that no longer gets better."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class EarlyStop:
    """Strict improvement, and patience that counts evaluations without it, after the burn-in only.

    On sparse data recall can peak at popularity's level in the first epochs, fall, and climb past it much later;
    burn_in keeps the false peak from ending the run.
    """

    patience: int
    burn_in: int
    best: float = float("-inf")
    best_epoch: int = 0
    since_best: int = 0

    def update(self, value: float, epoch: int) -> bool:
        """Take one evaluation, epochs from 1. Returns whether it is the best so far."""
        if value > self.best:
            self.best, self.best_epoch, self.since_best = value, epoch, 0
            return True
        if epoch > self.burn_in:
            self.since_best += 1
        return False

    @property
    def stops(self) -> bool:
        return self.since_best >= self.patience

    def state(self) -> dict:
        """What a checkpoint keeps of it."""
        return {name: value for name, value in asdict(self).items() if name not in ("patience", "burn_in")}

    def load_state(self, state: dict) -> None:
        self.best, self.best_epoch, self.since_best = state["best"], state["best_epoch"], state["since_best"]
