"""Looking for test items in records: by words first, then by meaning, with a judge in between."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.errors import BackendError, DataError
from stillroom.evaluate.final_answer import answer_key
from stillroom.jobs import Job
from stillroom.objects import local
from stillroom.records import Message, Prompt, Record, read_records
from stillroom.synth.evidence import text_of
from stillroom.synth.tasks import final_of
from stillroom.text.contamination import ItemIndex, Match, count_texts
from stillroom.text.rewording import Likeness, RewordingIndex
from stillroom.text.sentences import split_sentences

if TYPE_CHECKING:
    from stillroom.models import Embedder, TextModel

__all__ = [
    "Answers",
    "Checked",
    "Item",
    "LeakChecker",
    "Limits",
    "cut_pieces",
    "looked_through",
    "read_test_items",
]

_PIECE_WORDS = 60
_COMMON_ANSWER = 0.05
"""An answer that more of the items have tells none of them apart."""
_SAY_NOTHING = frozenset({"", "yes", "no", "true", "false", "none", "unknown"})
_LETTER = re.compile(r"\(? ?[a-z] ?\)?")


@dataclass(frozen=True, slots=True)
class Item:
    """One thing that must not be trained on, where it stands, and its answer as far as told."""

    text: str
    file: str
    row: int
    answer: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found in a record: nothing, an item, or that it could not be told."""

    match: Match | None = None
    unchecked: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """From when an item is found.

    ``near`` is a share of its words' information; ``reworded`` and ``asked`` are scores of
    ``text.rewording``: from ``reworded`` on a text is a rewording, and from ``asked`` on a judge,
    where there is one, is asked.
    """

    near: float = 0.65
    reworded: float = 0.86
    asked: float = 0.76


class Answers:
    """The items by their answers, where an answer tells them apart: yes and no, A and B do not."""

    def __init__(self, answers: Sequence[str]) -> None:
        """Index the answers of all items, empty where none is told."""
        keys = [answer_key(answer) if answer else "" for answer in answers]
        most = max(1, int(_COMMON_ANSWER * len(keys)))
        by_key: dict[str, list[int]] = {}
        for at, key in enumerate(keys):
            by_key.setdefault(key, []).append(at)
        self._by_key = {
            key: frozenset(found)
            for key, found in by_key.items()
            if len(found) <= most and key not in _SAY_NOTHING and not _LETTER.fullmatch(key)
        }

    def same_as(self, record: Record) -> frozenset[int]:
        """Return the items whose answer is the record's."""
        answer = final_of(record)
        return self._by_key.get(answer_key(answer), frozenset()) if answer else frozenset()


