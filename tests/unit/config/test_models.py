"""What each model makes of the defaults, and which settings it refuses since it has no use for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bm3_dgl.config import load_config, save_config
from bm3_dgl.errors import ConfigError


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    "name, layers, reg_weight, objective",
    [("bm3", 1, 0.1, "reference"), ("bpr", 0, 1e-2, "paper"), ("lightgcn", 3, 1e-4, "paper"), ("popularity", 0, 0.0, "paper")],
)
def test_a_model_has_its_own_defaults(tmp_path: Path, name: str, layers: int, reg_weight: float, objective: str) -> None:
    config = load_config(None, [f"model.name={name}", "run.dir=runs/${model.name}-${model.layers}"])
    model = config.model
    assert (model.name.name, model.layers, model.reg_weight, model.objective.name) == (name, layers, reg_weight, objective)
    assert config.run.dir == f"runs/{name}-{layers}"
    save_config(config, tmp_path / "config.yaml")
    assert load_config(str(tmp_path / "config.yaml")) == config


def test_file_and_command_line_override_the_defaults_of_a_model(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("model:\n  name: lightgcn\n  reg_weight: 0.01\n", encoding="utf-8")
    model = load_config(str(file), ["model.layers=2"]).model
    assert (model.reg_weight, model.layers) == (0.01, 2)
    assert load_config(str(file), ["model.name=bm3"]).model.layers == 1


@pytest.mark.parametrize(
    "name, override",
    [
        ("lightgcn", "model.dropout=0.3"),
        ("lightgcn", "model.losses=[masking]"),
        ("bpr", "model.features=fixed"),
        ("bpr", "model.layers=2"),
        ("bpr", "model.objective=reference"),
        ("popularity", "model.reg_weight=0.1"),
        ("popularity", "train.max_steps=50"),
    ],
)
def test_a_setting_that_the_model_has_no_use_for(name: str, override: str) -> None:
    message = refusal(f"model.name={name}", override)
    assert message.startswith(f"{override}: model.name={name} has no use for it; leave it at ")


def test_an_unknown_model() -> None:
    assert "one of bm3, bpr, lightgcn, popularity" in refusal("model.name=neumf")
