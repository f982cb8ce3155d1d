"""Benchmark contamination (leakage) of records: word, code and embedding searches, an LLM judge.

``ContaminationChecker`` takes what ``word_search`` finds, words or code, and searches the remaining
records for paraphrases, by embeddings of pieces of each message; the score, cosine with lexical
anchors, is ``text.dedup.paraphrases``'s. The measure of a word search is ``BenchmarkIndex`` of
``text.dedup.decontamination``: a share of information, in place of the usual n-gram overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stillroom.errors import BackendError, DataError
from stillroom.jobs import Job
from stillroom.records import Message, Prompt, Record
from stillroom.synth.dedup.benchmark_items import BenchmarkAnswers, BenchmarkItem
from stillroom.synth.dedup.word_search import CodeFinder, WordFinder, get_all_texts
from stillroom.synth.prompting.conversation import get_text_field
from stillroom.text.dedup.decontamination import ContaminationMatch, count_document_frequencies
from stillroom.text.dedup.paraphrases import (
    ParaphraseIndex,
    ParaphraseScore,
    is_asking,
    split_question,
)
from stillroom.text.language import split_sentences

if TYPE_CHECKING:
    from stillroom.models import Embedder, TextModel

__all__ = ["ContaminationChecker", "MatchResult", "MatchThresholds", "find_paraphrases"]

_PIECE_WORDS = 60


def find_paraphrases(
    records: Sequence[Record],
    index: ParaphraseIndex,
    embedder: Embedder,
    answers: BenchmarkAnswers,
) -> Iterator[tuple[int, str, ParaphraseScore]]:
    """Yield the most similar item of each piece of text, with the record's number and the piece.

    Raises:
        BackendError: If the embedder fails.
    """
    pieces = [
        (number, *piece) for number, record in enumerate(records) for piece in _split_pieces(record)
    ]
    if not pieces:
        return
    vectors = embedder.embed([text for _, text, _ in pieces], kind="passage")
    answered_alike = [answers.find_same(record) for record in records]
    is_denied = [answers.differ_from(record) for record in records]
    for (number, text, is_stated), vector in zip(pieces, vectors, strict=True):
        paraphrase = index.find(
            text, vector, answered_alike[number], is_stated=is_stated, denied=is_denied[number]
        )
        if paraphrase is not None:
            yield number, text, paraphrase


def _split_pieces(record: Record) -> Iterator[tuple[str, bool]]:
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


@dataclass(frozen=True, slots=True)
class MatchResult:
    """Result of checking a record: a match, no match, or the reason it could not be checked."""

    match: ContaminationMatch | None = None
    unchecked: str = ""


@dataclass(frozen=True, slots=True)
class MatchThresholds:
    """Detection thresholds.

    ``near`` is a share of the information of an item's words. ``reworded`` and ``judged`` are
    scores of ``text.dedup.paraphrases``: from ``reworded`` a text counts as a rewording; from
    ``judged`` the judge, if any, decides.
    """

    near: float = 0.65
    reworded: float = 0.86
    judged: float = 0.76


class ContaminationChecker:
    """Search of records for benchmark items; a failed embedder or judge is not used again."""

    def __init__(
        self,
        items: Sequence[BenchmarkItem],
        records: Iterable[Record],
        thresholds: MatchThresholds,
        job: Job,
        *,
        embedder: Embedder | None = None,
        judge: TextModel | None = None,
    ) -> None:
        """Index the items; ``records`` are read once, to count word frequencies."""
        self.items, self.thresholds, self.job = items, thresholds, job
        self.embedder, self.judge = embedder, judge
        self._failures: dict[str, str] = {}
        code = CodeFinder([(item.text, item.answer) for item in items])
        with job.phase("count words", unit="records") as progress:
            counted = (
                code.count(text)
                for record in progress.over(records)
                for text in get_all_texts(record)
            )
            frequency, count = count_document_frequencies(counted)
        self._answers = BenchmarkAnswers([item.answer for item in items])
        self._words = WordFinder(
            [item.text for item in items],
            self._answers,
            frequency=frequency,
            texts=count,
            near=thresholds.near,
            code=code,
        )
        self._paraphrases: ParaphraseIndex | None = None
        if embedder is not None:
            texts = self._words.searched
            try:
                vectors = embedder.embed(texts, kind="passage")
                self._paraphrases = ParaphraseIndex(
                    texts, vectors, frequency=frequency, texts=count
                )
            except (BackendError, DataError) as error:
                self._fail("embedder", error)

    def check(self, records: Sequence[Record]) -> list[MatchResult]:
        """Return the result for each record."""
        results = [MatchResult(self._words.find(record)) for record in records]
        if self.embedder is None:
            return results
        unmatched = [index for index, result in enumerate(results) if result.match is None]
        paraphrases = self._search_paraphrases([records[index] for index in unmatched])
        for index, result in zip(unmatched, paraphrases, strict=True):
            results[index] = result
        return results

    @property
    def why_unchecked(self) -> str:
        """The failures, joined; empty if there were none."""
        return "; ".join(self._failures.values())

    def _fail(self, component: str, error: Exception) -> str:
        """Record that a component failed, log it once, and return the reason."""
        self._failures[component] = f"the {component} failed: {error!s:.200}"
        self.job.warn(f"{self._failures[component]}; records are not checked with it from here on")
        return self._failures[component]

    def _search_paraphrases(self, records: Sequence[Record]) -> list[MatchResult]:
        if self._paraphrases is None or self.embedder is None or "embedder" in self._failures:
            return [MatchResult(unchecked=self._failures["embedder"])] * len(records)
        results = [MatchResult() for _ in records]
        try:
            found = list(find_paraphrases(records, self._paraphrases, self.embedder, self._answers))
        except (BackendError, DataError) as error:
            return [MatchResult(unchecked=self._fail("embedder", error))] * len(records)
        for number, text, paraphrase in found:
            if results[number].match is not None:
                continue
            if paraphrase.score >= self.thresholds.reworded:
                results[number] = _make_rephrased_result(paraphrase)
            elif self.judge is not None and paraphrase.score >= self.thresholds.judged:
                results[number] = self._ask(self.judge, paraphrase, text) or results[number]
        return results

    def _ask(self, judge: TextModel, paraphrase: ParaphraseScore, text: str) -> MatchResult | None:
        if "judge" in self._failures:
            return MatchResult(unchecked=self._failures["judge"])
        prompt = Prompt(
            (Message("user", _make_judge_prompt(self.items[paraphrase.item].text, text)),)
        )
        try:
            yes, no = judge.score([prompt, prompt], ["yes", "no"])
        except (BackendError, DataError) as error:
            return MatchResult(unchecked=self._fail("judge", error))
        return _make_rephrased_result(paraphrase) if yes.mean > no.mean else None


def _make_rephrased_result(paraphrase: ParaphraseScore) -> MatchResult:
    return MatchResult(ContaminationMatch(paraphrase.item, "rephrased", min(1.0, paraphrase.score)))


def _make_judge_prompt(item: str, text: str) -> str:
    return (
        f"Question 1: {item}\n\nQuestion 2: {text}\n\nDo both ask for the same thing, about the "
        "same facts, so that whoever has seen one knows the other's answer? Say yes or no."
    )
