"""Input of the sentence reader, in training and answers: question and passage, in windows.

The encoder reads ``[CLS] question [SEP] title. passage [SEP]``, so that a sentence is read with
the sentences before it, which often explain its pronouns. A passage that does not fit is read in
several windows of whole sentences.
"""

from __future__ import annotations

import csv
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, Protocol

from stillroom.rag.answer_selection.entries import find_cells, get_row_label
from stillroom.text.language import split_sentences

if TYPE_CHECKING:
    from stillroom.records.document import Heading

__all__ = [
    "EncodedPassage",
    "PairTokenizer",
    "encode_passages",
    "extend_to_sentences",
    "find_code",
    "find_contents",
    "find_head",
    "find_lists",
    "find_rows",
    "find_sentences",
    "is_caption",
    "is_item",
    "simplify_headings",
]

MAX_TOKENS = 512
_MIN_CONTENTS = 3  # lines of a table of contents
_PAGE_NUMBER = re.compile(r"[\s.…·]+\d{1,4}\s*$")
_MAX_QUESTION_TOKENS = 96
_MAX_TITLE_TOKENS = 32
_MARKED_HEADING = re.compile(r"#{1,6} ")
_RULE = re.compile(r"([!-/:-@\[-_{-~])\1{2,}\s*")  # that underlines a heading
_SETEXT = re.compile(r" {0,3}(?:=+|--+)\s*")  # as Markdown does
# The rule below a table's head, or two rows: a long table continues in passages without its head.
_TABLE = re.compile(
    r"^[ \t]*\|(?:[ \t]*:?-{3,}:?[ \t]*\|)+[ \t\r]*$"
    r"|^[ \t]*\|.+\|[ \t\r]*\n[ \t]*\|.+\|[ \t\r]*$",
    re.MULTILINE,
)
_ROW = re.compile(r"^[ \t]*(\|.+\|)(?=[ \t\r]*$)", re.MULTILINE)
_MAX_ROW = 300  # characters; the sentences of a longer row are quoted apart from its first cell
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
# By kind, since one line that begins with a dash may be prose. The lines of a block comment begin
# with an odd number of blanks and "*".
_ITEM = re.compile(
    r"^(?:[ \t]*(?:(?P<dash>[-–•‣◦])|(?P<number>\(?\d{1,3}[.)])|(?P<letter>\(?[A-Za-z]\)))"
    r"|(?:[ \t]{2})*(?P<star>[*+]))[ \t]+(?=\S)",
    re.MULTILINE,
)
_CAPTION = re.compile(
    r"[*_]*(?P<name>figure|fig\.|table|tab\.|abbildung|abb\.|tabelle|tableau|tabla|figura)"
    r"[ \xa0]*\d+(?:[.-]\d+)*[.:]?(?:(?<=[.:])\s|[*_]*$)",
    re.IGNORECASE,
)
_LINE = re.compile(r"^[^\r\n]*[^\s][^\r\n]*", re.MULTILINE)
# In a log the first comma is that of milliseconds, before blanks, brackets or words.
_LOG_LINE = re.compile(r"[^,\r\n]*\d:\d\d:\d\d,\d{3}[^\d\t\r\n;|,\"]")
Span = tuple[int, int]


class PairTokenizer(Protocol):
    """Tokenizer of an encoder, with offsets."""

    def __call__(
        self, text: str, *, add_special_tokens: bool, return_offsets_mapping: bool
    ) -> dict[str, list[Any]]:
        """Return ``input_ids`` and ``offset_mapping``."""


@dataclass(frozen=True, slots=True)
class EncodedPassage:
    """One window of a passage after a question.

    Args:
        passage: Number of the passage, from 0.
        ids: Token ids with ``[CLS]`` and ``[SEP]``.
        segments: 0 for the question, 1 for title and passage.
        sentences: Character spans in the passage's text.
        tokens: For each sentence, its range of positions in ``ids``.
        offsets: For each position, its character span in the passage's text, empty outside of it.
        shared: For each position, 1 if the token stands on both sides, else 0.
    """

    passage: int
    ids: list[int]
    segments: list[int]
    sentences: list[Span]
    tokens: list[Span]
    offsets: list[Span]
    shared: list[int]


