"""Benchmark leakage detection: word overlap, code shape, embeddings and an LLM judge."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import BackendError, DataError
from stillroom.evaluate.final_answer import normalize_answer
from stillroom.jobs import Job
from stillroom.objects import resolve_local
from stillroom.records import Message, Prompt, Record, read_records
from stillroom.synth.prompting.conversation import get_final_answer, get_text_field
from stillroom.text.code import extract_token_trigrams
from stillroom.text.dedup.contamination import (
    BenchmarkIndex,
    ContaminationMatch,
    count_document_frequencies,
)
from stillroom.text.dedup.paraphrases import (
    ParaphraseIndex,
    ParaphraseScore,
    is_asking,
    split_question,
)
from stillroom.text.language import split_sentences
from stillroom.text.unicode import split_words

if TYPE_CHECKING:
    from stillroom.models import Embedder, TextModel

__all__ = [
    "BenchmarkAnswers",
    "BenchmarkItem",
    "CodeFinder",
    "LeakChecker",
    "LeakResult",
    "LeakThresholds",
    "WordFinder",
    "read_benchmark_items",
    "split_pieces",
]

_PIECE_WORDS = 60
_COMMON_ANSWER = 0.05
"""An answer that more of the items have tells none of them apart."""
_UNINFORMATIVE = frozenset({"", "yes", "no", "true", "false", "none", "unknown"})
_TELLS, _TELLS_RUNNING = 20.0, 22.0
"""Nats from which a question is an item without its passage: apart from it, and after it."""
_ASKED_TOO, _ASKED_TOO_RUNNING = 0.75, 0.6
"""Share of a question that must be there where its passage is: apart from it, and after it."""
_EXACT = frozenset({"whole", "verbatim"})
_LONG_ANSWER = 60
_LEAST_CODE = 30
"""Runs of tokens of the shortest code that is looked for: about five lines."""
_ENOUGH_CODE = 50
"""Texts with code that tell which runs are rare."""
_NEAR_CODE, _SHUFFLED_CODE = 0.6, 0.85
"""Share of the information of its runs, in order and in any; chosen on functions of Python's own
library, renamed and turned round."""
_LETTER = re.compile(r"\(? ?[a-z] ?\)?")


@dataclass(frozen=True, slots=True)
class BenchmarkItem:
    """One thing that must not be trained on, where it stands, and its answer as far as told."""

    text: str
    file: str
    row: int
    answer: str = ""


@dataclass(frozen=True, slots=True)
class LeakResult:
    """What was found in a record: nothing, an item, or that it could not be told."""

    match: ContaminationMatch | None = None
    unchecked: str = ""


@dataclass(frozen=True, slots=True)
class LeakThresholds:
    """From when an item is found.

    ``near`` is a share of its words' information; ``reworded`` and ``asked`` are scores of
    ``text.rewording``: from ``reworded`` on a text is a rewording, and from ``asked`` on a judge,
    where there is one, is asked.
    """

    near: float = 0.65
    reworded: float = 0.86
    asked: float = 0.76


class BenchmarkAnswers:
    """The items by their answers, where an answer tells them apart: yes and no, A and B do not."""

    def __init__(self, answers: Sequence[str]) -> None:
        """Index the answers of all items, empty where none is told."""
        keys = [normalize_answer(answer) if answer else "" for answer in answers]
        most = max(1, int(_COMMON_ANSWER * len(keys)))
        by_key: dict[str, list[int]] = {}
        for at, key in enumerate(keys):
            by_key.setdefault(key, []).append(at)
        self._words = [_get_answer_words(answer) for answer in answers]
        self._by_key = {
            key: frozenset(found)
            for key, found in by_key.items()
            if len(found) <= most and key not in _UNINFORMATIVE and not _LETTER.fullmatch(key)
        }

    def same_as(self, record: Record) -> frozenset[int]:
        """Return the items whose answer is the record's."""
        answer = get_final_answer(record)
        return self._by_key.get(normalize_answer(answer), frozenset()) if answer else frozenset()

    def unlike(self, record: Record) -> Callable[[int], bool]:
        """Return what says of an item that its answer and the record's have no word in common."""
        own = _get_answer_words(get_final_answer(record))
        is_number = _is_number(own)

        def is_unlike(item: int) -> bool:
            other = self._words[item]
            if is_number and _is_number(other):  # two numbers may be one sum, reckoned wrongly
                return False
            return bool(own and other) and not own & other

        return is_unlike


