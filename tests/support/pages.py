"""Read an HTML page with the standard library: a tree, and an error where tags do not match; and its cases."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

VOID = {"meta", "link", "img", "source", "input", "br", "hr"}


@dataclass
class Element:
    """A tag with its attributes and children (elements and texts)."""

    tag: str
    attributes: dict[str, str]
    children: list["Element | str"] = field(default_factory=list)

    def all(self, tag: str = "", **attributes: str) -> list["Element"]:
        """Descendants with this tag, of the class `class_` and with these attributes."""
        return [e for e in self._walk() if e.tag == (tag or e.tag) and e.fits(**attributes)]

    def fits(self, class_: str = "", **attributes: str) -> bool:
        """Whether the element has the class and the attributes."""
        classes = self.attributes.get("class", "").split()
        return (not class_ or class_ in classes) and all(self.attributes.get(k) == v for k, v in attributes.items())

    def _walk(self) -> Iterator["Element"]:
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child._walk()

    @property
    def text(self) -> str:
        """All text, white space collapsed."""
        parts = [c if isinstance(c, str) else f" {c.text} " if c.tag not in INLINE else c.text for c in self.children]
        return " ".join("".join(parts).split())


INLINE = {"b", "span", "wbr", "i", "a"}


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if len({name for name, _ in attrs}) != len(attrs):
            raise AssertionError(f"<{tag}> has an attribute twice: {attrs}")
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(element)
        if tag not in VOID and tag != "wbr":
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if self.open[-1].tag != tag:
            raise AssertionError(f"line {self.getpos()[0]}: </{tag}> closes <{self.open[-1].tag}>")
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def cases_of(report: Path) -> dict[str, Any]:
    """The plain data of the gallery, from `assets/cases.js`."""
    text = (report / "assets" / "cases.js").read_text(encoding="ascii")
    found = re.fullmatch(r"window\.heatproofCases = (.*);\n", text)
    assert found is not None
    content: dict[str, Any] = json.loads(found[1])
    return content


def parse(page: str) -> Element:
    """The page as a tree; AssertionError where a tag is not closed, or closed by another."""
    builder = _Builder()
    builder.feed(page)
    builder.close()
    if len(builder.open) != 1:
        raise AssertionError(f"never closed: {[element.tag for element in builder.open[1:]]}")
    return builder.root
