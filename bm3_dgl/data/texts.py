"""Texts of items as every reader hands them on."""

from __future__ import annotations

import html


def folded(text: str) -> str | None:
    """Text with HTML entities unescaped and white space folded; None where nothing is left."""
    return " ".join(html.unescape(text).split()) or None
