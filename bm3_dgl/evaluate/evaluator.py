"""Full ranking by all ranks, metrics by rank 0.

Protocol of the published results: every user with a train and a held-out interaction; all items are candidates but
the user's train items; validation items stay in at test time unless evaluate.mask_validation. Each rank ranks its own
users, whose train items it holds anyway, and sends the lists to rank 0, which alone holds the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from bm3_dgl.config.schema import EvaluateConfig
from bm3_dgl.data.dataset import Dataset
from bm3_dgl.errors import DataError
from bm3_dgl.evaluate.metrics import ranking_metrics
from bm3_dgl.evaluate.ranking import TopK, top_k
from bm3_dgl.graph.store import GraphStore, Table
from bm3_dgl.model.propagation.shares import Shares
from bm3_dgl.runtime.collectives import Team
from bm3_dgl.types import ITEM, USER, Split

FactorsOf = Callable[[torch.Tensor], torch.Tensor]  # a model's: rows of H (N, D) -> its factors of a score, on its device


class Ranker:
    """Top-K lists of users under given latents. COLLECTIVE to make and to call."""

    def __init__(self, store: GraphStore, shares: Shares, *, block_users: int) -> None:
        self._store, self._own, self._block_users = store, shares.rows(USER), block_users
        self.user_index = store.local.original[USER][self._own]  # dataset indices of this rank's users, int64
        adjacency, local = store.local.adjacency[USER], store.local
        first, stop = shares.own[USER]
        item_of_column = torch.cat([local.original[ITEM], local.halo_original[ITEM]])
        seen = adjacency.columns[adjacency.indptr[first] : adjacency.indptr[stop]]
        self._seen_items = item_of_column[torch.from_numpy(seen).long()]
        self._seen_indptr = torch.from_numpy(adjacency.indptr[first : stop + 1] - adjacency.indptr[first])

    def hide(self, users: torch.Tensor, items: torch.Tensor) -> None:
        """Leave out more items: pairs of dataset indices, int64, of any users."""
        row_of = torch.full((self._store.local.num_nodes[USER],), -1, dtype=torch.int64)
        row_of[self.user_index] = torch.arange(len(self.user_index))
        mine = row_of[users] >= 0
        counts = self._seen_indptr.diff()
        rows = torch.cat([torch.repeat_interleave(torch.arange(len(counts)), counts), row_of[users[mine]]])
        every = torch.cat([self._seen_items, items[mine]])
        order = torch.argsort(rows, stable=True)
        self._seen_items = every[order]
        self._seen_indptr = torch.cat(
            [torch.zeros(1, dtype=torch.int64), torch.bincount(rows, minlength=len(counts)).cumsum(0)]
        )

    def factors(self, latents: dict[str, Table], factors_of: FactorsOf) -> tuple[torch.Tensor, torch.Tensor]:
        """What scores are products of: of this rank's users (n, D), of all items (I, D) by dataset index."""
        return factors_of(latents[USER].local[self._own]), factors_of(self.all_items(latents[ITEM]))

    def all_items(self, table: Table) -> torch.Tensor:
        """A table's rows of all machines, in the order of the dataset."""
        rows = table.pull(torch.arange(self._store.local.num_nodes[ITEM]))
        ordered = torch.empty_like(rows)
        ordered[self._store.item_index] = rows
        return ordered

    def top_k(self, users: torch.Tensor, items: torch.Tensor, k: int, chosen: torch.Tensor) -> TopK:
        """Lists of the chosen own users (bool mask over them); users (n, D), items (I, D)."""
        indptr, seen = _select(self._seen_indptr, self._seen_items, chosen)
        users = users[chosen.to(users.device)]
        block = self._block_users
        return top_k(users, items, k, masked_indptr=indptr, masked_items=seen, block_users=block, device=items.device)


@dataclass(frozen=True)
class Judged:
    """The users of a split with their lists, on the CPU, ascending by user.

    users: int64 (n,), dataset indices. items: int64 (n, K), ranked, -1 where a list ends early. truth_indptr, truth_items:
    their held-out items, compressed, int64.
    """

    users: torch.Tensor
    items: torch.Tensor
    truth_indptr: torch.Tensor
    truth_items: torch.Tensor


