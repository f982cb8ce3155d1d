"""Citation marks in a stream of text: found, made uniform, and checked against what was shown.

``[1]``, ``[1, 2]``, ``[1-3]``, ``[[1]]``, ``【1】`` and ``［1］`` become ``[1]`` or ``[1][2]``;
numbers of no passage are taken out and counted. Text in backticks and in fenced code stays as it
is. The parser works character by character, so that what comes out never depends on how the
stream was cut.

Nothing that an answer says is fetched: a document may have told the model to write a picture whose
address carries what was asked. A space is put where Markdown would make a picture or a link
(``](``, ``][``, a line's ``[x]:``) and where a tag begins that has attributes or runs
(``<img src``, ``<script>``), so that every address stays text that a person can read; ``<div>``
stays as it is.
Code is exempt only where no renderer can take it for anything else: in a fence at the very
beginning of a line, and between backticks that are closed on their line.
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
_LONGEST_NAME = 32
_ACTIVE_TAGS = frozenset(
    "script style iframe object embed svg math template base form meta link noscript frame"  # noqa: SIM905
    " frameset plaintext textarea title xmp video audio".split()
)


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
        self.broken = 0
        """How many pictures, links and tags were made plain text."""
        self._out: list[Piece | Mark] = []
        self._held = ""
        self._space = ""
        self._is_gap = False
        self._ticks = 0
        self._fence = 0
        self._inline = 0
        self._at_line_start = True
        self._column = 0
        self._code = ""
        self._is_open_fence = False
        self._is_info = False
        self._last = ""
        self._tag = ""
        self._is_definition = False

    def feed(self, text: str) -> list[Piece | Mark]:
        """Return what is certain after some more text."""
        for character in text:
            self._take(character)
        return self._give()

    def finish(self) -> list[Piece | Mark]:
        """Return what was held back, as it is."""
        self._end_ticks()
        self._flush_code()
        self._flush_held()
        self._end_tag("")
        if not self._is_gap:
            self._flush_space()
        return self._give()

    def _take(self, character: str) -> None:
        if self._is_gap:
            self._is_gap = False
            if character in " \t\n.,;:!?)":
                self._space = ""
        if character == "`" and not self._held and self._last != "\\":
            self._flush_space()
            self._ticks += 1
            self._is_info = False
            if self._inline:
                self._code += character
            else:
                self._emit(character)
            return
        self._end_ticks()
        if self._fence or self._inline:
            self._take_code(character)
        elif self._held:
            self._take_held(character)
        elif character in _OPEN:
            self._held = character
            self._is_definition = self._at_line_start
        elif character in " \t":
            self._space += character
        else:
            self._take_text(character)

    def _take_code(self, character: str) -> None:
        if self._inline:
            self._code += character
            if character == "\n":
                self._flush_code()
        elif self._is_open_fence:
            self._emit(character)
        else:
            self._guard(character)
            if self._is_info and character == "\n":
                self._is_open_fence, self._is_info = True, False
        self._at_line_start = character == "\n" or (self._at_line_start and character in " \t")

    def _take_text(self, character: str) -> None:
        self._flush_space()
        self._guard(character)
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
        self._end_tag("[")
        if known:
            self._out.append(Mark(known, self._space))
            self._space, self._last = "", "]"
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
                self._fence, self._is_open_fence = 0, False
        elif self._inline:
            if ticks == self._inline:
                code, self._code, self._inline = self._code, "", 0
                self._emit(code)
        elif ticks >= _FENCE and self._at_line_start:
            self._fence = ticks
            self._is_info = self._column == ticks
        elif ticks < _FENCE:
            self._inline = ticks
        self._at_line_start = False

    def _flush_held(self) -> None:
        if self._held:
            self._flush_space()
            held, self._held = self._held, ""
            self._guard(held)
            self._at_line_start = False

    def _flush_code(self) -> None:
        """Give what stands after a backtick that nothing on its line closed: plain text."""
        code, self._code, self._inline = self._code, "", 0
        self._guard(code)

    def _guard(self, text: str) -> None:
        """Emit text with a space wherever Markdown would make more of it than text."""
        for character in text:
            if self._tag and len(self._tag) < _LONGEST_NAME and _is_name(character):
                self._tag += character
                continue
            self._end_tag(character)
            if character == "<":
                self._tag = character
                continue
            if self._is_link(character):
                self.broken += 1
                self._emit(" ")
            self._emit(character)

    def _is_link(self, character: str) -> bool:
        if self._last != "]":
            return False
        return character in "([" or (character == ":" and self._is_definition)

    def _end_tag(self, following: str) -> None:
        """Give what may be the beginning of a tag, broken if it is one that does anything."""
        tag, self._tag = self._tag, ""
        if tag and _is_active(tag, following):
            self.broken += 1
            tag = f"< {tag[1:]}"
        self._emit(tag)

    def _flush_space(self) -> None:
        self._emit(self._space)
        self._space = ""

    def _emit(self, text: str) -> None:
        if not text:
            return
        if self._tag:
            self._end_tag(text[0])
        self._last = text[-1]
        line = text.rpartition("\n")
        self._column = len(line[2]) + (0 if line[1] else self._column)
        is_code = bool(self._fence)
        last = self._out[-1] if self._out else None
        if isinstance(last, Piece) and last.is_code == is_code:
            self._out[-1] = Piece(last.text + text, is_code)
        else:
            self._out.append(Piece(text, is_code))

    def _give(self) -> list[Piece | Mark]:
        out, self._out = self._out, []
        return out


def _is_name(character: str) -> bool:
    return character.isalnum() or character in "-/!?"


def _is_active(tag: str, following: str) -> bool:
    """Return whether a tag, up to its name, loads, runs, or hides what comes after it."""
    if tag[1:2] in {"!", "?"}:
        return True
    name = tag[1:].strip("/").casefold()
    if not name[:1].isalpha():
        return False
    return name in _ACTIVE_TAGS or "/" in name or following.isspace() or len(tag) >= _LONGEST_NAME


def _spread(inside: str) -> tuple[int, ...]:
    """Return the numbers that a citation names, ranges written out, each once."""
    found: dict[int, None] = {}
    for part in re.split(r"\s*[,;]\s*|(?<![\-–\s])\s+(?![\-–\s])", inside.replace("^", "")):
        ends = [int(number) for number in re.findall(r"\d+", part)]
        if len(ends) == 2 and re.search(r"[\-–]", part) and 0 <= ends[1] - ends[0] < 20:
            ends = list(range(ends[0], ends[1] + 1))
        found.update(dict.fromkeys(ends))
    return tuple(found)
