"""Which sentences explain the setting, command or term that a question names.

Manuals explain their options one below the other, in lists of definitions or sections of their own,
and in much the same words ("The default is 20."): the name tells them apart, and stands in a line
of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stillroom.rag.answer_selection.encoding import Span
    from stillroom.rag.answer_selection.overlap import ScoredSentence
    from stillroom.records import Definition, Document, Passage

__all__ = ["explain_terms", "find_term", "find_unread_names", "keep_named"]

_NUMBERING = re.compile(r"[^\w-]*(?:(?:[A-Z]\.)?\d+(?:\.\d+)*\.?\s+)?[^\w-]*")
_COMMA = re.compile(r"(?:[ =]?[\w<>\[\]]+)?,\s+")
_WORD = re.compile(r"[^\W_]+")
_NAME = re.compile(
    r"[^\W_][\w.:-]*_[\w.:-]*"  # "max_size"
    r"|-{1,2}[^\W_][\w-]*"  # "--max"
    r"|[a-z][\w.:]*[A-Z]\w*(?=\W*$|\s*[\[({<=])"  # "maxSize", "queue.maxSize"
    r"|[a-z\d]+(?:-[a-z\d]+)+(?=\W*$|\s*[\[({<=,;:]|\s+[A-Z_]+\b)"  # "max-size", "max-size SIZE"
)
# Names of settings, not words: "max_size", "--max", "maxSize", "log-time-format"; of two words with
# a hyphen only where the question says that they are one.
_SETTING = re.compile(
    r"(?<!\S)--[a-z][\w-]+|\b[A-Za-z]\w*_\w+\b|\b[a-z]+[A-Z]\w+\b|\b[a-z]{3,}(?:-[a-z]{3,}){2,}\b"
    r"|(?:(?<=\bdefault of )|(?<=\bvalues of )|(?<=\boption )|(?<=\bsetting )|(?<=\bdirective )"
    r"|(?<=\bparameter )|(?<=\bcommand )|(?<=\bdoes ))[a-z]{2,}-[a-z]{2,}\b(?!-)"
)
# What asks for what the entry of a setting says of it.
_ASKS_FOR_ENTRY = re.compile(
    r"\b(?:defaults?|minimum|maximum|range|units?|values?)\b|\bwhat (?:does|is)\b", re.IGNORECASE
)
_MAX_TERM = 160  # characters of a term that is quoted


def keep_named(
    questions: Sequence[str],
    sentences: Sequence[ScoredSentence],
    texts: Sequence[str],
    get_path: Callable[[ScoredSentence], Sequence[str]],
) -> list[ScoredSentence]:
    """Return the sentences without those on other names than the one that the question names.

    Where a section or an entry of a list of definitions has a name such as "max-size" or
    "maxSize", sentences elsewhere stay if they mention it, but not where its default, values or
    meaning is asked for.

    Args:
        questions: The question, and those that it goes on from, the nearest first; the first that
            names one counts.
        sentences: Sentences of all passages.
        texts: Texts of the passages.
        get_path: Returns the titles and terms that a sentence lies under.
    """
    paths = [
        frozenset(name for title in get_path(sentence) for name in _find_names(title))
        for sentence in sentences
    ]
    names = frozenset[str]().union(*paths)
    found = ({name for name in names if _is_named(name, question)} for question in questions)
    named = next(filter(None, found), set[str]())
    is_of_entry = bool(_ASKS_FOR_ENTRY.search(questions[0]))
    return [
        sentence
        for sentence, path in zip(sentences, paths, strict=True)
        if not named
        or not named.isdisjoint(path)
        or (not is_of_entry and _mentions(texts, sentence, named))
    ]


def _mentions(texts: Sequence[str], sentence: ScoredSentence, names: Iterable[str]) -> bool:
    text = texts[sentence.passage][sentence.start : sentence.end]
    return any(_is_named(name, text) for name in names)


def explain_terms(
    chosen: Sequence[ScoredSentence],
    sentences: Sequence[ScoredSentence],
    find_entry: Callable[[ScoredSentence], Span | None],
) -> list[ScoredSentence]:
    """Return the chosen sentences, each term replaced by the best sentence that explains it.

    Args:
        chosen: Chosen sentences, best first.
        sentences: All sentences, best first.
        find_entry: Returns the span in its passage of what explains a sentence that is a term.
    """
    explained = []
    for sentence in chosen:
        start, end = find_entry(sentence) or (0, 0)
        best = (s for s in sentences if s.passage == sentence.passage and start <= s.start < end)
        explained.append(next(best, sentence))
    return list(dict.fromkeys(explained))


def find_unread_names(question: str, texts: Iterable[str]) -> list[str]:
    """Return the names of settings in a question that no text has, however its words are joined."""
    read = _simplify(" ".join(texts))
    names = dict.fromkeys(match[0] for match in _SETTING.finditer(question))
    return [name for name in names if _simplify(name) not in read]


def find_term(document: Document, passage: Passage, span: Span) -> Span | None:
    """Return the span of the term that a span of a passage explains, if the passage has both.

    A question is no term: what answers it can be read without it.
    """
    entries: tuple[Definition, ...] = document.find_definitions(passage.start + span[0])
    if not entries or entries[-1].start < passage.start:
        return None
    start, end = entries[-1].start - passage.start, entries[-1].end - passage.start
    is_question = passage.text[start:end].rstrip().endswith("?")
    return None if is_question or end - start > _MAX_TERM else (start, end)


def _find_names(title: str) -> Iterator[str]:
    """Yield the names of a setting with which a title or term begins, such as "-e, --exclude".

    A word with a hyphen is a name where nothing but arguments follow: "read-only files" has none.
    """
    numbering = _NUMBERING.match(title)
    start = numbering.end() if numbering else 0
    while match := _NAME.match(title, start):
        yield match[0]
        comma = _COMMA.match(title, match.end())
        start = comma.end() if comma else len(title)


def _is_named(name: str, text: str) -> bool:
    """Return whether a text has a name by itself: "max_size" is not in "hard_max_size".

    Its words may be joined otherwise ("max size"), but for two with a hyphen ("set-up").
    """
    words = _WORD.findall(name)
    pattern = "-{0,2}" + r"[\W_]+".join(map(re.escape, words))
    if len(words) <= 2 and "-" in name:
        pattern = re.escape(name).replace(r"\-", "[-_]")
    return bool(words) and bool(re.search(rf"(?<![\w-]){pattern}(?![\w-])", text, re.IGNORECASE))


def _simplify(text: str) -> str:
    """Return the words of a text between blanks; "max-size" has two."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "
