"""PDF document structure: running heads and contents removed, heading levels, hyphenation.

Works on blocks of pages, independent of the file format, as Haystack's DocumentCleaner does on
text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from stillroom.text.documents.builder import is_contents_title
from stillroom.text.pdf.layout import PageBlock
from stillroom.text.pdf.page import SOFT_HYPHEN

__all__ = [
    "DocumentVocabulary",
    "OutlineEntry",
    "PdfPage",
    "compile_title",
    "drop_contents",
    "drop_running_heads",
    "find_heading_levels",
    "join_heading_labels",
    "match_outline",
]

_MARGIN = 0.11  # of the page's height, at top and bottom
_MIN_PAGES = 3
_MAX_REQUIRED_PAGES = (
    10  # pages; more need not agree, since a book has parts with heads of their own
)
_NUMBER = re.compile(r"\d+")
_ROMAN = re.compile(r"^[ivxl]{1,7}(?=\s)|(?<=\s)[ivxl]{1,7}$")
_PAGE_NUMBER = re.compile(
    r"[\W_]*(?:page|seite|p\.|pg\.?)?\s*(?:\d{1,4}|[ivxlc]{1,6})(?:\s*(?:/|of|von|de|sur)\s*\d{1,4})?[\W_]*",
    re.IGNORECASE,
)
_OF_ALL = r"(?:\s*(?:/|of|von|de|sur)\s*\d{1,4})?"
_NUMBERED_HEAD = re.compile(
    rf"(?P<first>\d{{1,4}}|[ivxlc]{{1,7}}){_OF_ALL}\s+(?P<after>\D*\w.*)"
    rf"|(?P<before>.*?\w\D*?)\s(?P<last>\d{{1,4}}|[ivxlc]{{1,7}}){_OF_ALL}"
)
_ROMAN_VALUES = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}
_TITLE_RATIO = 1.6  # times the body: size of titles that may have more than two lines
_HEADING_RATIO = 1.13  # times the body: minimum size of a heading
_NEAR_RATIO = 0.91  # of the largest heading of a level; smaller ones start the next level
_MAX_HEADING = 160
_LETTER = re.compile(r"[^\W\d_]")
_SENTENCE_END = re.compile(r"[.,;]\s*$")
_LEADER = re.compile(r"(?:\. ?){4,}\s*\w{0,6}\s*$")  # dots to a page number
_DOTS = re.compile(  # from the first dot of a run alone, and without a way back: in linear time
    r"(?<![.…·_])(?<![.…·_]\s)(?:[.…·_]\s?){3,}+\W*+(?:(?:\d{1,4}|[ivxlc]{1,7})\b\W*+)?$"
)
_ENTRY = re.compile(r"(?P<title>.*\w)\W*[\s.…·](?P<page>\d{1,4})\W*", re.DOTALL)
_MIN_ENTRIES, _MIN_TARGETS = 3, 2  # titles of contents, and pages that they lead to
_MAX_PLACES = 50  # pages with the same title, as "Exercises"; one on more leads to none of them
_SECTION_NUMBER = re.compile(r"\s*(?:[A-Z]|[IVX]+|\d+)(?:\.\d+)*[.):]?\s+")
_LABEL = re.compile(  # "Chapter 5", but not "Vitamin C"
    r"(?i:volume|book|part|act|scene|chapter|section|appendix|annex|article|lecture|lesson|unit"
    r"|band|buch|teil|akt|kapitel|abschnitt|anhang|anlage|artikel|lektion|module?"
    r"|tome|livre|partie|acte|chapitre|annexe|leçon|unité|tomo|libro|parte|acto|cap[ií]tulo"
    r"|secci[oó]n|anexo|art[ií]culo|lecci[oó]n|unidad|capitolo|hoofdstuk|rozdział|глава|часть)"
    r"\.?\s+(?:\d{1,3}|[IVXLC]{1,6}|[A-Z])[.:]?"
)
_WORD = re.compile(r"[^\W_]+(?:-[^\W_]+)*")
_AND = frozenset({"und", "oder", "sowie", "bzw", "and"})  # after a word without its end, "Vor-"
_TO = frozenset({"or", "to", "bis"})  # also ends of words, as "Pho-to"
_CUT_WORD = re.compile(rf"([^\W_]+)(?:{SOFT_HYPHEN}|-)\n([^\W_]+\S*)[ \n]?")


@dataclass(slots=True)
class PdfPage:
    """One page's blocks, and top and bottom of the page in the blocks' coordinates."""

    number: int
    blocks: list[PageBlock] = field(default_factory=list)
    top: float = 0.0
    bottom: float = 0.0

    def is_marginal(self, block: PageBlock) -> bool:
        """Return whether a block is in the top or bottom margin of the page."""
        margin = _MARGIN * (self.bottom - self.top)
        return block.bottom < self.top + margin or block.top > self.bottom - margin


def drop_running_heads(pages: Sequence[PdfPage]) -> int:
    """Remove running heads, feet and page numbers; return the number of lines removed.

    A line in the margin that occurs, ignoring digits, on at least three pages and on a third of all
    or ten is kept only once: after the first paragraph of the first page that has it, since one may
    go on over the page's ends. So is a line that begins or ends with the number of its page, as
    heads of sections do, unless its other words stand elsewhere, too. Shorter documents keep all.
    """
    if len(pages) < _MIN_PAGES:
        return 0
    on_pages: Counter[str] = Counter()
    for page in pages:
        on_pages.update(
            {_normalize_repeated(block) for block in page.blocks if _may_repeat(block, page)}
        )
    least = max(_MIN_PAGES, min(len(pages) / 3, _MAX_REQUIRED_PAGES))
    numbered = _find_numbered_heads(pages, least)
    running = {mark for mark, count in on_pages.items() if count >= least} | {*numbered.values()}
    others = (block for page in pages for block in page.blocks if id(block) not in numbered)
    words = _compact("".join(block.text for block in others))
    seen = {mark for mark in numbered.values() if _compact(mark) in words}
    dropped = 0
    for page in pages:
        remaining: list[PageBlock] = []
        once: list[PageBlock] = []
        lasting = [block for block in page.blocks if not _may_repeat(block, page)]
        for block in page.blocks:
            mark = numbered.get(id(block)) or (
                _normalize_repeated(block) if _may_repeat(block, page) else ""
            )
            is_number = bool(_PAGE_NUMBER.fullmatch(block.text)) if mark else False
            is_again = mark in seen and bool(lasting)  # else the page would be empty
            if mark in running and (is_again or is_number):
                dropped += len(block.lines)
                continue
            seen.add(mark)
            (once if mark in running else remaining).append(block)
        page.blocks = [*remaining[:1], *once, *remaining[1:]]
    return dropped


def _find_numbered_heads(pages: Sequence[PdfPage], least: float) -> dict[int, str]:
    """Return the other words of marginal lines that hold their page's number, by ``id``.

    Printed numbers, Arabic or Roman, count if they run beside the pages: on ``least`` pages, or on
    three with the same words. Lines in the type of headings do not.
    """
    largest = _HEADING_RATIO * _measure_body_size(pages)
    found = [
        (_find_shift(match["first"] or match["last"], page.number), block, match)
        for page in pages
        for block in page.blocks
        if _may_repeat(block, page) and len(block.lines) == 1 and block.size < largest
        if (match := _NUMBERED_HEAD.fullmatch(block.text.strip()))
    ]
    heads = [
        (shift, block, (match["after"] or match["before"]).casefold())
        for shift, block, match in found
    ]
    usual = Counter(shift for shift, _, _ in heads).most_common(1)
    alike = Counter((shift, words) for shift, _, words in heads)
    return {
        id(block): words
        for shift, block, words in heads
        if (usual[0][1] >= least and shift == usual[0][0]) or alike[shift, words] >= _MIN_PAGES
    }


def _find_shift(numeral: str, page: int) -> tuple[bool, int]:
    """Return whether a page's printed number is Roman, and by how much it exceeds the page."""
    if numeral.isdigit():
        return False, int(numeral) - page
    values = [_ROMAN_VALUES[letter] for letter in numeral]
    signed = [-one if one < after else one for one, after in pairwise([*values, 0])]
    return True, sum(signed) - page


