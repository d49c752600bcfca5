"""The target view of equation (5)."""

from __future__ import annotations

import torch


def target_view(h_BD: torch.Tensor, dropout_BD: torch.Tensor) -> torch.Tensor:
    """dropout(h): the latent times its multiplier (0 or 1 / (1 - p)). No gradient flows into a target, ever."""
    return (h_BD * dropout_BD).detach()
