"""Text splitter of all chunkers (DocumentSplitter): split points, chunk size and chunk overlap.

The overlap is LangChain's ``chunk_overlap`` and Haystack's ``split_overlap``.

Boundaries are found once, by kind; each split is then two binary searches per kind, so that time is
linear in the text. No boundary lies within a code fence or a table row that fits whole.

Recognizes Markdown tables (also used for office files, pages and workbooks) and files that are one
table (CSV). Spans stay exact: a table header is stored beside a passage, not in its text.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stillroom.records import Definition, Document, Heading, Link, Passage
from stillroom.text.chunking.tokens import TokenRuler
from stillroom.text.language import split_sentences
from stillroom.text.unicode import find_grapheme_boundary

__all__ = [
    "MAX_HEADER_CHARACTERS",
    "Span",
    "SplitPoints",
    "TextSplitter",
    "TextTable",
    "find_defined_terms",
    "find_header",
    "find_header_row",
    "find_split_points",
    "find_tables",
    "make_passages",
    "make_recursive_splitter",
    "merge_small",
]


Span = tuple[int, int]
_IS_SPACE = np.array([chr(code).isspace() for code in range(0x3002)])  # none beyond U+3000


# possessive, so that a run of white space is scanned once, however long
_CLAUSE = re.compile(r"[,;:，；：、](?:(?<=[,;:])\s++|(?<=[，；：、]))(?=\S)")
_LINE = re.compile(r"[\r\n]\s*+(?=\S)")
_PARAGRAPH = re.compile(r"(?>\r\n|\r|\n)[^\S\r\n]*+[\r\n]\s*+(?=\S)")
_ANNOUNCED = re.compile(r"[:：][*_]*+[^\S\r\n]*+[\r\n]\s*+(?=\S)")
_ITEM = re.compile(r"(?:[-*+•|>]|#{1,6}|\d{1,3}[.)])[ \t]|```|~~~|\|")
_FENCE = re.compile(r"^[ \t]*(```+|~~~+)[^\r\n]*$", re.MULTILINE)
_ROW = re.compile(r"^[ \t]*(\|[^\r\n]*\|)[ \t]*$", re.MULTILINE)
_MAX_TERM = 80  # characters of a line that may be a term
_MAX_TERMS = 4  # terms that share one definition
_SENTENCE_ENDS = frozenset(".!?;。！？；…")
_FULL_LINE = re.compile(r"\S[^\r\n]*")


@dataclass(frozen=True)
class SplitPoints:
    """Positions where a text may be split, each the start of the next piece, by kind.

    ``starts`` has one array per kind: paragraphs, items (list items, table rows, lines of code),
    sentences, lines, clauses, words. ``first_line`` counts as none.
    """

    paragraphs: array[int]
    items: array[int]
    sentences: array[int]
    lines: array[int]
    clauses: array[int]
    words: array[int]


def find_split_points(document: Document, ruler: TokenRuler, size: int) -> SplitPoints:
    """Return the boundaries of a document outside the blocks to keep whole at this size."""
    text = document.text
    by_line = bool(document.metadata.get("is_code") or document.metadata.get("is_table"))
    fences = _find_fences(text)
    unsplit = [span for span in fences if ruler.measure(*span) <= size]
    large = [span for span in fences if ruler.measure(*span) > size]
    rows = [match.span(1) for match in _ROW.finditer(text)] if "|" in text else []
    if document.metadata.get("is_table"):
        rows = [match.span() for match in _FULL_LINE.finditer(text)]
    unsplit += [span for span in rows if ruler.measure(*span) <= size]
    paragraphs = _match_ends(_PARAGRAPH, text)
    lines = _match_ends(_LINE, text)
    starts = array("q", (line for line in lines if _ITEM.match(text, line)))
    items = lines if by_line else _union_positions(starts, _within(lines, large))
    sentences = array("q", (start for start, _ in split_sentences(text)))
    if not by_line:
        parts = _union_positions(_union_positions(paragraphs, items), sentences)
        terms = find_defined_terms(text, paragraphs)
        unsplit += _find_openings(ruler, terms, parts, dict(unsplit), size)
    blocked = _merge_spans(unsplit)
    outside = [
        _outside(positions, blocked)
        for positions in (
            paragraphs,
            _union_positions(
                items,
                array(
                    "q", [_skip_space(text, edge, len(text)) for span in fences for edge in span]
                ),
            ),
            _outside(sentences, large),
            lines,
            _match_ends(_CLAUSE, text),
            _word_starts(text),
        )
    ]
    return SplitPoints(*outside)


@dataclass(frozen=True)
class TextSplitter:
    """Splits spans of one text into pieces of at most ``size`` tokens.

    ``strong`` boundaries are tried in order of kind between ``fill * size`` and ``size`` tokens,
    then anywhere; only then ``weak`` ones; at last any position between characters. A remainder
    below ``min_size`` is enlarged by shortening the piece before it.
    """

    ruler: TokenRuler
    strong: Sequence[array[int]]
    weak: Sequence[array[int]]
    size: int
    overlap: int = 0
    fill: float = 0.5
    min_size: int = 0

    def split(self, start: int, end: int) -> Iterator[Span]:
        """Yield the pieces of text[start:end], without white space at their ends."""
        text = self.ruler.text
        done = begin = _skip_space(text, start, end)
        while done < end:
            stop = self._stop(begin, done, end)
            if stop is None:  # the overlap leaves no room for new text
                begin = done
                continue
            last = _strip_space(text, begin, stop)
            if last > done or begin == done:
                yield begin, last
            if stop >= end:
                return
            done = _skip_space(text, stop, end)
            begin = self._overlap(begin, done) if self.overlap else done

    def _stop(self, begin: int, done: int, end: int) -> int | None:
        """Return the end of the piece that starts at ``begin``, beyond ``done``."""
        balanced = self._balance(begin, done, end) if self.min_size else 0
        if balanced:
            return balanced
        budget = float(self.size)
        while True:
            high = min(self.ruler.reach(begin, budget), end)
            if high >= end and self.ruler.measure(begin, end) <= budget:
                stop: int | None = end
            else:
                low = self.ruler.reach(begin, budget * self.fill)
                stop = self._choose(begin, done, low, high)
            if stop is None:
                return None
            last = _strip_space(self.ruler.text, begin, stop)
            excess = self.ruler.excess(begin, last, self.size)
            if excess <= 1 or budget < 1.5 or stop <= max(begin, done) + 1:
                return stop
            budget = min(budget / excess, budget - 1)

    def _balance(self, begin: int, done: int, end: int) -> int:
        """Return a strong boundary that leaves at least ``min_size``, or 0 for none."""
        total = self.ruler.measure(begin, end)
        if not self.size < total < self.size + self.min_size:
            return 0
        low = max(self.ruler.reach(begin, self.size * self.fill), begin, done)
        high = self.ruler.reach(begin, total - self.min_size)
        stop = next(
            (position for kind in self.strong if (position := _last_position(kind, low, high))), 0
        )
        last = _strip_space(self.ruler.text, begin, stop)
        return stop if stop and self.ruler.excess(begin, last, self.size) <= 1 else 0

    def _choose(self, begin: int, done: int, low: int, high: int) -> int | None:
        floor = max(done, begin)
        for kinds, least in ((self.strong, low), (self.strong, floor), (self.weak, low)):
            for positions in kinds:
                position = _last_position(positions, max(least, floor), high)
                if position:
                    return position
        if begin < done:
            return None
        position = next(
            (candidate for kind in self.weak if (candidate := _last_position(kind, floor, high))), 0
        )
        return position or find_grapheme_boundary(self.ruler.text, max(high, floor + 1), floor)

    def _overlap(self, before: int, done: int) -> int:
        """Return the start of the next piece so that it repeats the end of this one."""
        back = max(self.ruler.reach_back(done, self.overlap), before + 1)
        for positions in (*self.strong, *self.weak):
            index = bisect_left(positions, back)
            if index < len(positions) and positions[index] < done:
                return positions[index]
        return done


def make_recursive_splitter(
    document: Document, ruler: TokenRuler, size: int, *, overlap: int = 0, min_size: int = 0
) -> TextSplitter:
    """Return a splitter that prefers paragraphs, then items, sentences, lines, clauses, words."""
    points = find_split_points(document, ruler, size)
    return TextSplitter(
        ruler,
        [points.paragraphs, points.items, points.sentences, points.lines],
        [points.clauses, points.words],
        size,
        min(overlap, size // 2),
        min_size=min(min_size, size // 2),
    )


def merge_small(spans: Iterable[Span], ruler: TokenRuler, size: int, min_size: int) -> list[Span]:
    """Return the spans; those below ``min_size`` are joined to the previous one where both fit."""
    merged: list[Span] = []
    for start, end in spans:
        if merged and ruler.measure(start, end) < min_size:
            joined = (merged[-1][0], end)
            if ruler.measure(*joined) <= size and ruler.excess(*joined, size) <= 1:
                merged[-1] = joined
                continue
        merged.append((start, end))
    return merged


def make_passages(document: Document, spans: Iterable[Span], method: str) -> Iterator[Passage]:
    """Yield a Passage for each span, with place, headings, table header and origin."""
    origin = document.origin.then(Link(method, parents=(document.id,)))
    document_id = document.id
    tables = find_tables(document)
    path, entries = list[Heading](), list[Definition]()
    index = number = 0
    for start, end in spans:
        while number < len(document.definitions) and document.definitions[number].start < start:
            entries.append(document.definitions[number])
            number += 1
        entries = [entry for entry in entries if entry.stop > start]
        while index < len(document.headings) and document.headings[index].start <= start:
            heading = document.headings[index]
            while path and path[-1].level >= heading.level:
                path.pop()
            path.append(heading)
            index += 1
        yield Passage(
            document_id=document_id,
            start=start,
            end=end,
            text=document.text[start:end],
            location=document.locate(start, end),
            headings=(
                *(heading.title for heading in path),
                *(document.get_term(entry) for entry in entries if entry.end <= start),
            ),
            title=document.title,
            language=document.language,
            origin=origin,
            table_header=find_header(tables, start) if tables else "",
        )


def _last_position(positions: array[int], low: int, high: int) -> int:
    """Return the greatest position above ``low`` and not above ``high``, or 0."""
    index = bisect_right(positions, high) - 1
    return positions[index] if index >= 0 and positions[index] > low else 0


def _skip_space(text: str, start: int, end: int) -> int:
    while start < end and text[start].isspace():
        start += 1
    return start


def _strip_space(text: str, start: int, end: int) -> int:
    while end > start and text[end - 1].isspace():
        end -= 1
    return end


def find_defined_terms(text: str, paragraphs: Sequence[int] | None = None) -> Iterator[Span]:
    """Yield the spans from defined terms (``dt``) to the start of the paragraph that explains them.

    Terms are short lines of their own that end no sentence: what a list of definitions or options
    explains, or a title. Up to four may share one paragraph.

    ``paragraphs`` are the starts of the text's paragraphs but the first, if they are known.
    """
    start = first = count = 0
    for position in _match_ends(_PARAGRAPH, text) if paragraphs is None else paragraphs:
        if position - start <= 2 * _MAX_TERM and _is_defined_term(text[start:position].strip()):
            if count in {0, _MAX_TERMS}:
                first, count = start, 0
            count += 1
        elif count:
            yield first, start
            count = 0
        start = position
    if count:
        yield first, start


def _is_defined_term(line: str) -> bool:
    return (
        len(line) <= _MAX_TERM
        and len(line.splitlines()) == 1
        and line[-1:] not in _SENTENCE_ENDS
        and not _ITEM.match(line)
        and _LETTER.search(line) is not None
    )


def _find_openings(
    ruler: TokenRuler, terms: Iterable[Span], parts: array[int], ends: dict[int, int], size: int
) -> Iterator[Span]:
    """Yield the spans from terms, and sentences that end a line with a colon, into what follows.

    None is yielded above half the size, nor if it does not fit with what must follow it: a block to
    keep whole, what another one opens, and after a colon the next part.

    Args:
        ruler: Measures the text.
        terms: Spans from defined terms to the start of what explains them.
        parts: Starts of the text's paragraphs, items and sentences.
        ends: Ends of the blocks to keep whole, by their starts; is changed.
        size: Maximum tokens of a passage.
    """
    openings = [(end, start, True) for start, end in terms]
    for match in _ANNOUNCED.finditer(ruler.text):
        start = parts[bisect_right(parts, match.start()) - 1]
        openings.append((match.end(), start, False))
    for end, start, is_term in sorted(openings, reverse=True):  # what follows is known first
        number = bisect_right(parts, end)
        if parts[number - 1] != end:
            continue
        below = parts[number] if number < len(parts) else len(ruler.text)
        last = ends.get(end, end if is_term else below)
        if 2 * ruler.measure(start, end) <= size and ruler.measure(start, last) <= size:
            ends[start] = max(last, below)
            yield start, end + 1  # no cut at the start of what follows


def _match_ends(pattern: re.Pattern[str], text: str) -> array[int]:
    """Return the ends of matches, white space at the end of the text excluded."""
    end = _strip_space(text, 0, len(text))
    return array("q", (match.end() for match in pattern.finditer(text, 0, end)))


def _word_starts(text: str) -> array[int]:
    """Return the starts of words after white space."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    is_space = _IS_SPACE[np.minimum(codes, len(_IS_SPACE) - 1)]
    starts = np.flatnonzero(is_space[:-1] & ~is_space[1:]) + 1
    return array("q", starts.astype(np.int64).tobytes())