def find_sentences(
    text: str, headings: Sequence[str] = (), starts: Collection[int] = ()
) -> list[Span]:
    """Return the spans of the sentences of a passage, without the lines of headings.

    Args:
        text: Text of the passage.
        headings: Headings of the passage; a line that repeats one is no part of a sentence, nor is
            a line that Markdown marks as a heading. The rows of a Markdown table are a sentence
            each, unless they are long, and so are the lines of a table in CSV; no sentence goes on
            in the next item of a list, or line with a label such as "Default: 10".
        starts: Where lines begin that are headings, whatever they repeat.
    """
    lines = _find_headings(text, {_letters(heading) for heading in headings} - {""}, starts)
    has_table = bool(_TABLE.search(text))
    items = sorted({*_find_items(text), *(start for _, start, _ in find_cells(text))})
    sentences = _find_log(text) or _find_records(text) or split_sentences(text)
    spans = []
    for start, end in _join_rows(text, sentences) if has_table else sentences:
        for first, last in lines:
            if first <= start < last:
                start = last  # a sentence after the heading, or one of the heading alone
        parts = _split_rows(text, start, end) if has_table else [(start, end)]
        for begin, stop in chain.from_iterable(_split_items(part, items) for part in parts):
            piece = text[begin:stop]
            begin += len(piece) - len(piece.lstrip())
            if any(map(str.isalnum, piece)):
                spans.append((begin, begin + len(piece.strip())))
    return spans


def extend_to_sentences(text: str, headings: Sequence[str], span: Span) -> Span:
    """Return a span of a passage with all of each sentence that it touches.

    Arguments are as for ``find_sentences``.
    """
    start, end = span
    touched = [part for part in find_sentences(text, headings) if part[0] < end and start < part[1]]
    return min([start, *(a for a, _ in touched)]), max([end, *(b for _, b in touched)])


def find_rows(text: str) -> list[Span]:
    """Return the lines of a passage that are rows of a table below its head."""
    if records := _find_records(text):
        return records[1:]
    if not _TABLE.search(text):
        return []
    rows = [row.span(1) for row in _ROW.finditer(text)]
    rules = {row for row in rows if not any(map(str.isalnum, text[slice(*row)]))}
    heads = {row for row, below in pairwise(rows) if below in rules}
    return [row for row in rows if row not in rules | heads]


def find_head(text: str, place: int) -> Span | None:
    """Return the span of the names of the columns of the row at a place of a passage, if it has it.

    A passage that goes on with a table in CSV cannot be distinguished from one that begins it.
    """
    if not any(start <= place < end for start, end in find_rows(text)):
        return None
    if records := _find_records(text):
        return records[0]
    rows = [row.span(1) for row in _ROW.finditer(text, 0, place)]
    heads = (row for row, (a, b) in pairwise(rows) if not any(map(str.isalnum, text[a:b])))
    head = max(heads, default=None)
    if head is None or "\n\n" in text[head[1] : place].replace("\r", ""):
        return None
    names = text[slice(*head)]  # a row with a label, such as "Default:", is one as the others
    return head if any(map(str.isalnum, names)) and not get_row_label(names) else None


def simplify_headings(headings: Iterable[Heading]) -> frozenset[str]:
    """Return the letters and digits of the titles of headings, as ``find_contents`` compares."""
    return frozenset(_letters(heading.title) for heading in headings) - {""}


