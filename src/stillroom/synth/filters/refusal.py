"""Refusal: the teacher declined, apologized or talked about itself.

Own method: a list of openings and self-descriptions, in the languages teachers refuse in most.
"""

from __future__ import annotations

import re
from typing import ClassVar

from typing_extensions import override

from stillroom.records import Record
from stillroom.synth.method import Filter, Verdict

__all__ = ["Refusal"]

_REFUSAL = re.compile(
    r"^\W*(?:i(?:'|’)?m sorry|i am sorry|sorry,|i apologi[sz]e|unfortunately,? i\b|"
    r"i (?:can(?:'|’)?t|cannot|can not|am (?:not able|unable))\b|"
    r"i do(?:n(?:'|’)t| not) (?:have|know)\b|"
    r"es tut mir leid|lo siento|je suis désolé|mi dispiace|desculpe|很抱歉|对不起|抱歉|申し訳)|"
    r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b|"
    r"\bi(?:'|’)?m (?:just )?an? (?:ai|language model)\b|\bi am an? (?:ai|language model)\b|"
    r"\b(?:text|passage|statement|document|context) (?:does not|doesn(?:'|’)t) "
    r"(?:provide|mention|contain|say|specify|state)|"
    r"\bnot (?:mentioned|specified|stated|provided) in the (?:text|passage|statement|document)|"
    r"\b(?:please|could you) provide (?:more|the|a)\b|"
    r"\bhow (?:can|may) i (?:help|assist)\b|\b(?:my|your) (?:training data|knowledge cutoff)\b",
    re.IGNORECASE,
)


class Refusal(Filter):
    """Drops refusals, apologies and talk of being a model."""

    paper: ClassVar[str] = ""

    @override
    def judge(self, record: Record) -> Verdict:
        if any(_REFUSAL.search(message.content) for message in record.messages):
            return Verdict(False, "refusal or talk of itself", 0.0)
        return Verdict(True)