def drop_contents(pages: Sequence[PdfPage]) -> int:
    """Remove tables of contents; return the number of lines removed, their titles included.

    A line of contents is a title and the number of the page on which that title stands by itself;
    all printed numbers differ from the pages by one shift. Three such titles make a table of
    contents. A paragraph or table of which most lines are such, or end in dots, is left out. A
    list of goods and prices stays, since its numbers lead to no page.
    """
    places = _find_titles(pages)
    lines = [
        (block, _compact(text), title, shift, at)
        for page in pages
        for block in page.blocks
        for text in _list_lines(block)
        for title, targets in [_find_targets(text, places)]
        # A running head, or a title with its number, stands on the page of its words.
        if page.number not in {at for _, at in targets}
        for shift, at in targets
    ]
    led: dict[int, set[int]] = {}
    for *_, shift, at in lines:
        led.setdefault(shift, set()).add(at)
    # A sum is one title, however often and with whatever number.
    votes = Counter(shift for _, shift in {(title, shift) for _, _, title, shift, _ in lines})
    ((shift, count),) = votes.most_common(1) or [(0, 0)]
    if count < _MIN_ENTRIES or len(led[shift]) < _MIN_TARGETS:
        return 0
    known = Counter(
        name for name, _ in {(id(one), text) for one, text, _, found, _ in lines if found == shift}
    )
    dropped = 0
    for page in pages:
        remaining: list[PageBlock] = []
        for block in page.blocks:
            texts = _list_lines(block)
            marked = max(known[id(block)], sum(bool(_DOTS.search(text)) for text in texts))
            if not known[id(block)] or 2 * marked <= len(texts):
                remaining.append(block)
                continue
            dropped += len(texts)
            if remaining and is_contents_title(remaining[-1].text):
                dropped += len(remaining.pop().lines)
        page.blocks = remaining
    return dropped


