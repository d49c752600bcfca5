"""The equations of BM3 and of the baselines written down plainly in float64, over dense matrices: the judge of the engines.

Nothing here is shared with the package but the dropout multipliers, which are inputs. Equation numbers are the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import cosine_similarity, linear


@dataclass
class Parameters:
    """Leaves in float64; projector and residual by modality. residual may be empty."""

    user: torch.Tensor
    item: torch.Tensor
    predictor: tuple[torch.Tensor, torch.Tensor]
    projector: dict[str, tuple[torch.Tensor, torch.Tensor]]
    feature: dict[str, torch.Tensor]
    residual: dict[str, torch.Tensor]

    def leaves(self) -> dict[str, torch.Tensor]:
        leaves = {
            "user": self.user,
            "item": self.item,
            "predictor.weight": self.predictor[0],
            "predictor.bias": self.predictor[1],
        }
        for name, (weight, bias) in self.projector.items():
            leaves |= {
                f"projectors.of_{name}.weight": weight,
                f"projectors.of_{name}.bias": bias,
                f"feature_{name}": self.feature[name],
            }
        return leaves | {f"residual_{name}": rows for name, rows in self.residual.items()}


def propagate(
    user: torch.Tensor, item: torch.Tensor, edges: torch.Tensor, layers: int, epsilon: float, *, residual: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Equations (3), (4): the whole adjacency as one dense matrix. edges: (2, n) user, item indices."""
    num_users, num_items = len(user), len(item)
    adjacency = torch.zeros(num_users + num_items, num_users + num_items, dtype=torch.float64)
    adjacency[edges[0], num_users + edges[1]] = 1.0
    adjacency += adjacency.T.clone()
    degree = adjacency.sum(1)
    root = torch.where(degree > 0, (degree + epsilon) ** -0.5, torch.zeros(()).double())
    normalised = root[:, None] * adjacency * root[None, :]
    layer = torch.cat([user, item])
    layers_sum = layer
    for _ in range(layers):
        layer = normalised @ layer
        layers_sum = layers_sum + layer
    mean = layers_sum / (layers + 1)
    return mean[:num_users], mean[num_users:] + item if residual else mean[num_users:]


def loss(
    p: Parameters,
    edges: torch.Tensor,
    batch: torch.Tensor,
    dropout: dict[str, torch.Tensor],
    *,
    layers: int,
    reg_weight: float,
    cl_weight: float,
    reference: bool,
    terms: tuple[str, ...] = ("reconstruction", "alignment", "masking"),
) -> torch.Tensor:
    """Equation (12) for one batch of pairs (2, B); dropout: multipliers of all rows of users, items, modalities."""
    h_user, h_item = propagate(p.user, p.item, edges, layers, 1e-7 if reference else 0.0)
    users, items = batch

    def contrast(online: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        cosine = cosine_similarity(online, target, dim=-1).mean()
        return 1 - cosine if reference else -cosine

    target_user = (h_user * dropout["user"]).detach()[users]
    target_item = (h_item * dropout["item"]).detach()[items]
    online_user = linear(h_user, *p.predictor)[users]
    online_item = linear(h_item, *p.predictor)[items]
    total = torch.zeros((), dtype=torch.float64)
    if "reconstruction" in terms:
        total = total + contrast(online_user, target_item) + contrast(online_item, target_user)
    weight = cl_weight if reference else 1.0
    for name, (matrix, bias) in p.projector.items():
        h = linear(p.feature[name], matrix, bias)
        if name in p.residual:
            h = h + p.residual[name]
        online = linear(h, *p.predictor)[items]
        target = (h * dropout[name]).detach()[items]
        if "alignment" in terms:
            total = total + weight * contrast(online, target_item)
        if "masking" in terms:
            total = total + weight * contrast(online, target)
    if reference:
        return total + reg_weight * (h_user.norm() + h_item.norm()) / len(h_item)
    return total + reg_weight * (h_user[users].square().sum(1).mean() + h_item[items].square().sum(1).mean())


def ranking_loss(
    user: torch.Tensor,
    item: torch.Tensor,
    edges: torch.Tensor,
    triples: list[tuple[int, int, int]],
    num_pairs: int,
    *,
    layers: int,
    penalty: float,
) -> torch.Tensor:
    """BPR (no layers) and LightGCN: mean over num_pairs of -ln sigmoid(x_ui - x_uj) + penalty (|e_u|^2 + |e_i|^2 + |e_j|^2).

    triples: user, positive, negative; e are rows of layer 0. Triple by triple.
    """
    h_user, h_item = propagate(user, item, edges, layers, 0.0, residual=False)
    total = torch.zeros((), dtype=torch.float64)
    for u, i, j in triples:
        difference = h_user[u] @ h_item[i] - h_user[u] @ h_item[j]
        total = total - torch.log(1 / (1 + torch.exp(-difference)))
        total = total + penalty * (user[u] @ user[u] + item[i] @ item[i] + item[j] @ item[j])
    return total / num_pairs


def negatives(edges: torch.Tensor, chosen: torch.Tensor, hashes: list[int], num_items: int) -> list[tuple[int, int, int]]:
    """The triples of chosen train interactions: the negative is the (hash mod n)-th of the user's n unknown items.

    edges: (2, n); hashes: of each chosen one. Users who know everything make none.
    """
    known: dict[int, set[int]] = {}
    for user, item in edges.T.tolist():
        known.setdefault(user, set()).add(item)
    triples = []
    for number, draw in zip(chosen.tolist(), hashes, strict=True):
        user, item = edges[:, number].tolist()
        unknown = [other for other in range(num_items) if other not in known[user]]
        if unknown:
            triples.append((user, item, unknown[int(draw) % len(unknown)]))
    return triples
