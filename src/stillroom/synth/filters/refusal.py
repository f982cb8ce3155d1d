"""Refusal: no refusal, apology or self-reference of the teacher.

Evol-Instruct checks with ``synth.prompting.conversation.is_refusal``. Own method: a list of
openings and self-descriptions, in the languages in which teachers refuse most. In user messages
only self-descriptions count: "please provide a list" is a task.
"""

from __future__ import annotations

import re
from typing import ClassVar

from typing_extensions import override

from stillroom.records import Record
from stillroom.synth.interfaces import Filter, FilterResult

__all__ = ["Refusal"]

_TEXT = r"(?:text|passage|statement|document|context|article|excerpt|source)"
_SELF = (
    r"(?:(?:ai|artificial intelligence)(?: (?:language )?(?:model|assistant|system|chatbot))?|"
    r"(?:large )?language model|chatbot|virtual assistant)"
    r"(?=-(?:powered|based|driven) (?:assistant|chatbot|system|model)\b|"
    r"\s*[^\w\s-]|\s+-|\s*$|\s+(?:i|my|it|and|but|so|that|who|which|with|without|trained|"
    r"developed|created|designed|made|built|based|programmed|here|from)\b)"
)
"""A model's names for itself, before what ends the phrase: an AI engineer is a person."""
_SELF_TALK = (
    rf"(?:(?:^|[^\w\s])[ \t]*|\b(?:i|but|and|because|since|that|speaking|my \w+) )as an? {_SELF}|"
    rf"\b(?:i|my)\b[^.!?\n]{{0,80}} as an? {_SELF}|"
    rf"\bi(?:(?:'|’)m| am) (?:just |only )?an? {_SELF}"
)
_MODEL = re.compile(
    rf"{_SELF_TALK}|\bhow (?:can|may) i (?:help|assist) you\b", re.IGNORECASE | re.MULTILINE
)
_REFUSAL = re.compile(
    r"\A\W*(?:i(?:'|’)?m (?:very |so )?sorry|i am (?:very |so )?sorry|my apologies|"
    r"sorry\b(?=\W*\Z|\W+(?:but|i|we|for|about|that|this|there|no|the|it|my|"
    r"you|not|unable|cannot|can(?:'|’)?t)\b)|"
    r"i (?:must |have to )?apologi[sz]e|(?:unfortunately|regrettably),? (?:i\b|this|that|it)|"
    r"i (?:can(?:'|’)?t|cannot|can not|could(?: not|n(?:'|’)?t)|won(?:'|’)?t|will not|"
    r"must decline|decline|have to decline|refuse)\b|"
    r"i(?:(?:'|’)m| am| was) (?:not (?:able|permitted|allowed|sure)|unable)\b|"
    r"i do(?:n(?:'|’)t| not) (?:have|know|feel comfortable)\b|"
    r"i have no (?:access|information|way)\b|"
    r"i(?:'|’)d rather not\b|it is (?:not possible|impossible) for me\b|"
    r"es tut mir leid|lo siento|je suis désolé|mi dispiace|desculpe|很抱歉|对不起|抱歉|申し訳)|"
    rf"{_SELF_TALK}|\b{_TEXT} (?:does not|doesn(?:'|’)t|fails to) "
    r"(?:provide|mention|contain|say|specify|state|give|tell)|"
    rf"\b{_TEXT} (?:says|gives|provides|contains) "
    r"(?:nothing|no (?:information|hint|answer|details?))\b|"
    r"\bthere is no (?:information|mention|answer|indication)\b[^.!?]{0,40}\b(?:in|from) the\b|"
    r"\b(?:not (?:mentioned|specified|stated|provided|given)|unclear) (?:in|from|by) the "
    rf"(?:given )?{_TEXT}\b|\bno answer can be (?:given|found)\b|"
    r"\bcannot be (?:determined|answered|inferred|fulfilled)(?=\s*[.!?,;]|\s*\Z|"
    r"\s+(?:from|based|by|with|without|using|given|because|since|as|here)\b)|"
    rf"\bnothing in the {_TEXT}\b|\b(?:against|violates?) my (?:guidelines|policy|principles)\b|"
    r"\b(?:please|could you) provide (?:more|the|a)\b[^.!?\n]*[.!?]*\s*"
    r"(?:\b(?:once|so|then|with|if|this|i|thanks?|you)\b[^\n]*)?\Z|"
    r"\bhow (?:can|may) i (?:help|assist)\b|\b(?:my|your) (?:training data|knowledge cutoff)\b",
    re.IGNORECASE | re.MULTILINE,
)


class Refusal(Filter):
    """Drop refusals, apologies and self-descriptions of a model."""

    paper: ClassVar[str] = ""

    @override
    def judge(self, record: Record) -> FilterResult:
        for message in record.messages:
            looked_for = _MODEL if message.role in {"user", "system"} else _REFUSAL
            if looked_for.search(message.content):
                return FilterResult(False, "refusal or talk of itself", 0.0)
        return FilterResult(True)
