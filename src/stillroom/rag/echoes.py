"""What a small model says around its answer: the prompt's own words, again or going on with it.

``EchoFilter`` takes the question, the request and the word Answer out of the beginning of a stream,
so that an answer begins with what it says. ``PromptFilter`` takes out the marks that fence a
passage, and ends the answer where the model goes on with the prompt: behind a closing mark, or with
a question of its own. What comes out never depends on how the stream was cut. Knows the English
words of the prompt only.
"""

from __future__ import annotations

import re

__all__ = ["NEXT_QUESTION", "EchoFilter", "PromptFilter"]

_LABELS = ("question:", "answer:", "q:", "a:")
_SPACE = re.compile(r"\s+")
NEXT_QUESTION = "\nQuestion:"
"""Where a model that goes on with the prompt is stopped."""
_LABEL = "Question:"
_MARK = re.compile(r"<(/?)passage-[0-9a-f]{1,8}>")
_MARK_BEGUN = re.compile(r"<(?:/?(?:p(?:a(?:s(?:s(?:a(?:g(?:e(?:-[0-9a-f]{0,8})?)?)?)?)?)?)?)?)?")
_SENTENCE_END = re.compile(r"(?:[.!?。！？…][\"'”’)*]*|\])[ \t]+\Z|\n[ \t]*\Z")
_BEFORE = 64


class PromptFilter:
    """Takes marks of passages out of a stream, and ends it where the prompt goes on."""

    def __init__(self) -> None:
        """Begin."""
        self._held = ""
        self._given = ""
        self._is_over = False

    def feed(self, text: str) -> str:
        """Return what is certain after some more text; nothing once the answer is over."""
        given = ""
        for character in text:
            if self._is_over:
                break
            self._held += character
            given += self._settle()
        return given

    def finish(self) -> str:
        """Return what was held back, but for a mark that broke off."""
        held, self._held = self._held, ""
        return "" if self._is_over or held.startswith(("<passage", "</passage")) else held

    def _settle(self) -> str:
        """Return the held text unless it may be, or is, the beginning of the prompt's own."""
        held = self._held
        mark = _MARK.fullmatch(held)
        if mark is not None:
            self._held = ""
            self._is_over = bool(mark[1]) and bool(self._given.strip())
            return ""
        if held == _LABEL:
            self._held, self._is_over = "", True
            return ""
        if _MARK_BEGUN.fullmatch(held) or (_LABEL.startswith(held) and self._may_ask()):
            return ""
        # The last character may begin another mark; those before it begin none.
        self._held = ""
        if len(held) > 1 and held[-1] in "<Q":
            return self._give(held[:-1]) + self.feed(held[-1])
        return self._give(held)

    def _may_ask(self) -> bool:
        """Return whether a question would begin a line or a sentence, behind some text."""
        return bool(_SENTENCE_END.search(self._given)) and bool(self._given.strip())

    def _give(self, text: str) -> str:
        self._given = (self._given + text)[-_BEFORE:]
        return text


class EchoFilter:
    """Holds back the beginning of an answer until it is no echo of the prompt."""

    def __init__(self, question: str, request: str = "") -> None:
        """Know what was asked, and how an answer was requested."""
        self._asked = _plain(question)
        self._labels = (*_LABELS, *([request.casefold()] if request else []))
        self._held = ""
        self._is_open = True

    def feed(self, text: str) -> str:
        """Return what is certain after some more text."""
        if not self._is_open:
            return text
        self._held += text
        while self._is_open:
            rest = self._drop_one()
            if rest is None:
                return ""
            if rest == self._held:
                self._is_open = False
            self._held = rest
        held, self._held = self._held, ""
        return held

    def finish(self) -> str:
        """Return what was held back, but for labels that nothing follows."""
        held, self._held, self._is_open = self._held, "", False
        return "" if _plain(held) in self._labels else held

    def _drop_one(self) -> str | None:
        """Return what is held without the echo it begins with, as it is, or None to wait."""
        held = self._held.lstrip()
        plain = held.casefold()
        if not plain:
            return None
        for label in self._labels:
            if plain.startswith(label):
                return self._after_label(held[len(label) :].lstrip(), label)
            if label.startswith(plain):
                return None
        return self._after_question(held)

    def _after_label(self, rest: str, label: str) -> str | None:
        """Return what follows a label: of "Question:", only if it is the one that was asked."""
        if label[0] != "q":
            return rest or None
        after = self._after_question(rest)
        return self._held if after == rest and rest else after

    def _after_question(self, text: str) -> str | None:
        """Return what follows the question at the beginning of a text; the text if it is not it."""
        known = 0
        for at, character in enumerate(text):
            if known == len(self._asked):
                return text[at:].lstrip() or None if character.isspace() else text
            plain = _plain(text[: at + 1])
            if not self._asked.startswith(plain):
                return text
            known = len(plain)
        return None


def _plain(text: str) -> str:
    return _SPACE.sub(" ", text).strip().casefold()
