"""The yardstick: BM3 done plainly in torch, in one process, as a peer without this package would have it.

    python -m benchmarks.transcription --data DIR --layers 2 --dropout 0.3 --steps 6
    python -m benchmarks.transcription --data DIR --layers 1 --dropout 0.5 --patience 20

For every batch of 2048 pairs the whole graph is propagated with a sparse COO matrix, all items' features are projected,
the features are parameters as the tables are, and Adam steps densely over everything. Nothing is made slow on purpose,
and nothing is taken from the package but the dataset's reader. Evaluation: all items for blocks of users, matmul and
topk. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from bm3_dgl.data.dataset import Dataset, open_dataset
from bm3_dgl.types import Split

BATCH, LEARNING_RATE, CL_WEIGHT, REG_WEIGHT = 2048, 1e-3, 2.0, 0.1
_BLOCK_USERS = 2048  # of the evaluation
_EPSILON = 1e-7  # added to degrees, as the published code does


class Transcription(nn.Module):
    """Tables, features and weights; `forward` is the loss of one batch.

    edges: int64 (2, N), users and items of all train interactions. features: modality -> float (I, V), become parameters.
    """

    def __init__(
        self,
        edges: Tensor,
        num_users: int,
        num_items: int,
        features: dict[str, Tensor],
        *,
        layers: int,
        dropout: float,
        reg_weight: float = REG_WEIGHT,
        dim: int = 64,
    ) -> None:
        super().__init__()
        self.layers, self.dropout, self.reg_weight = layers, dropout, reg_weight
        self.user, self.item = nn.Embedding(num_users, dim), nn.Embedding(num_items, dim)
        self.feature = nn.ParameterDict(features)
        self.projector = nn.ModuleDict({name: nn.Linear(rows.shape[1], dim) for name, rows in features.items()})
        self.predictor = nn.Linear(dim, dim)
        for table in (self.user, self.item):
            nn.init.xavier_uniform_(table.weight)
        for linear in (self.predictor, *self.projector.values()):
            nn.init.xavier_normal_(linear.weight)
        self.adjacency = normalised_adjacency(edges, num_users, num_items)

    def propagate(self) -> tuple[Tensor, Tensor]:
        """Mean over layers 0..L of all users (U, D), and of all items (I, D) with their own embedding added."""
        layer = torch.cat([self.user.weight, self.item.weight])
        layers = [layer]
        for _ in range(self.layers):
            layer = torch.sparse.mm(self.adjacency, layer)
            layers.append(layer)
        users, items = torch.stack(layers).mean(0).split([len(self.user.weight), len(self.item.weight)])
        return users, items + self.item.weight

    def drop(self, name: str, rows: Tensor) -> Tensor:
        """The target view of `rows`; name: user, item or the modality."""
        return functional.dropout(rows, self.dropout)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Loss of a batch of pairs, int64 (B,) each."""
        h_user, h_item = self.propagate()
        h_feature = {name: projector(self.feature[name]) for name, projector in self.projector.items()}
        with torch.no_grad():
            target_user, target_item = self.drop("user", h_user)[users], self.drop("item", h_item)[items]
            target_feature = {name: self.drop(name, h)[items] for name, h in h_feature.items()}
        online_user, online_item = self.predictor(h_user)[users], self.predictor(h_item)[items]
        loss = _contrast(online_user, target_item) + _contrast(online_item, target_user)
        for name, h in h_feature.items():
            online = self.predictor(h)[items]
            loss = loss + CL_WEIGHT * (_contrast(online, target_item) + _contrast(online, target_feature[name]))
        return loss + self.reg_weight * (h_user.norm() + h_item.norm()) / len(h_item)

    @torch.no_grad()
    def online(self) -> tuple[Tensor, Tensor]:
        """What ranks: users (U, D) and items (I, D) behind the predictor."""
        users, items = self.propagate()
        return self.predictor(users), self.predictor(items)


def _contrast(online: Tensor, target: Tensor) -> Tensor:
    return 1 - functional.cosine_similarity(online, target, dim=-1).mean()


def normalised_adjacency(edges: Tensor, num_users: int, num_items: int) -> Tensor:
    """Users and items as one graph, both directions, D^-1/2 A D^-1/2: sparse COO (U + I, U + I)."""
    nodes = num_users + num_items
    one_way = torch.stack([edges[0], edges[1] + num_users])
    both = torch.cat([one_way, one_way.flip(0)], dim=1)
    root = (torch.bincount(both[0], minlength=nodes).double() + _EPSILON) ** -0.5
    values = (root[both[0]] * root[both[1]]).to(torch.get_default_dtype())
    return torch.sparse_coo_tensor(both, values, (nodes, nodes)).coalesce()


class Evaluation:
    """Recall@20 on one split: users with a train and a held-out item; a user's train items are out of the ranking."""

    def __init__(self, dataset: Dataset, split: Split, k: int = 20) -> None:
        self._k = k
        self._masked = _by_user(*dataset.interactions(Split.train), dataset.num_users)
        self._held = _by_user(*dataset.interactions(split), dataset.num_users)
        self.users = torch.nonzero((self._held[0].diff() > 0) & (self._masked[0].diff() > 0)).ravel()

    def recall(self, users_UD: Tensor, items_ID: Tensor) -> float:
        total = 0.0
        for block in self.users.split(_BLOCK_USERS):
            scores_BI = users_UD[block] @ items_ID.T
            scores_BI[_members(self._masked, block)] = -torch.inf
            best_BK = scores_BI.topk(self._k, dim=1).indices
            rows, held = _members(self._held, block)
            first_BK = torch.arange(len(block))[:, None] * len(items_ID)
            hits_B = torch.isin(first_BK + best_BK, rows * len(items_ID) + held).sum(1)
            total += float((hits_B / torch.bincount(rows)).sum())
        return total / len(self.users)