def _find_fences(text: str) -> list[Span]:
    """Return the spans of fenced code, fences included."""
    spans: list[Span] = []
    opened: tuple[int, str] | None = None
    if "```" not in text and "~~~" not in text:
        return spans
    for match in _FENCE.finditer(text):
        mark = match.group(1)
        if opened is None:
            opened = (match.start(1), mark)
        elif mark.startswith(opened[1]) and match.group().strip() == mark:
            spans.append((opened[0], match.end(1)))
            opened = None
    return spans


def _union_positions(first: array[int], second: array[int]) -> array[int]:
    return array("q", np.union1d(_readonly_view(first), _readonly_view(second)).tobytes())


def _within(positions: array[int], spans: Sequence[Span]) -> array[int]:
    """Return the positions that lie strictly within one of the spans (sorted, apart)."""
    if not spans:
        return array("q")
    return array("q", _readonly_view(positions)[_is_within(positions, spans)].tobytes())


def _outside(positions: array[int], spans: Sequence[Span]) -> array[int]:
    """Return the positions that lie strictly within none of the spans (sorted, apart)."""
    if not spans or not positions:
        return positions
    return array("q", _readonly_view(positions)[~_is_within(positions, spans)].tobytes())


def _is_within(positions: array[int], spans: Sequence[Span]) -> npt.NDArray[np.bool_]:
    starts, ends = np.array(spans, dtype=np.int64).T
    points = _readonly_view(positions)
    index = np.searchsorted(starts, points, side="left") - 1
    inside: npt.NDArray[np.bool_] = (index >= 0) & (points < ends[np.maximum(index, 0)])
    return inside