def find_contents(text: str, known: Collection[str]) -> list[Span]:
    """Return the spans of the lines of a table of contents; the whole text if most are such lines.

    Args:
        text: Text of a passage.
        known: All headings of its document, from ``simplify_headings``; three lines or more of a
            table repeat some, perhaps with the number of a page.
    """
    lines = [match.span() for match in re.finditer(r"^.*\S.*$", text, re.MULTILINE)]
    repeated = [
        (start, end)
        for start, end in lines
        if not _MARKED_HEADING.match(text, start)
        and not {
            _letters(text[start:end]),
            _letters(_PAGE_NUMBER.sub("", text[start:end])),
        }.isdisjoint(known)
    ]
    if len(repeated) < _MIN_CONTENTS:
        return []
    return [(0, len(text))] if 2 * len(repeated) > len(lines) else repeated


def find_lists(text: str) -> list[list[Span]]:
    """Return the spans of the items of each list of two or more, in the order of their beginnings.

    An item of the same kind and indentation goes on with a list, a paragraph that is indented no
    further than its items ends it. An item includes the list and the code within it.
    """
    fences = _find_fences(text)
    marks = {match.start(): str(match.lastgroup) for match in _match_items(text)}
    found, nested = list[list[Span]](), dict[tuple[int, str], list[Span]]()
    is_apart = False
    for line in re.finditer(r"^[ \t]*(?=(\S?))[^\n]*", text, re.MULTILINE):
        if not line[1]:
            is_apart = True
            continue
        start = line.start()
        indent, mark = line.start(1) - start, marks.get(start, "")
        kind = indent, mark
        is_code = _is_fenced(fences, start - 1)  # or the fence that ends it
        if mark or (not is_code and (is_apart or _MARKED_HEADING.match(text, start))):
            nested = {key: nested[key] for key in nested if key[0] < indent or key == kind}
        if mark and kind not in nested:
            nested[kind] = []
            found.append(nested[kind])
        for key, items in nested.items():
            if mark and key == kind:
                items.append(line.span())
            else:
                items[-1] = (items[-1][0], line.end())
        is_apart = False
    return [items for items in found if len(items) > 1]


def is_item(text: str) -> bool:
    """Return whether a text begins with the item of a list."""
    return bool(_ITEM.match(text))


def is_caption(text: str, question: str) -> bool:
    """Return whether a text is a caption, such as "Figure 2.", of which a question does not speak.

    "Figure 2 shows the pump." is none.
    """
    caption = _CAPTION.match(text)
    return caption is not None and caption["name"][:3].casefold() not in question.casefold()


def _find_items(text: str) -> list[int]:
    """Return where the items of lists begin, outside of fenced code; a list has two or more."""
    return [match.start() for match in _match_items(text)]


def _match_items(text: str) -> list[re.Match[str]]:
    fences = _find_fences(text)
    found = [m for m in _ITEM.finditer(text) if not _is_fenced(fences, m.start())]
    counts = Counter(match.lastgroup for match in found)
    return [match for match in found if counts[match.lastgroup] > 1]


def _split_items(span: Span, items: Sequence[int]) -> list[Span]:
    """Return the parts of a span before the first item that begins in it, and of each item."""
    start, end = span
    inner = items[bisect_right(items, start) : bisect_left(items, end)]
    return list(pairwise([start, *inner, end]))


def _find_log(text: str) -> list[Span]:
    """Return the lines of a text that is a log whose times have milliseconds after a comma."""
    lines = [match.span() for match in _LINE.finditer(text)]
    is_log = len(lines) > 1 and all(_LOG_LINE.match(text, *line) for line in lines)
    return lines if is_log else []