def _list_lines(block: PageBlock) -> list[str]:
    if block.kind == "table":
        return [" ".join(cell for cell in row if cell) for row in block.rows]
    return [line.text for line in block.lines]


def _find_titles(pages: Sequence[PdfPage]) -> dict[str, set[int]]:
    """Return the pages of each short paragraph, by its letters and digits."""
    places: dict[str, set[int]] = {}
    for page in pages:
        for block in page.blocks:
            if block.kind != "table" and len(block.text) <= _MAX_HEADING:
                for name in _name_titles(block.text):
                    places.setdefault(name, set()).add(page.number)
    return places


def _name_titles(text: str) -> set[str]:
    """Return the letters and digits of a title with and without its number."""
    return {_compact(text), _compact(_SECTION_NUMBER.sub("", text, count=1))} - {""}


def _find_targets(text: str, places: dict[str, set[int]]) -> tuple[str, set[tuple[int, int]]]:
    """Return the title of a line and the pages on which it stands, each after the shift to it."""
    match = _ENTRY.fullmatch(text)
    if match is None:
        return "", set()
    found = [places.get(name, set()) for name in _name_titles(match["title"])]
    return _compact(match["title"]), {
        (at - int(match["page"]), at) for one in found if len(one) <= _MAX_PLACES for at in one
    }


def _compact(text: str) -> str:
    return "".join(filter(str.isalnum, text)).casefold()


def _may_repeat(block: PageBlock, page: PdfPage) -> bool:
    return block.kind != "table" and len(block.lines) <= 3 and page.is_marginal(block)


def _normalize_repeated(block: PageBlock) -> str:
    if _PAGE_NUMBER.fullmatch(block.text):
        return "#"
    text = _NUMBER.sub("#", " ".join(block.text.split()).casefold())
    return _ROMAN.sub("#", text)


def _measure_body_size(pages: Sequence[PdfPage]) -> float:
    """Return the type size of most characters in points; 0 without characters."""
    sizes: Counter[float] = Counter()
    for page in pages:
        for block in page.blocks:
            for line in block.lines:
                sizes[round(line.type_size * 2) / 2] += len(line.text)
            for row in block.rows:
                sizes[round(block.size * 2) / 2] += sum(map(len, row))
    return sizes.most_common(1)[0][0] if sizes else 0.0


