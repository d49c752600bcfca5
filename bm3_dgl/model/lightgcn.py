"""LightGCN (He, Deng, Wang, Li, Zhang, Wang, SIGIR 2020).

| here | paper | |
|---|---|---|
| initial_* | e^(0) | the only parameters |
| h_user_BD, h_item_ND | e_u, e_i | (3), (4) mean over layers 0..L, alpha_l = 1 / (L + 1); by the engine |
| factors | y-hat_ui = e_u . e_i | (5) |
| ranking | -ln sigmoid(y-hat_ui - y-hat_uj) | (15) |
| regulariser | lambda |E^(0)|^2 | (15), over the layer-0 rows of the batch's triples, halved as in the authors' code |

Departures from the authors' code: a pair's negative is uniform over the items without a train interaction of the user,
and every pair comes once in an epoch, where they draw users with replacement; tables start xavier-uniform, theirs normal
with deviation 0.1.
"""

from __future__ import annotations

from bm3_dgl.model.head import BatchRows, Head, Losses, Needs
from bm3_dgl.model.losses import ranking_term, triple_norms


class LightGCNHead(Head):
    """No dense weights: propagation is the model."""

    title = "LightGCN"
    terms = ("ranking", "regulariser")
    needs = Needs(negatives=True, initial=True)

    def forward(self, rows: BatchRows, num_pairs: int) -> Losses:
        h_item_ND, positive_B, negative_B = rows.h_item_ND, rows.item_B, rows.negative_B
        ranking = ranking_term(rows.h_user_BD, h_item_ND[positive_B], h_item_ND[negative_B]) / num_pairs
        norms = triple_norms(rows.initial_user_BD, rows.initial_item_ND, positive_B, negative_B) / num_pairs
        regulariser = self.config.reg_weight * norms / 2
        return Losses({"ranking": ranking, "regulariser": regulariser}, ranking + regulariser)
