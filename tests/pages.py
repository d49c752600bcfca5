"""What every page of HTML that the project writes must be: well formed, self-contained, without a script."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "br", "link", "img", "input", "hr", "path", "use", "rect", "line", "circle"}


class Page(HTMLParser):
    """Checks that every tag is closed in order, and collects what a page would load and what it says."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.unnamed = 0
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "action")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.unnamed += tag == "svg" and not values.get("aria-label")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check_page(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in page.loads), page.loads
    assert "http" not in text.replace("http-equiv", "") and "<script" not in text and "url(http" not in text
    assert len(set(page.ids)) == len(page.ids) and page.unnamed == 0
    return page
