"""Markup to tokens that know where they stand.

A tokenizer for HTML and XHTML: tags, text and the ends of both as offsets into the text. The
parsers at hand (lexbor, lxml, html5lib) build better trees but forget where a node came from, and
byte ranges are what a citation needs. Linear in the length of its text, whatever that holds; knows
nothing of what the tags mean beyond those whose content is not markup.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["Token", "pieces_of", "read_attributes", "tokenize"]

_ATTRIBUTE = r"""[^\s/>=]++(?:\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s>"'][^\s>]*+)?+)?+"""
_TAG = re.compile(rf"<(/?)([a-zA-Z][^\s/>]*+)((?:[\s/]++|{_ATTRIBUTE}|=)*+)>")
_PAIR = re.compile(r"""([^\s/>=]+)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s>"'][^\s>]*))?)?""")
_RAW = {
    name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE)
    for name in ("script", "style", "textarea", "title", "xmp", "iframe", "noembed")
}
_ENTITY = re.compile(r"&(?:#[xX]?[0-9a-fA-F]{1,7}|[a-zA-Z][a-zA-Z0-9]{1,31});?")
_SPACE_RUN = re.compile(r"(?<=\s)\s+")


@dataclass(slots=True)
class Token:
    """A run of text, a start tag or an end tag, at text[start:end].

    ``content`` is where a start tag's raw content ends (script, style, title), else 0.
    """

    kind: Literal["text", "start", "end"]
    start: int
    end: int
    name: str = ""
    attributes: str = ""


def tokenize(text: str) -> Iterator[Token]:
    """Yield the tokens of markup in order; comments and declarations are left out.

    The content of script, style, title and their like comes as one text token.
    """
    position, last = 0, text.rfind(">")
    while position < len(text):
        opening = text.find("<", position)
        if opening < 0 or opening > last:
            yield Token("text", position, len(text))
            return
        token, end = _read_tag(text, opening)
        if token is None and end == opening + 1:  # a bare '<' is text
            yield Token("text", position, end)
            position = end
            continue
        if opening > position:
            yield Token("text", position, opening)
        position = end
        if token is None:
            continue
        yield token
        raw = _RAW.get(token.name) if token.kind == "start" else None
        if raw and not token.attributes.endswith("/"):
            closing = raw.search(text, position)
            stop = closing.start() if closing else len(text)
            if stop > position:
                yield Token("text", position, stop, token.name)
            position = stop


def read_attributes(attributes: str) -> dict[str, str]:
    """Return the attributes of a start tag; the first of a name wins, as browsers have it."""
    found: dict[str, str] = {}
    for name, double, single, bare in _PAIR.findall(attributes):
        found.setdefault(name.lower(), html.unescape(double or single or bare))
    return found


def pieces_of(
    text: str, start: int, end: int, *, keep_space: bool
) -> Iterator[tuple[str, int, int]]:
    """Yield (text, start, end) of the visible pieces of a run of markup text.

    A piece is its source unchanged, or one decoded character reference. Runs of white space are cut
    to their first character unless ``keep_space``.
    """
    position = start
    for match in _ENTITY.finditer(text, start, end):
        decoded = html.unescape(match.group())
        if decoded == match.group():
            continue
        yield from _plain(text, position, match.start(), keep_space)
        yield decoded.replace("\xa0", " "), match.start(), match.end()
        position = match.end()
    yield from _plain(text, position, end, keep_space)


def _plain(text: str, start: int, end: int, keep_space: bool) -> Iterator[tuple[str, int, int]]:
    if not keep_space:
        for match in _SPACE_RUN.finditer(text, start, end):
            if match.start() > start:
                yield text[start : match.start()], start, match.start()
            start = match.end()
    if end > start:
        yield text[start:end], start, end


def _read_tag(text: str, opening: int) -> tuple[Token | None, int]:
    """Return the tag at ``opening`` and where it ends; no tag for comments and declarations."""
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
        return Token(kind, opening, match.end(), name, attributes), match.end()
    following = text[opening + 1 : opening + 3].lstrip("/")[:1]
    if following.isascii() and following.isalpha():  # quotes that never close: up to the next '>'
        end = text.find(">", opening) + 1
        name = re.split(r"[\s/>]", text[opening + 1 : opening + 64].lstrip("/"), maxsplit=1)[0]
        kind = "end" if text.startswith("/", opening + 1) else "start"
        return Token(kind, opening, end, name.lower(), ""), end
    return None, opening + 1
