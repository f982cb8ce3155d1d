"""How much of a document a reader found: words, tables, headings, reading order, from Markdown."""

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from stillroom.text import split_words

__all__ = ["Found", "Table", "read_markdown", "score"]

Table = list[list[str]]
_RULE = re.compile(r"\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?")
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()\s]*(?:\s+\"[^\"]*\")?\)")
_MARKS = re.compile(r"\*\*|__|(?<!\w)[*_]|[*_](?!\w)|`+|<[^<>]{0,200}>|\\(?=[^\w\s])")
_NGRAM = 4


@dataclass
class Found:
    """What is known of a document: its lines in order, headings and tables; None is not known."""

    lines: list[str] = field(default_factory=list)
    headings: list[tuple[int, str]] | None = None
    tables: list[Table] | None = None


def read_markdown(text: str) -> Found:
    """Take Markdown apart as far as it is scored."""
    found = Found(headings=[], tables=[])
    table: Table = []
    for line in [*text.split("\n"), ""]:
        if line.lstrip().startswith("|"):
            if not _RULE.fullmatch(line.strip()):
                cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
                table.append([plain(cell) for cell in cells])
                found.lines.append(" ".join(cell for cell in table[-1] if cell))
            continue
        if table:
            found.tables = [*(found.tables or []), table]
            table = []
        heading = re.match(r"\s{0,3}(#{1,6})\s+(.*?)#*\s*$", line)
        if heading:
            found.headings = [
                *(found.headings or []),
                (len(heading.group(1)), plain(heading.group(2))),
            ]
        found.lines.append(plain(heading.group(2) if heading else line))
    return found


def plain(text: str) -> str:
    """Return the words of a piece of Markdown."""
    return " ".join(_MARKS.sub("", _LINK.sub(r"\1", text)).split())


def f1(found: Counter, wanted: Counter) -> float:
    """Return the F1 of two bags; two empty ones agree."""
    if not found and not wanted:
        return 1.0
    same = sum((found & wanted).values())
    total = sum(found.values()) + sum(wanted.values())
    return 2 * same / total


def score(reference: Found, text: str) -> dict[str, float]:
    """Return the measures of a reader's Markdown, each from 0 to 1; only those that apply.

    ``text``: F1 of the bag of words. ``order``: the longest run of the reference's lines that the
    reader gives in their order, over all of them (a missing line is out of order). ``cells``: F1 of
    neighboring cells, across and down, blank ones left out (ICDAR 2013's relation). ``headings``:
    F1 of (level, title); ``titles`` without the level.
    """
    found = read_markdown(text)
    scores = {
        "text": f1(bag(found.lines), bag(reference.lines)),
        "order": order(reference.lines, found.lines),
    }
    if reference.tables:
        scores["cells"] = f1(relations(found.tables or []), relations(reference.tables))
    if reference.headings:
        wanted = [(level, " ".join(split_words(title))) for level, title in reference.headings]
        given = [(level, " ".join(split_words(title))) for level, title in found.headings or []]
        scores["headings"] = f1(Counter(given), Counter(wanted))
        scores["titles"] = f1(Counter(t for _, t in given), Counter(t for _, t in wanted))
    return scores


def bag(lines: Iterable[str]) -> Counter:
    """Return the words of lines, counted."""
    return Counter(word for line in lines for word in split_words(line))


def relations(tables: Sequence[Table]) -> Counter:
    """Return the pairs of neighboring cells that are not blank, with their direction."""
    pairs: Counter = Counter()
    for table in tables:
        rows = [["".join(split_words(cell)) or cell.strip() for cell in row] for row in table]
        width = max(map(len, rows), default=0)
        filled = [row + [""] * (width - len(row)) for row in rows]
        for way, lines in (("across", filled), ("down", list(zip(*filled, strict=True)))):
            for line in lines:
                cells = [cell for cell in line if cell]
                pairs.update((way, a, b) for a, b in pairwise(cells))
    return pairs


def order(wanted: Sequence[str], found: Sequence[str]) -> float:
    """Return how many of the reference's lines come in its order, over all that can be told."""
    sequence = [word for line in found for word in split_words(line)]
    where: dict[tuple[str, ...], list[int]] = {}
    for at in range(len(sequence) - _NGRAM + 1):
        where.setdefault(tuple(sequence[at : at + _NGRAM]), []).append(at)
    starts = [tuple(split_words(line)[:_NGRAM]) for line in wanted]
    counts = Counter(starts)
    told = [start for start in starts if len(start) == _NGRAM and counts[start] == 1]
    if not told:
        return 1.0
    tails: list[int] = []
    for start in told:
        places = where.get(start)
        if not places:
            continue
        at = bisect_left(tails, places[0])
        tails[at : at + 1] = [places[0]]
    return len(tails) / len(told)
