"""Which sentences explain the setting, command or term that a question names.

Manuals explain their options one below the other, in lists of definitions or sections of their own,
and in much the same words ("The default is 20."): the name tells them apart, and stands in a line
of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING

from stillroom.rag.answer_selection.encoding import find_lists
from stillroom.rag.answer_selection.entries import (
    begins_with_cells,
    find_asked_label,
    find_cells,
    get_row_label,
    is_description_asked,
    states_nothing,
)
from stillroom.records.document import Heading

if TYPE_CHECKING:
    from stillroom.rag.answer_selection.encoding import Span
    from stillroom.rag.answer_selection.overlap import ScoredSentence
    from stillroom.records import Definition, Document, Hit, Passage

__all__ = [
    "SentencePlaces",
    "explain_terms",
    "find_term",
    "find_unread_names",
    "keep_named",
    "prefer_entries",
]

_NUMBERING = re.compile(r"[^\w-]*(?:(?:[A-Z]\.)?\d+(?:\.\d+)*\.?\s+)?[^\w-]*")
_COMMA = re.compile(r"(?:[ =]?[\w<>\[\]]+)?,\s+")
_WORD = re.compile(r"[^\W_]+")
_KIND = r"(?:command|directive|option|parameter|property|setting|variable)"
_NAME = re.compile(
    r"[^\W_][\w.:-]*_[\w.:-]*"  # "max_size"
    r"|-{1,2}[^\W_][\w-]*"  # "--max"
    r"|[a-z][\w.:]*[A-Z]\w*(?=\W*$|\s*[\[({<=])"  # "maxSize", "queue.maxSize"
    r"|[a-z\d]+(?:-[a-z\d]+)+(?=\W*$|\s*[\[({<=,;:]|\s+[A-Z_]+\b)"  # "max-size", "max-size SIZE"
)
# "MaxSize" looks like "JavaScript": the name of a setting only as a term, among headings like it,
# or above lines with labels; "Port" only above such lines.
_CAPITAL = r"(?![A-Z]+s\b)(?=\w*[a-z])[A-Z]\w*[A-Z]\w*"
_ALONE = rf"(?=\W*$|\s*[\[({{<=,]|\s+(?i:{_KIND})\W*$)"
_CAPITAL_NAME = re.compile(rf"(?:{_CAPITAL}){_ALONE}")
_ENTRY_NAME = re.compile(rf"[^\W\d_]\w*{_ALONE}")
_WORDS_NAME = re.compile(rf"[a-z][\w-]*(?: [a-z][\w-]*){{1,2}}{_ALONE}")  # "timeout client"
# Names of settings, not words: "max_size", "--max", "maxSize", "log-time-format"; of two words with
# a hyphen, or with a capital, only where the question says that they are one.
_SETTING = re.compile(
    r"(?<!\S)--[a-z][\w-]+|\b[A-Za-z]\w*_\w+\b|\b[a-z]+[A-Z]\w+\b|\b[a-z]{3,}(?:-[a-z]{3,}){2,}\b"
    r"|(?:(?<=\bdefault of )|(?<=\bvalues of )|(?<=\boption )|(?<=\bsetting )|(?<=\bdirective )"
    r"|(?<=\bparameter )|(?<=\bcommand )|(?<=\bdoes ))[a-z]{2,}-[a-z]{2,}\b(?!-)"
)
_BEFORE = (
    r"(?:\bdefaults?(?: values?)?|\b(?:defaults?|values)(?: \w+){0,3}? (?:of|for)"
    rf"|\b{_KIND}|\bdoes)(?: the)? "
)
_AFTER = rf" (?:{_KIND}|do|defaults?|be used|takes?|means?)\b"
_CAPITAL_SETTING = re.compile(
    rf"(?i:{_BEFORE})(?P<named>{_CAPITAL})\b|\b(?P<stated>{_CAPITAL})(?i:{_AFTER})"
)
_NUMBERED = re.compile(r"\b(?P<name>[^\W\d_]{3,})(?P<number>\d+)\b")
# A word as any other without an article: "What does user do?", not "What does the user do?".
_CALLED = (
    r"\bwhat (?:does {name} (?:control|configure|do|mean|set|take)|is {name} for)\W*$"
    r"|\bwhen (?:\w+ ){{1,2}}use {name}\W*$|\bunits? (?:does|has|is) {name}\b"
)
# What asks for what the entry of a setting says of it.
_ASKS_FOR_ENTRY = re.compile(
    r"\b(?:defaults?|minimum|maximum|range|units?|values?)\b|\bwhat (?:does|is)\b", re.IGNORECASE
)
# "- `max-size`: text", "* **max-size** (number) — text", and "max-size", below it ": text".
_ITEM_TERM = re.compile(
    r"[ \t]*\S{1,4}[ \t]{1,4}(?P<term>`[^`\n]+`|\*\*[^*\n]+\*\*|__[^_\n]+__)"
    r"(?: ?(?:,|or)? ?`[^`\n]+`){0,3}(?: ?\([^()\n]*\))? ?(?:[:—–-](?=\s))"
)
_TERM_LINE = re.compile(
    r"^(?P<term>[^\s#>|:][^\n]{0,80})\n"
    r"(?:\n?:[ \t][^\n]*(?:\n+[ \t]+[^\n]*|\n(?![:\n])\S[^\n]*)*)+",
    re.MULTILINE,
)
_HEADING_LINE = re.compile(r"^#{1,6} +(.+)$", re.MULTILINE)
_MAX_ENTRIES = 2
# A follow-up that asks of another setting what the question before it asks.
_ELLIPSIS = re.compile(
    r"(?:and|or|what about|how about)(?: (?:for|of|the))* \S+\W*$", re.IGNORECASE
)
_MAX_TERM = 160  # characters of a term that is quoted
_MIN_SIBLINGS = 3  # headings of one level with a name such as "MaxSize"
_MAX_HEAD = 2000  # characters before a sentence, or below a heading, within which cells are read


class SentencePlaces:
    """Where the sentences of passages stand: what they lie under, and the cells that they are."""

    def __init__(self, hits: Sequence[Hit], documents: Sequence[Document]) -> None:
        self.texts = [hit.passage.text for hit in hits]
        self._passages = [hit.passage for hit in hits]
        self.documents = documents
        self._cells = cache(self._find_cells)
        self._find_names = cache(self._find_names_of)
        self._items = cache(lambda number: _find_items(self.texts[number]))

    def find_entry(self, sentence: ScoredSentence) -> Span | None:
        """Return the span in its passage of what explains a sentence that is a term."""
        number, shift = sentence.passage, self._passages[sentence.passage].start
        entry = self.documents[number].find_term_at(shift + sentence.start)
        return (entry.end - shift, entry.stop - shift) if entry else None

    def find_below(
        self, sentence: ScoredSentence, every: Iterable[ScoredSentence]
    ) -> ScoredSentence | None:
        """Return the sentence of another passage that follows one at the end of its passage."""
        passage = self._passages[sentence.passage]
        text, end = self.documents[sentence.passage].text, passage.start + sentence.end
        beside = {
            number: one.start
            for number, one in enumerate(self._passages)
            if one.document_id == passage.document_id and one.start >= passage.end
        }
        places = (
            (beside[other.passage] + other.start, other)
            for other in every
            if other.passage in beside
        )
        start, below = min(places, key=lambda place: place[0], default=(0, None))
        return below if below and not any(text[at].isalnum() for at in range(end, start)) else None

    def find_names(self, sentence: ScoredSentence) -> list[frozenset[str]]:
        """Return the names of settings in each title and term that a sentence lies under."""
        names = [self._find_names(sentence.passage, part) for part in self._find_path(sentence)]
        items = self._items(sentence.passage)
        return [*names, *(own for own, _, a, b in items if a <= sentence.start < b)]

    def find_labels(self, sentence: ScoredSentence, named: set[str]) -> list[str]:
        """Return what says which statement on a named setting a sentence is, such as "Default".

        That are titles and terms below its name, and the label of its line or row.
        """
        labels = list[str]()
        for part, names in zip(self._find_path(sentence), self.find_names(sentence), strict=False):
            labels = (
                [] if not named.isdisjoint(names) else [*labels, self._get_title(sentence, part)]
            )
        return [*labels, *self.find_cell_labels(sentence)]

    def find_cell_labels(self, sentence: ScoredSentence) -> list[str]:
        """Return the label of the line or row that a sentence is, if it has one."""
        start = self._passages[sentence.passage].start + sentence.start
        labels = [label for label, a, b in self._cells(sentence.passage) if a <= start < b]
        return [*labels, *filter(None, [get_row_label(self.get_text(sentence))])]

    def get_text(self, sentence: ScoredSentence) -> str:
        """Return the text of a sentence."""
        return self.texts[sentence.passage][sentence.start : sentence.end]

    def begins_entry(self, sentence: ScoredSentence, named: set[str]) -> tuple[int, int] | None:
        """Return where the entry of a named setting begins, if its passage has that, in order.

        The number of its passage and the start; None also where a title or term is between.
        """
        path, shift = self._find_path(sentence), self._passages[sentence.passage].start
        names = self.find_names(sentence)[: len(path)]
        if not path or named.isdisjoint(names[-1]) or path[-1].start < shift:
            return None
        return sentence.passage, path[-1].start

    def _find_path(self, sentence: ScoredSentence) -> tuple[Heading | Definition, ...]:
        place = self._passages[sentence.passage].start + sentence.start
        document = self.documents[sentence.passage]
        return (*document.find_headings(place), *document.find_definitions(place))

    def _get_title(self, sentence: ScoredSentence, part: Heading | Definition) -> str:
        return _get_title(self.documents[sentence.passage], part)

    def _find_cells(self, number: int) -> list[tuple[str, int, int]]:
        """Return the cells of a passage and around it, with their places in the document."""
        passage = self._passages[number]
        first = max(passage.start - _MAX_HEAD, 0)
        text = self.documents[number].text[first : passage.end + _MAX_HEAD]
        return [(label, first + start, first + end) for label, start, end in find_cells(text)]

    def _find_names_of(self, number: int, part: Heading | Definition) -> frozenset[str]:
        return frozenset(_find_names_of(self.documents[number], part))


def keep_named(
    questions: Sequence[str], sentences: Sequence[ScoredSentence], places: SentencePlaces
) -> tuple[list[ScoredSentence], bool, bool]:
    """Return the sentences without those on other names than the one that the question names.

    Where a section or an entry of a list of definitions has a name such as "max-size" or
    "maxSize", sentences elsewhere stay if they mention it, but not where its default, values or
    meaning is asked for. What states what is asked of it comes first, or alone.

    Args:
        questions: The question, and those that it goes on from, the nearest first; the first that
            names one counts.
        sentences: Sentences of all passages.
        places: Where they stand.

    Returns:
        The sentences; whether the first is what the entry states of what is asked; and whether all
        are, under the label asked for.
    """
    paths = [frozenset[str]().union(*places.find_names(sentence)) for sentence in sentences]
    names = frozenset[str]().union(*paths)
    found = ({name for name in names if _is_named(name, question)} for question in questions)
    named = next(filter(None, found), set[str]())
    if not named:
        return list(sentences), False, False
    own = [one for one, path in zip(sentences, paths, strict=True) if not named.isdisjoint(path)]
    question = questions[0]
    if _ELLIPSIS.match(question) and any(_is_named(name, question) for name in named):
        question = " ".join(questions[:2])
    asked = _find_asked(question, own, places, named)
    is_of_entry = bool(asked or _ASKS_FOR_ENTRY.search(question))
    if asked:
        is_cell = find_asked_label(question) and all(map(places.find_cell_labels, asked))
        if is_cell and not any(states_nothing(places.get_text(one)) for one in asked):
            return asked, True, True
        own = [one for one in own if not places.find_cell_labels(one)]
    kept = {*own, *([] if is_of_entry else (s for s in sentences if _mentions(places, s, named)))}
    others = (s for s in sentences if s in kept and s not in asked)
    return [*asked, *others], bool(asked), False


def _find_asked(
    question: str, own: Sequence[ScoredSentence], places: SentencePlaces, named: set[str]
) -> list[ScoredSentence]:
    """Return what states what a question asks of a named setting, of the sentences on it.

    That are the cells with its label; of what a setting does, the first sentence on it.
    """
    if label := find_asked_label(question):
        return [s for s in own if _is_labeled(label, s, places, named)]
    if not is_description_asked(question):
        return []
    first: dict[tuple[int, int], ScoredSentence] = {}
    for sentence in own:
        place = places.begins_entry(sentence, named)
        if place and not places.find_labels(sentence, named):
            first[place] = min(first.get(place, sentence), sentence, key=lambda one: one.start)
    return [one for one in own if one in first.values()]


def _is_labeled(
    label: re.Pattern[str], sentence: ScoredSentence, places: SentencePlaces, named: set[str]
) -> bool:
    """Return whether a cell has a label, or a title above is it: "Default", not "Default files"."""
    cells, titles = places.find_cell_labels(sentence), places.find_labels(sentence, named)
    return any(map(label.search, cells)) or any(
        map(label.fullmatch, titles[: len(titles) - len(cells)])
    )


def _mentions(places: SentencePlaces, sentence: ScoredSentence, names: Iterable[str]) -> bool:
    return any(_is_named(name, places.get_text(sentence)) for name in names)


def explain_terms(
    chosen: Sequence[ScoredSentence], sentences: Sequence[ScoredSentence], places: SentencePlaces
) -> list[ScoredSentence]:
    """Return the chosen sentences, each term replaced by the best sentence that explains it.

    Args:
        chosen: Chosen sentences, best first.
        sentences: All sentences, best first.
        places: Where they stand.
    """
    explained = []
    for sentence in chosen:
        start, end = places.find_entry(sentence) or (0, 0)
        best = (s for s in sentences if s.passage == sentence.passage and start <= s.start < end)
        explained.append(next(best, sentence))
    return list(dict.fromkeys(explained))


def find_unread_names(question: str, texts: Iterable[str]) -> list[str]:
    """Return the names in a question that no text has, however their words are joined.

    They are those of settings, and of things with numbers ("DebConf24") if a text has another
    number of the same.
    """
    read = _simplify(" ".join(texts))
    found = [match[0] for match in _SETTING.finditer(question)]
    found += [match["named"] or match["stated"] for match in _CAPITAL_SETTING.finditer(question)]
    names = dict.fromkeys(found)
    unread = [name for name in names if _simplify(name) not in read]
    return [*unread, *_find_other_numbers(question, read)]


def _find_other_numbers(question: str, read: str) -> list[str]:
    """Return the names with numbers that a text has with other numbers alone."""
    asked = [(match["name"].casefold(), match) for match in _NUMBERED.finditer(question)]
    held = {
        name
        for name, match in asked
        if re.search(rf"(?<![^\W_]){re.escape(name)} ?{match['number']}(?!\d)", read)
    }
    return [
        match[0]
        for name, match in asked
        if name not in held and re.search(rf"(?<![^\W_]){re.escape(name)}\d", read)
    ]


def prefer_entries(question: str, hits: Sequence[Hit], depth: int) -> list[Hit]:
    """Return the first hits, the last of them replaced by later ones with what the question names.

    That is the entry of a setting: passages that speak of it may share more with the question.
    """
    later = [hit for hit in hits[depth:] if _has_entry(question, hit.passage)]
    later = later[: min(_MAX_ENTRIES, depth - 1)]
    return [*hits[: depth - len(later)], *later]


def _has_entry(question: str, passage: Passage) -> bool:
    """Return whether lines with labels in a passage are below a name that the question has."""
    titles = [*passage.headings[-1:], *_HEADING_LINE.findall(passage.text)]
    names = (name for title in titles for name in _find_entry_names(title))
    is_named = any(_is_named(name, question) for name in names)
    return is_named and bool(find_cells(passage.text))


def find_term(document: Document, passage: Passage, span: Span) -> Span | None:
    """Return the span of the term that a span of a passage explains, if the passage has both.

    A question is no term: what answers it can be read without it. The heading above a line with a
    label, such as "Default: 10", is the term if that line does not have its name.
    """
    place = passage.start + span[0]
    entries: tuple[Definition, ...] = document.find_definitions(place)
    if not entries:
        items = _find_items(passage.text)
        terms = [term for _, term, a, b in items if a <= span[0] < b and term[1] <= span[0]]
        return terms[-1] if terms else _find_heading(document, passage, span)
    if entries[-1].start < passage.start:
        return None
    start, end = entries[-1].start - passage.start, entries[-1].end - passage.start
    is_question = passage.text[start:end].rstrip().endswith("?")
    return None if is_question or end - start > _MAX_TERM else (start, end)


def _find_items(text: str) -> list[tuple[frozenset[str], Span, int, int]]:
    """Return names, term, start and end of the entries that a text writes as items of a list.

    Three items or more, and most of their list, begin with a term in Markdown's marks.
    """
    found = [(m, m.start(), m.end()) for m in _TERM_LINE.finditer(text)]
    for items in find_lists(text):
        terms = [(m, a, b) for a, b in items if (m := _ITEM_TERM.match(text, a, b))]
        found += terms if len(items) < 2 * len(terms) and len(terms) >= _MIN_SIBLINGS else []
    entries = []
    for match, start, end in found:
        names = frozenset(_find_names(match["term"].strip("`*_ "), _ENTRY_NAME))
        names |= frozenset(_find_names(match["term"].strip("`* "), _NAME))
        if names:
            entries.append((names, match.span("term"), start, end))
    return entries


def _find_heading(document: Document, passage: Passage, span: Span) -> Span | None:
    headings = document.find_headings(passage.start + span[0])
    if not headings or headings[-1].start < passage.start:
        return None
    start = headings[-1].start - passage.start
    cells = [a for _, a, b in find_cells(passage.text[start:]) if a <= span[0] - start < b]
    line = passage.text[passage.text.rfind("\n", 0, span[0]) + 1 :].partition("\n")[0]
    names = set(_find_names_of(document, headings[-1]))
    if not (names and (cells or get_row_label(line))) or any(_is_named(n, line) for n in names):
        return None
    line = passage.text[start:].partition("\n")[0]
    mark = len(line) - len(line.lstrip("#= \t"))
    return start + mark, start + len(line.rstrip())


def _get_title(document: Document, part: Heading | Definition) -> str:
    return part.title if isinstance(part, Heading) else document.get_term(part)


def _find_names_of(document: Document, part: Heading | Definition) -> Iterator[str]:
    """Yield the names of a setting with which a heading or term begins."""
    title = _get_title(document, part)
    yield from _find_names(title, _NAME)
    if not isinstance(part, Heading):
        yield from _find_names(title, _CAPITAL_NAME)
        return
    below = document.text[part.start : part.start + _MAX_HEAD].partition("\n")[2]
    if begins_with_cells(below):
        yield from _find_entry_names(title)
    elif any(_find_names(title, _CAPITAL_NAME)):
        level = (one.title for one in document.headings if one.level == part.level)
        named = (True for one in level if any(_find_names(one, _CAPITAL_NAME)))
        if any(islice(named, _MIN_SIBLINGS - 1, None)):
            yield from _find_names(title, _CAPITAL_NAME)


def _find_entry_names(title: str) -> Iterator[str]:
    """Yield the names of a setting with which a heading above lines with labels begins."""
    yield from _find_names(title, _ENTRY_NAME)
    yield from _find_names(title, _WORDS_NAME)


def _find_names(title: str, pattern: re.Pattern[str]) -> Iterator[str]:
    """Yield the names of a setting with which a title or term begins, such as "-e, --exclude".

    A word with a hyphen is a name where nothing but arguments follow: "read-only files" has none.
    """
    numbering = _NUMBERING.match(title)
    start = numbering.end() if numbering else 0
    while match := pattern.match(title, start):
        yield match[0]
        comma = _COMMA.match(title, match.end())
        start = comma.end() if comma else len(title)


def _is_named(name: str, text: str) -> bool:
    """Return whether a text has a name by itself: "max_size" is not in "hard_max_size".

    Its words may be joined otherwise ("max size"), but for two with a hyphen ("set-up"). Words as
    any others ("Port", "Germany", "user data") have to be called a setting.
    """
    words = _WORD.findall(name)
    if " " in name or (words == [name] and name[1:].islower()):
        before = _BEFORE.replace(r"|\bdoes", "")
        called = rf"(?:{before}{name}(?![\w-])|(?<![\w-]){name} (?:{_KIND}|defaults?)\b"
        plain = _CALLED.format(name=name)
        return bool(re.search(rf"{called}|{plain})", text, re.IGNORECASE))
    pattern = "-{0,2}" + r"[\W_]+".join(map(re.escape, words))
    if len(words) <= 2 and "-" in name:
        pattern = re.escape(name).replace(r"\-", "[-_]")
    return bool(words) and bool(re.search(rf"(?<![\w-]){pattern}(?![\w-])", text, re.IGNORECASE))


def _simplify(text: str) -> str:
    """Return the words of a text between blanks; "max-size" has two."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "
