"""Citations in a streamed answer: parsing, validation, and groundedness by sentence.

``[1]``, ``[1, 2]``, ``[1-3]``, ``[[1]]``, ``【1】`` and ``［1］`` become ``[1]`` or ``[1][2]``;
numbers
that match no passage are removed and counted. Text in backticks and in fenced code is not changed.
The parser works character by character, so that the output does not depend on how the stream was
split.

Links and pictures are defused, since a document may have injected a picture whose address leaks the
question. A space is inserted where Markdown would render a picture or a link (``](``, ``][``, a
line's ``[x]:``) and where an HTML tag with attributes or active content begins (``<img src``,
``<script>``), so that addresses remain readable text; ``<div>`` is not changed. Code is exempt only
where every renderer treats it as code: in a fence at the very beginning of a line, and between
backticks closed on the same line.

Each finished sentence is checked against the passages. If the model gave no citation, that of the
best supporting passage is added; without one, the sentence is reported as unsupported. Unsupported
sentences are marked, dropped, or turn the answer into a refusal, depending on the settings. A
repeated sentence is dropped: small models loop.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from stillroom.rag.generation.grounding import SourceTexts
from stillroom.rag.generation.prompt import ABSTENTION
from stillroom.rag.settings import UnsupportedPolicy
from stillroom.text.language import split_sentences

__all__ = [
    "CitationMark",
    "CitationParser",
    "CitationStream",
    "CitedSentence",
    "TextPiece",
    "format_citations",
]


_SENTENCE_ENDS = frozenset(".!?。！？…")
_MIN_REPEATED_WORDS = 3  # words; "Yes." may occur twice
_CLOSING_CHARACTERS = "\"'”’»)]*_"


@dataclass(frozen=True, slots=True)
class CitedSentence:
    """A sentence of an answer: its position, its citations, and the score of their support.

    ``status`` is ``supported`` (by a cited passage), ``unsupported`` (by any passage),
    ``unverified`` (the cited passage does not seem to support it) or ``no-claim`` (a question, or a
    sentence that only restates the question).
    """

    start: int
    end: int
    status: str
    score: float
    cited: tuple[int, ...]
    added: bool = False

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {
            "start": self.start,
            "end": self.end,
            "status": self.status,
            "score": round(self.score, 4),
            "cited": list(self.cited),
            "added": self.added,
        }


class CitationStream:
    """Converts a model's stream into an answer; ``statements`` grows as sentences end."""

    def __init__(
        self,
        evidence: SourceTexts,
        shown: int,
        *,
        cite: bool = True,
        unsupported: UnsupportedPolicy = "mark",
    ) -> None:
        """Check against ``evidence``, whose passages are numbered 1 to ``shown``.

        Args:
            evidence: The passages shown to the model.
            shown: Their number.
            cite: Add a citation if the model gave none and a passage supports the sentence.
            unsupported: ``mark`` records sentences without support in their status; ``drop`` drops
                them; ``refuse`` returns no text if there is one.
        """
        self._evidence, self._cite, self._unsupported = evidence, cite, unsupported
        self._parser = CitationParser(shown)
        self._sentence = ""
        self._space = ""
        self._marks: dict[int, None] = {}
        self._start = 0
        self._out: list[str] = []
        self._length = 0
        self.statements: list[CitedSentence] = []
        self.numbers: dict[int, None] = {}
        """Cited numbers in order of appearance."""
        self.dropped: list[tuple[str, CitedSentence]] = []
        """Dropped sentences with their check results."""
        self.repeats = 0
        """Number of sentences dropped as repetitions."""
        self._seen: dict[str, None] = {}
        self._saved_state = 0, 0, dict[int, None]()
        self._has_code = False
        self._restatements = 0

    @property
    def is_refused(self) -> bool:
        """Whether the answer must be a refusal: no remaining sentence is supported.

        Code is not checked, so an answer that contains code is not refused.
        """
        if self._unsupported == "mark":
            return False
        if self.dropped and self._unsupported == "refuse":
            return True
        is_supported = any(statement.status == "supported" for statement in self.statements)
        return not is_supported and not self._has_code

    @property
    def is_restated(self) -> bool:
        """Whether the answer only restates the question.

        Code is not checked, so an answer that contains code does not count.
        """
        return bool(self._restatements) and not (
            self._has_code or any(statement.status != "no-claim" for statement in self.statements)
        )

    @property
    def broken(self) -> int:
        """Number of pictures, links and tags turned into plain text."""
        return self._parser.broken

    @property
    def removed(self) -> int:
        """Number of removed citations of unknown passages."""
        return self._parser.removed

    def feed(self, text: str) -> str:
        """Return the text of the answer that is final after more of the model's text."""
        return self._process(self._parser.feed(text))

    def finish(self) -> str:
        """Return the remaining text; trailing white space is dropped."""
        self._process(self._parser.finish(), give=False)
        self._end_sentence()
        self._space = ""
        if self._unsupported == "refuse" and self.dropped:
            self._out.clear()
            self._length, self.statements, self.numbers = 0, [], {}
        return self._flush(is_last=True)

    def _process(self, pieces: list[TextPiece | CitationMark], *, give: bool = True) -> str:
        for piece in pieces:
            if isinstance(piece, CitationMark):
                self._add_citation(piece)
            elif piece.is_code:
                self._add_code(piece.text)
            else:
                for character in piece.text:
                    self._add_character(character)
        return self._flush() if give else ""

    def _add_character(self, character: str) -> None:
        if character.isspace():
            if character == "\n" and self._sentence:
                self._end_sentence()
            if self._length or self._sentence:
                self._space += character
            return
        if self._space and self._sentence and self._ends_before(character):
            self._end_sentence()
        if not self._sentence:
            if not self._marks:
                self._save_state()
            self._write(self._space if self._length else "")
            self._start = self._length
        else:
            self._write(self._space)
            self._sentence += self._space
        self._space = ""
        self._write(character)
        self._sentence += character

    def _ends_before(self, character: str) -> bool:
        sentence = self._sentence.rstrip(_CLOSING_CHARACTERS)
        if not sentence or sentence[-1] not in _SENTENCE_ENDS:
            return False
        text = f"{self._sentence}{self._space}{character}"
        return len(split_sentences(text)) > 1

    def _add_code(self, text: str) -> None:
        self._end_sentence()
        self._has_code = True
        self._write((self._space if self._length else "") + text)
        self._space = ""

    def _add_citation(self, mark: CitationMark) -> None:
        fresh = tuple(number for number in mark.numbers if number not in self._marks)
        if not self._sentence:
            if not self._marks:
                self._save_state()
            self._start = self._length
        self._marks.update(dict.fromkeys(fresh))
        space = self._space + mark.space if self._length else ""
        self._write(space + format_citations(fresh) if fresh else "")
        self._space = ""
        self.numbers.update(dict.fromkeys(fresh))

    def _end_sentence(self) -> None:
        """End the sentence: compute its support, and add a citation if the model gave none."""
        if not self._sentence and not self._marks:
            return
        plain = _normalize_text(self._sentence)
        if plain in self._seen:
            self.repeats += 1
            self._discard_sentence()
            return
        if len(plain.split()) >= _MIN_REPEATED_WORDS:
            self._seen[plain] = None
        statement = self._check_sentence(self._sentence, tuple(self._marks))
        if self._unsupported != "mark" and statement.status in {"unsupported", "unverified"}:
            self._drop_sentence(statement)
            return
        if statement.added:
            self._write(" " + format_citations(statement.cited))
            self.numbers.update(dict.fromkeys(statement.cited))
        self.statements.append(replace(statement, end=self._length))
        self._sentence, self._marks = "", {}

    def _save_state(self) -> None:
        """Save the state of the answer before the sentence that begins here."""
        self._saved_state = len(self._out), self._length, dict(self.numbers)

    def _drop_sentence(self, statement: CitedSentence) -> None:
        """Drop the open sentence and its citations, and record it."""
        self.dropped.append((self._sentence, statement))
        self._discard_sentence()

    def _discard_sentence(self) -> None:
        """Discard the open sentence and its citations."""
        size, self._length, self.numbers = self._saved_state
        del self._out[size:]
        self._sentence, self._marks = "", {}

    def _check_sentence(self, sentence: str, cited: tuple[int, ...]) -> CitedSentence:
        blank = CitedSentence(self._start, 0, "no-claim", 0.0, cited)
        if sentence == ABSTENTION:
            return blank
        is_asking = sentence.rstrip(_CLOSING_CHARACTERS).endswith(("?", "？"))
        if is_asking or not self._evidence.has_claim(sentence):
            self._restatements += self._evidence.is_restated(sentence)
            return blank
        if cited:
            score = max(self._evidence.measure(sentence, number) for number in cited)
            status = "supported" if score >= self._evidence.threshold else "unverified"
            return replace(blank, status=status, score=score)
        best = self._evidence.find(sentence)
        if best.score < self._evidence.threshold:
            return replace(blank, status="unsupported", score=best.score)
        return CitedSentence(
            self._start,
            0,
            "supported",
            best.score,
            (best.number,) if self._cite else (),
            self._cite,
        )

    def _may_repeat(self) -> bool:
        """Return whether the open sentence is so far a prefix of an earlier one."""
        plain = _normalize_text(self._sentence) if self._seen else ""
        return bool(plain) and any(earlier.startswith(plain) for earlier in self._seen)

    def _write(self, text: str) -> None:
        if text:
            self._out.append(text)
            self._length += len(text)

    def _flush(self, *, is_last: bool = False) -> str:
        """Return the text that can no longer change; an open sentence may still be dropped."""
        if is_last or (self._unsupported == "mark" and not self._may_repeat()):
            size = len(self._out)
        elif self._unsupported == "refuse":
            size = 0
        elif self._unsupported == "mark":
            size = self._saved_state[0]
        else:
            size = self._saved_state[0] if self._sentence or self._marks else len(self._out)
        text = "".join(self._out[:size])
        del self._out[:size]
        self._saved_state = max(self._saved_state[0] - size, 0), *self._saved_state[1:]
        return text


