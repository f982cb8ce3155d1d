"""Citation parser of a streamed answer: ``[1]`` and its variants; invented numbers are removed.

``[1]``, ``[1, 2]``, ``[1-3]``, ``[[1]]``, ``【1】`` and ``［1］`` become ``[1]`` or ``[1][2]``;
numbers that match no passage are removed and counted. Text in backticks and in fenced code is not
changed. The parser works character by character, so that the output does not depend on how the
stream was split. Haystack's AnswerBuilder has ``reference_pattern``.

Links, pictures and active tags are defused by ``markdown_guard``. Code is exempt only where every
renderer treats it as code: in a fence at the very beginning of a line, and between backticks closed
on the same line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from stillroom.rag.generation.markdown_guard import MarkdownGuard

__all__ = ["CitationMark", "CitationParser", "TextPiece", "format_citations"]

_OPEN, _CLOSE = "[【［", "]】］"
_INSIDE = frozenset("0123456789 ,;-–^")
_MAX_MARK_LENGTH = 40
_NUMBERS = re.compile(r"\^?\d{1,3}(?:\s*[,;\-–]\s*\^?\d{1,3}|\s+\d{1,3})*")
_MIN_FENCE = 3


@dataclass(frozen=True, slots=True)
class TextPiece:
    """A piece of text; ``is_code`` inside a fenced block."""

    text: str
    is_code: bool = False


@dataclass(frozen=True, slots=True)
class CitationMark:
    """The valid numbers of one citation; ``space`` is the white space before it."""

    numbers: tuple[int, ...]
    space: str = ""


def format_citations(numbers: tuple[int, ...]) -> str:
    """Format numbers as citations: ``[1][3]``."""
    return "".join(f"[{number}]" for number in numbers)


class CitationParser:
    """Splits a stream into text and citations; ``removed`` counts unknown numbers."""

    def __init__(self, shown: int) -> None:
        """Accept the numbers 1 to ``shown``."""
        self.shown = shown
        self.removed = 0
        self._guard = MarkdownGuard()
        self._out: list[TextPiece | CitationMark] = []
        self._pending = ""
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

    @property
    def broken(self) -> int:
        """Number of pictures, links and tags turned into plain text."""
        return self._guard.broken

    def feed(self, text: str) -> list[TextPiece | CitationMark]:
        """Return the pieces that are final after more text."""
        for character in text:
            self._parse_character(character)
        return self._flush()

    def finish(self) -> list[TextPiece | CitationMark]:
        """Return the pending text unchanged."""
        self._end_ticks()
        self._flush_code()
        self._flush_pending()
        self._write(self._guard.end_tag(""))
        if not self._is_gap:
            self._flush_space()
        return self._flush()

    def _parse_character(self, character: str) -> None:
        if self._is_gap:
            self._is_gap = False
            if character in " \t\n.,;:!?)":
                self._space = ""
        if character == "`" and not self._pending and self._guard.last != "\\":
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
            self._parse_code(character)
        elif self._pending:
            self._parse_pending(character)
        elif character in _OPEN:
            self._pending = character
            self._guard.is_definition = self._at_line_start
        elif character in " \t":
            self._space += character
        else:
            self._parse_text(character)

    def _parse_code(self, character: str) -> None:
        if self._inline:
            self._code += character
            if character == "\n":
                self._flush_code()
        elif self._is_open_fence:
            self._emit(character)
        else:
            self._emit_guarded(character)
            if self._is_info and character == "\n":
                self._is_open_fence, self._is_info = True, False
        self._at_line_start = character == "\n" or (self._at_line_start and character in " \t")

    def _parse_text(self, character: str) -> None:
        self._flush_space()
        self._emit_guarded(character)
        self._at_line_start = character == "\n"

    def _parse_pending(self, character: str) -> None:
        held = self._pending + character
        if len(held) == 2 and character in _OPEN:
            self._pending = held
            return
        depth = 2 if held[1] in _OPEN else 1
        closed = sum(mark in _CLOSE for mark in held)
        if len(held) > _MAX_MARK_LENGTH or not (character in _INSIDE or character in _CLOSE):
            self._flush_pending()
            self._parse_character(character)
            return
        self._pending = held
        if closed and character not in _CLOSE:
            self._pending = held[:-1]
            self._flush_pending()
            self._parse_character(character)
        elif closed == depth:
            self._end_citation(held[depth:-depth])

    def _end_citation(self, inside: str) -> None:
        inside = inside.strip()
        if not _NUMBERS.fullmatch(inside):
            self._flush_pending()
            return
        numbers = _expand_ranges(inside)
        known = tuple(number for number in numbers if 1 <= number <= self.shown)
        self.removed += len(numbers) - len(known)
        self._pending = ""
        self._write(self._guard.end_tag("["))
        if known:
            self._out.append(CitationMark(known, self._space))
            self._space, self._guard.last = "", "]"
        else:
            self._is_gap = True
        self._at_line_start = False

    def _end_ticks(self) -> None:
        """Classify a run of backticks: the border of a fence, of inline code, or neither."""
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
        elif ticks >= _MIN_FENCE and self._at_line_start:
            self._fence = ticks
            self._is_info = self._column == ticks
        elif ticks < _MIN_FENCE:
            self._inline = ticks
        self._at_line_start = False

    def _flush_pending(self) -> None:
        if self._pending:
            self._flush_space()
            held, self._pending = self._pending, ""
            self._emit_guarded(held)
            self._at_line_start = False

    def _flush_code(self) -> None:
        """Emit the text after a backtick that was not closed on its line, as plain text."""
        code, self._code, self._inline = self._code, "", 0
        self._emit_guarded(code)

    def _flush_space(self) -> None:
        self._emit(self._space)
        self._space = ""

    def _emit(self, text: str) -> None:
        """Write code or white space."""
        self._write(self._guard.keep(text))

    def _emit_guarded(self, text: str) -> None:
        """Write text with a space wherever Markdown or HTML would render a link or tag."""
        self._write(self._guard.defuse(text))

    def _write(self, text: str) -> None:
        if not text:
            return
        line = text.rpartition("\n")
        self._column = len(line[2]) + (0 if line[1] else self._column)
        is_code = bool(self._fence)
        last = self._out[-1] if self._out else None
        if isinstance(last, TextPiece) and last.is_code == is_code:
            self._out[-1] = TextPiece(last.text + text, is_code)
        else:
            self._out.append(TextPiece(text, is_code))

    def _flush(self) -> list[TextPiece | CitationMark]:
        out, self._out = self._out, []
        return out


def _expand_ranges(inside: str) -> tuple[int, ...]:
    """Return the distinct numbers of a citation, with ranges expanded."""
    numbers: dict[int, None] = {}
    for part in re.split(r"\s*[,;]\s*|(?<![\-–\s])\s+(?![\-–\s])", inside.replace("^", "")):
        ends = [int(number) for number in re.findall(r"\d+", part)]
        if len(ends) == 2 and re.search(r"[\-–]", part) and 0 <= ends[1] - ends[0] < 20:
            ends = list(range(ends[0], ends[1] + 1))
        numbers.update(dict.fromkeys(ends))
    return tuple(numbers)
