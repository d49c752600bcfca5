"""Loss and every gradient of both engines against the float64 transcription; unbiasedness of finite fanouts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from bm3_dgl.config import load_config
from bm3_dgl.jobs.session import Session
from bm3_dgl.model.propagation.base import SeedPairs
from bm3_dgl.runtime.random import derive, dropout_multiplier
from bm3_dgl.train.step import Stepper
from bm3_dgl.types import ITEM, USER
from tests.small_graph import NUM_ITEMS, NUM_USERS, gradients_of, leaf, relative_error, session_of
from tests.transcription import Parameters, loss, propagate

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the datasets and their partitions are, each made once."""
    return tmp_path_factory.mktemp("equations")


def parameters_of(session: Session) -> Parameters:
    """The model's present values as float64 leaves, rows in the order of the dataset."""

    def rows(table: object, ntype: str) -> torch.Tensor:
        out = torch.empty_like(table.local)  # type: ignore[attr-defined]
        out[session.store.local.original[ntype]] = table.local  # type: ignore[attr-defined]
        return leaf(out)

    model = session.model
    tables = {name: rows(item_rows.table, ITEM) for name, item_rows in model.item_rows.items()}
    trainable = session.config.model.features.name == "trainable"
    return Parameters(
        rows(model.engine.embeddings[USER].table, USER),
        rows(model.engine.embeddings[ITEM].table, ITEM),
        (leaf(model.head.predictor.weight), leaf(model.head.predictor.bias)),
        {name[3:]: (leaf(layer.weight), leaf(layer.bias)) for name, layer in model.head.projectors.items()},
        {name: tables[name] if trainable else leaf(raw) for name, raw in model.raw.items()},
        {} if trainable else tables,
    )


def multipliers(session: Session, step: int) -> dict[str, torch.Tensor]:
    config = session.config
    sizes = {USER: NUM_USERS, ITEM: NUM_ITEMS} | {f"modality {name}": NUM_ITEMS for name in session.model.raw}
    return {
        kind.removeprefix("modality "): dropout_multiplier(
            derive(config.train.seed, "dropout", step, kind), torch.arange(n), config.model.embedding_dim, config.model.dropout
        ).double()
        for kind, n in sizes.items()
    }


def compare(session: Session, ids: torch.Tensor, *, reference: bool, tolerance: float = TOLERANCE) -> None:
    config = session.config.model
    for rows in session.model.item_rows.values():  # residuals start at zero, where an error could hide
        if rows.table.name.startswith("residual"):
            rows.table.local.copy_(torch.randn(rows.table.local.shape, generator=torch.Generator().manual_seed(3)))
    parameters = parameters_of(session)
    edges = torch.stack([session.store.local.edge_index, session.store.local.original[ITEM][session.store.local.edge_item]])
    expected = loss(
        parameters,
        edges,
        edges[:, ids],
        multipliers(session, 4),
        layers=config.layers,
        reg_weight=config.reg_weight,
        cl_weight=config.cl_weight,
        reference=reference,
        terms=tuple(term.name for term in config.losses),
    )
    expected.backward()
    got = Stepper(session.config, session.store, session.model).step(ids, 4)
    assert relative_error(got.total.detach(), expected.detach()) < tolerance
    found = gradients_of(session)
    for name, value in parameters.leaves().items():
        if name.startswith("feature_") and config.features.name != "trainable":
            continue
        gradient = torch.zeros_like(value) if value.grad is None else value.grad
        assert relative_error(found[name], gradient) < tolerance, name


@pytest.mark.parametrize("objective", ["reference", "paper"])
@pytest.mark.parametrize("modalities", [0, 1, 2, 3])
@pytest.mark.parametrize("engine", ["exact", "sampled"])
def test_loss_and_every_gradient(home: Path, engine: str, modalities: int, objective: str) -> None:
    overrides = [
        f"propagation.engine={engine}",
        "propagation.fanouts=[-1,-1]",
        "model.layers=2",
        f"model.objective={objective}",
    ]
    # The sampled engine's estimate of the reference norms is exact only where the batch is all of the train data, and
    # never sees a node without train interactions.
    estimated = (engine, objective) == ("sampled", "reference")
    overrides += ["model.reg_weight=0.7", "model.dropout=0.3"]
    with session_of(home, modalities, *overrides, lonely=not estimated) as session:
        every = torch.arange(session.store.local.num_train)
        ids = every if estimated else every[::3]
        compare(session, ids, reference=objective == "reference")


