"""Places of a credential in a text: found with their offsets, made, and removed.

Plain text carries the manifest store as variation selectors, one for each byte, behind its last
character (A.8); they are invisible and are copied along. HTML has a ``script`` element (A.7),
structured text a comment with two delimiters (A.9), both with the store in Base64.

Source: C2PA Technical Specification 2.4, annexes A.7, A.8 and A.9.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from stillroom.records.text_credentials.jumbf import MAX_STORE_BYTES

__all__ = [
    "CARRIERS",
    "CREDENTIAL_MARKS",
    "Carrier",
    "FoundStore",
    "encode_selectors",
    "find_spans",
    "find_stores",
    "has_credential",
    "remove_marks",
]

_HEADER = b"C2PATXT\0"
_SELECTORS = [chr(0xFE00 + byte) if byte < 16 else chr(0xE0100 + byte - 16) for byte in range(256)]
_TO_SELECTOR = dict(enumerate(_SELECTORS))
_TO_BYTE = {ord(selector): byte for byte, selector in enumerate(_SELECTORS)}
_START = _HEADER.decode("latin-1").translate(_TO_SELECTOR)
_BOX = "jumdc2".translate(_TO_SELECTOR)  # in each box of a store: what lost its header has some
_RUN = re.compile(f"\ufeff?[\ufe00-\ufe0f\U000e0100-\U000e01ef]{{{len(_BOX)},}}")
_SCRIPT = re.compile(
    r"<script\b[^<>]{0,200}\btype\s*=\s*[\"']?application/c2pa\b[^<>\"']{0,200}[\"']?"
    r"(?:[^<>\"']|\"[^\"<]*\"|'[^'<]*'){0,200}>([A-Za-z0-9+/_=\s-]*)</script\s*>\n?",
    re.I,
)
_ARMOR = re.compile(
    r"-----BEGIN C2PA MANIFEST-----\s*data:application/c2pa;base64,([A-Za-z0-9+/_=\s-]*?)"
    r"-----END C2PA MANIFEST-----"
)
_TO_BASE64 = str.maketrans("-_", "+/")
_COMMENT_MARKS = 12  # characters of a comment's beginning or end, and space
_OPENING = re.compile(
    r"(?:\n?[ \t]*(?:<!--|/\*+|\(\*|\{-|\*|#+|//+|--|%+|;+|\"{3}|'{3})[ \t]*|\n)\Z"
)
_CLOSING = re.compile(r"[ \t]*(?:-->|\*+/|\*\)|-\}|\"{3}|'{3})")
_ARMOR_MARK = "-----BEGIN C2PA MANIFEST-----"
_SCRIPT_MARK = "application/c2pa"


@dataclass(frozen=True, slots=True)
class Carrier:
    """A way to carry a store: its element, where it is placed, and what the hash covers.

    ``wrap`` writes the element of a store; ``place`` returns the text before and after it, whose
    bytes are hashed; ``is_normalized`` is whether they are normalized (NFC) first.
    """

    wrap: Callable[[bytes], str]
    place: Callable[[str], tuple[str, str]]
    is_normalized: bool = False


@dataclass(frozen=True, slots=True)
class FoundStore:
    """A store in a text: the characters [start, end) that carry it, and its bytes.

    ``data`` is cut short where the text was; ``is_whole`` is whether nothing is missing.
    """

    start: int
    end: int
    data: bytes
    carrier: str
    is_whole: bool = True


def encode_selectors(store: bytes) -> str:
    """Return a store as the invisible characters of plain text (A.8.2)."""
    framed = _HEADER + b"\x01" + len(store).to_bytes(4, "big") + store
    return "\ufeff" + framed.decode("latin-1").translate(_TO_SELECTOR)


def _wrap_script(store: bytes) -> str:
    return f'<script type="application/c2pa">{base64.b64encode(store).decode()}</script>'


def _wrap_comment(store: bytes) -> str:
    data = base64.b64encode(store).decode()
    return (
        f"\n<!-- {_ARMOR_MARK} data:application/c2pa;base64,{data} -----END C2PA MANIFEST----- -->"
    )


def _split_head(page: str) -> tuple[str, str]:
    """Return a page before and after the place of a credential, the end of its head."""
    match = re.search(r"</head\s*>", page, re.I)
    if match is None:
        raise ValueError("the page has no </head>, before which a credential stands")
    return page[: match.start()], page[match.start() :]


CARRIERS = {
    "text/plain": Carrier(encode_selectors, lambda text: (text, ""), is_normalized=True),
    "text/html": Carrier(_wrap_script, _split_head),
    "text/markdown": Carrier(_wrap_comment, lambda text: (text, "")),
}
"""The carrier of each media type that credentials are written into."""

CREDENTIAL_MARKS = (_START, _BOX, _ARMOR_MARK, _SCRIPT_MARK)
"""Strings one of which is in every text that carries a credential."""


def has_credential(text: str) -> bool:
    """Return whether a text may carry a credential; a quick test."""
    return any(mark in text for mark in CREDENTIAL_MARKS)


def find_stores(text: str) -> list[FoundStore]:
    """Return the stores in a text, in order; text about credentials carries none."""
    found = []
    if _START in text or _BOX in text:
        found += [store for match in _RUN.finditer(text) for store in _decode_run(match)]
    for mark, pattern, carrier in (
        (_SCRIPT_MARK, _SCRIPT, "text/html"),
        (_ARMOR_MARK, _ARMOR, "text/markdown"),
    ):
        for match in pattern.finditer(text) if mark in text else ():
            data = _decode_base64(match[1])
            if data:
                start, end = _widen(text, *match.span())
                found.append(FoundStore(start, end, data, carrier))
    found.sort(key=lambda store: store.start)
    ends = [0, *(store.end for store in found)]
    return [  # what opens a comment may have closed the one before
        replace(store, start=max(store.start, end))
        for store, end in zip(found, ends[:-1], strict=True)
    ]


def find_spans(text: str) -> list[tuple[int, int]]:
    """Return the ranges of a text's characters that carry credentials, in order."""
    return [(store.start, store.end) for store in find_stores(text)]


