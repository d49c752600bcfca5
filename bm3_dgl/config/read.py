"""YAML text -> checked values: each scalar is read as the type that its setting has.

YAML itself would guess: `no` becomes false, 0012 becomes ten, 1e-3 stays text, the second of two equal keys wins.
Here the parser only finds the structure, with line numbers, and the schema decides what a piece of text means.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import typing
from enum import Enum
from typing import Any

import yaml

from bm3_dgl.config.fields import SHOWN, optional, shorten, walk, words
from bm3_dgl.config.schema import JobConfig
from bm3_dgl.errors import ConfigError

NULL_TAG = "tag:yaml.org,2002:null"
TEXT_TAG = "tag:yaml.org,2002:str"
INTEGER = re.compile(r"[-+]?[0-9]{1,18}")  # 18 digits fit in 64 bits
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


class _Unfit(Exception):
    """A node cannot be read as the type that was asked for."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads one source; `source` opens every message, followed by the line where the source has several.

    root: all settings that there are, by their defaults.
    """

    source: str
    has_lines: bool
    root: Any = dataclasses.field(default_factory=JobConfig)

    def parse(self, text: str) -> yaml.Node | None:
        """The structure of one YAML document; None if it is empty."""
        try:
            return yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            line = f", line {error.problem_mark.line + 1}" if error.problem_mark and self.has_lines else ""
            raise ConfigError(f"{self.source}{line}: not valid YAML ({shorten(str(error.problem))})") from None
        except (yaml.YAMLError, RecursionError) as error:
            reason = getattr(error, "reason", None) or "nested too deeply"
            raise ConfigError(f"{self.source}: not valid YAML ({shorten(str(reason))})") from None

    def settings(self, node: yaml.Node | None, section: Any, prefix: str = "") -> dict[str, Any]:
        """The settings of a section that the node gives, as nested dicts of values of the schema's types."""
        if node is None or (_is_null(node) and not node.value):
            return {}  # an empty file, or a section whose lines are all commented out
        known = {field.name: field for field in dataclasses.fields(section)}
        if not isinstance(node, yaml.MappingNode):
            what = f"{prefix[:-1]} is a section; set one of its keys" if prefix else "expected sections of settings"
            example = prefix + next(iter(known)) if prefix else "`train:`"
            raise self.error(node, f"{what}, such as {example}")
        found: dict[str, Any] = {}
        for name_node, value_node in node.value:
            name = str(name_node.value) if isinstance(name_node, yaml.ScalarNode) else _show(name_node)
            key = prefix + name
            if name not in known:
                raise self.error(name_node, f"unknown key {shorten(key)}{_nearest(key, prefix, list(known), self.root)}")
            if name in found:
                raise self.error(name_node, f"{key} is set twice; keep one")
            field, default = known[name], getattr(section, name)
            if dataclasses.is_dataclass(default):
                found[name] = self.settings(value_node, default, key + ".")
            else:
                found[name] = self.value(value_node, field, key)
        return found

    def value(self, node: yaml.Node, field: dataclasses.Field[Any], key: str) -> Any:
        """One setting's value, of the field's type."""
        try:
            return _convert(node, field.type)
        except _Unfit:
            expected = f"expected {words(field.type)}. {field.metadata['help']}"
            raise self.error(node, f"{key}={_show(node)}: {expected}") from None

    def error(self, node: yaml.Node, message: str) -> ConfigError:
        line = f", line {node.start_mark.line + 1}" if self.has_lines else ""
        return ConfigError(f"{self.source}{line}: {message}")


def read_override(key: str, text: str, root: Any = None) -> dict[str, Any]:
    """One `key=text` of the command line; a text setting takes what follows the `=` as it stands, without quotes."""
    root = JobConfig() if root is None else root
    reader = Reader("command line", has_lines=False, root=root)
    kinds = {name: field.type for name, field, _ in walk(root)}
    mapping, _, _ = key.rpartition(".")
    is_text = kinds.get(key) is str or typing.get_origin(kinds.get(mapping)) is dict
    node = None if is_text and text != "null" else reader.parse(text)
    if node is None:
        node = yaml.ScalarNode(TEXT_TAG, text)
    for name in reversed(key.split(".")):
        node = yaml.MappingNode("", [(yaml.ScalarNode(TEXT_TAG, name), node)])
    return reader.settings(node, root)


def _convert(node: yaml.Node, kind: Any) -> Any:
    kind, takes_null = optional(kind)
    if _is_null(node):
        if takes_null:
            return None
        raise _Unfit
    if typing.get_origin(kind) is list and isinstance(node, yaml.SequenceNode):
        (element,) = typing.get_args(kind)
        return [_convert(child, element) for child in node.value]
    if typing.get_origin(kind) is dict and isinstance(node, yaml.MappingNode):
        _, element = typing.get_args(kind)
        pairs = [(_convert(name, str), _convert(child, element)) for name, child in node.value]
        if len(dict(pairs)) < len(pairs):
            raise _Unfit
        return dict(pairs)
    if typing.get_origin(kind) is None and isinstance(node, yaml.ScalarNode):
        return _convert_text(node.value, kind)
    raise _Unfit


def _convert_text(text: str, kind: type) -> Any:
    if kind is str and text != "???":  # omegaconf takes ??? as `not given` and would silently keep the default
        return text
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind is int and INTEGER.fullmatch(text):
        return int(text)
    if kind is float and NUMBER.fullmatch(text):
        return float(text)
    if issubclass(kind, Enum) and text in kind.__members__:
        return kind[text]
    raise _Unfit


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == NULL_TAG


def _show(node: yaml.Node, depth: int = 2) -> str:
    """A node as a message repeats it; bounded in depth, since an alias can make a node contain itself."""
    if isinstance(node, yaml.ScalarNode):
        return "null" if _is_null(node) else shorten(str(node.value))
    if depth == 0:
        return "..."
    children = node.value[:SHOWN]
    if isinstance(node, yaml.SequenceNode):
        return shorten("[" + ",".join(_show(child, depth - 1) for child in children) + "]")
    return shorten("{" + ", ".join(f"{_show(name, depth - 1)}: {_show(child, depth - 1)}" for name, child in children) + "}")


def _nearest(key: str, prefix: str, known: list[str], root: Any) -> str:
    """The keys that the user may have meant, and the ones that are allowed at this place."""
    every = [name for name, _, _ in walk(root)]
    last = key.rpartition(".")[2]
    near = [name for name in every if name.rpartition(".")[2] == last]  # the right name in the wrong section
    near = near or [prefix + name for name in difflib.get_close_matches(last, known, n=1)]
    near = near or difflib.get_close_matches(key, every, n=1, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{hint} (allowed {'here' if prefix else 'at the top'}: {', '.join(known)})"
