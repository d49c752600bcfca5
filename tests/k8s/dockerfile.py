"""The Dockerfile as a list of instructions, for there may be no engine to build it with."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def stages(text: str | None = None) -> list[list[tuple[str, str]]]:
    """Each stage's instructions from its FROM on, as (word, rest); ARG and the like before the first FROM are refused."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8") if text is None else text
    lines = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    found: list[list[tuple[str, str]]] = []
    for line in filter(None, map(str.strip, lines)):
        word, rest = line.split(maxsplit=1)
        assert word.isupper(), f"Dockerfile: {line!r} does not begin with an instruction"
        if word == "FROM":
            found.append([])
        assert found, f"Dockerfile: {line!r} stands before FROM"
        found[-1].append((word, rest))
    return found


def last(word: str) -> str:
    """What the image's last instruction of a kind says."""
    return [rest for name, rest in stages()[-1] if name == word][-1]


def environment() -> dict[str, str]:
    pairs = [pair for name, rest in stages()[-1] if name == "ENV" for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)
