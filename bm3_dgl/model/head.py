"""What a model is to the rest of the job: what it needs of a batch, its loss terms, its factors of a score.

The training step, the loop, the engines and the evaluator know this file and no model. A new model is a subclass of
Head in a file of its own, a line in registry.py, a name in config/schema.py and its defaults in config/models.py.

Shapes: B pairs that this rank holds of the batch, N their distinct items, D embedding_dim, V raw width of a modality.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import nn

from bm3_dgl.config.schema import ModelConfig


@dataclass(frozen=True)
class Needs:
    """What a model asks for. A thing that no model of a job asks for is neither drawn, read nor sent.

    negatives: for each pair one item that its user has no train interaction with.
    initial: the batch's rows of E (layer 0) beside those of H.
    views: raw features, free rows and dropout multipliers. Not with negatives: features are read on the item's machine.
    item_residual: H of an item has the item's own row of E added.
    """

    negatives: bool = False
    initial: bool = False
    views: bool = False
    item_residual: bool = False


@dataclass
class BatchRows:
    """What a head reads for its B pairs of N distinct items; float32, features float32 or bfloat16.

    item_B: int64, the row of each pair's item; pairs_N: float32, the pairs of each item.
    features: modality -> e_m, (N, V). residual: modality -> the items' free rows (N, D), absent where not in use.
    dropout, modality_dropout: node type or modality -> multiplier of BM3's equation (5), (B, D) of users, (N, D) of the
    others. negative_B: int64, the row of each pair's negative item. initial_*: rows of E. What is not needed is empty.
    """

    h_user_BD: torch.Tensor
    h_item_ND: torch.Tensor
    item_B: torch.Tensor
    pairs_N: torch.Tensor
    features: dict[str, torch.Tensor] = field(default_factory=dict)
    residual: dict[str, torch.Tensor] = field(default_factory=dict)
    dropout: dict[str, torch.Tensor] = field(default_factory=dict)
    modality_dropout: dict[str, torch.Tensor] = field(default_factory=dict)
    negative_B: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    initial_user_BD: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    initial_item_ND: torch.Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class Losses:
    """Loss terms by name, each shape (), divided by the pairs of the whole batch; `total` is their weighted sum."""

    terms: Mapping[str, torch.Tensor]
    total: torch.Tensor

    def with_norms(self, norms: torch.Tensor) -> Losses:
        """On the CPU, with what the engine adds to the regulariser."""
        terms = {**self.terms, "regulariser": self.terms["regulariser"].cpu() + norms}
        return replace(self, terms=terms, total=self.total.cpu() + norms)

    def detached(self) -> torch.Tensor:
        """float64 (terms + 1,): the terms in their order, then the total, for logging."""
        return torch.stack([term.detach() for term in (*self.terms.values(), self.total)]).double().cpu()


class Head(nn.Module):
    """The dense weights of a model, the same on every rank (there may be none), and its losses.

    title: how tables call the model. terms: names of its loss terms, `regulariser` among them; none: it is not trained.
    """

    title: ClassVar[str]
    terms: ClassVar[tuple[str, ...]]
    needs: ClassVar[Needs]

    def __init__(self, config: ModelConfig, widths: Mapping[str, int], *, seed: int) -> None:
        """widths: modality -> raw width V; may be empty. seed: of the weights' initial values."""
        super().__init__()
        self.config = config

    def forward(self, rows: BatchRows, num_pairs: int) -> Losses:
        """Losses of this rank's pairs, as parts of the mean over the num_pairs of the whole batch."""
        raise NotImplementedError

    def factors(self, h_ND: torch.Tensor) -> torch.Tensor:
        """What the score of a user and an item is the product of, float32 (N, D), from their rows of H."""
        return h_ND