def _by_user(users: np.ndarray, items: np.ndarray, num_users: int) -> tuple[Tensor, Tensor]:
    """Items user by user, int64, and where each user's begin, int64 (U + 1,)."""
    order = np.argsort(users, kind="stable")
    begins = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=num_users))])
    return torch.from_numpy(begins), torch.from_numpy(items[order].astype(np.int64))


def _members(lists: tuple[Tensor, Tensor], block: Tensor) -> tuple[Tensor, Tensor]:
    """Row in the block and item of everything in the lists of the users in `block`."""
    begins, items = lists
    counts = begins[block + 1] - begins[block]
    rows = torch.arange(len(block)).repeat_interleave(counts)
    offsets = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]
    return rows, items[begins[block][rows] + offsets]


class Trainer:
    """Model, optimiser and the batches of one dataset. `features` says whether the model has its modalities."""

    def __init__(self, dataset: Dataset, *, layers: int, dropout: float, features: bool, reg_weight: float, seed: int) -> None:
        torch.manual_seed(seed)
        pairs = dataset.interactions(Split.train)
        self._pairs = torch.from_numpy(np.stack(pairs).astype(np.int64))
        # A copy: parameters are written to.
        rows = {name: torch.from_numpy(np.array(dataset.feature(name))) for name in dataset.modalities if features}
        self.model = Transcription(
            self._pairs,
            dataset.num_users,
            dataset.num_items,
            rows,
            layers=layers,
            dropout=dropout,
            reg_weight=reg_weight,
        )
        # foreach: the quickest of torch's own ways on the CPU, by a third of the default's time.
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE, foreach=True)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self._pairs.shape[1] // BATCH)

    def batches(self) -> list[Tensor]:
        """One epoch in random order: (2, 2048) each, the last one shorter."""
        return list(self._pairs[:, torch.randperm(self._pairs.shape[1])].split(BATCH, dim=1))

    def step(self, batch: Tensor) -> float:
        self._optimizer.zero_grad(set_to_none=True)
        loss = self.model(*batch)
        loss.backward()
        self._optimizer.step()
        return float(loss)


def time_steps(trainer: Trainer, steps: int) -> dict:
    """Seconds of `steps` steps behind two that are not counted: Adam lays its moments out in the first."""
    seconds = []
    for batch in trainer.batches()[: steps + 2]:
        began = time.perf_counter()
        trainer.step(batch)
        seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds[2:])
    return {"seconds_per_step": median, "epoch_seconds": median * trainer.steps_per_epoch, "steps": seconds}


def train(trainer: Trainer, evaluation: Evaluation, *, patience: int, epochs: int, limit_seconds: float) -> dict:
    """Train until `patience` evaluations in a row have brought nothing better, or for so many epochs or seconds.

    history: [seconds since the first step began, evaluations included; validation Recall@20] after every epoch.
    """
    history: list[tuple[float, float]] = []
    best, epoch_seconds, evaluate_seconds = 0, [], []
    began = time.perf_counter()
    while len(history) < epochs and len(history) - best <= patience and time.perf_counter() - began < limit_seconds:
        epoch_began = time.perf_counter()
        for batch in trainer.batches():
            trainer.step(batch)
        epoch_seconds.append(time.perf_counter() - epoch_began)
        evaluate_began = time.perf_counter()
        recall = evaluation.recall(*trainer.model.online())
        evaluate_seconds.append(time.perf_counter() - evaluate_began)
        history.append((time.perf_counter() - began, recall))
        if recall > history[best][1]:
            best = len(history) - 1
    return {
        "stopped_early": len(history) - best > patience,
        "best_recall": history[best][1],
        "best_epoch": best + 1,
        "seconds_to_best": history[best][0],
        "epoch_seconds": statistics.median(epoch_seconds),
        "evaluate_seconds": statistics.median(evaluate_seconds),
        "history": history,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="dataset directory, as launch/prepare.py makes it")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.3)
    parser.add_argument("--reg-weight", type=float, default=REG_WEIGHT)
    parser.add_argument("--no-features", action="store_true")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, help="time so many steps instead of training")
    parser.add_argument("--evaluate", action="store_true", help="with --steps: also time one evaluation")
    parser.add_argument("--patience", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=1000)
    parser.add_argument("--limit-seconds", type=float, default=float("inf"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dataset = open_dataset(arguments.data)
    trainer = Trainer(
        dataset,
        layers=arguments.layers,
        dropout=arguments.dropout,
        features=not arguments.no_features,
        reg_weight=arguments.reg_weight,
        seed=arguments.seed,
    )
    if arguments.steps is None:
        evaluation = Evaluation(dataset, Split.valid)
        limits = {"patience": arguments.patience, "epochs": arguments.epochs, "limit_seconds": arguments.limit_seconds}
        print(json.dumps(train(trainer, evaluation, **limits)))
        return
    result = time_steps(trainer, arguments.steps)
    if arguments.evaluate:
        evaluation = Evaluation(dataset, Split.valid)
        began = time.perf_counter()
        evaluation.recall(*trainer.model.online())
        result["evaluate_seconds"] = time.perf_counter() - began
    print(json.dumps(result))


if __name__ == "__main__":
    main()