def _readonly_view(positions: array[int]) -> npt.NDArray[np.int64]:
    return np.frombuffer(positions, dtype=np.int64) if positions else np.empty(0, dtype=np.int64)


def _merge_spans(spans: Sequence[Span]) -> list[Span]:
    """Return spans sorted and joined where they overlap."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


MAX_HEADER_CHARACTERS = 1_000
"""Maximum characters of a repeated header row; a longer one would fill most of a passage."""

_DELIMITER = re.compile(
    # possessive, since a line of only spaces would otherwise take quadratic time
    r"(?<![^\r\n])[ \t]*+(?:\|[ \t]*+)?:?-++:?[ \t]*+(?:\|[ \t]*+:?-++:?[ \t]*+)*+"
    r"(?:\|[ \t]*+)?(?![^\r\n])"
)

_VALUES_BY_COMMAS = "text/csv"
_BEFORE_HEADER = re.compile(r"(?:(?:[ ;,\t]*|sep=[\t;|,])[\r\n]+)*+", re.IGNORECASE)
_QUOTED_ROW = re.compile(r"""(?:(?<![^;,\t|\r\n])"(?:[^"]|"")*+"|[^"\r\n])*+(?=[\r\n])""")
_ROW_OF_TEXT = re.compile(r"[^\r\n]*")
_ROWS = re.compile(r"(?:\r\n|\n|\r)[^\r\n]*\|[^\r\n]*")
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table: start and end of its rows, and its header row (empty for none)."""

    start: int
    end: int
    header: str


