"""Names shared by every room: node and edge types, splits, id aliases."""

from __future__ import annotations

from enum import IntEnum

USER = "user"
ITEM = "item"
RATES = (USER, "rates", ITEM)
RATED_BY = (ITEM, "rated_by", USER)
NODE_TYPES = (USER, ITEM)

UserIdx = int  # 0 .. num_users-1, the order of users.parquet
ItemIdx = int  # 0 .. num_items-1, the order of items.parquet
GlobalNid = int  # a node's id in the partitioned graph, per node type; equal to its index with one part
GlobalStep = int  # optimiser steps since the beginning of training; epoch and batch follow from it


class Split(IntEnum):
    """Which part of the data an interaction belongs to; the values are those of `x_label`."""

    train = 0
    valid = 1
    test = 2
