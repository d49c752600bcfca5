"""What the variants of a study are: the settings of each, and those of all, as the study's file has them."""

from __future__ import annotations

import yaml

from bm3_dgl.report.document import Block, Cell, Listing, Table, number, words
from bm3_dgl.report.study import Study, Variant

_FILE = "study.yaml"
_SHARED = ("base", "set")  # keys of the file that hold for every variant


def settings_of_variants(study: Study) -> list[Block]:
    """A table of overrides and ranks, but for a search, whose table of trials has them; then the settings of all."""
    blocks: list[Block] = []
    if study.view != "search":
        rows = [[words(variant.name), number(variant.ranks, "d"), _overrides(variant)] for variant in study.variants]
        caption = "What each variant sets beside the settings of all."
        blocks.append(Table("settings", caption, ["variant", "ranks", "settings"], rows))
    if shared := _shared(study):
        blocks.append(Listing(f"Settings of all variants: base and set of {_FILE}", shared))
    return blocks


def _overrides(variant: Variant) -> Cell:
    if not variant.overrides:
        return Cell("", "none")
    return Cell(" ".join(variant.overrides), ", ".join(f"`{text}`" for text in variant.overrides))


def _shared(study: Study) -> str:
    """As YAML; nothing where the file is missing or damaged, since the page can do without."""
    try:
        content = yaml.safe_load((study.directory / _FILE).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return ""
    told = {key: content[key] for key in _SHARED if content.get(key)} if isinstance(content, dict) else {}
    return yaml.safe_dump(told, sort_keys=False, allow_unicode=True, width=10**6).strip() if told else ""
