"""Citation marks in a stream of text: found, made uniform, and checked against what was shown.

``[1]``, ``[1, 2]``, ``[1-3]``, ``[[1]]``, ``【1】`` and ``［1］`` become ``[1]`` or ``[1][2]``;
numbers of no passage are taken out and counted. Text in backticks and in fenced code stays as it
is. The parser works character by character, so that what comes out never depends on how the
stream was cut.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["CitationParser", "Mark", "Piece", "format_marks"]

_OPEN, _CLOSE = "[【［", "]】］"
_INSIDE = frozenset("0123456789 ,;-–^")
_LONGEST = 40
_NUMBERS = re.compile(r"\^?\d{1,3}(?:\s*[,;\-–]\s*\^?\d{1,3}|\s+\d{1,3})*")
_FENCE = 3


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of text; ``is_code`` where it stands in a fenced block."""

    text: str
    is_code: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """The numbers of one citation, all of passages that were shown; ``space`` stood before it."""

    numbers: tuple[int, ...]
    space: str = ""


def format_marks(numbers: tuple[int, ...]) -> str:
    """Return the numbers as marks: ``[1][3]``."""
    return "".join(f"[{number}]" for number in numbers)


class CitationParser:
    """Splits a stream into text and citation marks; ``removed`` counts unknown numbers."""

    def __init__(self, shown: int) -> None:
        """Accept the numbers 1 to ``shown``."""
        self.shown = shown
        self.removed = 0
        self._out: list[Piece | Mark] = []
        self._held = ""
        self._space = ""
        self._is_gap = False
        self._ticks = 0
        self._fence = 0
        self._inline = 0
        self._at_line_start = True

    def feed(self, text: str) -> list[Piece | Mark]:
        """Return what is certain after some more text."""
        for character in text:
            self._take(character)
        return self._give()

    def finish(self) -> list[Piece | Mark]:
        """Return what was held back, as it is."""
        self._end_ticks()
        self._flush_held()
        if not self._is_gap:
            self._flush_space()
        return self._give()

    def _take(self, character: str) -> None:
        if self._is_gap:
            self._is_gap = False
            if character in " \t\n.,;:!?)":
                self._space = ""
        if character == "`" and not self._held:
            self._flush_space()
            self._ticks += 1
            self._emit(character)
            return
        self._end_ticks()
        if self._fence or self._inline:
            self._take_code(character)
        elif self._held:
            self._take_held(character)
        elif character in _OPEN:
            self._held = character
        elif character in " \t":
            self._space += character
        else:
            self._take_text(character)

    def _take_code(self, character: str) -> None:
        self._emit(character)
        if character == "\n":
            self._inline = 0
        self._at_line_start = character == "\n" or (self._at_line_start and character in " \t")

    def _take_text(self, character: str) -> None:
        self._flush_space()
        self._emit(character)
        self._at_line_start = character == "\n"

    def _take_held(self, character: str) -> None:
        held = self._held + character
        if len(held) == 2 and character in _OPEN:
            self._held = held
            return
        depth = 2 if held[1] in _OPEN else 1
        closed = sum(one in _CLOSE for one in held)
        if len(held) > _LONGEST or not (character in _INSIDE or character in _CLOSE):
            self._flush_held()
            self._take(character)
            return
        self._held = held
        if closed and character not in _CLOSE:
            self._held = held[:-1]
            self._flush_held()
            self._take(character)
        elif closed == depth:
            self._close(held[depth:-depth])

    def _close(self, inside: str) -> None:
        inside = inside.strip()
        if not _NUMBERS.fullmatch(inside):
            self._flush_held()
            return
        asked = _spread(inside)
        known = tuple(number for number in asked if 1 <= number <= self.shown)
        self.removed += len(asked) - len(known)
        self._held = ""
        if known:
            self._out.append(Mark(known, self._space))
            self._space = ""
        else:
            self._is_gap = True
        self._at_line_start = False

    def _end_ticks(self) -> None:
        """Decide what a run of backticks was: the border of a fence, of inline code, or neither."""
        ticks, self._ticks = self._ticks, 0
        if not ticks:
            return
        if self._fence:
            if ticks >= self._fence and self._at_line_start:
                self._fence = 0
        elif self._inline:
            if ticks == self._inline:
                self._inline = 0
        elif ticks >= _FENCE and self._at_line_start:
            self._fence = ticks
        elif ticks < _FENCE:
            self._inline = ticks
        self._at_line_start = False

    def _flush_held(self) -> None:
        if self._held:
            self._flush_space()
            self._emit(self._held)
            self._held = ""
            self._at_line_start = False

    def _flush_space(self) -> None:
        self._emit(self._space)
        self._space = ""

    def _emit(self, text: str) -> None:
        if not text:
            return
        is_code = bool(self._fence)
        last = self._out[-1] if self._out else None
        if isinstance(last, Piece) and last.is_code == is_code:
            self._out[-1] = Piece(last.text + text, is_code)
        else:
            self._out.append(Piece(text, is_code))

    def _give(self) -> list[Piece | Mark]:
        out, self._out = self._out, []
        return out


def _spread(inside: str) -> tuple[int, ...]:
    """Return the numbers that a citation names, ranges written out, each once."""
    found: dict[int, None] = {}
    for part in re.split(r"\s*[,;]\s*|(?<![\-–\s])\s+(?![\-–\s])", inside.replace("^", "")):
        ends = [int(number) for number in re.findall(r"\d+", part)]
        if len(ends) == 2 and re.search(r"[\-–]", part) and 0 <= ends[1] - ends[0] < 20:
            ends = list(range(ends[0], ends[1] + 1))
        found.update(dict.fromkeys(ends))
    return tuple(found)
