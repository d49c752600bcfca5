"""Matrix factorisation with Bayesian personalised ranking (Rendle, Freudenthaler, Gantner, Schmidt-Thieme, UAI 2009).

| here | paper | |
|---|---|---|
| h_user_BD, h_item_ND | w_u, h_i | (4.3.1) factors; without layers H = E |
| factors | x-hat_ui = <w_u, h_i> | (4.3.1) |
| ranking | -ln sigmoid(x-hat_uij) | (4.1) BPR-OPT, over triples (u, i, j) of D_S |
| regulariser | lambda |Theta|^2 | (4.1) its prior, over the rows of the triples |

Departures: losses are means over a batch's triples, trained by Adam instead of single triples by plain SGD; a pair's
negative is uniform, as in LearnBPR, but every pair comes once in an epoch instead of being drawn with replacement; tables
start xavier-uniform.
"""

from __future__ import annotations

from bm3_dgl.model.head import BatchRows, Head, Losses, Needs
from bm3_dgl.model.losses import ranking_term, triple_norms


class BPRHead(Head):
    """No dense weights: users and items are all."""

    title = "BPR"
    terms = ("ranking", "regulariser")
    needs = Needs(negatives=True)

    def forward(self, rows: BatchRows, num_pairs: int) -> Losses:
        h_item_ND, positive_B, negative_B = rows.h_item_ND, rows.item_B, rows.negative_B
        ranking = ranking_term(rows.h_user_BD, h_item_ND[positive_B], h_item_ND[negative_B]) / num_pairs
        norms = triple_norms(rows.h_user_BD, h_item_ND, positive_B, negative_B) / num_pairs
        regulariser = self.config.reg_weight * norms
        return Losses({"ranking": ranking, "regulariser": regulariser}, ranking + regulariser)
