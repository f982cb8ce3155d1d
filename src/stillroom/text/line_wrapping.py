"""Hard-wrapped prose: soft line breaks, which a program put in, are found and shown as spaces.

Own method: a break is soft where the next word did not fit into the line. Verse, code, tables,
lists and addresses keep their breaks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

__all__ = ["find_soft_breaks", "unwrap_lines"]

_MIN_WIDTH = 40  # characters: a text of shorter lines is not wrapped
_MAX_WORD = 8  # characters with the space, on average; commands and paths have longer words
_CONTINUES = re.compile(r"\s{0,12}(?!\(?(?:\d{1,3}|[a-z]|[ivx]+)[.)]\s)[\w\"'(“‘«`]")
_ENDS_A_LINE = re.compile(r"(?:[{}:;=(\\|-]|^)\s*$")
_NO_PROSE = re.compile(r"\t|\||[={}<>]|&&|[^\s.!?] {2,}\S|^\s*[\w-]+:\s|\w\([^)]*\)\s*$")
_BREAK = re.compile(r"[^\S\n]*\n\s*")


def find_soft_breaks(text: str) -> list[int]:
    """Return the positions of the line feeds that wrap prose; the text may start within a line."""
    return [
        place
        for number, paragraph in enumerate(_split_paragraphs(text))
        if _is_wrapped([line for _, line in paragraph], starts_within=number == 0)
        for place, _ in paragraph[1:]
    ]


def unwrap_lines(text: str) -> str:
    """Return a text with a space for each soft line break and the white space beside it."""
    soft = set(find_soft_breaks(text))
    return _BREAK.sub(
        lambda match: " " if match.start() + match[0].index("\n") in soft else match[0], text
    )


def _split_paragraphs(text: str) -> Iterator[list[tuple[int, str]]]:
    """Yield runs of lines that may go on, each with the position of the line feed before it."""
    lines, place = list[tuple[int, str]](), -1
    for line in text.split("\n"):
        lines.append((place, line))
        place += len(line) + 1
    run = lines[:1]
    for (_, line), (place, after) in pairwise(lines):
        if not _CONTINUES.match(after) or _ENDS_A_LINE.search(line):
            yield run
            run = []
        run.append((place, after))
    yield run


def _is_wrapped(lines: list[str], *, starts_within: bool) -> bool:
    width = max(len(line.rstrip()) for line in lines)
    words = [line.split()[0] for line in lines[1:]]
    if width < _MIN_WIDTH or not any(word[0].islower() for word in words):
        return False
    skipped = int(starts_within and words[0][0].islower())
    overfull = (
        len(line.rstrip()) + 1 + len(word) > width
        for line, word in zip(lines[skipped:], words[skipped:], strict=False)
    )
    count = len(" ".join(lines).split())
    is_prose = sum(map(len, lines)) <= _MAX_WORD * count and not any(map(_NO_PROSE.search, lines))
    return is_prose and all(overfull)