class LeakChecker:
    """Looks for the items in records; an embedder or judge that fails once is not asked again."""

    def __init__(
        self,
        items: Sequence[Item],
        records: Iterable[Record],
        limits: Limits,
        job: Job,
        *,
        embedder: Embedder | None = None,
        judge: TextModel | None = None,
    ) -> None:
        """Index the items; ``records`` are read once, to tell rare words from common ones."""
        self.items, self.limits, self.job = items, limits, job
        self.embedder, self.judge = embedder, judge
        texts = [item.text for item in items]
        with job.phase("count words", unit="records") as progress:
            counted = (text for record in progress.over(records) for text in looked_through(record))
            frequency, count = count_texts(counted)
        self.words = ItemIndex(texts, frequency=frequency, texts=count, near=limits.near)
        self._failed: dict[str, str] = {}
        self._answers = Answers([item.answer for item in items])
        self.meanings: RewordingIndex | None = None
        if embedder is not None:
            try:
                vectors = embedder.embed(texts, kind="passage")
                self.meanings = RewordingIndex(texts, vectors, frequency=frequency, texts=count)
            except (BackendError, DataError) as error:
                self._fail("embedder", error)

    def check(self, records: Sequence[Record]) -> list[Checked]:
        """Return what is in each record."""
        found: list[Checked] = []
        for record in records:
            matches = [match for text in looked_through(record) if (match := self.words.find(text))]
            best = max(matches, key=lambda match: match.share, default=None)
            found.append(Checked(best))
        if self.embedder is None:
            return found
        rest = [at for at, checked in enumerate(found) if checked.match is None]
        for at, checked in zip(rest, self._compare([records[at] for at in rest]), strict=True):
            found[at] = checked
        return found

    @property
    def why_unchecked(self) -> str:
        """What failed, empty where nothing did."""
        return "; ".join(self._failed.values())

    def _fail(self, what: str, error: Exception) -> str:
        """Remember that one cannot be asked any more, say so once, and return why."""
        self._failed[what] = f"the {what} failed: {error!s:.200}"
        self.job.say(f"{self._failed[what]}; what it was to tell is not checked from here on")
        return self._failed[what]

    def _compare(self, records: Sequence[Record]) -> list[Checked]:
        pieces = [(at, piece) for at, one in enumerate(records) for piece in cut_pieces(one)]
        found = [Checked() for _ in records]
        if self.meanings is None or self.embedder is None or "embedder" in self._failed:
            return [Checked(unchecked=self._failed["embedder"])] * len(records)
        if not pieces:
            return found
        try:
            vectors = self.embedder.embed([piece for _, piece in pieces], kind="passage")
        except (BackendError, DataError) as error:
            return [Checked(unchecked=self._fail("embedder", error))] * len(records)
        answered = [self._answers.same_as(record) for record in records]
        for (at, piece), vector in zip(pieces, vectors, strict=True):
            likeness = self.meanings.find(piece, vector, answered[at])
            if likeness is None or found[at].match is not None:
                continue
            if likeness.score >= self.limits.reworded:
                share = min(1.0, likeness.score)
                found[at] = Checked(Match(likeness.item, "rephrased", share))
            elif self.judge is not None and likeness.score >= self.limits.asked:
                found[at] = self._ask(self.judge, likeness, piece) or found[at]
        return found

    def _ask(self, judge: TextModel, likeness: Likeness, text: str) -> Checked | None:
        if "judge" in self._failed:
            return Checked(unchecked=self._failed["judge"])
        prompt = Prompt((Message("user", _ask_for(self.items[likeness.item].text, text)),))
        try:
            yes, no = judge.score([prompt, prompt], ["yes", "no"])
        except (BackendError, DataError) as error:
            return Checked(unchecked=self._fail("judge", error))
        if yes.mean <= no.mean:
            return None
        return Checked(Match(likeness.item, "rephrased", min(1.0, likeness.score)))


def _ask_for(item: str, text: str) -> str:
    return (
        f"Question 1: {item}\n\nQuestion 2: {text}\n\nDo both ask for the same thing, about the "
        "same facts, so that whoever has seen one knows the other's answer? Say yes or no."
    )


def read_test_items(places: Iterable[str | Path]) -> Iterator[Item]:
    """Yield the items of files or artifacts of records.

    An item is a record's ``question``, or what its user says first, or all it says; its answer is
    the final one of the record.

    Raises:
        DataError: If a file is missing or damaged.
    """
    for place in places:
        path = local(str(place))
        for row, record in enumerate(read_records(path), 1):
            asked = [one.content for one in record.messages if one.role == "user"]
            said = [one.content for one in record.messages]
            text = text_of(record, "question") or (asked or said or [""])[0]
            if text.strip():
                yield Item(text, path.name, row, final_of(record))


def looked_through(record: Record) -> list[str]:
    """Return each message, question and answer together, and an answer that was rejected."""
    texts = [one.content for one in record.messages if one.content.strip()]
    rejected = text_of(record, "rejected")
    rest = [rejected] if rejected.strip() else []
    return [*texts, "\n".join(texts), *rest] if len(texts) > 1 else [*texts, *rest]


def cut_pieces(record: Record) -> Iterator[str]:
    """Yield each message, a long one in pieces of whole sentences that overlap by half."""
    rejected = text_of(record, "rejected")
    for text in (*(one.content for one in record.messages), rejected):
        spans = split_sentences(text)
        if len(text.split()) <= 2 * _PIECE_WORDS or len(spans) < 2:
            if text.strip():
                yield text
            continue
        first = 0
        while first < len(spans):
            last, count = first, 0
            while last < len(spans) and count < _PIECE_WORDS:
                count += len(text[slice(*spans[last])].split())
                last += 1
            yield text[spans[first][0] : spans[last - 1][1]]
            if last == len(spans):
                break
            first = max(first + 1, (first + last) // 2)