@pytest.mark.parametrize("layers", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("features", ["trainable", "residual", "fixed"])
def test_layers_and_features(home: Path, layers: int, features: str) -> None:
    with session_of(home, 2, f"model.layers={layers}", f"model.features={features}", "model.reg_weight=0.7") as session:
        compare(session, torch.arange(0, session.store.local.num_train, 2), reference=True)


@pytest.mark.parametrize("layers", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("features", ["trainable", "residual", "fixed"])
def test_bfloat16_is_near(home: Path, layers: int, features: str) -> None:
    """bfloat16 has 8 bits: 2^-9 of a row's number, of a feature and of a weight."""
    overrides = [f"model.layers={layers}", f"model.features={features}", "model.reg_weight=0.7", "train.precision=bfloat16"]
    with session_of(home, 2, *overrides) as session:
        every = torch.arange(0, session.store.local.num_train, 2)
        compare(session, every, reference=True, tolerance=0.02)
    with session_of(home, 2, *overrides) as session, pytest.raises(AssertionError):
        compare(session, every, reference=True)  # it is in use


@pytest.mark.parametrize("terms", ["reconstruction", "alignment", "masking", "reconstruction,masking"])
@pytest.mark.parametrize("engine", ["exact", "sampled"])
def test_losses_switched_off(home: Path, engine: str, terms: str) -> None:
    overrides = [f"model.losses=[{terms}]", "model.objective=paper", f"propagation.engine={engine}", "propagation.fanouts=[-1]"]
    with session_of(home, 2, *overrides) as session:
        compare(session, torch.arange(9), reference=False)


def test_one_modality_switched_off(home: Path) -> None:
    with session_of(home, 3, "data.modalities=[text]") as session:
        assert list(session.model.head.projectors) == ["of_text"]
        compare(session, torch.arange(30), reference=True)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_sampled_with_all_neighbours_equals_exact(home: Path, layers: int) -> None:
    """h of a batch, both engines from the same seed."""
    found = []
    for overrides in (["propagation.engine=exact"], ["propagation.engine=sampled", f"propagation.fanouts={[-1] * layers}"]):
        with session_of(home, 0, f"model.layers={layers}", *overrides) as session:
            found.append(lookup(session, 0))
    for exact, sampled in zip(*found, strict=True):
        assert relative_error(sampled, exact.double()) < TOLERANCE


@pytest.mark.parametrize("objective", ["reference", "paper"])
def test_finite_fanouts_are_unbiased(home: Path, objective: str) -> None:
    """The mean over many draws approaches the exact rows, within five standard errors of each number."""
    layers, draws = 2, 200
    overrides = ["propagation.engine=sampled", "propagation.fanouts=[2,3]", f"model.objective={objective}"]
    with session_of(home, 0, f"model.layers={layers}", *overrides) as session:
        samples = torch.stack([torch.cat(lookup(session, step)) for step in range(draws)]).double()
        p = parameters_of(session)
        local = session.store.local
        edges = torch.stack([local.edge_index, local.original[ITEM][local.edge_item]])
        h_user, h_item = propagate(p.user, p.item, edges, layers, 1e-7 if objective == "reference" else 0.0)
        exact = torch.cat([h_user[edges[0][:30]], h_item[edges[1][:30]]]).detach()
    standard_error = samples.std(0) / draws**0.5
    assert float(samples.std(0).mean()) > 0.01, "the draws do not differ: nothing was sampled"
    assert bool(((samples.mean(0) - exact).abs() < 5 * standard_error + 1e-6).all())


def test_sampling_depends_on_seed_and_step_alone(home: Path) -> None:
    """However many threads there are, in whatever order they came to be."""
    settings = ["propagation.engine=sampled", "propagation.fanouts=[2]"]
    drawn = []
    for threads in (1, 2, 2):
        with session_of(home, 0, *settings) as session:
            torch.set_num_threads(threads)
            drawn.append(lookup(session, 3))
            other = lookup(session, 4)
    for found in drawn[1:]:
        assert all(map(torch.equal, found, drawn[0]))
    assert not all(map(torch.equal, other, drawn[0]))


def lookup(session: Session, step: int) -> list[torch.Tensor]:
    edges = session.store.local.edges(torch.arange(30))
    items, place, count = torch.unique(
        edges.item_row + session.store.local.start[ITEM], return_inverse=True, return_counts=True
    )
    pairs = SeedPairs(edges.user_nid, items, count.float(), num_pairs=30, step=step)
    h_user_BD, h_item_ND = (h.detach().clone() for h in session.model.engine.lookup(pairs))
    rows = [h_user_BD, h_item_ND[place]]
    for embedding in getattr(session.model.engine, "_lookups", {}).values():
        embedding.reset_trace()  # as an update would
    return rows


def test_a_wrong_gradient_would_be_seen(home: Path) -> None:
    """The comparison itself can fail: another regulariser weight is another gradient."""
    with session_of(home, 1, "model.reg_weight=0.7") as session:
        session = dataclasses.replace(session, config=load_config(None, ["model.reg_weight=0.6", "model.embedding_dim=12"]))
        with pytest.raises(AssertionError):
            compare(session, torch.arange(30), reference=True)
