"""Evidence: the words of a passage that an answer stands on, with their place in the document.

Knows sentences and shared words, no model. Offsets count in the document's text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stillroom.records import Passage, Record
from stillroom.synth.method import Context
from stillroom.synth.wording import collapse, content_stems, content_words
from stillroom.text.sentences import split_sentences

__all__ = ["Quote", "best_quote", "find_statements", "passage_of", "quote_of", "text_of"]

_MIN_WORDS, _MAX_WORDS = 7, 34
_MIN_CONTENT = 4
_OPENERS = frozenset(
    str.split(
        """this that these those it its they them their he she his her such here there also however
        thus therefore hence otherwise then similarly likewise conversely finally moreover
        furthermore additionally instead consequently nevertheless but and or so yet note see
        both neither either another others one some above below previously next first second
        third we i you if"""
    )
)
_ANAPHORA = re.compile(
    r"\b(see|sections?|for (?:more|details|example|instance|further)|"
    r"(?:described|shown|given|listed|discussed|defined|mentioned|noted|explained) "
    r"(?:above|below|earlier|later|here|in)|the following|as follows|following "
    r"(?:example|code|table|list)|in this (?:case|section|example|chapter|way)|(?:this|these|those|"
    r"the (?:above|former|latter|previous|preceding)) \w+|(?:above|below)[:.]$|changed in version|"
    r"new in version|deprecated since)\b",
    re.IGNORECASE,
)
_CODE = re.compile(r"::=|>>>|[{}|\\]|\.\.\.|…|==|;\s|\w+\(\w+=|\s=\s|https?://|\s\*\s")
_ENUMERATION = re.compile(r"(?:\d{1,3}|[a-zA-Z]|[ivxIVX]{1,5})[.)]\s|\w+:\s")
_PAIRS = (("(", ")"), ("[", "]"), ("“", "”"), ("«", "»"))


@dataclass(frozen=True, slots=True)
class Quote:
    """A piece of a passage; ``start`` and ``end`` count in the document."""

    passage_id: str
    start: int
    end: int
    text: str

    def to_json(self) -> dict[str, Any]:
        """Return the record's ``evidence`` field."""
        return {
            "passage_id": self.passage_id,
            "quote": self.text,
            "start": self.start,
            "end": self.end,
        }


def find_statements(passage: Passage) -> list[Quote]:
    """Return the sentences that say something by themselves, in order.

    Left out are fragments, code, headings, overlong sentences, and those that lean on another
    ("This ...", "as follows", "see section ..."). The signs of leaning are English; in other
    languages only form is looked at.
    """
    return [quote for quote in _sentences(passage) if _is_statement(quote.text)]


def best_quote(passage: Passage, answer: str) -> Quote:
    """Return the sentence of the passage that shares most content words with an answer.

    Of equals the shorter wins, then the earlier; without any sentence it is the whole passage.
    """
    wanted = set(content_stems(answer))

    def rank(quote: Quote) -> tuple[int, int, int]:
        return (-len(wanted.intersection(content_stems(quote.text))), len(quote.text), quote.start)

    whole = Quote(passage.id, passage.start, passage.end, passage.text)
    return min(_sentences(passage), key=rank, default=whole)


def _sentences(passage: Passage) -> list[Quote]:
    quotes = []
    for start, end in split_sentences(passage.text):
        text = passage.text[start:end]
        first = start + len(text) - len(text.lstrip())
        last = start + len(text.rstrip())
        if last > first:
            place = passage.start
            quotes.append(Quote(passage.id, place + first, place + last, passage.text[first:last]))
    return quotes


def _is_statement(text: str) -> bool:
    line = collapse(text)
    tokens = line.split()
    if _ENUMERATION.match(line):
        return False
    if not _MIN_WORDS <= len(tokens) <= _MAX_WORDS and line.isascii():
        return False
    if not line[0].isalnum() and line[0] not in "\"“‘'`«":
        return False
    return (
        line[-1] in ".!。．।"
        and not (line[0].isalpha() and line[0].islower())
        and tokens[0].strip(",.'’\"").casefold() not in _OPENERS
        and len(set(content_words(line))) >= _MIN_CONTENT
        and not _ANAPHORA.search(line)
        and not _CODE.search(line)
        and line.count('"') % 2 == 0
        and all(line.count(left) == line.count(right) for left, right in _PAIRS)
    )


def passage_of(record: Record, context: Context) -> Passage | None:
    """Return the passage that a record's evidence names, where the context holds it."""
    evidence = record.fields.get("evidence")
    if not isinstance(evidence, Mapping):
        return None
    return context.passages.get(str(evidence.get("passage_id", "")))


def quote_of(record: Record) -> str:
    """Return the words a record's answer stands on; empty where it names none."""
    evidence = record.fields.get("evidence")
    quote = evidence.get("quote") if isinstance(evidence, Mapping) else None
    return quote if isinstance(quote, str) else ""


def text_of(record: Record, name: str) -> str:
    """Return a field as text; empty where it is missing or something else."""
    value = record.fields.get(name)
    return value if isinstance(value, str) else ""
