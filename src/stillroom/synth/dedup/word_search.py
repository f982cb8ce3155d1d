"""Search of records for benchmark items by their words; questions apart from their passages.

The code of items is found by its structure. The match rule, n-gram overlap weighted by information,
is ``text.dedup.decontamination``'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stillroom.records import Record
from stillroom.synth.dedup.benchmark_items import BenchmarkAnswers
from stillroom.synth.prompting.conversation import get_text_field
from stillroom.text.code import extract_token_trigrams
from stillroom.text.dedup.decontamination import BenchmarkIndex, ContaminationMatch
from stillroom.text.dedup.paraphrases import QuestionParts, is_asking, split_question
from stillroom.text.language import split_sentences

__all__ = ["CodeFinder", "WordFinder", "get_all_texts"]

_MIN_TRIGRAMS, _SHORT_TRIGRAMS = 20, 30
"""Token trigrams of the shortest code that is searched for, about four lines; and of that which a
less similar one is taken for: short functions resemble each other."""
_MIN_COUNTED_TEXTS = 50  # with code, to estimate trigram frequencies
_NEAR, _NEAR_SHORT, _SHUFFLED = 0.6, 0.8, 0.85
"""Information share of the trigrams, in order and in any order; chosen on functions of Python's
standard library, renamed and reordered.
"""


class CodeFinder:
    """Search for the code of items, or of their answers, by its structure (token trigrams)."""

    def __init__(self, items: Iterable[tuple[str, str]]) -> None:
        """Index the items with their answers; short code is left out, as it often coincides."""
        self._items: list[int] = []
        self._texts: list[str] = []
        for item, texts in enumerate(items):
            code = next(
                (text for text in texts if len(extract_token_trigrams(text)) >= _MIN_TRIGRAMS),
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
        trigrams = extract_token_trigrams(text) if self._items else ()
        if trigrams:
            self._counts.update(set(trigrams))
            self._counted += 1
        return text

    def find(self, text: str) -> Iterator[ContaminationMatch]:
        """Yield the items whose code is in a text, under any identifiers; call ``count`` first."""
        if not self._items or len(extract_token_trigrams(text)) < _MIN_TRIGRAMS // 2:
            return
        if self._index is None:
            are_enough = self._counted >= _MIN_COUNTED_TEXTS
            self._index = BenchmarkIndex(
                self._texts,
                frequency=self._counts if are_enough else None,
                texts=self._counted if are_enough else 0,
                near=_NEAR,
                shuffled=_SHUFFLED,
                cut=extract_token_trigrams,
            )
        for match in self._index.matches(text):
            size = len(extract_token_trigrams(self._texts[match.item]))
            if size >= _SHORT_TRIGRAMS or match.share >= _NEAR_SHORT:
                yield ContaminationMatch(self._items[match.item], "rephrased", match.share)


_QUESTION_NATS, _QUESTION_NATS_RUNNING = 20.0, 22.0
"""Information in nats from which a question identifies an item without its passage: where the
question is separate from the passage, and where it follows in running text.
"""
_QUESTION_SHARE, _QUESTION_SHARE_RUNNING = 0.75, 0.6
"""Share of a question that must be present along with its passage: where they are separate, and
where they are running text.
"""
_EXACT = frozenset({"whole", "verbatim"})


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
        parts_of_items = [split_question(item) for item in items]
        questions = [parts.question for parts in parts_of_items]
        question_index, question_counts = BenchmarkIndex(questions, **rules), Counter(questions)
        self._items: list[_SearchedItem] = []
        for number, (item, parts) in enumerate(zip(items, parts_of_items, strict=True)):
            min_nats = _QUESTION_NATS if parts.is_apart else _QUESTION_NATS_RUNNING
            is_alone = (
                bool(parts.passage)
                and question_counts[parts.question] == 1
                and question_index.information(number) >= min_nats
            )
            text = parts.question if is_alone else item
            is_question = is_asking(text) and len(split_sentences(text)) == 1
            self._items.append(_SearchedItem(text, parts, is_alone, is_question))
        self._index = BenchmarkIndex(self.searched, **rules)
        self._with_passage = [
            number for number, parts in enumerate(parts_of_items) if parts.passage
        ]
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
            same_answer = self._answers.find_same(record)
            matches += [
                match for text in (*texts, joined) for match in self._match_whole(text, same_answer)
            ]
        return max(matches, key=lambda match: (match.share, -match.item), default=None)

    def _match_message(self, text: str, *, is_assistant: bool) -> Iterator[ContaminationMatch]:
        """Yield the items in a message: in its question, in its passage, and across both.

        A user message may ask without a question mark ("Tell me ..."); a passage may not.
        """
        parts = split_question(text)
        pieces = ((parts.question, False), (parts.passage, True)) if parts.passage else ()
        for piece, may_state in pieces:
            matches = self._index.matches(piece, may_state=may_state)
            yield from (match for match in matches if not self._needs_passage(match))
        for match in self._index.matches(text, may_state=is_assistant):
            if self._may_span(match) or (not parts.passage and not self._needs_passage(match)):
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

    def _match_whole(self, text: str, same_answer: frozenset[int]) -> Iterator[ContaminationMatch]:
        """Yield the items whose passage matches, along with their question or their answer.

        ``same_answer`` are the items that have the record's answer.
        """
        for match in self._whole_index.matches(text):
            number = self._with_passage[match.item]
            parts = self._items[number].parts
            share = self._whole_index.question_share(
                match.item, text, parts.question, parts.passage
            )
            min_share = _QUESTION_SHARE if parts.is_apart else _QUESTION_SHARE_RUNNING
            if share >= min_share or match.kind in _EXACT:
                yield replace(match, item=number)
            elif number in same_answer:
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


def get_all_texts(record: Record) -> list[str]:
    """Return every text of a record that is searched, messages first, then all of them joined."""
    messages, joined = _get_searched_texts(record)
    return [*(text for text, _ in messages), *([joined] if joined else [])]