def _is_number(told: frozenset[str]) -> bool:
    return any(word[0].isdigit() for word in told)


def _get_answer_words(answer: str) -> frozenset[str]:
    """Return the words of an answer that tells something; none of a long one."""
    key = normalize_answer(answer) if answer else ""
    found = split_words(answer)
    if key in _UNINFORMATIVE or _LETTER.fullmatch(key) or len(found) > _LONG_ANSWER:
        return frozenset()
    return frozenset({*found, *split_words(key)})


class LeakChecker:
    """Looks for the items in records; an embedder or judge that fails once is not asked again."""

    def __init__(
        self,
        items: Sequence[BenchmarkItem],
        records: Iterable[Record],
        limits: LeakThresholds,
        job: Job,
        *,
        embedder: Embedder | None = None,
        judge: TextModel | None = None,
    ) -> None:
        """Index the items; ``records`` are read once, to tell rare words from common ones."""
        self.items, self.limits, self.job = items, limits, job
        self.embedder, self.judge = embedder, judge
        texts = [item.text for item in items]
        code = CodeFinder([(item.text, item.answer) for item in items])
        with job.phase("count words", unit="records") as progress:
            counted = (
                code.count(text)
                for record in progress.over(records)
                for text in _get_all_texts(record)
            )
            frequency, count = count_document_frequencies(counted)
        self._answers = BenchmarkAnswers([item.answer for item in items])
        self.words = WordFinder(
            texts, self._answers, frequency=frequency, texts=count, near=limits.near, code=code
        )
        texts = self.words.asked
        self._failed: dict[str, str] = {}
        self.meanings: ParaphraseIndex | None = None
        if embedder is not None:
            try:
                vectors = embedder.embed(texts, kind="passage")
                self.meanings = ParaphraseIndex(texts, vectors, frequency=frequency, texts=count)
            except (BackendError, DataError) as error:
                self._fail("embedder", error)

    def check(self, records: Sequence[Record]) -> list[LeakResult]:
        """Return what is in each record."""
        found = [LeakResult(self.words.find(record)) for record in records]
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

    def _compare(self, records: Sequence[Record]) -> list[LeakResult]:
        pieces = [(at, piece) for at, one in enumerate(records) for piece in split_pieces(one)]
        found = [LeakResult() for _ in records]
        if self.meanings is None or self.embedder is None or "embedder" in self._failed:
            return [LeakResult(unchecked=self._failed["embedder"])] * len(records)
        if not pieces:
            return found
        try:
            vectors = self.embedder.embed([text for _, (text, _) in pieces], kind="passage")
        except (BackendError, DataError) as error:
            return [LeakResult(unchecked=self._fail("embedder", error))] * len(records)
        answered = [self._answers.same_as(record) for record in records]
        denied = [self._answers.unlike(record) for record in records]
        for (at, (piece, is_stated)), vector in zip(pieces, vectors, strict=True):
            likeness = self.meanings.find(
                piece, vector, answered[at], is_stated=is_stated, denied=denied[at]
            )
            if likeness is None or found[at].match is not None:
                continue
            if likeness.score >= self.limits.reworded:
                share = min(1.0, likeness.score)
                found[at] = LeakResult(ContaminationMatch(likeness.item, "rephrased", share))
            elif self.judge is not None and likeness.score >= self.limits.asked:
                found[at] = self._ask(self.judge, likeness, piece) or found[at]
        return found

    def _ask(self, judge: TextModel, likeness: ParaphraseScore, text: str) -> LeakResult | None:
        if "judge" in self._failed:
            return LeakResult(unchecked=self._failed["judge"])
        prompt = Prompt(
            (Message("user", _make_judge_prompt(self.items[likeness.item].text, text)),)
        )
        try:
            yes, no = judge.score([prompt, prompt], ["yes", "no"])
        except (BackendError, DataError) as error:
            return LeakResult(unchecked=self._fail("judge", error))
        if yes.mean <= no.mean:
            return None
        return LeakResult(ContaminationMatch(likeness.item, "rephrased", min(1.0, likeness.score)))


