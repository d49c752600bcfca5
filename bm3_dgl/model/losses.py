"""The loss terms of BM3, one pure function each (Zhou et al., WWW 2023, equations 8-12).

Shapes: B positive pairs of the batch, D embedding_dim. Every term is a sum over the pairs, shape (): the caller divides by
the pairs of the whole batch, of which this rank may hold only some.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity

from bm3_dgl.config.schema import Objective


def cosine_term(online_BD: torch.Tensor, target_BD: torch.Tensor, objective: Objective) -> torch.Tensor:
    """Equation (8), summed over pairs: -cos for the paper, 1 - cos for the reference code. The gradient is the same."""
    similarity = cosine_similarity(online_BD, target_BD, dim=-1).sum()
    return len(online_BD) - similarity if objective is Objective.reference else -similarity


def squared_norms(h_user_BD: torch.Tensor, h_item_BD: torch.Tensor) -> torch.Tensor:
    """The regulariser of equation (12) without lambda: |h_u|^2 + |h_i|^2, summed over pairs."""
    return h_user_BD.square().sum() + h_item_BD.square().sum()
