"""The loss terms, one pure function each: of BM3 (Zhou et al., WWW 2023, equations 8-12), and of the baselines.

Shapes: B positive pairs of the batch, N their distinct items, D embedding_dim. Every term is a sum over the pairs, shape ():
the caller divides by the pairs of the whole batch, of which this rank may hold only some. A term of items alone is taken
once for each item, times the pairs that the item stands in.
"""

from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity, softplus

from bm3_dgl.config.schema import Objective


def cosine_term(
    online_ND: torch.Tensor, target_ND: torch.Tensor, objective: Objective, pairs_N: torch.Tensor | None = None
) -> torch.Tensor:
    """Equation (8), summed over pairs: -cos for the paper, 1 - cos for the reference code. The gradient is the same.

    pairs_N: float32, how many pairs each row stands for; None: one each.
    """
    similarity_N = cosine_similarity(online_ND, target_ND, dim=-1)
    similarity = similarity_N.sum() if pairs_N is None else similarity_N @ pairs_N
    if objective is Objective.paper:
        return -similarity
    return (len(online_ND) if pairs_N is None else pairs_N.sum()) - similarity


def squared_norms(h_user_BD: torch.Tensor, h_item_ND: torch.Tensor, pairs_N: torch.Tensor) -> torch.Tensor:
    """The regulariser of equation (12) without lambda: |h_u|^2 + |h_i|^2, summed over pairs."""
    return h_user_BD.square().sum() + h_item_ND.square().sum(1) @ pairs_N


def ranking_term(h_user_BD: torch.Tensor, h_positive_BD: torch.Tensor, h_negative_BD: torch.Tensor) -> torch.Tensor:
    """-ln sigmoid(x_ui - x_uj), x = <h_u, h_i>, summed over pairs (Rendle et al., UAI 2009, BPR-OPT without its prior)."""
    difference_B = (h_user_BD * (h_positive_BD - h_negative_BD)).sum(1)
    return softplus(-difference_B).sum()


def triple_norms(
    user_BD: torch.Tensor, item_ND: torch.Tensor, positive_B: torch.Tensor, negative_B: torch.Tensor
) -> torch.Tensor:
    """|e_u|^2 + |e_i|^2 + |e_j|^2, summed over pairs. positive_B, negative_B: int64, rows of item_ND."""
    square_N = item_ND.square().sum(1)
    return user_BD.square().sum() + square_N[positive_B].sum() + square_N[negative_B].sum()