def _make_judge_prompt(item: str, text: str) -> str:
    return (
        f"Question 1: {item}\n\nQuestion 2: {text}\n\nDo both ask for the same thing, about the "
        "same facts, so that whoever has seen one knows the other's answer? Say yes or no."
    )


def read_benchmark_items(places: Iterable[str | Path]) -> Iterator[BenchmarkItem]:
    """Yield the items of files or artifacts of records.

    An item is a record's ``question``, or what its user says first, or all it says; its answer is
    the final one of the record.

    Raises:
        DataError: If a file is missing or damaged.
    """
    for place in places:
        path = resolve_local(str(place))
        for row, record in enumerate(read_records(path), 1):
            asked = [one.content for one in record.messages if one.role == "user"]
            said = [one.content for one in record.messages]
            text = get_text_field(record, "question") or (asked or said or [""])[0]
            if text.strip():
                yield BenchmarkItem(text, path.name, row, get_final_answer(record))


class CodeFinder:
    """Looks for the code of items, or else of their answers, by its shape (``text.code_shape``)."""

    def __init__(self, items: Iterable[tuple[str, str]]) -> None:
        """Take the items with their answers; short code, which many write alike, is left out."""
        self._items: list[int] = []
        self._texts: list[str] = []
        for at, texts in enumerate(items):
            shown = next(
                (one for one in texts if len(extract_token_trigrams(one)) >= _LEAST_CODE), ""
            )
            if shown:
                self._items.append(at)
                self._texts.append(shown)
        self._counts: Counter[str] = Counter()
        self._counted = 0
        self._index: BenchmarkIndex | None = None

    def count(self, text: str) -> str:
        """Count the runs of a text's code, to tell rare ones from common ones; return the text."""
        runs = extract_token_trigrams(text) if self._items else ()
        if runs:
            self._counts.update(set(runs))
            self._counted += 1
        return text

    def find(self, text: str) -> Iterator[ContaminationMatch]:
        """Yield the items whose code is in a text under whatever names; count before."""
        if not self._items or len(extract_token_trigrams(text)) < _LEAST_CODE // 2:
            return
        if self._index is None:
            self._index = BenchmarkIndex(
                self._texts,
                frequency=self._counts if self._counted >= _ENOUGH_CODE else None,
                texts=self._counted if self._counted >= _ENOUGH_CODE else 0,
                near=_NEAR_CODE,
                shuffled=_SHUFFLED_CODE,
                cut=extract_token_trigrams,
            )
        for match in self._index.matches(text):
            yield ContaminationMatch(self._items[match.item], "rephrased", match.share)


