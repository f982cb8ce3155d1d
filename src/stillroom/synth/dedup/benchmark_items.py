"""Benchmark items: reading them from files, and their answers, where these are distinctive."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from stillroom.evaluate.final_answer import normalize_answer
from stillroom.objects import resolve_local
from stillroom.records import Record, read_records
from stillroom.synth.prompting.conversation import get_final_answer, get_text_field
from stillroom.text.unicode import split_words

__all__ = ["BenchmarkAnswers", "BenchmarkItem", "read_benchmark_items"]

_COMMON_ANSWER = 0.05  # largest share of items with one answer that is still distinctive
_UNINFORMATIVE = frozenset({"", "yes", "no", "true", "false", "none", "unknown"})
_LONG_ANSWER_WORDS = 60
_LETTER = re.compile(r"\(? ?[a-z] ?\)?")


@dataclass(frozen=True, slots=True)
class BenchmarkItem:
    """A benchmark item that must not be trained on, its file and row, and its answer if known."""

    text: str
    file: str
    row: int
    answer: str = ""


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
    if key in _UNINFORMATIVE or _LETTER.fullmatch(key) or len(words) > _LONG_ANSWER_WORDS:
        return frozenset()
    return frozenset({*words, *split_words(key)})
