"""The only door of the configuration: defaults, then a YAML file, then key=value, then every check.

After `load_config` no omegaconf object exists: the result is plain dataclasses.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import re
from enum import Enum
from pathlib import Path
from typing import Any, Iterator, Sequence

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from bm3_dgl.config.schema import Engine, JobConfig
from bm3_dgl.errors import ConfigError

Setting = tuple[str, dataclasses.Field, Any]


def walk(section: Any, prefix: str = "") -> Iterator[Setting]:
    """Every setting below a section: its dotted key, its field and its value."""
    for field in dataclasses.fields(section):
        key, value = prefix + field.name, getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from walk(value, key + ".")
        else:
            yield key, field, value


def load_config(file: str | None = None, overrides: Sequence[str] = ()) -> JobConfig:
    """Defaults, then the YAML `file`, then `key=value` overrides, checked.

    Raises ConfigError, one line, for an unknown key, a wrong type, a value out of range or an unreadable file.
    """
    merged = OmegaConf.structured(JobConfig)
    if file is not None:
        merged = _merge(merged, _read_yaml(file), file)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"command line: {override!r} is not of the form key=value, for example train.epochs=10")
        merged = _merge(merged, _nest(key.strip(), _parse_value(key, value)), f"command line: {override}")
    try:
        config: JobConfig = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ConfigError(f"configuration: {_first_line(error)}") from None
    check(config)
    return config


def save_config(config: JobConfig, path: Path) -> None:
    """Write the resolved config as YAML that `load_config` reads back to an equal config."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")


def command_line(description: str, argv: Sequence[str] | None = None) -> JobConfig:
    """Parse `--config FILE key=value ...`, as every launcher takes them."""
    parser = parser_with_keys(description)
    arguments = parser.parse_args(argv)
    return load_config(arguments.config, arguments.overrides)


def parser_with_keys(description: str) -> argparse.ArgumentParser:
    """The launchers' argument parser; its --help lists every key with default, unit and meaning."""
    lines = [f"  {key}={_spell(value)}\n      {describe(field)}" for key, field, value in walk(JobConfig())]
    parser = argparse.ArgumentParser(
        description=description,
        epilog="keys and their defaults:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with the settings that differ from the defaults")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ from the file")
    return parser


def describe(field: dataclasses.Field) -> str:
    """Help, choices, unit and range of a setting in one line."""
    meta = field.metadata
    parts = [meta["help"]]
    choices = _choices(field)
    if choices:
        parts.append(f"[{' | '.join(choices)}]")
    if meta["unit"]:
        parts.append(f"[{meta['unit']}]")
    if meta["low"] is not None or meta["high"] is not None:
        parts.append(f"[{_range(meta)}]")
    return " ".join(parts)


def check(config: JobConfig) -> None:
    """Ranges of single settings, then the rules that join several. Raises ConfigError."""
    for key, field, value in walk(config):
        for element in value if isinstance(value, list) else [value]:
            _check_range(key, field.metadata, element)
        if isinstance(value, list) and len(set(value)) != len(value) and key != "propagation.fanouts":
            raise ConfigError(f"{key}={_spell(value)}: an element stands in it twice; each may stand once")
    if not config.evaluate.cutoffs:
        raise ConfigError("evaluate.cutoffs=[]: at least one cutoff K is needed, for example [10,20]")
    if config.evaluate.monitor is not None and config.evaluate.monitor not in config.evaluate.cutoffs:
        raise ConfigError(
            f"evaluate.monitor={config.evaluate.monitor}: expected one of evaluate.cutoffs={config.evaluate.cutoffs}"
        )
    if not config.model.losses:
        raise ConfigError("model.losses=[]: at least one loss term is needed: reconstruction, alignment, masking")
    if config.propagation.engine is Engine.sampled:
        fanouts, layers = config.propagation.fanouts, config.model.layers
        if len(fanouts) != layers:
            raise ConfigError(
                f"propagation.fanouts={_spell(fanouts)}: model.layers={layers} needs {layers} of them, one per layer"
            )
        if 0 in fanouts:
            raise ConfigError(f"propagation.fanouts={_spell(fanouts)}: a fanout is at least 1, or -1 for all neighbours")
    device = config.train.device
    if device != "cpu" and device != "cuda" and not (device.startswith("cuda:") and device[5:].isdigit()):
        raise ConfigError(f"train.device={device}: expected cpu, cuda or cuda:N")
    if config.debug and config.partition.parts != 1:
        raise ConfigError(f"debug=true runs one process on one part, but partition.parts={config.partition.parts}; set it to 1")


def _check_range(key: str, meta: Any, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value}: expected a finite number")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    low, high = meta["low"], meta["high"]
    if (low is not None and value < low) or (high is not None and value > high):
        raise ConfigError(f"{key}={value}: expected {_range(meta)}{' ' + meta['unit'] if meta['unit'] else ''}")


def _range(meta: Any) -> str:
    low, high = meta["low"], meta["high"]
    if high is None:
        return f"at least {low:g}"
    return f"at most {high:g}" if low is None else f"{low:g} to {high:g}"


def _choices(field: dataclasses.Field) -> list[str]:
    default = field.default if field.default is not dataclasses.MISSING else None
    if default is None and field.default_factory is not dataclasses.MISSING:
        elements = field.default_factory()
        default = next(iter(elements), None) if isinstance(elements, list) else None
    return [member.name for member in type(default)] if isinstance(default, Enum) else []


def _spell(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, list):
        return "[" + ",".join(_spell(element) for element in value) + "]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _read_yaml(file: str) -> dict:
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {file}: cannot be read ({_reason(error)}); give a YAML file") from None
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"--config {file}{where}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config {file}: expected sections such as `train:`, got {type(content).__name__}")
    return content


def _parse_value(key: str, value: str) -> Any:
    try:
        return yaml.load(value, Loader=_ValueLoader)
    except yaml.YAMLError:
        raise ConfigError(f"command line: {key}={value}: the value is not valid YAML") from None


class _ValueLoader(yaml.SafeLoader):
    """Safe YAML that also reads 1e-3 as a number (YAML 1.1 wants 1.0e-3)."""


_ValueLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _nest(key: str, value: Any) -> dict:
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _merge(merged: Any, content: dict, where: str) -> Any:
    _refuse_unknown(content, JobConfig(), "", where)
    try:
        return OmegaConf.merge(merged, OmegaConf.create(content))
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or _leaf(content)
        raise ConfigError(f"{where}: {key}: {_expected(key) or _first_line(error)}") from None


def _refuse_unknown(content: dict, section: Any, prefix: str, where: str) -> None:
    """One clear line for a key that is not in the schema, with the nearest one that is."""
    for name, value in content.items():
        known = {field.name: getattr(section, field.name) for field in dataclasses.fields(section)}
        key = f"{prefix}{name}"
        if name not in known:
            raise ConfigError(f"{where}: unknown key {key}{_nearest(key, prefix, known)}")
        if dataclasses.is_dataclass(known[name]):
            if not isinstance(value, dict):
                raise ConfigError(f"{where}: {key} is a section; set one of its keys, such as {_first_key(known[name], key)}")
            _refuse_unknown(value, known[name], key + ".", where)
        elif isinstance(value, dict) and not isinstance(known[name], dict):
            raise ConfigError(f"{where}: {key} is a setting, not a section")


def _first_key(section: Any, key: str) -> str:
    return f"{key}.{dataclasses.fields(section)[0].name}"


def _nearest(key: str, prefix: str, known: dict) -> str:
    every = [name for name, _, _ in walk(JobConfig())]
    near = [name for name in every if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]  # right name, wrong section
    near = near or difflib.get_close_matches(key, every, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{hint} (allowed {'here' if prefix else 'at the top'}: {', '.join(known)})"


def _expected(key: str) -> str:
    """What a setting takes, for the message about a wrong type."""
    for name, field, _ in walk(JobConfig()):
        if key == name or key.startswith(name + ".") or key.startswith(name + "["):
            choices = _choices(field)
            kind = f"one of {', '.join(choices)}" if choices else f"a value of type {field.type}"
            return f"wrong value; expected {kind}. {field.metadata['help']}"
    return ""


def _leaf(content: Any) -> str:
    parts = []
    while isinstance(content, dict) and len(content) == 1:
        ((name, content),) = content.items()
        parts.append(str(name))
    return ".".join(parts)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
