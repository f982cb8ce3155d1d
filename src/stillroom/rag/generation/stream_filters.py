"""Filters of a stream of generated text: echoes of the prompt, and its continuation.

``PromptEchoStripper`` removes the question, the request and labels like "Answer:" from the start
of a stream. ``PromptLeakFilter`` removes passage fences, and ends the answer where the model
continues the prompt: after a closing fence, or with a question of its own. The output does not
depend on how the stream was split. Only the English words of the prompt are recognized.
"""

from __future__ import annotations

import re

__all__ = ["PromptEchoStripper", "PromptLeakFilter"]

_ECHOED_LABELS = (
    *("question:", "answer:", "q:", "a:"),
    *("the answer is:", "the answer to the question is:", "the answer to this question is:"),
)
_SPACE = re.compile(r"\s+")
_HEADING_MARKS = ("## ", "### ", "#### ")
_QUESTION_LABELS = (
    *(
        f"{mark}{word}{end}"
        for mark in ("", "**", *_HEADING_MARKS)
        for word in ("Question", "QUESTION", "Q")
        for end in (":", "**:")
    ),
    *(f"{mark}Question\n" for mark in _HEADING_MARKS),
)
_FENCE_MARK = re.compile(r"<(/?)passage-[0-9a-f]{1,8}>")
_PARTIAL_FENCE_MARK = re.compile(
    r"<(?:/?(?:p(?:a(?:s(?:s(?:a(?:g(?:e(?:-[0-9a-f]{0,8})?)?)?)?)?)?)?)?)?"
)
_SENTENCE_END = re.compile(r"(?:[.!?。！？…][\"'”’)*]*|\])[ \t]+\Z|\n[ \t]*\Z")
_HELD_CHARACTERS = 64


class PromptLeakFilter:
    """Removes passage fences from a stream, and ends it where the model continues the prompt."""

    def __init__(self) -> None:
        self._pending = ""
        self._emitted = ""
        self._is_over = False

    def feed(self, text: str) -> str:
        """Return the text that is final after more input; empty once the answer is over."""
        output = ""
        for character in text:
            if self._is_over:
                break
            self._pending += character
            output += self._resolve_pending()
        return output

    def finish(self) -> str:
        """Return the pending text, except an incomplete fence."""
        held, self._pending = self._pending, ""
        return "" if self._is_over or held.startswith(("<passage", "</passage")) else held

    def _resolve_pending(self) -> str:
        """Return the pending text unless it is, or may become, a part of the prompt."""
        held = self._pending
        mark = _FENCE_MARK.fullmatch(held)
        if mark is not None:
            self._pending = ""
            self._is_over = bool(mark[1]) and bool(self._emitted.strip())
            return ""
        if held in _QUESTION_LABELS:
            self._pending, self._is_over = "", True
            return ""
        if _PARTIAL_FENCE_MARK.fullmatch(held) or (
            any(label.startswith(held) for label in _QUESTION_LABELS) and self._may_start_question()
        ):
            return ""
        # Only the last character may begin another fence or label.
        self._pending = ""
        if len(held) > 1 and held[-1] in "<Q*#":
            return self._emit(held[:-1]) + self.feed(held[-1])
        return self._emit(held)

    def _may_start_question(self) -> bool:
        """Return whether a question would begin a line or a sentence, after some text."""
        return bool(_SENTENCE_END.search(self._emitted)) and bool(self._emitted.strip())

    def _emit(self, text: str) -> str:
        self._emitted = (self._emitted + text)[-_HELD_CHARACTERS:]
        return text


class PromptEchoStripper:
    """Buffers the beginning of an answer until it is no echo of the prompt."""

    def __init__(self, question: str, request: str = "") -> None:
        self._question = _normalize_text(question)
        self._labels = (*_ECHOED_LABELS, *([request.casefold()] if request else []))
        self._pending = ""
        self._is_open = True

    def feed(self, text: str) -> str:
        """Return the text that is final after more input."""
        if not self._is_open:
            return text
        self._pending += text
        while self._is_open:
            remainder = self._strip_echo()
            if remainder is None:
                return ""
            if remainder == self._pending:
                self._is_open = False
            self._pending = remainder
        held, self._pending = self._pending, ""
        return held

    def finish(self) -> str:
        """Return the pending text, except labels without anything after them."""
        held, self._pending, self._is_open = self._pending, "", False
        return "" if _normalize_text(held) in self._labels else held

    def _strip_echo(self) -> str | None:
        """Return the pending text without one leading echo, or None to wait for more."""
        held = self._pending.lstrip()
        plain = held.casefold()
        if not plain:
            return None
        for label in self._labels:
            if plain.startswith(label):
                return self._after_label(held[len(label) :].lstrip(), label)
            if label.startswith(plain):
                return None
        return self._after_question(held)

    def _after_label(self, remainder: str, label: str) -> str | None:
        """Return the text after a label; for "Question:", only if the question follows."""
        if label[0] != "q":
            return remainder or None
        after = self._after_question(remainder)
        return self._pending if after == remainder and remainder else after

    def _after_question(self, text: str) -> str | None:
        """Return the text after the leading question; the text itself if it does not match."""
        plain = _normalize_text(text)
        if len(plain) < len(self._question) and self._question.startswith(plain):
            return None  # most pieces of a long echo
        known, is_after_space = 0, False
        for i, character in enumerate(text):
            if known == len(self._question):
                return text[i:].lstrip() or None if character.isspace() else text
            if character.isspace():
                is_after_space = True
                continue
            plain = (" " if is_after_space and known else "") + character.casefold()
            if not self._question.startswith(plain, known):
                return text
            known, is_after_space = known + len(plain), False
        return None


def _normalize_text(text: str) -> str:
    return _SPACE.sub(" ", text).strip().casefold()
