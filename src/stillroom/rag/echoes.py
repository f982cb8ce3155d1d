"""What a small model says before it answers: the question, the request, and the word Answer.

Taken out of the beginning of a stream, so that an answer begins with what it says. What comes out
never depends on how the stream was cut. Knows the English words of the prompt only.
"""

from __future__ import annotations

import re

__all__ = ["EchoFilter"]

_LABELS = ("question:", "answer:", "q:", "a:")
_SPACE = re.compile(r"\s+")


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
