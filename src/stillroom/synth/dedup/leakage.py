"""Search of records for benchmark items: weighted words, code shape, embeddings and an LLM judge.

``WordFinder`` (by the match rule of ``text.dedup.decontamination.BenchmarkIndex``) and
``CodeFinder`` search each record; ``LeakChecker`` adds paraphrases (``text.dedup.paraphrases``) in
what they leave.
"""

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
from stillroom.text.dedup.decontamination import (
    BenchmarkIndex,
    ContaminationMatch,
    count_document_frequencies,
)
from stillroom.text.dedup.paraphrases import (
    ParaphraseIndex,
    ParaphraseScore,
    QuestionParts,
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
"""Largest share of the items that may have the same answer; a commoner answer is not distinctive.
"""
_UNINFORMATIVE = frozenset({"", "yes", "no", "true", "false", "none", "unknown"})
_QUESTION_NATS, _QUESTION_NATS_RUNNING = 20.0, 22.0
"""Information in nats from which a question identifies an item without its passage: where the
question is separate from the passage, and where it follows in running text.
"""
_QUESTION_SHARE, _QUESTION_SHARE_RUNNING = 0.75, 0.6
"""Share of a question that must be present along with its passage: where they are separate, and
where they are running text.
"""
_EXACT = frozenset({"whole", "verbatim"})
_LONG_ANSWER = 60
_MIN_CODE_TRIGRAMS, _SHORT_CODE_TRIGRAMS = 20, 30
"""Token trigrams of the shortest code that is searched for, about four lines; and of that which a
less similar one is taken for: short functions resemble each other."""
_MIN_CODE_TEXTS = 50
"""Number of texts with code needed to estimate trigram frequencies."""
_NEAR_CODE, _NEAR_SHORT_CODE, _SHUFFLED_CODE = 0.6, 0.8, 0.85
"""Information share of the trigrams, in order and in any order; chosen on functions of Python's
standard library, renamed and reordered.
"""
_LETTER = re.compile(r"\(? ?[a-z] ?\)?")


@dataclass(frozen=True, slots=True)
class BenchmarkItem:
    """A benchmark item that must not be trained on, its file and row, and its answer if known."""

    text: str
    file: str
    row: int
    answer: str = ""


@dataclass(frozen=True, slots=True)
class LeakResult:
    """Result of checking a record: a match, no match, or the reason it could not be checked."""

    match: ContaminationMatch | None = None
    unchecked: str = ""


@dataclass(frozen=True, slots=True)
class LeakThresholds:
    """Detection thresholds.

    ``near`` is a share of the information of an item's words. ``reworded`` and ``judged`` are
    scores of ``text.dedup.paraphrases``: from ``reworded`` a text counts as a rewording; from
    ``judged`` the judge, if any, decides.
    """

    near: float = 0.65
    reworded: float = 0.86
    judged: float = 0.76


class BenchmarkAnswers:
    """Benchmark items by answer, for distinctive answers only: not yes and no, A and B."""

    def __init__(self, answers: Sequence[str]) -> None:
        """Index the answers of all items; an unknown answer is an empty string."""
        keys = [normalize_answer(answer) if answer else "" for answer in answers]
        most = max(1, int(_COMMON_ANSWER * len(keys)))
        by_key: dict[str, list[int]] = {}
        for item, key in enumerate(keys):
            by_key.setdefault(key, []).append(item)
        self._words = [_get_answer_words(answer) for answer in answers]
        self._by_key = {
            key: frozenset(items)
            for key, items in by_key.items()
            if len(items) <= most and key not in _UNINFORMATIVE and not _LETTER.fullmatch(key)
        }

    def find_same(self, record: Record) -> frozenset[int]:
        """Return the items that have the same answer as the record."""
        answer = get_final_answer(record)
        return self._by_key.get(normalize_answer(answer), frozenset()) if answer else frozenset()

    def differ_from(self, record: Record) -> Callable[[int], bool]:
        """Return a predicate: whether an item's answer shares no word with the record's answer."""
        record_words = _get_answer_words(get_final_answer(record))
        is_number = _is_number(record_words)

        def is_different(item: int) -> bool:
            item_words = self._words[item]
            # two numbers may be the same sum, one miscalculated
            if is_number and _is_number(item_words):
                return False
            return bool(record_words and item_words) and not record_words & item_words

        return is_different


def _is_number(words: frozenset[str]) -> bool:
    return any(token[0].isdigit() for token in words)


def _get_answer_words(answer: str) -> frozenset[str]:
    """Return the words of an informative answer; an empty set for a long one."""
    key = normalize_answer(answer) if answer else ""
    words = split_words(answer)
    if key in _UNINFORMATIVE or _LETTER.fullmatch(key) or len(words) > _LONG_ANSWER:
        return frozenset()
    return frozenset({*words, *split_words(key)})


class LeakChecker:
    """Search of records for benchmark items; a failed embedder or judge is not used again."""

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
        """Index the items; ``records`` are read once, to count word frequencies."""
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
        texts = self.words.searched
        self._failed: dict[str, str] = {}
        self.meanings: ParaphraseIndex | None = None
        if embedder is not None:
            try:
                vectors = embedder.embed(texts, kind="passage")
                self.meanings = ParaphraseIndex(texts, vectors, frequency=frequency, texts=count)
            except (BackendError, DataError) as error:
                self._fail("embedder", error)

    def check(self, records: Sequence[Record]) -> list[LeakResult]:
        """Return the result for each record."""
        results = [LeakResult(self.words.find(record)) for record in records]
        if self.embedder is None:
            return results
        unmatched = [index for index, checked in enumerate(results) if checked.match is None]
        for index, checked in zip(
            unmatched, self._compare([records[index] for index in unmatched]), strict=True
        ):
            results[index] = checked
        return results

    @property
    def why_unchecked(self) -> str:
        """The failures, joined; empty if there were none."""
        return "; ".join(self._failed.values())

    def _fail(self, component: str, error: Exception) -> str:
        """Record that a component failed, log it once, and return the reason."""
        self._failed[component] = f"the {component} failed: {error!s:.200}"
        self.job.warn(f"{self._failed[component]}; records are not checked with it from here on")
        return self._failed[component]

    def _compare(self, records: Sequence[Record]) -> list[LeakResult]:
        pieces = [
            (index, piece) for index, record in enumerate(records) for piece in split_pieces(record)
        ]
        results = [LeakResult() for _ in records]
        if self.meanings is None or self.embedder is None or "embedder" in self._failed:
            return [LeakResult(unchecked=self._failed["embedder"])] * len(records)
        if not pieces:
            return results
        try:
            vectors = self.embedder.embed([text for _, (text, _) in pieces], kind="passage")
        except (BackendError, DataError) as error:
            return [LeakResult(unchecked=self._fail("embedder", error))] * len(records)
        answered = [self._answers.find_same(record) for record in records]
        is_denied = [self._answers.differ_from(record) for record in records]
        for (index, (piece, is_stated)), vector in zip(pieces, vectors, strict=True):
            paraphrase = self.meanings.find(
                piece, vector, answered[index], is_stated=is_stated, denied=is_denied[index]
            )
            if paraphrase is None or results[index].match is not None:
                continue
            if paraphrase.score >= self.limits.reworded:
                share = min(1.0, paraphrase.score)
                results[index] = LeakResult(ContaminationMatch(paraphrase.item, "rephrased", share))
            elif self.judge is not None and paraphrase.score >= self.limits.judged:
                results[index] = self._ask(self.judge, paraphrase, piece) or results[index]
        return results

    def _ask(self, judge: TextModel, paraphrase: ParaphraseScore, text: str) -> LeakResult | None:
        if "judge" in self._failed:
            return LeakResult(unchecked=self._failed["judge"])
        prompt = Prompt(
            (Message("user", _make_judge_prompt(self.items[paraphrase.item].text, text)),)
        )
        try:
            yes, no = judge.score([prompt, prompt], ["yes", "no"])
        except (BackendError, DataError) as error:
            return LeakResult(unchecked=self._fail("judge", error))
        if yes.mean <= no.mean:
            return None
        return LeakResult(
            ContaminationMatch(paraphrase.item, "rephrased", min(1.0, paraphrase.score))
        )


def _make_judge_prompt(item: str, text: str) -> str:
    return (
        f"Question 1: {item}\n\nQuestion 2: {text}\n\nDo both ask for the same thing, about the "
        "same facts, so that whoever has seen one knows the other's answer? Say yes or no."
    )


def read_benchmark_items(sources: Iterable[str | Path]) -> Iterator[BenchmarkItem]:
    """Yield the benchmark items of record files or artifacts.

    An item is a record's ``question``, else its first user message, else its first message; its
    answer is the record's final answer.

    Raises:
        DataError: If a file is missing or damaged.
    """
    for source in sources:
        path = resolve_local(str(source))
        for row, record in enumerate(read_records(path), 1):
            user_texts = [message.content for message in record.messages if message.role == "user"]
            all_texts = [message.content for message in record.messages]
            text = get_text_field(record, "question") or (user_texts or all_texts or [""])[0]
            if text.strip():
                yield BenchmarkItem(text, path.name, row, get_final_answer(record))


class CodeFinder:
    """Search for the code of items, or of their answers, by its structure (token trigrams)."""

    def __init__(self, items: Iterable[tuple[str, str]]) -> None:
        """Index the items with their answers; short code is left out, as it often coincides."""
        self._items: list[int] = []
        self._texts: list[str] = []
        for item, texts in enumerate(items):
            code = next(
                (text for text in texts if len(extract_token_trigrams(text)) >= _MIN_CODE_TRIGRAMS),
                "",
            )
            if code:
                self._items.append(item)
                self._texts.append(code)
        self._counts: Counter[str] = Counter()
        self._counted = 0
        self._index: BenchmarkIndex | None = None

    def count(self, text: str) -> str:
        """Count the token trigrams of a text's code for frequency weights; return the text."""
        runs = extract_token_trigrams(text) if self._items else ()
        if runs:
            self._counts.update(set(runs))
            self._counted += 1
        return text

    def find(self, text: str) -> Iterator[ContaminationMatch]:
        """Yield the items whose code is in a text, under any identifiers; call ``count`` first."""
        if not self._items or len(extract_token_trigrams(text)) < _MIN_CODE_TRIGRAMS // 2:
            return
        if self._index is None:
            self._index = BenchmarkIndex(
                self._texts,
                frequency=self._counts if self._counted >= _MIN_CODE_TEXTS else None,
                texts=self._counted if self._counted >= _MIN_CODE_TEXTS else 0,
                near=_NEAR_CODE,
                shuffled=_SHUFFLED_CODE,
                cut=extract_token_trigrams,
            )
        for match in self._index.matches(text):
            size = len(extract_token_trigrams(self._texts[match.item]))
            if size >= _SHORT_CODE_TRIGRAMS or match.share >= _NEAR_SHORT_CODE:
                yield ContaminationMatch(self._items[match.item], "rephrased", match.share)


@dataclass(frozen=True, slots=True)
class _SearchedItem:
    """An item as it is searched for.

    ``text`` is its question only where that identifies it without its passage (``is_alone``), else
    the whole item; ``is_question`` tells whether that text is one bare question.
    """

    text: str
    parts: QuestionParts
    is_alone: bool
    is_question: bool


class WordFinder:
    """Search of records for items by their words; questions are matched apart from their passages.

    Where a question is informative enough by itself, only the question is matched: its passage is
    public, and another question about that passage is another item. Otherwise the whole item must
    match with its question. A passage with exactly the item's answer is the item reworded.
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
            items: Texts of the benchmark items.
            answers: Answers of the same items.
            code: Finder of their code, if code is to be searched.
            frequency: Number of texts that contain each word.
            texts: Number of texts counted.
            near: Least share of an item's information.
        """
        self._answers, self._code = answers, code
        rules: dict[str, Any] = {"frequency": frequency, "texts": texts, "near": near}
        parts = [split_question(item) for item in items]
        questions = BenchmarkIndex([part.question for part in parts], **rules)
        times = Counter(part.question for part in parts)
        self._items: list[_SearchedItem] = []
        for number, (item, part) in enumerate(zip(items, parts, strict=True)):
            least = _QUESTION_NATS if part.is_apart else _QUESTION_NATS_RUNNING
            is_alone = (
                bool(part.passage)
                and times[part.question] == 1
                and questions.information(number) >= least
            )
            text = part.question if is_alone else item
            is_question = is_asking(text) and len(split_sentences(text)) == 1
            self._items.append(_SearchedItem(text, part, is_alone, is_question))
        self._index = BenchmarkIndex(self.searched, **rules)
        self._with_passage = [number for number, part in enumerate(parts) if part.passage]
        self._whole_index = BenchmarkIndex(
            [items[number] for number in self._with_passage], **rules
        )

    @property
    def searched(self) -> list[str]:
        """What is searched for of each item: its question, or all of it."""
        return [item.text for item in self._items]

    def find(self, record: Record) -> ContaminationMatch | None:
        """Return the clearest match in a record, or None."""
        messages, joined = _get_searched_texts(record)
        texts = [text for text, _ in messages]
        matches = [
            match
            for text, is_assistant in messages
            for match in self._match_message(text, is_assistant=is_assistant)
        ]
        matches += [match for match in self._index.matches(joined) if self._may_span(match)]
        if self._code is not None:
            matches += [match for text in texts for match in self._code.find(text)]
        if self._with_passage:
            answered = self._answers.find_same(record)
            matches += [
                match for text in (*texts, joined) for match in self._match_whole(text, answered)
            ]
        return max(matches, key=lambda match: (match.share, -match.item), default=None)

    def _match_message(self, text: str, *, is_assistant: bool) -> Iterator[ContaminationMatch]:
        """Yield the items in a message: in its question, in its passage, and across both.

        A user message may ask without a question mark ("Tell me ..."); a passage may not.
        """
        part = split_question(text)
        pieces = ((part.question, False), (part.passage, True)) if part.passage else ()
        for piece, may_state in pieces:
            matches = self._index.matches(piece, may_state=may_state)
            yield from (match for match in matches if not self._needs_passage(match))
        for match in self._index.matches(text, may_state=is_assistant):
            if self._may_span(match) or (not part.passage and not self._needs_passage(match)):
                yield match

    def _needs_passage(self, match: ContaminationMatch) -> bool:
        """Return whether the item counts only as a whole: see ``_match_whole``."""
        item = self._items[match.item]
        return bool(item.parts.passage) and not item.is_alone

    def _may_span(self, match: ContaminationMatch) -> bool:
        """Return whether an item may span the parts of a record; a bare question may not.

        In that case the passage contains the words that the record's own question lacks.
        """
        is_bare = self._items[match.item].is_question and match.kind not in _EXACT
        return not is_bare and not self._needs_passage(match)

    def _match_whole(self, text: str, answered: frozenset[int]) -> Iterator[ContaminationMatch]:
        """Yield the items whose passage matches, along with their question or their answer."""
        for match in self._whole_index.matches(text):
            number = self._with_passage[match.item]
            parts = self._items[number].parts
            share = self._whole_index.question_share(
                match.item, text, parts.question, parts.passage
            )
            least = _QUESTION_SHARE if parts.is_apart else _QUESTION_SHARE_RUNNING
            if share >= least or match.kind in _EXACT:
                yield replace(match, item=number)
            elif number in answered:
                yield ContaminationMatch(number, "rephrased", match.share)


def _get_searched_texts(record: Record) -> tuple[list[tuple[str, bool]], str]:
    """Return each message and the rejected answer, and all messages joined.

    Each text comes with a flag: whether it is the assistant's.
    """
    texts = [(message.content, message.role == "assistant") for message in record.messages]
    texts = [(text, is_assistant) for text, is_assistant in texts if text.strip()]
    rejected = get_text_field(record, "rejected")
    rejected_texts = [(rejected, True)] if rejected.strip() else []
    return [*texts, *rejected_texts], "\n".join(text for text, _ in texts) if len(texts) > 1 else ""


def _get_all_texts(record: Record) -> list[str]:
    messages, joined = _get_searched_texts(record)
    return [*(text for text, _ in messages), *([joined] if joined else [])]


def split_pieces(record: Record) -> Iterator[tuple[str, bool]]:
    """Yield each message in pieces, with a flag: whether the piece is a statement.

    A question is separated from its passage. Long texts are cut into pieces of whole sentences that
    overlap by half. Assistant messages and passages are statements where they have no question
    mark.
    """
    messages = [(message.content, message.role == "assistant") for message in record.messages]
    for text, is_assistant in (*messages, (get_text_field(record, "rejected"), True)):
        parts = split_question(text)
        if parts.passage:
            yield parts.question, False
        body = parts.passage or text
        is_statement = is_assistant or bool(parts.passage)
        yield from ((piece, is_statement and not is_asking(piece)) for piece in _cut_text(body))


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
