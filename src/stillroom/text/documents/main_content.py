"""Main-content extraction from web pages: boilerplate (navigation, link lists) is removed.

Boilerplate is found by elements and roles first, then by class names, then by the share of linked
text; if that would leave almost nothing, all visible text is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from stillroom.records import Definition
from stillroom.text.documents.builder import DocumentBuilder
from stillroom.text.documents.entities import EntityExpander
from stillroom.text.documents.html import HtmlBlock, HtmlBlockReader
from stillroom.text.documents.markup import MarkupToken, tokenize
from stillroom.text.encoding import ByteMap, DecodedText

__all__ = ["PageMetadata", "extract_main_content"]

_MAX_DEPTH = 6  # of nested lists of definitions, whose terms all passages within repeat


@dataclass(frozen=True, slots=True)
class PageMetadata:
    """A page's own metadata, and the characters left out: boilerplate and hidden."""

    title: str = ""
    language: str = ""
    boilerplate_characters: int = 0
    hidden_characters: int = 0


def extract_main_content(
    decoded: DecodedText,
    assembly: DocumentBuilder,
    *,
    span: tuple[int, int] | None = None,
    label: str = "",
    keep_all: bool = False,
    is_xml: bool = False,
    read_tokens: Callable[[str], Iterator[MarkupToken]] | None = None,
    entities: EntityExpander | None = None,
) -> PageMetadata:
    """Add the main text of a page to a document.

    ``span`` is one byte range for the whole page (a member of an archive, a part of a mail); by
    default each piece of text has its own. ``keep_all`` keeps content like navigation, which books
    and mail do not have; in XHTML (``is_xml``) ``<p/>`` is an empty paragraph. ``read_tokens``
    yields the tokens of other markup with HTML's names; ``entities`` expands those of XML.

    Returns:
        The page's title and language, and the number of characters left out: boilerplate, and
        hidden elements (formulas, forms; scripts do not count).
    """
    tokens = (read_tokens or tokenize)(decoded.text)
    reader = HtmlBlockReader(decoded.text, is_xml, tokens, entities)
    reader.read()
    visible = [block for block in reader.blocks if block.size]
    selected = visible if keep_all else _select_main_blocks(visible)
    write = _BlockWriter(decoded, assembly, span, label).write
    places = [(write(block), assembly.length) for block in selected]
    assembly.define(_find_definitions(zip(selected, places, strict=True)))
    dropped = sum(block.size for block in visible) - sum(block.size for block in selected)
    return PageMetadata(" ".join(reader.title.split()), reader.language, dropped, reader.hidden)


def _select_main_blocks(visible: list[HtmlBlock]) -> list[HtmlBlock]:
    # Links do not count here: a menu may be far longer than the text beside it.
    inside = [block for block in visible if not block.aside]
    text = [block for block in inside if not block.contents]
    if _measure(text) > 0.5 * _measure(inside):
        inside = text  # else the page is the table of contents of other pages
    is_little = _measure(inside, plain=True) < 0.15 * _measure(visible, plain=True) or not inside
    if is_little and not any(block.main for block in inside):
        inside = visible
    listed = _find_link_lists(inside)
    body = [block for block, links in zip(inside, listed, strict=True) if not links]
    if sum(block.size for block in body if block.kind != "heading") < 0.15 * _measure(inside):
        body = inside  # titles without the lists below them say little
    main = [block for block in body if block.main]
    return main if main and _measure(main) >= 0.3 * _measure(body) else body


def _measure(blocks: list[HtmlBlock], *, plain: bool = False) -> int:
    return sum(block.size - block.linked * plain for block in blocks)


def _find_link_lists(blocks: list[HtmlBlock]) -> list[bool]:
    """Return for each block whether it turns pages, or is in a run of three or more of links.

    Lists within the main element are content: what belongs to it, or what a sentence announces.
    """
    is_list = [block.turns_pages for block in blocks]
    start = 0
    for index in range(len(blocks) + 1):
        if index < len(blocks) and blocks[index].is_menu:
            continue
        if index - start >= 3:
            is_list[start:index] = [True] * (index - start)
        start = index + 1
    return is_list


class _BlockWriter:
    """Writes blocks as Markdown, each piece with its byte range."""

    def __init__(
        self,
        decoded: DecodedText,
        assembly: DocumentBuilder,
        span: tuple[int, int] | None,
        label: str,
    ) -> None:
        self._text = decoded.text
        self._assembly = assembly
        self._map = None if span else ByteMap(decoded)
        self._span = span
        self._label = label
        self._before = ""

    def write(self, block: HtmlBlock) -> int:
        """Add a block and return where it begins."""
        pieces = _trim_pieces(block.pieces)
        if not pieces and not block.rows:
            return self._assembly.length
        self._assembly.gap("\n" if block.kind == self._before == "li" else "\n\n")
        self._before = block.kind
        start = self._assembly.length
        self._write_pieces(block, pieces)
        return start

    def _write_pieces(self, block: HtmlBlock, pieces: list[tuple[str, int, int]]) -> None:
        if block.kind == "heading":
            title = "".join(piece[0] for piece in pieces)
            self._assembly.heading(block.level, title)
            self._assembly.add("#" * block.level + " ")
            pieces = [(text.replace("\n", " "), start, end) for text, start, end in pieces]
        elif block.kind == "code":
            self._write_code(block.pieces, block.prefix)
            return
        elif block.kind == "table":
            self._write_table(block.rows, block.prefix)
            return
        self._assembly.add(block.prefix)
        for piece in pieces:
            self._add(*piece)

    def _add(self, text: str, start: int, end: int) -> None:
        span, exact = self._span, False
        if self._map is not None:
            span = (self._map.at(start), self._map.at(end))
            exact = text == self._text[start:end] and self._map.is_exact(start, end)
        self._assembly.add(text, span, label=self._label, is_exact=exact)

    def _write_code(self, pieces: list[tuple[str, int, int]], indent: str) -> None:
        content = "".join(piece[0] for piece in pieces)
        fence = "```"
        while fence in content:
            fence += "`"
        first = len(content) - len(content.lstrip("\r\n"))
        self._assembly.add(indent + fence + "\n")  # its lines stay as they are in the source
        for text, start, end in pieces:
            if first and not text.strip("\r\n"):
                continue
            self._add(text, start, end)
            first = 0
        self._assembly.add(("" if content.endswith("\n") else "\n") + indent + fence)

    def _write_table(self, rows: list[tuple[str, int, int]], indent: str) -> None:
        for number, row in enumerate(rows):
            self._assembly.add("\n" + indent if number else indent)
            self._add(*row)
            if number == 0:
                columns = len(re.findall(r"(?<!\\)\|", row[0])) - 1
                self._assembly.add(f"\n{indent}|" + " --- |" * columns)


def _find_definitions(
    placed: Iterable[tuple[HtmlBlock, tuple[int, int]]],
) -> Iterator[Definition]:
    """Yield the entries of lists of definitions; terms in a row share what follows them.

    A heading ends all, and is no term: it has its section. Of nested lists, the outer are read.
    ``placed`` are the blocks of a text with their places.
    """
    entries = list[tuple[int, int, int]]()  # depth, start and end of terms, the outermost first
    last = 0
    for block, (start, end) in placed:
        least = block.depth if block.kind != "heading" else -1
        while entries and entries[-1][0] + block.is_term > least:
            if block.is_term and entries[-1][0] == block.depth and entries[-1][2] == last:
                start = entries.pop()[1]
                break
            yield from _end_entry(*entries.pop()[1:], last)
        is_defined = block.kind != "heading" and block.depth <= _MAX_DEPTH
        if block.is_term and is_defined and any(map(str.isprintable, block.text)):
            entries.append((block.depth, start, end))
        last = end
    for _, first, stop in entries:
        yield from _end_entry(first, stop, last)


def _end_entry(start: int, end: int, last: int) -> Iterator[Definition]:
    if last > end:
        yield Definition(start, end, last)


def _trim_pieces(pieces: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Strip white space from the ends of pieces and where two of them meet."""
    trimmed: list[tuple[str, int, int]] = []
    is_spaced = True
    for text, start, end in pieces:
        if is_spaced and text != "\n":
            short = text.lstrip()
            start, text = (end - len(short) if len(text) == end - start else start), short
        if not text or (is_spaced and not trimmed and text.isspace()):
            continue
        trimmed.append((text, start, end))
        is_spaced = text[-1].isspace()
    while trimmed:
        text, start, end = trimmed[-1]
        short = text.rstrip()
        if short == text:
            break
        trimmed.pop()
        if short:
            trimmed.append((short, start, start + len(short) if len(text) == end - start else end))
    return trimmed
