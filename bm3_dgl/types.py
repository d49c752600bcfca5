"""Names shared by every room: node and edge types, splits, id aliases."""

from __future__ import annotations

from enum import IntEnum

USER = "user"
ITEM = "item"
RATES = (USER, "rates", ITEM)
RATED_BY = (ITEM, "rated_by", USER)
NODE_TYPES = (USER, ITEM)

GlobalStep = int  # optimiser steps since the beginning of training; epoch and batch follow from it


class Split(IntEnum):
    """Which part of the data an interaction belongs to; the values are those of `x_label`."""

    train = 0
    valid = 1
    test = 2
