"""What the model looks like from outside, once an epoch: gradient norms, norms of embedding rows, memory of the job.

Gradients are those of the epoch's last step. A table's gradient is seen where its optimiser passes it anyway, the dense
weights' stands in `.grad` until the next step, so other steps do nothing at all for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from bm3_dgl.model.propagation.adam import TableAdam
from bm3_dgl.runtime.collectives import Team
from bm3_dgl.runtime.memory import job_pss_bytes
from bm3_dgl.train.step import Model

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the norms of a table's rows


@dataclass(frozen=True)
class View:
    """grad_norms: Frobenius norm of dLoss/d(part), the loss being the mean over the whole batch; by layer of the head
    and by table. row_norms: table -> Euclidean norm of every row, float32 (rows,), on rank 0 only. pss_bytes: of the
    whole job, now."""

    grad_norms: dict[str, float]
    row_norms: dict[str, torch.Tensor] = field(default_factory=dict)
    pss_bytes: int = 0

    def quantiles(self) -> dict[str, list[float]]:
        """QUANTILES of each table's row norms."""
        at = torch.tensor(QUANTILES, dtype=torch.float64)
        return {name: _quantiles(norms, at) for name, norms in self.row_norms.items() if len(norms)}


class Watch:
    """Looks at one model. `arm` before the step whose gradients are wanted, `look` after it and before the next."""

    def __init__(self, model: Model, team: Team) -> None:
        self._model, self._team = model, team

    def arm(self) -> None:
        for adam in self._adams():
            adam.squares = []

    def look(self) -> View:
        """COLLECTIVE."""
        own_squares = {}
        for adam in self._adams():
            own_squares[adam.table.name] = math.fsum(adam.squares or [])
            adam.squares = None
        pss = self.pss_bytes()
        total = self._team.sum(torch.tensor(list(own_squares.values()), dtype=torch.float64))
        grad_norms = _layer_norms(self._model.head)
        grad_norms |= {name: square**0.5 for name, square in zip(own_squares, total.tolist(), strict=True)}
        row_norms = {}
        for adam in self._adams():
            first, stop = adam.own
            norms = self._team.gather_rows(torch.linalg.vector_norm(adam.table.local[first:stop], dim=1))
            if norms is not None:
                row_norms[adam.table.name] = norms
        return View(grad_norms, row_norms, pss)

    def pss_bytes(self) -> int:
        """Memory of the job on all machines, now. COLLECTIVE."""
        return int(self._team.sum_few([float(job_pss_bytes(self._team.ranks))])[0])

    def _adams(self) -> list[TableAdam]:
        return [*self._model.engine.embeddings.values(), *(rows.adam for rows in self._model.item_rows.values())]


def _layer_norms(head: torch.nn.Module) -> dict[str, float]:
    """Norm of the gradient of each layer, its weight and bias together. DDP has left the mean over ranks on every rank."""
    squares: dict[str, float] = {}
    for name, weight in head.named_parameters():
        if weight.grad is not None:
            layer = name.rpartition(".")[0] or name
            squares[layer] = squares.get(layer, 0.0) + float(weight.grad.double().square().sum())
    return {layer: square**0.5 for layer, square in squares.items()}


def _quantiles(values: torch.Tensor, at: torch.Tensor) -> list[float]:
    """Linear interpolation between order statistics; torch.quantile refuses more than 16 million values."""
    ordered = values.double().sort().values
    place = at * (len(ordered) - 1)
    low, high = ordered[place.floor().long()], ordered[place.ceil().long()]
    return (low + (high - low) * place.frac()).tolist()
