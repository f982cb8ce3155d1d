"""Headings that a line of signs underlines, as in reStructuredText and many a plain README.

Levels follow the order in which styles of underline (and overline) first appear, as in docutils.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stillroom.records import Heading

__all__ = ["find_underlined_headings"]

_RULE = re.compile(r"([!-/:-@\[-`{-~])\1{2,}[ \t]*")
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
_ROLE = re.compile(r":[a-zA-Z:]+:`([^`<]+?)(?:\s*<[^`>]*>)?`|[`*]+")
_SENTENCE_ENDS = (".", ",", ";")
_SLACK = 2  # characters by which a plain text's underline may miss the length of its title


def find_underlined_headings(text: str, *, is_plain: bool = False) -> Iterator[Heading]:
    """Yield the headings of a text in order.

    ``is_plain`` is whether the text may be something else than reStructuredText, such as a table:
    then an underline must be about as long as its title, which is no sentence.
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
            or (above.strip() and not over)
            or (is_plain and not over and len(below) > len(title) + _SLACK)
            or (is_plain and title.rstrip().endswith(_SENTENCE_ENDS))
        ):
            continue
        style = below[0] + ("^" if over else "")
        if style not in styles:
            styles.append(style)
        used = number
        name = " ".join(_ROLE.sub(r"\1", title).split())[:300]
        yield Heading(lines[number - 2][0] if over else start, styles.index(style) + 1, name)
