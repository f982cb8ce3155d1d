"""Composing an answer from a stream: text, checked citations, and support sentence by sentence.

Each finished sentence is held against the passages. One that the model left without a citation gets
that of the passage which supports it; where none does, nothing is added and it is reported as
unsupported. What no passage supports is marked as such, dropped, or makes the whole answer a
refusal, as the caller chose. A sentence that was said before is left out: small models run in
circles. What comes out never depends on how the stream was cut.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from stillroom.rag.citations import CitationParser, Mark, Piece, format_marks
from stillroom.rag.prompting import ABSTENTION
from stillroom.rag.support import Evidence
from stillroom.text.sentences import split_sentences

__all__ = ["Composer", "Statement", "Unsupported"]

Unsupported = Literal["mark", "drop", "refuse"]
"""What is done with a sentence that no passage (or not the cited one) supports."""

_ENDS = frozenset(".!?。！？…")
_FEWEST_REPEATED = 3  # words; "Yes." may be said twice
_AFTER_END = "\"'”’»)]*_"


@dataclass(frozen=True, slots=True)
class Statement:
    """One sentence of an answer: where it stands, what it cites, and how well that bears it.

    ``status`` is ``supported`` (a cited passage says it), ``unsupported`` (no passage says it),
    ``unverified`` (the model cites a passage that does not seem to say it) or ``no-claim``, as a
    question is, or a sentence that only says again what was asked.
    """

    start: int
    end: int
    status: str
    score: float
    cited: tuple[int, ...]
    added: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "start": self.start,
            "end": self.end,
            "status": self.status,
            "score": round(self.score, 4),
            "cited": list(self.cited),
            "added": self.added,
        }


class Composer:
    """Turns a model's stream into an answer; ``statements`` grow as sentences end."""

    def __init__(
        self,
        evidence: Evidence,
        shown: int,
        *,
        cite: bool = True,
        unsupported: Unsupported = "mark",
    ) -> None:
        """Check against ``evidence``, whose passages have the numbers 1 to ``shown``.

        Args:
            evidence: The passages that were shown.
            shown: How many there are.
            cite: Add the citation where the model left it out and a passage supports.
            unsupported: ``mark`` tells of sentences without support in their status; ``drop``
                leaves them out; ``refuse`` gives nothing at all if there is one.
        """
        self._evidence, self._cite, self._unsupported = evidence, cite, unsupported
        self._parser = CitationParser(shown)
        self._sentence = ""
        self._space = ""
        self._marks: dict[int, None] = {}
        self._start = 0
        self._out: list[str] = []
        self._length = 0
        self.statements: list[Statement] = []
        self.numbers: dict[int, None] = {}
        """Every number that is cited, in order of appearance."""
        self.dropped: list[tuple[str, Statement]] = []
        """Sentences that were left out, with what was found of them."""
        self.repeats = 0
        """How many sentences were left out since they had been said before."""
        self._said: dict[str, None] = {}
        self._held = 0, 0, dict[int, None]()
        self._has_code = False
        self._asked_again = 0

    @property
    def is_refused(self) -> bool:
        """Whether the answer has to be a refusal: nothing that is left is supported.

        Code is not checked, so that an answer of code alone is none.
        """
        if self._unsupported == "mark":
            return False
        if self.dropped and self._unsupported == "refuse":
            return True
        is_supported = any(one.status == "supported" for one in self.statements)
        return not is_supported and not self._has_code

    @property
    def is_restated(self) -> bool:
        """Whether the answer says nothing but what was asked.

        Code is not checked, so that an answer of code alone is none such.
        """
        return bool(self._asked_again) and not (
            self._has_code or any(one.status != "no-claim" for one in self.statements)
        )

    @property
    def broken(self) -> int:
        """How many pictures, links and tags have been made plain text."""
        return self._parser.broken

    @property
    def removed(self) -> int:
        """How many citations of passages that were never shown have been taken out."""
        return self._parser.removed

    def feed(self, text: str) -> str:
        """Return what is certain of the answer after some more of the model's text."""
        return self._compose(self._parser.feed(text))

    def finish(self) -> str:
        """Return the rest of the answer; white space at its end is dropped."""
        self._compose(self._parser.finish(), give=False)
        self._close()
        self._space = ""
        if self._unsupported == "refuse" and self.dropped:
            self._out.clear()
            self._length, self.statements, self.numbers = 0, [], {}
        return self._give(is_last=True)

    def _compose(self, pieces: list[Piece | Mark], *, give: bool = True) -> str:
        for piece in pieces:
            if isinstance(piece, Mark):
                self._take_mark(piece)
            elif piece.is_code:
                self._take_code(piece.text)
            else:
                for character in piece.text:
                    self._take(character)
        return self._give() if give else ""

    def _take(self, character: str) -> None:
        if character.isspace():
            if character == "\n" and self._sentence:
                self._close()
            if self._length or self._sentence:
                self._space += character
            return
        if self._space and self._sentence and self._ends_before(character):
            self._close()
        if not self._sentence:
            if not self._marks:
                self._begin()
            self._write(self._space if self._length else "")
            self._start = self._length
        else:
            self._write(self._space)
            self._sentence += self._space
        self._space = ""
        self._write(character)
        self._sentence += character

    def _ends_before(self, character: str) -> bool:
        sentence = self._sentence.rstrip(_AFTER_END)
        if not sentence or sentence[-1] not in _ENDS:
            return False
        text = f"{self._sentence}{self._space}{character}"
        return len(split_sentences(text)) > 1

    def _take_code(self, text: str) -> None:
        self._close()
        self._has_code = True
        self._write((self._space if self._length else "") + text)
        self._space = ""

    def _take_mark(self, mark: Mark) -> None:
        fresh = tuple(number for number in mark.numbers if number not in self._marks)
        if not self._sentence:
            if not self._marks:
                self._begin()
            self._start = self._length
        self._marks.update(dict.fromkeys(fresh))
        space = self._space + mark.space if self._length else ""
        self._write(space + format_marks(fresh) if fresh else "")
        self._space = ""
        self.numbers.update(dict.fromkeys(fresh))

    def _close(self) -> None:
        """End the sentence: measure its support, and cite where the model did not."""
        if not self._sentence and not self._marks:
            return
        plain = _plain(self._sentence)
        if plain in self._said:
            self.repeats += 1
            self._take_out()
            return
        if len(plain.split()) >= _FEWEST_REPEATED:
            self._said[plain] = None
        statement = self._judge(self._sentence, tuple(self._marks))
        if self._unsupported != "mark" and statement.status in {"unsupported", "unverified"}:
            self._drop(statement)
            return
        if statement.added:
            self._write(" " + format_marks(statement.cited))
            self.numbers.update(dict.fromkeys(statement.cited))
        self.statements.append(replace(statement, end=self._length))
        self._sentence, self._marks = "", {}

    def _begin(self) -> None:
        """Remember what the answer is without the sentence that begins here."""
        self._held = len(self._out), self._length, dict(self.numbers)

    def _drop(self, statement: Statement) -> None:
        """Take the open sentence out again, with its citations."""
        self.dropped.append((self._sentence, statement))
        self._take_out()

    def _take_out(self) -> None:
        """Forget the open sentence and its citations."""
        size, self._length, self.numbers = self._held
        del self._out[size:]
        self._sentence, self._marks = "", {}

    def _judge(self, sentence: str, cited: tuple[int, ...]) -> Statement:
        blank = Statement(self._start, 0, "no-claim", 0.0, cited)
        if sentence == ABSTENTION:
            return blank
        is_asking = sentence.rstrip(_AFTER_END).endswith(("?", "？"))
        if is_asking or not self._evidence.has_claim(sentence):
            self._asked_again += self._evidence.is_restated(sentence)
            return blank
        if cited:
            score = max(self._evidence.measure(sentence, number) for number in cited)
            status = "supported" if score >= self._evidence.threshold else "unverified"
            return replace(blank, status=status, score=score)
        best = self._evidence.find(sentence)
        if best.score < self._evidence.threshold:
            return replace(blank, status="unsupported", score=best.score)
        return Statement(
            self._start,
            0,
            "supported",
            best.score,
            (best.number,) if self._cite else (),
            self._cite,
        )

    def _may_repeat(self) -> bool:
        """Return whether the open sentence is, so far, what another one began with."""
        plain = _plain(self._sentence) if self._said else ""
        return bool(plain) and any(one.startswith(plain) for one in self._said)

    def _write(self, text: str) -> None:
        if text:
            self._out.append(text)
            self._length += len(text)

    def _give(self, *, is_last: bool = False) -> str:
        """Return what can no longer change; an open sentence may yet be taken out."""
        if is_last or (self._unsupported == "mark" and not self._may_repeat()):
            size = len(self._out)
        elif self._unsupported == "refuse":
            size = 0
        elif self._unsupported == "mark":
            size = self._held[0]
        else:
            size = self._held[0] if self._sentence or self._marks else len(self._out)
        text = "".join(self._out[:size])
        del self._out[:size]
        self._held = max(self._held[0] - size, 0), *self._held[1:]
        return text


def _plain(sentence: str) -> str:
    return " ".join(sentence.casefold().split())
