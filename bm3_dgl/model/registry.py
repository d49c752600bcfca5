"""The models by the name that `model.name` gives them."""

from __future__ import annotations

from bm3_dgl.config.schema import ModelName
from bm3_dgl.model.bm3 import BM3Head
from bm3_dgl.model.bpr import BPRHead
from bm3_dgl.model.head import Head
from bm3_dgl.model.lightgcn import LightGCNHead
from bm3_dgl.model.popularity import PopularityHead

HEADS: dict[ModelName, type[Head]] = {
    ModelName.bm3: BM3Head,
    ModelName.bpr: BPRHead,
    ModelName.lightgcn: LightGCNHead,
    ModelName.popularity: PopularityHead,
}
