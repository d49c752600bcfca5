"""The only door of the configuration: defaults, the model's own, then a YAML file, then key=value, then every check.

After `load_config` no omegaconf object exists: the result is plain dataclasses. A text setting may refer to another
one, as in run.dir=runs/layers-${model.layers}; the reference is replaced here, so a saved config holds none.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bm3_dgl.config.fields import bounds, describe, shorten, spell, walk
from bm3_dgl.config.models import DEFAULTS, nested
from bm3_dgl.config.read import Reader, read_override
from bm3_dgl.config.schema import Engine, JobConfig
from bm3_dgl.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9_-]+")  # a modality names a file of the dataset


def load_config(file: str | None = None, overrides: Sequence[str] = ()) -> JobConfig:
    """Defaults of the schema, of the model, then the YAML `file`, then `key=value` overrides, checked.

    Raises ConfigError, one line, for an unknown key, a wrong type, a value out of range or an unreadable file.
    """
    layers = [] if file is None else [_read_file(file)]
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            example = "is not of the form key=value, for example train.epochs=10"
            raise ConfigError(f"command line: {shorten(override)!r} {example}")
        layers.append(read_override(key.strip(), text))
    try:
        name = _merge(layers).model.name
        config: JobConfig = OmegaConf.to_object(_merge([nested(DEFAULTS[name].settings), *layers]))  # type: ignore[assignment]
    except OmegaConfBaseException as error:  # every type is right by now: what is left is a bad ${reference}
        reason, *details = str(error).splitlines()
        where = next((f" in {line.split(':')[1].strip()}" for line in details if "full_key:" in line), "")
        raise ConfigError(f"configuration: bad ${{...}} reference{where}: {shorten(reason)}") from None
    check(config)
    return config


def _merge(layers: Sequence[Mapping[str, Any]]) -> DictConfig:
    """The schema's defaults under layers of settings, the last one on top."""
    merged = OmegaConf.merge(OmegaConf.structured(JobConfig), *(OmegaConf.create(dict(layer)) for layer in layers))
    assert isinstance(merged, DictConfig), "a schema and dicts"
    return merged


def save_config(config: JobConfig, path: Path) -> None:
    """Write the resolved config as YAML that `load_config` reads back to an equal config."""
    part = path.with_name(f".{path.name}.tmp")
    part.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")
    part.replace(path)


def command_line(description: str, argv: Sequence[str] | None = None) -> JobConfig:
    """Parse `--config FILE key=value ...`, as every launcher takes them."""
    arguments = parser_with_keys(description).parse_intermixed_args(argv)
    return load_config(arguments.config, arguments.overrides)


class Parser(argparse.ArgumentParser):
    """Ends a wrong command line as every other user's mistake ends: by one line, not by the usage text."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"command line: {shorten(message)}; --help lists every key")


def parser_with_keys(description: str) -> argparse.ArgumentParser:
    """The launchers' argument parser; its --help lists every key with default, unit and meaning."""
    lines = [f"  {key}={spell(value)}\n      {describe(field)}" for key, field, value in walk(JobConfig())]
    parser = Parser(
        description=description,
        epilog="keys and their defaults:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with the settings that differ from the defaults")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ from the file")
    return parser


def check(config: JobConfig) -> None:
    """Rules of single settings, then those that join several. Raises ConfigError."""
    check_settings(config)
    _check_device(config.train.device)
    _check_fanouts(config)
    _check_model(config)
    cutoffs, monitor = config.evaluate.cutoffs, config.evaluate.monitor
    if not cutoffs:
        raise ConfigError("evaluate.cutoffs=[]: at least one cutoff K is needed, for example [10,20]")
    if monitor is not None and monitor not in cutoffs:
        raise ConfigError(f"evaluate.monitor={monitor}: expected one of evaluate.cutoffs={spell(cutoffs)}, or null")
    if not config.model.losses:
        raise ConfigError("model.losses=[]: at least one loss term is needed: reconstruction, alignment, masking")
    if config.debug and config.partition.parts != 1:
        raise ConfigError(f"debug=true runs one process on one part, but partition.parts={config.partition.parts}; set it to 1")


def check_settings(section: Any, prefix: str = "") -> None:
    """Every setting below a section is in its range. Raises ConfigError."""
    for key, field, value in walk(section, prefix):
        _check_setting(key, field.metadata, value, may_be_empty=value == "" == field.default)


def _check_setting(key: str, meta: Mapping[str, Any], value: Any, may_be_empty: bool) -> None:
    if isinstance(value, dict):
        for name, element in value.items():
            if not NAME.fullmatch(name):
                raise ConfigError(f"{key}: {shorten(name)!r} is no name; use letters, digits, - and _")
            _check_setting(f"{key}.{name}", meta, element, may_be_empty=False)
    elif isinstance(value, list):
        for element in value:
            _check_setting(key, meta, element, may_be_empty=False)
        twice = [element for position, element in enumerate(value) if element in value[:position]]
        if twice and meta["unique"]:
            raise ConfigError(f"{key}={shorten(spell(value))}: {shorten(spell(twice[0]))} stands in it twice; once is allowed")
    elif isinstance(value, str):
        if not value.strip() and not may_be_empty:
            raise ConfigError(f"{key}: it may not be empty. {meta['help']}")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = meta["low"], meta["high"]
        if not math.isfinite(value) or (low is not None and value < low) or (high is not None and value > high):
            unit = f" {meta['unit']}" if meta["unit"] else ""
            raise ConfigError(f"{key}={value}: expected {bounds(meta) or 'a finite number'}{unit}")


def _check_device(device: str) -> None:
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", device):
        raise ConfigError(f"train.device={shorten(device)}: expected cpu, cuda or cuda:N, for example cuda:0")


def _check_fanouts(config: JobConfig) -> None:
    fanouts, layers = config.propagation.fanouts, config.model.layers
    if 0 in fanouts:
        raise ConfigError(f"propagation.fanouts={spell(fanouts)}: a fanout is at least 1, or -1 for all neighbours")
    if config.propagation.engine is Engine.sampled and len(fanouts) != layers:
        raise ConfigError(f"propagation.fanouts={spell(fanouts)}: model.layers={layers} needs {layers} of them, one per layer")


def _check_model(config: JobConfig) -> None:
    """A setting that the chosen model has no use for may not look as if it did something."""
    defaults = DEFAULTS[config.model.name]
    plain: JobConfig = OmegaConf.to_object(_merge([nested(defaults.settings)]))  # type: ignore[assignment]
    for (key, _, value), (_, _, default) in zip(walk(config), walk(plain), strict=True):
        if key in defaults.unused and value != default:
            raise ConfigError(
                f"{key}={shorten(spell(value))}: model.name={config.model.name.name} has no use for it; leave it at"
                f" {spell(default)}"
            )


def _read_file(file: str) -> dict[str, Any]:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"--config {file}: not a text file in UTF-8; give a YAML file") from None
    except OSError as error:
        raise ConfigError(f"--config {file}: cannot be read ({error.strerror}); give a YAML file") from None
    reader = Reader(f"--config {file}", has_lines=True)
    return reader.settings(reader.parse(text), JobConfig())
