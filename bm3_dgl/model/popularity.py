"""Popularity: the score of an item is the number of its train interactions, for every user. Nothing is trained."""

from __future__ import annotations

from bm3_dgl.model.head import Head, Needs


class PopularityHead(Head):
    """Its latents, 1 for users and the count for items, come from model/propagation/counts.py."""

    title = "popularity"
    terms = ()
    needs = Needs()
