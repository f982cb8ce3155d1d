"""Injection: text that gives orders to a model instead of informing a reader.

Source: Greshake et al. 2023, arXiv:2302.12173 (orders hidden in documents). Differs: a list of
orders, not a model; it catches the plain ones, and prompts treat every document as data anyway. Of
what a user asks for, and no document bears out, only orders against orders count: "respond only
with the number" is a task.
"""

from __future__ import annotations

import re
from typing import ClassVar

from typing_extensions import override

from stillroom.records import Record
from stillroom.synth.method import Filter, Verdict
from stillroom.text.normalize import count_invisible, strip_invisible

__all__ = ["Injection"]

_AGAINST = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass|drop|set aside)\b[^.!?\n]{0,30}"
    r"\b(?:previous|prior|above|earlier|your|system)\b[^.!?\n]{0,20}"
    r"\b(?:instructions?|prompts?|rules|guidelines|messages?|directions|orders?|training)\b|"
    r"\b(?:reveal|print|repeat|show|output|leak)\b[^.!?\n]{0,30}\b(?:system|hidden|secret) "
    r"(?:prompt|instructions?|message)\b|\bdo anything now\b|\bjailbreak",
    re.IGNORECASE,
)
_ORDER = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass)\b[^.!?\n]{0,40}"
    r"\b(?:previous|prior|above|earlier|all|any|your|system|other|the)\b[^.!?\n]{0,30}"
    r"\b(?:instructions?|prompts?|rules|guidelines|messages?|directions|context|training)\b|"
    r"\b(?:drop|set aside|abandon|discard)\b[^.!?\n]{0,30}\b(?:previous|prior|earlier|your|all|"
    r"every|any)\b[^.!?\n]{0,20}\b(?:orders?|instructions?|rules|guidelines|directions)\b|"
    r"\b(?:the model|the assistant|you) (?:has|have) no (?:limits|restrictions|rules)\b|"
    r"\byou (?:are|must|will) now (?:act|be|behave|respond|answer|pretend|obey)\b|"
    r"\b(?:pretend|act) (?:to be|as if you|as an? (?:unrestricted|evil))\b|"
    r"\b(?:reveal|print|repeat|show|output|leak)\b[^.!?\n]{0,30}\b(?:system|hidden|secret) "
    r"(?:prompt|instructions?|message)\b|\bdo anything now\b|\bjailbreak|"
    r"\b(?:ai|assistant|llm|language model|chatbot)s?(?:[,:] ?| (?:must|should|shall|please) )"
    r"(?:reply|respond|answer|say|output|ignore)\b|\bnew (?:system )?instructions?\s*:|"
    r"\brespond only with\b|\bsystem prompt\b",
    re.IGNORECASE,
)


class Injection(Filter):
    """Drops records and passages that order a model about, or hide characters."""

    paper: ClassVar[str] = "arXiv:2302.12173"
    judges_passages: ClassVar[bool] = True

    @override
    def judge(self, record: Record) -> Verdict:
        is_about = "evidence" in record.fields
        for message in record.messages:
            is_task = message.role in {"user", "system"} and not is_about
            looked_for = _AGAINST if is_task else _ORDER
            if looked_for.search(strip_invisible(message.content)):
                return Verdict(False, "gives orders to a model", 0.0)
            if "question" in record.fields and count_invisible(message.content):
                return Verdict(False, "hides characters", 0.0)
        return Verdict(True)