def join_heading_labels(pages: Sequence[PdfPage]) -> None:
    """Join a label of a word and a number, as "Chapter 5", to the heading directly below it."""
    body = _measure_body_size(pages)
    for page in pages:
        blocks: list[PageBlock] = []
        for block in page.blocks:
            above = blocks[-1] if blocks else None
            if (
                above
                and all(
                    one.kind == "p" and _looks_like_heading(one, body) for one in (above, block)
                )
                and _LABEL.fullmatch(above.text)
                and not _LABEL.fullmatch(block.text)
                and block.size >= _NEAR_RATIO * above.size
            ):
                blocks.pop()
                block.lines[:0] = above.lines
                block.top = above.top
            blocks.append(block)
        page.blocks = blocks


HeadingStyle = tuple[float, bool]


def find_heading_levels(
    pages: Sequence[PdfPage], known: dict[int, int] | None = None
) -> dict[int, int]:
    """Return the level of every heading block, by the block's ``id``.

    Headings are short and larger than the body, or bold where the body is not. Levels follow size,
    with merely bold headings last; at most six levels. ``known`` headings, from an outline, keep
    their level; others are then headings only if they look like a known one.
    """
    body = _measure_body_size(pages)
    known = known or {}
    candidates: list[tuple[PageBlock, HeadingStyle]] = []
    bold = plain = 0
    for page in pages:
        for block in page.blocks:
            if block.kind == "table":
                plain += sum(len(cell) for row in block.rows for cell in row)
                continue
            size = len(block.text)
            bold, plain = (bold + size, plain) if block.is_bold else (bold, plain + size)
            if id(block) in known or _looks_like_heading(block, body):
                candidates.append((block, _style_of_block(block, body)))
    if bold > plain:  # bold is the document's normal style
        candidates = [
            (heading, style)
            for heading, style in candidates
            if style[0] >= _HEADING_RATIO or id(heading) in known
        ]
    levels = _rank_styles(candidates, known)
    marked = {id(block): levels[style] for block, style in candidates if style in levels}
    return {**marked, **known}


def _rank_styles(
    candidates: list[tuple[PageBlock, HeadingStyle]], known: dict[int, int]
) -> dict[HeadingStyle, int]:
    if known:
        votes: dict[HeadingStyle, Counter[int]] = {}
        for block, style in candidates:
            votes.setdefault(style, Counter())[known.get(id(block), 0)] += 1
        return {
            style: next(level for level, _ in count.most_common() if level)
            for style, count in votes.items()
            if 2 * count[0] <= count.total()  # the outline names half of the blocks in that style
        }
    larger = sorted({size for _, (size, _) in candidates if size >= _HEADING_RATIO}, reverse=True)
    ranks: dict[float, int] = {}
    first = 0.0
    for size in larger:
        if not ranks or size < _NEAR_RATIO * first:  # a new level, by the largest heading before
            first, rank = size, len(set(ranks.values()))
        ranks[size] = rank
    least = len(set(ranks.values()))
    return {style: min(ranks.get(style[0], least) + 1, 6) for _, style in candidates}


def _style_of_block(block: PageBlock, body: float) -> HeadingStyle:
    """Return a block's size relative to the body and whether it is bold."""
    return round(block.size / max(body, 1.0), 2), block.is_bold


def _looks_like_heading(block: PageBlock, body: float) -> bool:
    text = block.text
    most = 4 if block.size >= (_TITLE_RATIO if block.is_bold else 2.0) * body else 2
    if len(text) > _MAX_HEADING or len(block.lines) > most or not _LETTER.search(text):
        return False
    if block.kind == "li" and text.startswith("- "):
        return False
    is_larger = block.size >= _HEADING_RATIO * body
    is_bold = block.is_bold and block.size >= 0.93 * body and len(block.lines) <= 2
    return (is_larger or is_bold) and not (_SENTENCE_END.search(text) or _LEADER.search(text))


OutlineEntry = tuple[int, str]
"""An outline entry: its level and its title."""


