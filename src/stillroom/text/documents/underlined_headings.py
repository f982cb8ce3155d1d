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
_OVERLINES = frozenset("=*#~_^")  # of plain texts: lines of others are the fences of AsciiDoc
_TITLE = re.compile(r"""\s*[\w"'`(\[§]""")
_GAP = re.compile(r"\S\s{2,}(?=\S)")
_SLACK = 2  # characters by which a plain text's underline may miss the length of its title


def find_underlined_headings(text: str, *, is_plain: bool = False) -> Iterator[Heading]:
    """Yield the headings of a text in order.

    ``is_plain`` is whether the text may be something else than reStructuredText, such as a table:
    then an underline must be about as long as its title, which is no sentence, nor the first line
    of columns, nor what a fence of AsciiDoc ends.
    """
    lines = [(match.start(), match.group().rstrip()) for match in _LINE.finditer(text)]
    styles: list[str] = []
    fence, used = "", -1
    for number in range(1, len(lines)):
        start, title = lines[number - 1]
        below = lines[number][1]
        if number - 1 <= used or not _RULE.fullmatch(below):
            continue
        above = lines[number - 2][1] if number >= 2 else ""
        over = above == below and number - 2 > used
        if (
            not title.strip()
            or (title[0].isspace() and not over)
            or _RULE.fullmatch(title)
            or len(below) < len(title.strip())
            or (above.strip() and not over)
            or (is_plain and below == fence and not over)
            or (is_plain and not _is_plain_heading(title, below, over))
        ):
            fence = "" if below == fence else below
            continue
        style = below[0] + ("^" if over else "")
        if style not in styles:
            styles.append(style)
        used, fence = number, ("" if over else fence)
        name = " ".join(_ROLE.sub(r"\1", title).split())[:300]
        yield Heading(lines[number - 2][0] if over else start, styles.index(style) + 1, name)


def _is_plain_heading(title: str, below: str, over: bool) -> bool:
    is_fit = below[0] in _OVERLINES if over else len(below) <= len(title) + _SLACK
    is_title = bool(_TITLE.match(title)) and not title.rstrip().endswith(_SENTENCE_ENDS)
    return is_fit and is_title and len(_GAP.findall(title)) < 2