def _normalize_text(sentence: str) -> str:
    return " ".join(sentence.casefold().split())


_OPEN, _CLOSE = "[【［", "]】］"
_INSIDE = frozenset("0123456789 ,;-–^")
_MAX_MARK_LENGTH = 40
_NUMBERS = re.compile(r"\^?\d{1,3}(?:\s*[,;\-–]\s*\^?\d{1,3}|\s+\d{1,3})*")
_MIN_FENCE = 3
_MAX_TAG_NAME_LENGTH = 32
_ACTIVE_TAGS = frozenset(
    "script style iframe object embed svg math template base form meta link noscript frame"  # noqa: SIM905
    " frameset plaintext textarea title xmp video audio".split()
)


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
        self.broken = 0
        """Number of pictures, links and tags turned into plain text."""
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
        self._last = ""
        self._tag = ""
        self._is_definition = False

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
        self._end_tag("")
        if not self._is_gap:
            self._flush_space()
        return self._flush()

    def _parse_character(self, character: str) -> None:
        if self._is_gap:
            self._is_gap = False
            if character in " \t\n.,;:!?)":
                self._space = ""
        if character == "`" and not self._pending and self._last != "\\":
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
            self._is_definition = self._at_line_start
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
        self._end_tag("[")
        if known:
            self._out.append(CitationMark(known, self._space))
            self._space, self._last = "", "]"
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

    def _emit_guarded(self, text: str) -> None:
        """Emit text with a space inserted wherever Markdown or HTML would render a link or tag."""
        for character in text:
            if self._tag and len(self._tag) < _MAX_TAG_NAME_LENGTH and _is_tag_name(character):
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
        """Emit a possible beginning of a tag, broken if the tag is active."""
        tag, self._tag = self._tag, ""
        if tag and _is_active_tag(tag, following):
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
        if isinstance(last, TextPiece) and last.is_code == is_code:
            self._out[-1] = TextPiece(last.text + text, is_code)
        else:
            self._out.append(TextPiece(text, is_code))

    def _flush(self) -> list[TextPiece | CitationMark]:
        out, self._out = self._out, []
        return out


def _is_tag_name(character: str) -> bool:
    return character.isalnum() or character in "-/!?"


def _is_active_tag(tag: str, following: str) -> bool:
    """Return whether a tag, given its name, loads or runs something or hides what follows."""
    if tag[1:2] in {"!", "?"}:
        return True
    name = tag[1:].strip("/").casefold()
    if not name[:1].isalpha():
        return False
    return (
        name in _ACTIVE_TAGS
        or "/" in name
        or following.isspace()
        or len(tag) >= _MAX_TAG_NAME_LENGTH
    )


def _expand_ranges(inside: str) -> tuple[int, ...]:
    """Return the distinct numbers of a citation, with ranges expanded."""
    numbers: dict[int, None] = {}
    for part in re.split(r"\s*[,;]\s*|(?<![\-–\s])\s+(?![\-–\s])", inside.replace("^", "")):
        ends = [int(number) for number in re.findall(r"\d+", part)]
        if len(ends) == 2 and re.search(r"[\-–]", part) and 0 <= ends[1] - ends[0] < 20:
            ends = list(range(ends[0], ends[1] + 1))
        numbers.update(dict.fromkeys(ends))
    return tuple(numbers)
