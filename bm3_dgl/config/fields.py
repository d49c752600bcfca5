"""A setting in words: its key, what it takes, its range, its value as a user writes it.

The help text and every error message come from here, so they speak the same language.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

Setting = tuple[str, "dataclasses.Field[Any]", Any]
SHOWN = 60  # characters of a user's value that a message repeats; a whole pasted file would hide the message


def walk(section: Any, prefix: str = "") -> Iterator[Setting]:
    """Every setting below a section: its dotted key, its field and its value."""
    for field in dataclasses.fields(section):
        key, value = prefix + field.name, getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from walk(value, key + ".")
        else:
            yield key, field, value


def describe(field: dataclasses.Field[Any]) -> str:
    """Help, choices, unit and range of a setting in one line."""
    meta = field.metadata
    marks = (" | ".join(choices(field.type)), meta["unit"], bounds(meta))
    return " ".join([meta["help"], *(f"[{mark}]" for mark in marks if mark)])


def optional(kind: Any) -> tuple[Any, bool]:
    """The type without its `| None`, and whether it had one."""
    if typing.get_origin(kind) not in (types.UnionType, typing.Union):
        return kind, False
    (inner,) = (member for member in typing.get_args(kind) if member is not type(None))
    return inner, True


def choices(kind: Any) -> list[str]:
    """The names that a setting, or each element of a list, can take; empty where it is not a choice."""
    kind = optional(kind)[0]
    if typing.get_origin(kind) is list:
        (kind,) = typing.get_args(kind)
    return [member.name for member in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []


def words(kind: Any) -> str:
    """What a setting takes, in a user's words: `a whole number`, `a list of texts, or null`."""
    kind, takes_null = optional(kind)
    names = ", ".join(choices(kind))
    if typing.get_origin(kind) is list:
        (element,) = typing.get_args(kind)
        text = "a list of " + (f"elements out of {names}" if names else {int: "whole numbers", str: "texts"}[element])
    elif typing.get_origin(kind) is dict:
        text = "texts by name, such as {name: text}"
    elif names:
        text = f"one of {names}"
    else:
        text = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kind]
    return f"{text}, or null" if takes_null else text


def bounds(meta: Mapping[str, Any]) -> str:
    """The inclusive range of a number in words; empty where there is none."""
    low, high = meta["low"], meta["high"]
    if low is None and high is None:
        return ""
    if high is None:
        return f"at least {low}"
    return f"at most {high}" if low is None else f"{low} to {high}"


def spell(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, list):
        return "[" + ",".join(spell(element) for element in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {spell(element)}" for name, element in value.items()) + "}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def shorten(text: str) -> str:
    """A user's own text on one line of bounded length."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 3] + "..."
