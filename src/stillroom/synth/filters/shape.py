"""Shape: non-empty messages, a final assistant turn, and no prompt or template leakage.

Own method; it detects control tokens, and outside of code role headers and tags. A closed
``<think>`` block that opens an answer is its reasoning, not a leak. The labels of Stillroom's
prompts about passages are detected only in records about passages: elsewhere a task may well
contain ``Text:``, and an answer be JSON.
"""

from __future__ import annotations

import re
from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Message, Record
from stillroom.synth.interfaces import Filter, FilterResult

__all__ = ["Shape"]

_CONTROL = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|\[/?INST\]|<(?:start|end)_of_turn>|#\w+ Prompt#", re.IGNORECASE
)
"""Tokens that a tokenizer may take for its own, in code too."""
_LEAK = re.compile(
    r"</?text>|<think>|^[ \t]{0,3}(?:system|user|assistant)[ \t]*:", re.IGNORECASE | re.MULTILINE
)
_NO_LEAK = re.compile(
    r"^[ \t]*(```+|~~~+)[^\n]*\n.*?^[ \t]*\1|`[^`\n]+`|<text\s[^<>]*>[^<>]*</text>",
    re.DOTALL | re.MULTILINE | re.IGNORECASE,
)
"""Code and a label of SVG."""
_REASONING = re.compile(
    r"\A\s*<think>(?:(?!<think>).)*?</think>(?=\s*\S)", re.DOTALL | re.IGNORECASE
)
_LABELS = re.compile(
    r"^\s*(?:statement|topic|text)\s*:|\bas JSON\b|\bthis statement answers\b|[\"']answer[\"']\s*:",
    re.IGNORECASE | re.MULTILINE,
)
_WORD = re.compile(r"\w")


class Shape(Filter):
    """Drop empty, unfinished, overlong and leaking records."""

    paper: ClassVar[str] = ""
    accepts_passages: ClassVar[bool] = True

    min_characters: int = Field(
        8, ge=1, description="minimum length of a question or plain text, in characters"
    )
    min_answer: int = Field(
        1, ge=1, description="minimum length of an answer, in characters: labels are short"
    )
    max_characters: int = Field(
        20_000, ge=1, description="maximum length of a message, in characters"
    )

    @override
    def judge(self, record: Record) -> FilterResult:
        texts = [message.content for message in record.messages]
        if not texts or record.messages[-1].role != "assistant":
            return FilterResult(False, "does not end with the assistant", 0.0)
        for index, text in enumerate(texts):
            is_answer = index > 0 and record.messages[index].role in {"assistant", "tool"}
            least = self.min_answer if is_answer else self.min_characters
            if len(text.strip()) < least or not _WORD.search(text):
                return FilterResult(False, "empty or too short", float(len(text.strip())))
        if (longest := max(map(len, texts))) > self.max_characters:
            return FilterResult(False, "too long", float(longest))
        if "\ufffd" in "".join(texts):
            return FilterResult(False, "holds broken characters", 0.0)
        is_generated = (
            len(texts) > 1 or record.origin.kind == "synthetic" or "question" in record.fields
        )
        if is_generated and any(map(_is_leak, record.messages)):
            return FilterResult(False, "leaks a prompt or template", 0.0)
        has_evidence = len(texts) > 1 and "evidence" in record.fields
        if has_evidence and any(_LABELS.search(text) for text in texts):
            return FilterResult(False, "leaks a prompt or template", 0.0)
        return FilterResult(True)


def _is_leak(message: Message) -> bool:
    text = message.content
    if message.role == "assistant":
        text = _REASONING.sub(" -", text)
    return bool(_CONTROL.search(message.content) or _LEAK.search(_NO_LEAK.sub(" -", text)))
