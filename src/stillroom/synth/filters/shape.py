"""Shape: a record has text, ends with the assistant, and shows no trace of prompt or template.

Own method; the traces looked for are control tokens, role headers, and the labels of our prompts.
"""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Record
from stillroom.synth.method import Filter, Verdict

__all__ = ["Shape"]

_LEAK = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|</?text>|\[/?INST\]|<(?:start|end)_of_turn>|<think>|"
    r"^\s*(?:system|user|assistant|statement|topic|text)\s*:|#\w+ Prompt#|"
    r"\bas JSON\b|\bthis statement answers\b|[\"']answer[\"']\s*:",
    re.IGNORECASE | re.MULTILINE,
)
_WORD = re.compile(r"\w")


class Shape(Filter):
    """Drops empty, unfinished, overlong and leaking records."""

    paper: ClassVar[str] = ""
    judges_passages: ClassVar[bool] = True

    min_characters: int = Field(8, ge=1, description="shortest message, in characters")
    max_characters: int = Field(20_000, ge=1, description="longest message, in characters")

    @override
    def judge(self, record: Record) -> Verdict:
        texts = [message.content for message in record.messages]
        if not texts or record.messages[-1].role != "assistant":
            return Verdict(False, "does not end with the assistant", 0.0)
        shortest = min(len(text.strip()) for text in texts)
        if shortest < self.min_characters or not all(_WORD.search(text) for text in texts):
            return Verdict(False, "empty or too short", float(shortest))
        if (longest := max(map(len, texts))) > self.max_characters:
            return Verdict(False, "too long", float(longest))
        if "\ufffd" in "".join(texts):
            return Verdict(False, "holds broken characters", 0.0)
        is_passage = len(texts) == 1 and "question" not in record.fields
        if not is_passage and any(_LEAK.search(text) for text in texts):
            return Verdict(False, "leaks a prompt or template", 0.0)
        return Verdict(True)
