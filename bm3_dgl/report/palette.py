"""The colours of charts: placeholders while they are drawn, then the page's variables, or a light palette in files.

A chart is drawn once. On the page its colours follow the reader's system, light or dark; a file stands on white.
"""

from __future__ import annotations

import re

# name: placeholder, light, dark. Series colours keep a contrast of 3 to 1 against the paper in both.
_ROLES = {
    "ink": ("#010101", "#1d2129", "#e6e9ef"),
    "soft": ("#020202", "#5b6472", "#99a2b3"),
    "line": ("#030303", "#dde1e8", "#373d49"),
    "paper": ("#040404", "#ffffff", "#16191f"),
    "s0": ("#a10000", "#1f66b5", "#74b0f4"),
    "s1": ("#a10001", "#c24e0a", "#ff9e63"),
    "s2": ("#a10002", "#1a7f4f", "#62d19c"),
    "s3": ("#a10003", "#7d46b8", "#c8a4f2"),
    "s4": ("#a10004", "#8a6d00", "#dfc15c"),
    "s5": ("#a10005", "#b8336f", "#f58fbd"),
    "s6": ("#a10006", "#0b7a86", "#58cfd8"),
    "s7": ("#a10007", "#4b5563", "#b6bdc9"),
}
PALETTE_CSS = (
    ":root { " + " ".join(f"--{name}: {light};" for name, (_, light, _) in _ROLES.items()) + " }\n"
    "@media screen and (prefers-color-scheme: dark) { :root { "
    + " ".join(f"--{name}: {dark};" for name, (_, _, dark) in _ROLES.items())
    + " } }\n"
)
INK, SOFT, LINE, PAPER = (_ROLES[name][0] for name in ("ink", "soft", "line", "paper"))
SERIES = [placeholder for name, (placeholder, _, _) in _ROLES.items() if re.fullmatch(r"s\d", name)]


def for_page(svg: str, name: str) -> str:
    """To stand inside HTML: colours of the page, ids of its own, no namespace."""
    for role, (placeholder, _, _) in _ROLES.items():
        svg = svg.replace(placeholder, f"var(--{role})")
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href=", "href=")
    svg = re.sub(r'(\sid=")', rf"\1{name}-", svg)
    svg = re.sub(r'(href="#)', rf"\1{name}-", svg)
    return re.sub(r"(url\(#)", rf"\1{name}-", svg)


def for_file(svg: str) -> str:
    """To stand alone, on white."""
    for placeholder, light, _ in _ROLES.values():
        svg = svg.replace(placeholder, light)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + svg