def match_outline(
    pages: list[PdfPage], outline: dict[int, list[OutlineEntry]]
) -> tuple[dict[int, int], dict[int, list[OutlineEntry]]]:
    """Return the blocks named by the outline, and the blocks with a title of the outline.

    A number may precede the title, and its punctuation may be another. A title that is not found
    on its page belongs to the page's first block.
    """
    known: dict[int, int] = {}
    within: dict[int, list[OutlineEntry]] = {}
    for page in pages:
        remaining = [block for block in page.blocks if block.kind != "table"]
        for level, title in outline.get(page.number, []):
            title_block = next(
                (block for fold in _FOLDS for block in remaining if _is_title(block, title, fold)),
                None,
            )
            if title_block is not None:
                known[id(title_block)] = min(level, 6)
                remaining = remaining[remaining.index(title_block) + 1 :]
                continue
            pattern = compile_title(title)
            part = next(
                (candidate for candidate in remaining if pattern.search(candidate.text)), None
            )
            part = part or next(iter(page.blocks), None)
            if part is not None:
                within.setdefault(id(part), []).append((min(level, 6), title))
    return known, within


_FOLDS = (re.compile(r"\s+"), re.compile(r"[\W_]+"))  # what is ignored: first spaces alone
_MIN_FOLDED = 4  # characters: "C++" without its signs is another title


def _is_title(block: PageBlock, title: str, fold: re.Pattern[str]) -> bool:
    """Return whether a block is a title, ignoring a leading number and hyphenation."""
    folded_title = fold.sub("", title).casefold()
    text = fold.sub("", block.text.replace(SOFT_HYPHEN, "")).casefold()
    is_long = fold is _FOLDS[0] or len(folded_title) >= _MIN_FOLDED
    return is_long and text.endswith(folded_title) and len(text) - len(folded_title) <= 12


def compile_title(title: str) -> re.Pattern[str]:
    """Return a pattern that matches a title across line ends."""
    return re.compile(r"\s+".join(re.escape(word) for word in title.split()), re.IGNORECASE)


class DocumentVocabulary:
    """The unbroken words of a document, to resolve hyphens at line ends."""

    def __init__(self, pages: Sequence[PdfPage]) -> None:
        """Count the words of all pages that no line end splits."""
        self._known: set[str] = set()
        for page in pages:
            for block in page.blocks:
                is_cut = False
                for line in block.lines:
                    words = _WORD.findall(line.text.casefold())[is_cut:]
                    is_cut = line.text.endswith((SOFT_HYPHEN, "-"))
                    for word in words[:-1] if is_cut else words:
                        self._known.add(word)
                        self._known.update(map("-".join, pairwise(word.split("-"))))

    def mend(self, text: str) -> str:
        """Return text with hyphenated words joined.

        The hyphen stays beside a digit and before a capital among small letters. It also stays
        where the document elsewhere writes it, or writes both halves as words; but not where it
        writes the joined word. "Pre-" of "pre- and post-war" stays a word.
        """
        if SOFT_HYPHEN not in text and "-\n" not in text:
            return text
        return (
            _CUT_WORD.sub(self._mended, text)
            .replace(SOFT_HYPHEN + "\n", "")
            .replace(SOFT_HYPHEN, "-")
            .rstrip("\n")
        )

    def _mended(self, match: re.Match[str]) -> str:
        first, second = match.group(1), match.group(2)
        word = _WORD.match(second)
        left, right = first.casefold(), (word.group() if word else second).casefold()
        is_joined = left + right in self._known
        if not is_joined and (right in _AND or (right in _TO and left in self._known)):
            return f"{first}- {second}\n"
        right = right.split("-")[0]
        is_name = second[0].isupper() and not (first + second).isupper()
        is_known = f"{left}-{right}" in self._known or second[0].isupper()
        both = left in self._known and right in self._known and min(len(left), len(right)) >= 4
        is_number = first[-1].isdigit() or second[0].isdigit()
        keeps = is_number or is_name or ((is_known or both) and left + right not in self._known)
        return f"{first}{'-' if keeps else ''}{second}\n"
