"""What each model changes of the defaults, and the settings that it has no use for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bm3_dgl.config.schema import ModelName


@dataclass(frozen=True)
class ModelDefaults:
    """settings: dotted key -> value as YAML has it, where it is not the schema's. unused: keys that may not be changed.

    features: whether the model reads raw features. The dataset has those that data.modalities selects in any case.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    features: bool = False


_BASELINE = {"model.objective": "paper"}  # no norms of all rows, and degrees as they are
_OF_BM3 = ("model.objective", "model.dropout", "model.cl_weight", "model.features", "model.losses")

DEFAULTS: dict[ModelName, ModelDefaults] = {
    ModelName.bm3: ModelDefaults(features=True),
    ModelName.bpr: ModelDefaults(
        _BASELINE | {"model.layers": 0, "model.reg_weight": 1e-2},  # tried on Amazon Baby
        (*_OF_BM3, "model.layers"),
    ),
    ModelName.lightgcn: ModelDefaults(
        _BASELINE | {"model.layers": 3, "model.reg_weight": 1e-4},  # the authors' code
        _OF_BM3,
    ),
    ModelName.popularity: ModelDefaults(
        _BASELINE | {"model.layers": 0, "model.reg_weight": 0.0},
        (*_OF_BM3, "model.layers", "model.reg_weight", "train.max_steps"),
    ),
}


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as sections: {"model.layers": 3} -> {"model": {"layers": 3}}."""
    sections: dict[str, Any] = {}
    for key, value in settings.items():
        section, name = key.split(".")
        sections.setdefault(section, {})[name] = value
    return sections