def remove_marks(text: str) -> str:
    """Return a text without the characters that carry credentials; an unmarked one as it is."""
    spans = find_spans(text)
    if not spans:
        return text
    starts, ends = zip(*spans, strict=True)
    kept = zip((0, *ends), (*starts, len(text)), strict=True)
    return "".join(text[start:end] for start, end in kept)


def _decode_run(match: re.Match[str]) -> Iterator[FoundStore]:
    """Decode selectors; those behind the stated length pad the store.

    The character before them is missing where it was taken for a byte order mark. A store that
    lost its header is known by its boxes.
    """
    before, header, body = match[0].partition(_START)
    if not header and _BOX not in before:
        return
    carrying = (body if header else before.lstrip("\ufeff"))[: MAX_STORE_BYTES + 5]
    raw = bytes(map(_TO_BYTE.__getitem__, map(ord, carrying)))
    start, end = match.end() - len(header) - len(body), match.end()
    if not header:
        yield FoundStore(match.start(), end, raw, "text/plain", is_whole=False)
        return
    length = int.from_bytes(raw[1:5], "big")
    is_whole = len(raw) >= 5 + length and raw[:1] == b"\x01"
    start -= before == "\ufeff"
    yield FoundStore(start, end, raw[5 : 5 + length], "text/plain", is_whole=is_whole)


def _widen(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the range with the comment around it, and the line end before; no other text."""
    before, after = text[max(start - _COMMENT_MARKS, 0) : start], text[end : end + _COMMENT_MARKS]
    opening, closing = _OPENING.search(before), _CLOSING.match(after)
    start -= len(opening[0]) if opening else 0
    return start, end + (len(closing[0]) if closing else 0)


def _decode_base64(text: str) -> bytes:
    """Return the store; nothing of what is none, as in texts about credentials."""
    try:
        data = base64.b64decode("".join(text.split()).translate(_TO_BASE64), validate=True)
    except (ValueError, binascii.Error):
        return b""
    return data[:MAX_STORE_BYTES] if data[4:8] == b"jumb" else b""
