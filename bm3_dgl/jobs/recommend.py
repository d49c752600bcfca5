"""Job `recommend`: top-K lists and embeddings of a trained run, with the raw ids back on them. One process."""

from __future__ import annotations

from pathlib import Path

import torch

from bm3_dgl.config.schema import JobConfig
from bm3_dgl.data.dataset import Dataset
from bm3_dgl.errors import DataError
from bm3_dgl.evaluate.evaluator import Ranker
from bm3_dgl.evaluate.ranking import TopK
from bm3_dgl.export.recommendations import readable_list, write_embeddings, write_recommendations
from bm3_dgl.jobs.evaluate import load_trained
from bm3_dgl.jobs.session import Session, open_session
from bm3_dgl.types import ITEM, USER, Split

_SHOWN_USERS, _SHOWN_ITEMS = 3, 5  # what is printed where no user is named


def main(config: JobConfig) -> None:
    """Write recommendations.parquet, user_embeddings.parquet and item_embeddings.parquet; print a few users' lists."""
    with open_session(config, alone=True) as session:
        assert session.dataset is not None, "one process is rank 0"
        raw_users = session.dataset.raw_user_ids()
        shown = _users_to_show(config.recommend.users, raw_users, session)
        load_trained(session)
        ranker = Ranker(session.store, session.shares, block_users=config.evaluate.block_users)
        latents = session.model.engine.latents()
        users, items = ranker.factors(latents, session.model.factors)
        top = ranker.top_k(users, items, config.recommend.top_k, torch.ones(len(users), dtype=torch.bool))
        by_user = torch.argsort(ranker.user_index)
        top = TopK(top.items.cpu()[by_user], top.scores.cpu()[by_user])

        directory = Path(config.recommend.dir or config.run.dir)
        raw_items = session.dataset.raw_item_ids()
        write_recommendations(directory / "recommendations.parquet", raw_users, raw_items, ranker.user_index[by_user], top)
        h_user = latents[USER].local[by_user]
        write_embeddings(directory / "user_embeddings.parquet", raw_users, users.cpu()[by_user], h_user, id_column="user_id")
        h_item = ranker.all_items(latents[ITEM])
        write_embeddings(directory / "item_embeddings.parquet", raw_items, items.cpu(), h_item, id_column="item_id")
        few = TopK(top.items[:, :_SHOWN_ITEMS], top.scores[:, :_SHOWN_ITEMS])
        print("\n\n".join(_lists(session.dataset, raw_users, raw_items, shown, top if config.recommend.users else few)))
        print(f"\nwritten: {directory}/recommendations.parquet, user_embeddings.parquet, item_embeddings.parquet")


def _users_to_show(asked: list[str], raw_users: list[str], session: Session) -> list[int]:
    """Indices of the users asked for, or of the first few that have train interactions."""
    if not asked:
        trained = torch.from_numpy(session.store.local.adjacency[USER].degrees()) > 0
        return sorted(session.store.local.original[USER][trained].tolist())[:_SHOWN_USERS]
    place = {raw: index for index, raw in enumerate(raw_users)}
    unknown = [user for user in asked if user not in place]
    if unknown:
        raise DataError(
            f"--users: {unknown[0]!r} is not in {session.config.data.dir}/users.parquet; its ids look like {raw_users[0]!r}"
        )
    return [place[user] for user in asked]


def _lists(dataset: Dataset, raw_users: list[str], raw_items: list[str], shown: list[int], top: TopK) -> list[str]:
    titles = dataset.titles()
    users, items = dataset.interactions(Split.train)
    texts = []
    for user in shown:
        seen = [titles[item] or raw_items[item] for item in items[users == user]]
        texts.append(
            readable_list(raw_users[user], raw_items, titles, top.items[user].tolist(), top.scores[user].tolist(), seen)
        )
    return texts
