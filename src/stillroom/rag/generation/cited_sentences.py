"""Citation check (groundedness, faithfulness) of each sentence: supported, unverified, unsupported.

Each finished sentence is checked against the passages. If the model gave no citation, that of the
best supporting passage is added; without one, the sentence is reported as unsupported. Unsupported
sentences are marked, dropped, or turn the answer into a refusal, depending on the settings. A
repeated sentence is dropped: small models loop. ``citation_parser`` parses the
stream; scores are those of ``rag.groundedness.score`` or of another method of ``rag.checkers``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from stillroom.rag.generation.citation_parser import (
    CitationMark,
    CitationParser,
    TextPiece,
    format_citations,
)
from stillroom.rag.generation.refusals import ABSTENTIONS
from stillroom.rag.groundedness.score import SourceTexts
from stillroom.rag.settings import UnsupportedPolicy
from stillroom.text.language import split_sentences

__all__ = ["CitationStream", "CitedSentence"]

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
        self.numbers: dict[int, int] = {}
        """Number in the answer of each cited passage, from 1 in order of appearance."""
        self.dropped: list[tuple[str, CitedSentence]] = []
        """Dropped sentences with their check results."""
        self.repeats = 0
        """Number of sentences dropped as repetitions."""
        self._seen: dict[str, None] = {}
        self._saved_state = 0, 0, dict[int, int]()
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
        self._write(space + format_citations(self._renumber(fresh)) if fresh else "")
        self._space = ""

    def _renumber(self, passages: tuple[int, ...]) -> tuple[int, ...]:
        """Return the numbers in the answer of passages that the prompt numbers."""
        return tuple(self.numbers.setdefault(name, len(self.numbers) + 1) for name in passages)

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
        cited = self._renumber(statement.cited)
        if statement.added:
            self._write(" " + format_citations(cited))
        self.statements.append(replace(statement, end=self._length, cited=cited))
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
        if sentence in ABSTENTIONS:
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
