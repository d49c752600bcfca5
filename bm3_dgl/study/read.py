"""The YAML structure of a study's file: its parts, as text and settings; what they mean is declare.py's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from bm3_dgl.config.fields import shorten
from bm3_dgl.config.load import check_settings
from bm3_dgl.config.read import Reader
from bm3_dgl.errors import ConfigError
from bm3_dgl.study.settings import Dimension, StudyRoot

PARTS = ("study", "base", "set", "variants", "grid", "search")
_VARIANT_KEYS = ("set", "ranks")


class StudyReader:
    """Reads one file; every mistake is a ConfigError with its line."""

    def __init__(self, file: str) -> None:
        self._reader = Reader(f"--config {file}", has_lines=True, root=StudyRoot())
        try:
            text = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text file in UTF-8"
            raise ConfigError(f"--config {file}: cannot be read ({reason}); give a study's YAML file") from None
        root = self._reader.parse(text)
        if root is None:
            raise ConfigError(f"--config {file}: is empty; a study has the keys {', '.join(PARTS)}")
        self.parts = dict(self._pairs(root, "a study", allowed=PARTS))

    def settings(self) -> dict[str, Any]:
        """What the file says of `study` and, but for the space, of `search`: nested dicts of values."""
        nodes = [(name, self.parts[name]) for name in ("study", "search") if name in self.parts]
        wanted = [(yaml.ScalarNode("", name), self._without_space(node)) for name, node in nodes]
        return self._reader.settings(yaml.MappingNode("", wanted), StudyRoot())

    def base(self) -> str:
        if "base" not in self.parts:
            raise ConfigError(f"{self._reader.source}: base is missing; name the config of the runs, relative to this file")
        return self._text(self.parts["base"], "base")

    def shared(self) -> list[str]:
        return self._texts(self.parts["set"], "set") if "set" in self.parts else []

    def variants(self) -> Iterator[tuple[str, list[str], int | None]]:
        """Name, overrides and, where given, ranks of each variant."""
        for name, node in self._pairs(self.parts["variants"], "variants"):
            what = f"variants.{name}"
            if isinstance(node, yaml.SequenceNode):
                yield name, self._texts(node, what), None
                continue
            parts = dict(self._pairs(node, what, allowed=_VARIANT_KEYS))
            ranks = self._text(parts["ranks"], f"{what}.ranks") if "ranks" in parts else None
            if ranks is not None and not (ranks.isdecimal() and int(ranks) > 0):
                raise self._reader.error(parts["ranks"], f"{what}.ranks={shorten(ranks)}: expected a whole number from 1 on")
            overrides = self._texts(parts["set"], f"{what}.set") if "set" in parts else []
            yield name, overrides, None if ranks is None else int(ranks)

    def grid(self) -> dict[str, list[str]]:
        """Key -> values as they are written on a command line."""
        found = {}
        for key, node in self._pairs(self.parts["grid"], "grid"):
            if not isinstance(node, yaml.SequenceNode) or not node.value:
                raise self._reader.error(node, f"grid.{key}: expected a list of values, such as [1, 2]")
            found[key] = [self._spell(child, f"grid.{key}") for child in node.value]
        return found

    def space(self) -> dict[str, Dimension]:
        search = dict(self._pairs(self.parts["search"], "search"))
        if "space" not in search:
            raise self._reader.error(self.parts["search"], "search.space is missing; give keys with {low: ..., high: ...}")
        found = {}
        for key, node in self._pairs(search["space"], "search.space"):
            what = f"search.space.{key}."
            found[key] = Dimension(**self._reader.settings(node, Dimension(), what))
            check_settings(found[key], what)
        return found

    def _pairs(self, node: yaml.Node, what: str, *, allowed: tuple[str, ...] = ()) -> Iterator[tuple[str, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode) or not node.value:
            hint = f"one of {', '.join(allowed)}" if allowed else "names with their values"
            raise self._reader.error(node, f"{what}: expected {hint}, each with a colon")
        seen = set()
        for name_node, child in node.value:
            name = self._text(name_node, f"a name in {what}")
            if allowed and name not in allowed:
                raise self._reader.error(
                    name_node, f"unknown key {shorten(name)} in {what} (allowed here: {', '.join(allowed)})"
                )
            if name in seen:
                raise self._reader.error(name_node, f"{shorten(name)} stands twice in {what}; keep one")
            seen.add(name)
            yield name, child

    def _without_space(self, node: yaml.Node) -> yaml.Node:
        if not isinstance(node, yaml.MappingNode):
            return node
        kept = [(name, child) for name, child in node.value if getattr(name, "value", None) != "space"]
        return yaml.MappingNode(node.tag, kept, node.start_mark, node.end_mark)

    def _text(self, node: yaml.Node, what: str) -> str:
        if not isinstance(node, yaml.ScalarNode) or not node.value.strip():
            raise self._reader.error(node, f"{what}: expected text")
        return str(node.value)

    def _texts(self, node: yaml.Node, what: str) -> list[str]:
        if not isinstance(node, yaml.SequenceNode):
            raise self._reader.error(node, f"{what}: expected a list of key=value, such as [train.epochs=100]")
        return [self._text(child, what) for child in node.value]

    def _spell(self, node: yaml.Node, what: str) -> str:
        """A value as a command line has it."""
        if isinstance(node, yaml.SequenceNode):
            return "[" + ",".join(self._spell(child, what) for child in node.value) + "]"
        return self._text(node, what)
