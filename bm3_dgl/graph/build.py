"""The user-item graph of the TRAIN interactions, as DGL's partitioner wants it. In: a dataset; out: a DGL heterograph."""

from __future__ import annotations

import dgl
import torch

from bm3_dgl.data.dataset import Dataset
from bm3_dgl.errors import DataError
from bm3_dgl.types import ITEM, RATED_BY, RATES, USER, Split


def build_graph(dataset: Dataset) -> dgl.DGLGraph:
    """Heterograph with int64 ids on the CPU; edge k of RATES and of RATED_BY is train interaction k in file order.

    Nodes are all users and items of the dataset, with or without train interactions, under their own indices; no
    node or edge carries data. Both directions are stored because a part holds the edges that END in it: a user's
    machine then knows its items and an item's machine its users. dgl.distributed takes no int32 ids.

    Raises DataError when there are no train interactions.
    """
    users, items = (torch.from_numpy(ends).long() for ends in dataset.interactions(Split.train))
    if users.numel() == 0:
        raise DataError(f"{dataset.directory}: no train interactions, so no graph; check the split column of the source")
    return dgl.heterograph(
        {RATES: (users, items), RATED_BY: (items, users)},
        num_nodes_dict={USER: dataset.num_users, ITEM: dataset.num_items},
        idtype=torch.int64,
    )