def _find_records(text: str) -> list[Span]:
    """Return the records of a text that is a table in CSV: of equal width, no blank after commas.

    A record is a line, or several if a value in quotes contains line breaks.
    """
    lines = [] if _find_log(text) else [match.span() for match in _LINE.finditer(text)]
    for delimiter in "\t;|,":
        if not lines or delimiter not in text[slice(*lines[0])]:
            continue
        with suppress(csv.Error):
            reader = csv.reader((text[a:b] for a, b in lines), delimiter=delimiter, strict=True)
            rows, ends = zip(*((row, reader.line_num) for row in reader), strict=True)
            width = len(rows[0])
            loose = sum(field[:1].isspace() for row in rows for field in row[1:])
            is_table = {len(row) for row in rows} == {width} and any(row[-1] for row in rows)
            if is_table and len(rows) > 1 < width and loose <= 0.1 * len(rows) * width:
                return [(lines[a][0], lines[b - 1][1]) for a, b in pairwise((0, *ends))]
    return []


def _join_rows(text: str, sentences: Sequence[Span]) -> list[Span]:
    """Return sentences, those of a row as one: a value alone does not say what it is of."""
    rows = [row.span(1) for row in _ROW.finditer(text) if len(row[1]) <= _MAX_ROW]
    joined: list[Span] = []
    for start, end in sentences:
        if joined and any(first < joined[-1][1] < last for first, last in rows):
            start = joined.pop()[0]
        joined.append((start, end))
    return joined


def _split_rows(text: str, start: int, end: int) -> list[Span]:
    """Return the rows of Markdown tables in a sentence, and the text before and after them."""
    spans: list[Span] = []
    is_row = True
    while start < end:
        last = text.find("\n", start, end)
        last = end if last < 0 else last
        was_row, is_row = is_row, text[start:last].lstrip(" \t").startswith("|")
        if is_row or was_row:
            spans.append((start, last))
        else:
            spans[-1] = (spans[-1][0], last)
        start = last + 1
    return spans


def _find_headings(text: str, known: set[str], starts: Collection[int]) -> list[Span]:
    """Return the spans of lines at ``starts``, that Markdown marks as headings, or of known ones.

    A marked line is a heading if an empty line or the end follows: in settings and scripts "#"
    begins a comment. Lines of signs above and below a heading belong to it.
    """
    fences = _find_fences(text)
    rows, start = text.split("\n"), 0
    titles: dict[int, int] = {}
    for number, line in enumerate(rows):
        is_marked = (
            bool(_MARKED_HEADING.match(line))
            and not (number + 1 < len(rows) and rows[number + 1].strip())
            and not _is_fenced(fences, start)
        )
        if is_marked or start in starts or _letters(line) in known:
            titles[number] = start
        start += len(line) + 1
    last = _find_last_fence(rows, titles)
    return [_add_rules(rows, titles, number, last) for number in titles]


def _add_rules(rows: Sequence[str], titles: Mapping[int, int], number: int, last: int) -> Span:
    """Return the span of a title, of which the start is given, with the signs above and below.

    A row of signs that opens fenced code is none of them: up to the row ``last`` there is some.
    """

    def is_fence(row: int) -> bool:
        return row <= last and _FENCE.match(rows[row]) is not None

    start, title = titles[number], rows[number]
    above, below = ("", *rows, "")[number : number + 3 : 2]
    end = start + len(title)
    if title.startswith("#"):
        return start, end
    is_over = _is_rule(above, title) and not is_fence(number - 1)
    is_under = _SETEXT.fullmatch(below) or _is_rule(below, title)
    if is_under and not is_fence(number + 1):
        end += 1 + len(below)
    return (start - len(above) - 1 if is_over else start), end


def _is_rule(row: str, title: str) -> bool:
    """Return whether a row of signs is a title's; of signs other than "=" and "-" it is long."""
    is_long = row[:1] in {"=", "-"} or len(row.rstrip()) >= len(title.strip())
    return is_long and _RULE.fullmatch(row) is not None


def _find_last_fence(rows: Sequence[str], titles: Collection[int]) -> int:
    """Return the last row that is a fence of code and no sign of a title, or -1."""
    return max(
        (
            number
            for number, row in enumerate(rows)
            if _FENCE.match(row)
            and number - 1 not in titles
            and rows[number + 2 : number + 3] != [row]
        ),
        default=-1,
    )