class WordFinder:
    """Looks for items in records by their words; what is asked stands apart from its passage.

    Where a question tells enough by itself, it alone is looked for: its passage is no secret, and
    another question about that passage another item. Else the whole item must be there with its
    question. A passage with the very answer of the item is the item reworded.
    """

    def __init__(
        self,
        items: Sequence[str],
        answers: BenchmarkAnswers,
        *,
        frequency: Mapping[str, int],
        texts: int,
        near: float,
        code: CodeFinder | None = None,
    ) -> None:
        """Index the items.

        Args:
            items: What must not be found.
            answers: Of the same items.
            code: Looks for their code, where that is asked for.
            frequency: In how many of ``texts`` texts each word is.
            texts: How many were counted.
            near: Least share of an item's information.
        """
        self._answers, self._code = answers, code
        self._parts = parts = [split_question(item) for item in items]
        rules: dict[str, Any] = {"frequency": frequency, "texts": texts, "near": near}
        self._questions = BenchmarkIndex([part.question for part in parts], **rules)
        often = Counter(part.question for part in parts)
        alone = [
            bool(part.passage)
            and often[part.question] == 1
            and self._questions.tells(at) >= (_TELLS if part.is_apart else _TELLS_RUNNING)
            for at, part in enumerate(parts)
        ]
        self.asked = [
            part.question if is_alone else item
            for item, part, is_alone in zip(items, parts, alone, strict=True)
        ]
        self._index = BenchmarkIndex(self.asked, **rules)
        self._is_one = [is_asking(text) and len(split_sentences(text)) == 1 for text in self.asked]
        self._with_passage = [at for at, part in enumerate(parts) if part.passage]
        self._wholes = BenchmarkIndex([items[at] for at in self._with_passage], **rules)
        self._only_with = frozenset(at for at in self._with_passage if not alone[at])

    def find(self, record: Record) -> ContaminationMatch | None:
        """Return the item that is most clearly in a record, or None."""
        said, joined = _get_searched_texts(record)
        texts = [text for text, _ in said]
        found = [match for text, is_said in said for match in self._look(text, is_said=is_said)]
        found += [one for one in self._index.matches(joined) if self._may_span(one)]
        if self._code is not None:
            found += [match for text in texts for match in self._code.find(text)]
        if self._with_passage:
            answered = self._answers.same_as(record)
            found += [one for text in (*texts, joined) for one in self._look_whole(text, answered)]
        return max(found, key=lambda one: (one.share, -one.item), default=None)

    def _look(self, text: str, *, is_said: bool) -> Iterator[ContaminationMatch]:
        """Yield the items in a message: in its question, in its passage, and across both.

        What a user says may ask without a question mark ("Tell me ..."); a passage may not.
        """
        part = split_question(text)
        pieces = ((part.question, False), (part.passage, True)) if part.passage else ()
        for piece, may_state in pieces:
            matches = self._index.matches(piece, may_state=may_state)
            yield from (one for one in matches if self._is_alone(one))
        for match in self._index.matches(text, may_state=is_said):
            if self._is_alone(match) and (not part.passage or self._may_span(match)):
                yield match

    def _is_alone(self, match: ContaminationMatch) -> bool:
        return match.item not in self._only_with

    def _may_span(self, match: ContaminationMatch) -> bool:
        """Return whether an item may stand across the parts of a record: a bare question may not.

        Of that, the passage holds what the record's own question lacks.
        """
        return self._is_alone(match) and (not self._is_one[match.item] or match.kind in _EXACT)

    def _look_whole(self, text: str, answered: frozenset[int]) -> Iterator[ContaminationMatch]:
        """Yield the items whose passage is there, with their question or their answer."""
        for match in self._wholes.matches(text):
            item = self._with_passage[match.item]
            part = self._parts[item]
            asked = self._wholes.share_beyond(match.item, text, part.question, part.passage)
            least = _ASKED_TOO if part.is_apart else _ASKED_TOO_RUNNING
            if asked >= least or match.kind in _EXACT:
                yield replace(match, item=item)
            elif item in answered:
                yield ContaminationMatch(item, "rephrased", match.share)


def _get_searched_texts(record: Record) -> tuple[list[tuple[str, bool]], str]:
    """Return each message and an answer that was rejected, and several messages together.

    Beside each stands whether it is the assistant's.
    """
    texts = [(one.content, one.role == "assistant") for one in record.messages]
    texts = [(text, is_said) for text, is_said in texts if text.strip()]
    rejected = get_text_field(record, "rejected")
    rest = [(rejected, True)] if rejected.strip() else []
    return [*texts, *rest], "\n".join(text for text, _ in texts) if len(texts) > 1 else ""


def _get_all_texts(record: Record) -> list[str]:
    said, joined = _get_searched_texts(record)
    return [*(text for text, _ in said), *([joined] if joined else [])]


def split_pieces(record: Record) -> Iterator[tuple[str, bool]]:
    """Yield each message in pieces, and whether a piece only states something.

    A question stands apart from its passage. What is long comes in pieces of whole sentences that
    overlap by half. What the assistant says, and passages, state where there is no question mark.
    """
    said = [(one.content, one.role == "assistant") for one in record.messages]
    for text, is_said in (*said, (get_text_field(record, "rejected"), True)):
        parts = split_question(text)
        if parts.passage:
            yield parts.question, False
        rest = parts.passage or text
        is_told = is_said or bool(parts.passage)
        yield from ((piece, is_told and not is_asking(piece)) for piece in _cut_text(rest))


def _cut_text(text: str) -> Iterator[str]:
    spans = split_sentences(text)
    if len(text.split()) <= 2 * _PIECE_WORDS or len(spans) < 2:
        if text.strip():
            yield text
        return
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
