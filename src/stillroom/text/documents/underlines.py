"""Headings of texts without other markup, by the rules below (and above) them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stillroom.records import Heading

__all__ = ["find_underlined_headings"]

_RULE = re.compile(r"([!-/:-@\[-`{-~])\1{2,}[ \t]*")
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
_ROLE = re.compile(r":[a-zA-Z:]+:`([^`<]+?)(?:\s*<[^`>]*>)?`|[`*]+")


def find_underlined_headings(text: str, *, longer: int | None = None) -> Iterator[Heading]:
    """Yield the titles with a rule of one punctuation mark below, at least as long as they are.

    Levels follow the order in which styles of rules first appear, as in docutils.

    Args:
        text: The text of a document.
        longer: Characters by which a rule may be longer than its title; None for any number.
    """
    lines = [(match.start(), match.group().rstrip()) for match in _LINE.finditer(text)]
    styles: list[str] = []
    used = -1
    for number in range(1, len(lines)):
        start, title = lines[number - 1]
        below = lines[number][1]
        if number - 1 <= used or not title.strip() or not _RULE.fullmatch(below):
            continue
        above = lines[number - 2][1] if number >= 2 else ""
        over = above == below and number - 2 > used
        if title[0].isspace() and not over:
            continue
        if (
            _RULE.fullmatch(title)
            or len(below) < len(title.strip())
            or (longer is not None and len(below) > len(title.strip()) + longer)
            or (above.strip() and not over)
        ):
            continue
        style = below[0] + ("^" if over else "")
        if style not in styles:
            styles.append(style)
        used = number
        name = " ".join(_ROLE.sub(r"\1", title).split())[:300]
        yield Heading(lines[number - 2][0] if over else start, styles.index(style) + 1, name)
