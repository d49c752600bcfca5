"""BPR and LightGCN: losses by hand and by finite differences, whole steps against the dense float64 transcription."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck

from bm3_dgl.config import load_config
from bm3_dgl.config.models import DEFAULTS
from bm3_dgl.config.schema import ModelName
from bm3_dgl.jobs.session import Session
from bm3_dgl.model.head import BatchRows
from bm3_dgl.model.losses import ranking_term, triple_norms
from bm3_dgl.model.registry import HEADS
from bm3_dgl.runtime.random import derive, hash_rows
from bm3_dgl.train.step import Stepper
from bm3_dgl.types import ITEM, NODE_TYPES
from tests.small_graph import NUM_ITEMS, gradients_of, leaf, relative_error, session_of
from tests.transcription import negatives, propagate, ranking_loss

STEP = 4
SAMPLED = "propagation.engine=sampled"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("baselines")


def test_every_name_has_a_model_that_agrees_with_its_defaults() -> None:
    assert set(HEADS) == set(DEFAULTS) == set(ModelName)
    for name, head in HEADS.items():
        assert head.needs.views == DEFAULTS[name].features
        assert not (head.needs.views and head.needs.negatives)
        assert not head.terms or "regulariser" in head.terms


def test_losses_by_hand() -> None:
    user, item = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    # x_ui - x_uj: 3 - 6 = -3 and -1 - 0 = -1
    term = ranking_term(user, item[[0, 1]], item[[2, 0]])
    assert float(term) == pytest.approx(math.log1p(math.exp(3)) + math.log1p(math.exp(1)))
    assert float(triple_norms(user, item, torch.tensor([0, 1]), torch.tensor([2, 0]))) == (5 + 1) + (9 + 1) + (8 + 9)
    assert float(ranking_term(user[:0], item[:0], item[:0])) == 0
    far = ranking_term(torch.tensor([[1e4]]), torch.tensor([[-1e4]]), torch.tensor([[1e4]]))
    assert float(far) == pytest.approx(2e8), "no overflow where exp would"


@pytest.mark.parametrize("name", ["bpr", "lightgcn"])
def test_gradients_by_finite_differences(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    user, item, first_user, first_item = (
        torch.randn(n, 3, generator=generator, dtype=torch.float64).requires_grad_() for n in (4, 5, 4, 5)
    )
    config = load_config(None, [f"model.name={name}", "model.reg_weight=0.3"]).model
    head = HEADS[config.name](config, {}, seed=1)

    def total(*rows: torch.Tensor) -> torch.Tensor:
        batch = BatchRows(rows[0], rows[1], torch.tensor([0, 1, 1, 3]), torch.ones(5))
        batch.negative_B = torch.tensor([4, 2, 4, 0])
        batch.initial_user_BD, batch.initial_item_ND = rows[2:]
        return head(batch, 7).total

    assert gradcheck(total, (user, item, first_user, first_item))


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("engine", ["exact", "sampled"])
def test_a_step_of_lightgcn(home: Path, engine: str, layers: int) -> None:
    fanouts = f"propagation.fanouts={[-1] * layers}"
    overrides = ["model.name=lightgcn", f"model.layers={layers}", f"propagation.engine={engine}", fanouts]
    # Layer 2 on a graph where one user knows everything, so that some pairs make no triple; else some nodes have no edge.
    with session_of(home, 1, *overrides, "model.reg_weight=0.7", lonely=layers != 2) as session:
        assert not session.model.raw
        compare(session, torch.arange(0, session.store.local.num_train, 3), layers=layers, penalty=0.35)


@pytest.mark.parametrize("engine", ["exact", "sampled"])
def test_a_step_of_bpr(home: Path, engine: str) -> None:
    overrides = ["model.name=bpr", f"propagation.engine={engine}", "propagation.fanouts=[]", "model.reg_weight=0.7"]
    with session_of(home, 0, *overrides) as session:
        compare(session, torch.arange(0, session.store.local.num_train, 3), layers=0, penalty=0.7)
    with session_of(home, 0, *overrides) as session, pytest.raises(AssertionError):
        compare(session, torch.arange(9, 30), layers=0, penalty=0.6)  # the comparison can fail


@pytest.mark.parametrize("overrides", [["model.name=bpr"], ["model.name=lightgcn", SAMPLED, "propagation.fanouts=[2,2,2]"]])
def test_a_batch_of_users_who_know_everything(home: Path, overrides: list[str]) -> None:
    """It makes no triple: the loss is 0 and nothing moves."""
    with session_of(home, 0, *overrides, lonely=False) as session:
        ids = (session.store.local.edge_index == 0).nonzero().squeeze(1)
        assert len(ids) == NUM_ITEMS
        before = [adam.table.local.clone() for adam in session.model.engine.embeddings.values()]
        losses = Stepper(session.config, session.store, session.model).step(ids[:5], STEP)
        assert float(losses.total) == 0
        assert all(map(torch.equal, before, (adam.table.local for adam in session.model.engine.embeddings.values())))


def compare(session: Session, ids: torch.Tensor, *, layers: int, penalty: float) -> None:
    """Loss, every gradient and the factors of the score against the transcription."""
    local, model = session.store.local, session.model
    parameters = {}
    for ntype in NODE_TYPES:
        table = model.engine.embeddings[ntype].table.local
        rows = torch.empty_like(table)
        rows[local.original[ntype]] = table
        parameters[ntype] = leaf(rows)
    edges = torch.stack([local.edge_index, local.original[ITEM][local.edge_item]])
    hashes = hash_rows(derive(session.config.train.seed, "negative", STEP), ids, 1)[:, 0].tolist()
    triples = negatives(edges, ids, hashes, NUM_ITEMS)
    expected = ranking_loss(*parameters.values(), edges, triples, len(ids), layers=layers, penalty=penalty)
    expected.backward()
    latents = {ntype: table.local.clone() for ntype, table in model.engine.latents().items()}
    for ntype, h in zip(NODE_TYPES, propagate(*parameters.values(), edges, layers, 0.0, residual=False), strict=True):
        assert relative_error(model.factors(latents[ntype]), h.detach()[local.original[ntype]]) < 1e-5
    got = Stepper(session.config, session.store, model).step(ids, STEP)
    assert model.terms == ("ranking", "regulariser", "total") and len(got.detached()) == 3
    assert relative_error(got.total.detach(), expected.detach()) < 1e-5
    found = gradients_of(session)
    for name, value in parameters.items():
        assert value.grad is not None
        assert relative_error(found[name], value.grad) < 1e-5, name