class Evaluator:
    """Recall and NDCG of one split. COLLECTIVE."""

    def __init__(self, ranker: Ranker, team: Team, dataset: Dataset | None, config: EvaluateConfig, num_users: int) -> None:
        """dataset: on rank 0 only."""
        self.ranker, self._team, self._config = ranker, team, config
        self._truth: dict[Split, tuple[np.ndarray, np.ndarray]] = {}
        self._wanted = {}
        for split in (Split.valid, Split.test):
            wanted = torch.zeros(num_users, dtype=torch.uint8)
            if dataset is not None:
                self._truth[split] = _truth(dataset, split, num_users)
                wanted = torch.from_numpy((np.diff(self._truth[split][0]) > 0).astype(np.uint8))
            self._wanted[split] = team.broadcast(wanted).bool()
        if not self._wanted[Split.valid].any():
            raise DataError("data: no user has both a train and a validation interaction, so no epoch can be judged")
        self._popularity_rank = self._rank_by_popularity(dataset)
        self._hidden = self._validation_pairs(dataset) if config.mask_validation else None

    def users(self, split: Split) -> int:
        """Users that the metrics of a split are averaged over."""
        return int(self._wanted[split].sum())

    def evaluate(
        self, split: Split, users: torch.Tensor, items: torch.Tensor, *, keep: Callable[[Judged], None] | None = None
    ) -> dict[str, float]:
        """Metrics such as "recall@20" for the factors of this rank's users (n, D) and of all items (I, D).

        Empty where the split has no users. keep: is given the lists, on rank 0.
        """
        if not self._wanted[split].any():
            return {}
        if split is Split.test and self._hidden is not None:
            self.ranker.hide(*self._hidden)
            self._hidden = None
        chosen = self._wanted[split][self.ranker.user_index]
        top = self.ranker.top_k(users, items, max(self._config.cutoffs), chosen)
        lists = torch.cat([self.ranker.user_index[chosen][:, None], top.items.cpu()], 1).to(torch.int32)
        gathered = self._team.gather_rows(lists)
        metrics = {}
        if gathered is not None:
            gathered = gathered[torch.argsort(gathered[:, 0])].long()
            indptr, truth = (torch.from_numpy(array) for array in self._truth[split])
            indptr, truth = _select(indptr, truth, self._wanted[split])
            metrics = ranking_metrics(gathered[:, 1:], indptr, truth, self._config.cutoffs)
            if keep is not None:
                keep(Judged(gathered[:, 0], gathered[:, 1:], indptr, truth))
        return self._team.share(metrics)

    def popularity(self, split: Split) -> dict[str, float]:
        """The same metrics for the ranking of all items by their train interactions."""
        score = (len(self._popularity_rank) - self._popularity_rank).float()[:, None]
        return self.evaluate(split, torch.ones(len(self.ranker.user_index), 1), score)

    def _rank_by_popularity(self, dataset: Dataset | None) -> torch.Tensor:
        """Place of each item in that ranking, int64 (I,); places are distinct, so no tie costs time."""
        items = self._team.share(dataset.num_items if dataset is not None else None)
        place = torch.empty(items, dtype=torch.int64)
        if dataset is not None:
            count = np.bincount(dataset.interactions(Split.train)[1], minlength=items)
            place[torch.from_numpy(np.argsort(-count, kind="stable"))] = torch.arange(items)
        return self._team.broadcast(place)

    def _validation_pairs(self, dataset: Dataset | None) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = torch.zeros(2, 0, dtype=torch.int64)
        if dataset is not None:
            pairs = torch.from_numpy(np.stack(dataset.interactions(Split.valid)).astype(np.int64))
        shape = self._team.share(list(pairs.shape))
        pairs = pairs if dataset is not None else torch.empty(shape, dtype=torch.int64)
        users, items = self._team.broadcast(pairs.contiguous())
        return users, items


def _truth(dataset: Dataset, split: Split, num_users: int) -> tuple[np.ndarray, np.ndarray]:
    """Held-out items of each user with train interactions, compressed: indptr int64 (U + 1,), items int64."""
    users, items = dataset.interactions(split)
    trained = np.bincount(dataset.interactions(Split.train)[0], minlength=num_users) > 0
    users, items = users[trained[users]], items[trained[users]]
    order = np.lexsort((items, users))
    indptr = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=num_users))]).astype(np.int64)
    return indptr, items[order].astype(np.int64)


def _select(indptr: torch.Tensor, values: torch.Tensor, chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of a compressed structure where the bool mask `chosen` is true."""
    counts = indptr.diff()
    kept = torch.repeat_interleave(chosen, counts)
    return torch.cat([torch.zeros(1, dtype=torch.int64), counts[chosen].cumsum(0)]), values[kept]
