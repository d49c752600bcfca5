"""A little graph that can be written down as dense matrices, a session on it, and what a step on it did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from bm3_dgl.config import load_config
from bm3_dgl.data.dataset import RawDataset, write_dataset
from bm3_dgl.jobs.session import Session, open_session
from bm3_dgl.model.propagation.adam import BETA1
from bm3_dgl.types import ITEM, USER

NUM_USERS, NUM_ITEMS, WIDTHS = 23, 17, {"visual": 9, "text": 5, "items": 3}


def make_dataset(directory: Path, modalities: int, *, lonely: bool) -> None:
    """A dense little graph; lonely: with a user and an item that have no train interactions."""
    generator = np.random.default_rng(modalities)
    dense = generator.random((NUM_USERS, NUM_ITEMS)) < 0.25
    dense[0, :], dense[:, 0] = True, True  # a user and an item that know everyone
    dense[5], dense[:, 7] = not lonely, not lonely
    dense[5, 3] = dense[1, 7] = False  # held out below
    users, items = np.nonzero(dense)
    order = generator.permutation(len(users))
    users, items = np.append(users[order], [5, 1]), np.append(items[order], [3, 7])
    split = np.append(np.zeros(len(order), np.int8), [1, 2]).astype(np.int8)
    features = {
        name: generator.standard_normal((NUM_ITEMS, width)).astype(np.float32)
        for name, width in list(WIDTHS.items())[:modalities]
    }
    raw = RawDataset(
        users.astype(np.int32),
        items.astype(np.int32),
        split,
        [f"u{k}" for k in range(NUM_USERS)],
        [f"i{k}" for k in range(NUM_ITEMS)],
        [None] * NUM_ITEMS,
        features,
        {"reader": "mmrec", "source": "made by a test"},
        [],
    )
    write_dataset(raw, directory)


@contextmanager
def session_of(home: Path, modalities: int, *overrides: str, lonely: bool = True) -> Iterator[Session]:
    directory = home / f"data-{modalities}-{lonely}"
    if not directory.exists():
        make_dataset(directory, modalities, lonely=lonely)
    base = ["debug=true", "data.format=mmrec", f"data.dir={directory}", f"run.dir={home / 'run'}", "model.embedding_dim=12"]
    with open_session(load_config(None, base + list(overrides))) as session:
        yield session


def leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().double().clone().requires_grad_()


def gradients_of(session: Session) -> dict[str, torch.Tensor]:
    """What the first step did: dense gradients as they are, tables' from Adam's first moment (1 - beta1) g."""
    model = session.model
    found = {name: parameter.grad for name, parameter in model.head.named_parameters()}
    adams = {"user": model.engine.embeddings[USER], "item": model.engine.embeddings[ITEM]}
    adams |= {rows.table.name: rows.adam for rows in model.item_rows.values()}
    for name, adam in adams.items():
        rows = adam.state[1].local / (1 - BETA1)
        found[name] = torch.empty_like(rows)
        found[name][session.store.local.original[adam.table.ntype]] = rows
    return found


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    return float((got.double() - expected).norm() / expected.norm().clamp_min(1e-9))
