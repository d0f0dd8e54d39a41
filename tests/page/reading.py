"""A page as a test reads it: its elements, tables and plots, by Python's own parser of HTML."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "input", "line", "path", "link", "br", "img", "rect"}


@dataclass
class Element:
    """An element with its text, and what is inside it."""

    tag: str
    attributes: dict[str, str]
    inside: list[Element] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All text in it."""
        return "".join(self.pieces)


class Document(HTMLParser):
    """All elements of a page, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.unclosed: list[Element] = []
        self.raw = text
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Opens an element."""
        found = Element(tag, {name: value or "" for name, value in attrs})
        self.elements.append(found)
        for one in self.unclosed:
            one.inside.append(found)
        if tag not in VOID:
            self.unclosed.append(found)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element without inside."""
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.unclosed.pop()

    def handle_endtag(self, tag: str) -> None:
        """Closes an element; the page closes each that it opens."""
        assert self.unclosed, f"</{tag}> closes nothing"
        assert self.unclosed[-1].tag == tag, f"</{tag}> where <{self.unclosed[-1].tag}> is open"
        self.unclosed.pop()

    def handle_data(self, data: str) -> None:
        """Text."""
        for one in self.unclosed:
            one.pieces.append(data)

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """The elements of a tag with these attributes."""
        wanted = {name.strip("_"): value for name, value in attributes.items()}
        return [
            one
            for one in self.elements
            if one.tag == tag and all(one.attributes.get(name) == value for name, value in wanted.items())
        ]

    def one(self, tag: str, **attributes: str) -> Element:
        """The one element of a tag with these attributes."""
        (found,) = self.all(tag, **attributes)
        return found

    def table(self, id: str) -> list[dict[str, str]]:
        """The rows of a table by its headings."""
        found = self.one("table", id=id)
        heads, *rows = (
            [c.text for c in row.inside if c.tag in ("td", "th")] for row in found.inside if row.tag == "tr"
        )
        assert {len(row) for row in rows} <= {len(heads)}
        return [dict(zip((head.strip() for head in heads), row, strict=True)) for row in rows]

    def plots(self) -> dict[str, Any]:
        """What the script draws."""
        found: dict[str, Any] = json.loads(self.one("script", id="plots").text)
        return found
