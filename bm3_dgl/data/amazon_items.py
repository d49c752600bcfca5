"""What a line of Amazon's metadata says of an item, in the fields of each release.

The text is title, brand, the categories of the first path and description, as the published features were made of; what is
missing is left out. HTML entities are unescaped, white space is folded.
"""

from __future__ import annotations

from typing import Any

from bm3_dgl.data.columns import shown
from bm3_dgl.data.mistakes import Mistake
from bm3_dgl.data.raw import Item
from bm3_dgl.data.texts import folded

Entry = dict[str, Any]


def item_2014(entry: Entry) -> Item:
    paths = entry.get("categories") or []
    if not isinstance(paths, list) or not all(isinstance(path, list) for path in paths):
        raise Mistake(f"categories is {shown(paths)}; expected a list of lists")
    path = _texts("categories", paths[0] if paths else [])
    return _item(entry, brand="brand", path=path, image=_text("imUrl", entry.get("imUrl")))


def item_2018(entry: Entry) -> Item:
    path = _texts("category", entry.get("category"))
    pictures = entry.get("imageURLHighRes") or entry.get("imageURL") or entry.get("image")
    images = _texts("imageURL", pictures)
    return _item(entry, brand="brand", path=path, image=images[0] if images else None)


def item_2023(entry: Entry) -> Item:
    path = _texts("categories", entry.get("categories")) or _texts("main_category", entry.get("main_category"))
    images = entry.get("images") or []
    if not isinstance(images, list) or not all(isinstance(image, dict) for image in images):
        raise Mistake(f"images is {shown(images)}; expected a list of objects")
    first = images[0] if images else {}
    address = first.get("large") or first.get("hi_res") or first.get("thumb")
    return _item(entry, brand="store", path=path, image=_text("images", address))


def _item(entry: Entry, *, brand: str, path: list[str], image: str | None) -> Item:
    title = _text("title", entry.get("title"))
    description = " ".join(_texts("description", entry.get("description")))
    parts = [title, _text(brand, entry.get(brand)), " ".join(path), description]
    return Item(title, " ".join(part for part in parts if part) or None, " > ".join(path) or None, image)


def _text(name: str, value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise Mistake(f"{name} is {shown(value)}; expected text")
    return folded(value)


def _texts(name: str, value: Any) -> list[str]:
    """A text or a list of texts, those that are empty left out."""
    values = [value] if isinstance(value, str) else value or []
    if not isinstance(values, list):
        raise Mistake(f"{name} is {shown(value)}; expected text or a list of texts")
    return [text for text in (_text(name, each) for each in values) if text]
