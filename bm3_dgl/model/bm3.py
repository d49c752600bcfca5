"""The head of BM3: projections, predictor and losses of a batch, in the order of the paper's equations.

Propagation, equations (3) and (4), is done by an engine (model/propagation); the head receives its rows.

| here | paper | |
|---|---|---|
| h_user_BD, h_item_ND | h_u, h_i | (4) LightGCN mean over layers 0..L, the item with its own ID embedding added |
| h_modality_ND | h_m | (1) projected features of the item |
| target_* | h-dot | (5) dropout of h, no gradient |
| online_* | h-tilde | (6) predictor of h, shared by users, items and modalities |

Departures from the paper under `objective: reference`, as in the authors' code whose tables were published: terms are
1 - cos instead of -cos; alignment and masking are weighted by cl_weight; the regulariser is
lambda (|H_U| + |H_I|) / num_items with unsquared Frobenius norms over all propagated rows, so it belongs to the engine;
degrees get 1e-7 added; linear weights start xavier-normal. Departure of ours under `features: residual`: every item
has one free d-dimensional row per modality that is added to h_m and starts at zero.

Shapes: B pairs that this rank holds of the batch, N their distinct items, D embedding_dim, V raw width of a modality.
Everything about an item alone is computed once for each item, however many pairs it stands in.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.functional import linear

from bm3_dgl.config.schema import LossTerm, ModelConfig, Objective
from bm3_dgl.model.head import BatchRows, Head, Losses, Needs
from bm3_dgl.model.losses import cosine_term, squared_norms
from bm3_dgl.model.views import target_view
from bm3_dgl.runtime.random import derive


class BM3Head(Head):
    """One projector per modality and one predictor: all the dense weights."""

    title = "BM3"
    terms = ("reconstruction", "alignment", "masking", "regulariser")
    needs = Needs(views=True, item_residual=True)

    def __init__(self, config: ModelConfig, widths: Mapping[str, int], *, seed: int) -> None:
        super().__init__(config, widths, seed=seed)
        # Prefixed: a modality may have the name of a method of ModuleDict.
        self.projectors = nn.ModuleDict(
            {f"of_{name}": nn.Linear(width, config.embedding_dim) for name, width in widths.items()}
        )
        self.modalities = list(widths)
        self.predictor = nn.Linear(config.embedding_dim, config.embedding_dim)
        self._initialise(seed)

    def forward(self, rows: BatchRows, num_pairs: int) -> Losses:
        use, objective = self.config.losses, self.config.objective
        target_user_BD = target_view(rows.h_user_BD, rows.dropout["user"])  # (5)
        target_item_ND = target_view(rows.h_item_ND, rows.dropout["item"])
        online_user_BD = self.predictor(rows.h_user_BD)  # (6)
        online_item_ND = self.predictor(rows.h_item_ND)
        zero = (online_user_BD.sum() + online_item_ND.sum()) * 0.0  # keeps every weight in the graph of every rank

        rec = align = mask = zero
        if LossTerm.reconstruction in use:  # (9)
            rec = cosine_term(online_user_BD, target_item_ND.index_select(0, rows.item_B), objective)
            rec = rec + cosine_term(online_item_ND.index_select(0, rows.item_B), target_user_BD, objective)
        for name in self.modalities:
            h_modality_ND = self.modality_latent(name, rows.features[name], rows.residual.get(name))  # (1)
            target_modality_ND = target_view(h_modality_ND, rows.modality_dropout[name])
            online_modality_ND = self.predictor(h_modality_ND)
            zero = zero + online_modality_ND.sum() * 0.0
            if LossTerm.alignment in use:  # (10)
                align = align + cosine_term(online_modality_ND, target_item_ND, objective, rows.pairs_N)
            if LossTerm.masking in use:  # (11)
                mask = mask + cosine_term(online_modality_ND, target_modality_ND, objective, rows.pairs_N)
        reg = squared_norms(rows.h_user_BD, rows.h_item_ND, rows.pairs_N) if objective is Objective.paper else zero
        return self._weigh(rec, align, mask, reg, zero, num_pairs)  # (12)

    @torch.no_grad()
    def factors(self, h_ND: torch.Tensor) -> torch.Tensor:
        """Equation (6), as (13) multiplies it.

        Computed in float64, since the rounding of a float32 product depends on how many rows it is called with: a row's
        result must not depend on how the rows are spread over ranks.
        """
        weight, bias = self.predictor.weight.double(), self.predictor.bias.double()
        return torch.addmm(bias, h_ND.double(), weight.T).float()

    def modality_latent(self, name: str, feature_NV: torch.Tensor, residual_ND: torch.Tensor | None) -> torch.Tensor:
        """Equation (1): h_m = e_m W_m + b_m, plus the item's free row where there is one. (N, D)."""
        projector = self.projectors[f"of_{name}"]
        if feature_NV.dtype == torch.bfloat16:
            h_ND = linear(feature_NV, projector.weight.bfloat16()).float() + projector.bias
        else:
            h_ND = projector(feature_NV)
        return h_ND if residual_ND is None else h_ND + residual_ND

    def _weigh(
        self,
        rec: torch.Tensor,
        align: torch.Tensor,
        mask: torch.Tensor,
        reg: torch.Tensor,
        zero: torch.Tensor,
        num_pairs: int,
    ) -> Losses:
        contrast = self.config.cl_weight if self.config.objective is Objective.reference else 1.0
        rec, align, mask, reg = (term / num_pairs for term in (rec, align, mask, reg))
        reg = self.config.reg_weight * reg
        terms = dict(zip(self.terms, (rec, align, mask, reg), strict=True))
        return Losses(terms, rec + contrast * (align + mask) + reg + zero)

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """Xavier weights from the seed alone: the same whatever modality comes first. Biases as nn.Linear has them."""
        xavier = nn.init.xavier_normal_ if self.config.objective is Objective.reference else nn.init.xavier_uniform_
        layers = {"predictor": self.predictor, **{f"projector {name}": layer for name, layer in self.projectors.items()}}
        for name, layer in layers.items():
            assert isinstance(layer, nn.Linear)
            generator = torch.Generator().manual_seed(derive(seed, "head", name) >> 1)
            xavier(layer.weight, generator=generator)
            bound = layer.in_features**-0.5
            layer.bias.copy_((torch.rand(layer.bias.shape, generator=generator) * 2 - 1) * bound)