def find_tables(document: Document) -> list[TextTable]:
    """Return the tables of a document in order; ``start`` is where the header row ends."""
    text = document.text
    if document.metadata.get("is_code"):
        return []
    if document.metadata.get("is_table"):
        if document.media_type != _VALUES_BY_COMMAS:  # lines of JSON each name their values
            return []
        begin, end = find_header_row(text)
        return [TextTable(end, len(text), _repeatable_header(text[begin:end]))]
    tables: list[TextTable] = []
    if "|" not in text:
        return tables
    for match in _DELIMITER.finditer(text):
        if "|" not in match.group() or (tables and match.start() < tables[-1].end):
            continue
        before = match.start() - (2 if text.startswith("\r\n", match.start() - 2) else 1)
        row = _line_before(text, before)
        if "|" not in row:
            continue
        end = match.end()
        while rows := _ROWS.match(text, end):
            end = rows.end()
        tables.append(TextTable(before, end, _repeatable_header(row)))
    return tables


def find_header_row(text: str) -> tuple[int, int]:
    """Return the span of the first row of a CSV file, which quoted line ends do not end."""
    start = _BEFORE_HEADER.match(text)
    begin = start.end() if start else 0
    row = _QUOTED_ROW.match(text, begin, begin + MAX_HEADER_CHARACTERS) or _ROW_OF_TEXT.match(
        text, begin
    )
    return (begin, row.end()) if row else (begin, begin)


def find_header(tables: Sequence[TextTable], position: int) -> str:
    """Return the header row of the table whose rows contain a position, or an empty string."""
    index = bisect_right(tables, position - 1, key=lambda table: table.start) - 1
    return tables[index].header if index >= 0 and position < tables[index].end else ""


def _line_before(text: str, end: int) -> str:
    """Return the line that ends at a position, truncated at its start if very long."""
    low = max(end - 2 * MAX_HEADER_CHARACTERS, 0)
    begin = max(text.rfind("\n", low, end), text.rfind("\r", low, end)) + 1
    return text[max(begin, low) : end] if end > 0 else ""


def _repeatable_header(row: str) -> str:
    """Return a header row as repeated: empty where it has no names or is too long."""
    row = row.strip()
    return row if len(row) <= MAX_HEADER_CHARACTERS and _LETTER.search(row) else ""
