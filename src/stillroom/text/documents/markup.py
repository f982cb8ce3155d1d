"""Markup tokenizer with source offsets, for HTML, XHTML and the like.

Yields tags and text with start and end offsets, in linear time; only raw content (script, style,
title) has a meaning to it. lexbor, lxml and html5lib build better trees but drop the source
position of a node, which citations need.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from stillroom.text.documents.entities import EntityExpander

__all__ = [
    "RAW_TEXT_ELEMENTS",
    "VOID_ELEMENTS",
    "MarkupToken",
    "iter_text_pieces",
    "read_attributes",
    "tokenize",
]


VOID_ELEMENTS = frozenset(
    "area base br col embed hr img input link meta param source track wbr".split()  # noqa: SIM905
)
"""Elements without an end tag."""

_ATTRIBUTE = r"""[^\s/>=]++(?:\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s>"'][^\s>]*+)?+)?+"""
_TAG = re.compile(rf"<(/?)([a-zA-Z][^\s/>]*+)((?:[\s/]++|{_ATTRIBUTE}|=)*+)>")

_ATTRIBUTE_PAIR = re.compile(
    r"""([^\s/>=]+)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s>"'][^\s>]*))?)?"""
)

RAW_TEXT_ELEMENTS = {
    name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE)
    for name in ("script", "style", "textarea", "title", "xmp", "iframe", "noembed")
}
"""Elements whose content is text alone, with the pattern of their end tag."""

_ENTITY = re.compile(r"&(?:#[xX]?[0-9a-fA-F]{1,7}|[a-zA-Z][a-zA-Z0-9]{1,31});?")
_SPACE_RUN = re.compile(r"\r(?=\n)|(?<=[^\S\r])\s+")


@dataclass(slots=True)
class MarkupToken:
    """A run of text, a start tag or an end tag, at text[start:end].

    ``name`` of a text is that of the element whose raw content it is; ``written`` is what a reader
    of other markup puts in place of text[start:end].
    """

    kind: Literal["text", "start", "end"]
    start: int
    end: int
    name: str = ""
    attributes: str = ""
    written: str = ""


def tokenize(text: str, *, has_raw_text: bool = True) -> Iterator[MarkupToken]:
    """Yield the tokens of markup in order; comments and declarations are left out.

    With ``has_raw_text`` the content of script, style, title and the like is one text token.
    """
    position, last = 0, text.rfind(">")
    while position < len(text):
        opening = text.find("<", position)
        if opening < 0 or opening > last:
            yield MarkupToken("text", position, len(text))
            return
        token, end = _read_tag(text, opening)
        if token is None and end == opening + 1:  # a bare '<' is text
            yield MarkupToken("text", position, end)
            position = end
            continue
        if opening > position:
            yield MarkupToken("text", position, opening)
        position = end
        if token is None:
            continue
        yield token
        raw = RAW_TEXT_ELEMENTS.get(token.name) if has_raw_text else None
        if raw and token.kind == "start" and not token.attributes.endswith("/"):
            closing = raw.search(text, position)
            stop = closing.start() if closing else len(text)
            if stop > position:
                yield MarkupToken("text", position, stop, token.name)
            position = stop


def read_attributes(attributes: str) -> dict[str, str]:
    """Return the attributes of a start tag; of duplicates the first wins, as in browsers."""
    values: dict[str, str] = {}
    for name, double, single, bare in _ATTRIBUTE_PAIR.findall(attributes):
        values.setdefault(name.lower(), html.unescape(double or single or bare))
    return values


def iter_text_pieces(
    text: str, start: int, end: int, *, keep_space: bool, entities: EntityExpander | None = None
) -> Iterator[tuple[str, int, int]]:
    """Yield (text, start, end) of the visible pieces of a run of markup text.

    A piece is unchanged source text, one decoded character reference, or one expanded entity of
    ``entities``. Runs of white space are reduced to their first character (of CR LF to the line
    feed) unless ``keep_space``.
    """
    position = start
    found = entities.iter_references(text, start, end) if entities else ()
    for first, last, expanded in found:
        yield from _iter_decoded(text, position, first, keep_space)
        if expanded:
            yield expanded.replace("\xa0", " "), first, last
        position = last
    yield from _iter_decoded(text, position, end, keep_space)


def _iter_decoded(
    text: str, start: int, end: int, keep_space: bool
) -> Iterator[tuple[str, int, int]]:
    position = start
    for match in _ENTITY.finditer(text, start, end):
        decoded = html.unescape(match.group())
        if decoded == match.group():
            continue
        yield from _unescape_text(text, position, match.start(), keep_space)
        yield decoded.replace("\xa0", " "), match.start(), match.end()
        position = match.end()
    yield from _unescape_text(text, position, end, keep_space)


def _unescape_text(
    text: str, start: int, end: int, keep_space: bool
) -> Iterator[tuple[str, int, int]]:
    if not keep_space:
        for match in _SPACE_RUN.finditer(text, start, end):
            if match.start() > start:
                yield text[start : match.start()], start, match.start()
            start = match.end()
    if end > start:
        yield text[start:end], start, end


def _read_tag(text: str, opening: int) -> tuple[MarkupToken | None, int]:
    """Return the tag at ``opening`` and its end; no tag for comments and declarations."""
    if text.startswith("<!--", opening):
        closing = text.find("-->", opening + 2)
        return None, len(text) if closing < 0 else closing + 3
    if text.startswith("<![CDATA[", opening):
        return None, opening + 9  # its content is text; the closing ]]> is cut by the caller
    if text.startswith(("<!", "<?", "</>"), opening):
        return None, text.find(">", opening) + 1
    match = _TAG.match(text, opening)
    if match:
        slash, name, attributes = match.groups()
        kind: Literal["start", "end"] = "end" if slash else "start"
        name = name.lower().rpartition(":")[2]
        return MarkupToken(kind, opening, match.end(), name, attributes), match.end()
    following = text[opening + 1 : opening + 3].lstrip("/")[:1]
    if following.isascii() and following.isalpha():  # quotes that never close: up to the next '>'
        end = text.find(">", opening) + 1
        name = re.split(r"[\s/>]", text[opening + 1 : opening + 64].lstrip("/"), maxsplit=1)[0]
        kind = "end" if text.startswith("/", opening + 1) else "start"
        return MarkupToken(kind, opening, end, name.lower(), ""), end
    return None, opening + 1
