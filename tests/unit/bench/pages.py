"""What every page of a report must be: well formed, and in need of nothing else."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

VOID = {"meta", "link", "img", "br", "hr", "input"}
LOADS = {"script", "link", "img", "iframe", "object", "embed", "image", "base"}


class Page(HTMLParser):
    """Elements and attributes of a page; complains when they do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def charts_of(text: str) -> list[ElementTree.Element]:
    """The charts of a page, each of which is XML."""
    return [ElementTree.fromstring(chart) for chart in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def check_page(text: str) -> None:
    """One page without script that refers to nothing outside itself, and in which every reference leads somewhere."""
    page = Page(text)
    assert not LOADS & set(page.tags)
    names = {name for name, _ in page.attributes}
    assert not {"src", "xlink:href", "srcset"} & names
    assert not [name for name in names if name.startswith("on")]
    assert not re.search(r"@import|https?:|//", text)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(set(ids)) == len(ids)
    referred = {value for name, value in page.attributes if name == "href"}
    referred |= set(re.findall(r"url\((.*?)\)", text))
    assert referred <= {f"#{name}" for name in ids}
    defined = set(re.findall(r"(--[a-z-]+):", text))
    assert set(re.findall(r"var\((--[a-z-]+)\)", text)) <= defined
    assert not re.search(r"\b(nan|inf)\b", text.lower())
    for chart in charts_of(text):
        assert not re.search("#[0-9a-f]{6}", ElementTree.tostring(chart, "unicode"))  # colours are the page's
