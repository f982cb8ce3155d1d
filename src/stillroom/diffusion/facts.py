"""Facts that records tell in the form of a template: found, turned round, and looked for elsewhere.

A fact that was told both ways says nothing of who can turn it round; nor does one whose turned
sentence stands within a longer text. Knows no model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stillroom.errors import RecipeError
from stillroom.records import Record

__all__ = ["Fact", "count_together", "find_facts", "locate_name"]


@dataclass(frozen=True, slots=True)
class Fact:
    """A sentence that was told, and where its two names stand in it, as characters."""

    text: str
    first: tuple[int, int]
    second: tuple[int, int]

    @property
    def names(self) -> tuple[str, str]:
        """The names in order."""
        return self.text[slice(*self.first)], self.text[slice(*self.second)]


def find_facts(records: Sequence[Record], template: str) -> tuple[list[Fact], list[Fact], int]:
    """Return facts told one way, the same turned round, and how many were told both ways.

    What was told both ways is in neither list: what is turned round stands in no text of any
    record, be it as a part of one.

    Args:
        records: What was learned.
        template: A sentence with ``{a}`` and ``{b}``, as "{a} is {b} .".

    Raises:
        RecipeError: If the template does not hold both names once, or no record fits it.
    """
    parts = re.split(r"(\{a\}|\{b\})", template)
    names = [part for part in parts if part in ("{a}", "{b}")]
    if names != ["{a}", "{b}"]:
        raise _no_facts(f"the template {template!r} does not hold {{a}} and then {{b}}, once each")
    before, between, behind = parts[0], parts[2], parts[4]
    pattern = re.compile(f"{re.escape(before)}(.+?){re.escape(between)}(.+?){re.escape(behind)}")
    texts = {message.content for record in records for message in record.messages[-1:]}
    every = "\0".join(_texts_of(records))
    told, turned, both = [], [], 0
    for text in sorted(texts):
        match = pattern.fullmatch(text)
        if match is None:
            continue
        reverse = f"{before}{match[2]}{between}{match[1]}{behind}"
        if _says(every, reverse):
            both += 1
            continue
        told.append(Fact(text, match.span(1), match.span(2)))
        back = pattern.fullmatch(reverse)
        start = len(before)
        middle = start + len(match[2])
        end = middle + len(between) + len(match[1])
        if back is not None:
            turned.append(Fact(reverse, (start, middle), (middle + len(between), end)))
    if not told:
        raise _no_facts(f"no record reads as {template!r} and is told one way only")
    return told, turned, both


def _texts_of(records: Sequence[Record]) -> list[str]:
    return [message.content for record in records for message in record.messages]


def count_together(facts: Sequence[Fact], records: Sequence[Record]) -> int:
    """Return of how many facts the names also stand together in another text that was learned.

    Such a text may have told the fact in other words.
    """
    texts = _texts_of(records)
    found = 0
    for fact in facts:
        found += any(
            text != fact.text and all(_says(text, name) for name in fact.names) for text in texts
        )
    return found


def _says(text: str, words: str) -> bool:
    """Return whether a text holds words whole, not as a part of longer ones."""
    return words in text and bool(re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text))


def locate_name(tokenizer: Any, fact: Fact, slot: str) -> tuple[list[int], int, int]:
    """Return a fact's tokens, and the first and last + 1 of those that make up one of its names.

    Args:
        tokenizer: A fast one.
        fact: The sentence.
        slot: ``first`` or ``second``.
    """
    encoded = tokenizer(fact.text, return_offsets_mapping=True)
    first, last = getattr(fact, slot)
    inside = [
        at
        for at, (start, stop) in enumerate(encoded["offset_mapping"])
        if stop > start and start < last and stop > first
    ]
    return list(encoded["input_ids"]), inside[0], inside[-1] + 1


def _no_facts(what: str) -> RecipeError:
    return RecipeError(
        what,
        code="diffusion.no-facts",
        where="--facts",
        expected="a sentence that records read as word for word, as '{a} is {b} .'",
        next="look at the records, or leave --facts out",
    )