def _letters(text: str) -> str:
    """Return the letters and digits of a text, to compare headings."""
    return "".join(filter(str.isalnum, text)).casefold()


def find_code(text: str, place: int) -> int | None:
    """Return where the fence begins that opens the code at a place of a text; None if none does."""
    fences = _find_fences(text)
    return fences[bisect_right(fences, place) - 1] if _is_fenced(fences, place) else None


def _find_fences(text: str) -> list[int]:
    """Return where fences of code begin and end, by turns."""
    return [match.start() for match in _FENCE.finditer(text)]


def _is_fenced(fences: Sequence[int], place: int) -> bool:
    """Return whether a place is in fenced code, where "#" begins a comment or a prompt."""
    return bisect_right(fences, place) % 2 == 1


def encode_passages(
    tokenizer: PairTokenizer,
    question: str,
    passages: Sequence[tuple[str, str, Sequence[Span]]],
    *,
    special: tuple[int, int],
    max_tokens: int = MAX_TOKENS,
) -> list[EncodedPassage]:
    """Encode passages after a question.

    Args:
        tokenizer: Tokenizer of the encoder.
        question: The question; its first 96 tokens are read.
        passages: Title, text and sentence spans of each passage; of a title the last 32 tokens,
            its lowest headings, are read.
        special: Ids of ``[CLS]`` and ``[SEP]``.
        max_tokens: Maximum tokens of a window.
    """
    start, stop = special
    asked = _encode(tokenizer, question)[0][:_MAX_QUESTION_TOKENS]
    encoded = []
    for number, (title, text, sentences) in enumerate(passages):
        head = _encode(tokenizer, f"{title}. ")[0][-_MAX_TITLE_TOKENS:] if title else []
        ids, offsets = _encode(tokenizer, text)
        room = max_tokens - len(asked) - len(head) - 3
        for first, last in _make_windows(offsets, sentences, room):
            left = _position_of(offsets, sentences[first][0])
            right = min(_position_after(offsets, sentences[last][1]), left + room)
            base = len(asked) + 2 + len(head) - left
            spans = [
                (
                    base + _position_of(offsets, begin),
                    base + min(_position_after(offsets, end), right),
                )
                for begin, end in sentences[first : last + 1]
            ]
            segments = [0] * (len(asked) + 2) + [1] * (len(head) + right - left + 1)
            window = [start, *asked, stop, *head, *ids[left:right], stop]
            common = set(asked) & {*head, *ids[left:right]}
            encoded.append(
                EncodedPassage(
                    number,
                    window,
                    segments,
                    list(sentences[first : last + 1]),
                    spans,
                    [(0, 0)] * (len(asked) + 2 + len(head)) + offsets[left:right] + [(0, 0)],
                    [int(token in common) for token in window],
                )
            )
    return encoded


def _encode(tokenizer: PairTokenizer, text: str) -> tuple[list[int], list[Span]]:
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoding["input_ids"]), [tuple(span) for span in encoding["offset_mapping"]]


def _make_windows(offsets: list[Span], sentences: Sequence[Span], room: int) -> list[Span]:
    """Return ranges (first, last) of sentences whose tokens fit into ``room``."""
    windows: list[Span] = []
    for number, (begin, end) in enumerate(sentences):
        if windows:
            first = windows[-1][0]
            left = _position_of(offsets, sentences[first][0])
            if _position_after(offsets, end) - left <= room:
                windows[-1] = (first, number)
                continue
        if _position_after(offsets, end) > _position_of(offsets, begin):
            windows.append((number, number))
    return windows


def _position_of(offsets: list[Span], character: int) -> int:
    """Return the position of the first token that ends after a character."""
    return bisect_right(offsets, character, key=lambda span: span[1])


def _position_after(offsets: list[Span], character: int) -> int:
    """Return the position after the last token that starts before a character."""
    return bisect_left(offsets, character, key=lambda span: span[0])
