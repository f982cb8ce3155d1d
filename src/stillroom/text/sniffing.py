"""Which parser a file needs: by its suffix, and by its first bytes where those say otherwise."""

from __future__ import annotations

import io
import json
import re
import zipfile
from functools import lru_cache

from stillroom.errors import DataError
from stillroom.text.decoding import check_not_binary, guess_wide
from stillroom.text.method import PARSERS, Parser

__all__ = ["choose_parser", "parser_suffixes"]

_ZIP_MARKS = {
    "word/": "docx",
    "ppt/": "pptx",
    "xl/": "xlsx",
    "META-INF/container.xml": "epub",
}
_PAGE = re.compile(rb"\s*(?:<!--.{0,500}?-->\s*)?<(?:!doctype html|html|head|body)\b", re.I | re.S)
_MAIL = re.compile(
    rb"(?:From \S[^\n]*\d{4}[^\n]*\n)?(?:(?:Return-Path|Received|Delivered-To|From|To|Subject|Date"
    rb"|Message-ID|MIME-Version|Sender|Reply-To|Content-[\w-]+|X-[\w-]+|DKIM-Signature|ARC-[\w-]+)"
    rb": [^\r\n]*\r?\n(?:[ \t][^\n]*\n)*){2}",
    re.I,
)
_PDF = re.compile(rb"(?:\A|[^\t -~])%PDF-")  # the header may follow other bytes, not other words
_READ_ME = re.compile(r"read_?me|changelog|changes|contributing|history|news|todo", re.I)
_MARKED = re.compile(rb"^(?:#{1,6} |```|\* |- )", re.M)
_SNIFFED = 2**20
_PICTURES = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*")
_FOREIGN = {
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "a file of Office before 2007 or Outlook",
    b"GIF8": "a GIF picture",
    b"ID3": "an MP3 recording",
    b"\x1f\x8b": "a gzip archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x7fELF": "a program",
    b"SQLite format 3\x00": "a database",
    b"{\\rtf": "a Rich Text document",
    b"%!PS": "a PostScript program",
}
_TEXTUAL = ("txt", "md", "rst", "csv", "json", "ipynb", "html", "eml")


def choose_parser(path: str, data: bytes) -> Parser:
    """Return the parser for a file's bytes.

    A suffix decides, unless it promises text and the bytes are a PDF or an office file. Without a
    known suffix the first bytes decide; what looks like text is read as plain text.

    Raises:
        DataError: If the format is none that can be read.
    """
    by_suffix = _by_suffix(path)
    by_bytes = _by_bytes(data)
    if by_suffix in _TEXTUAL and by_bytes == "pdf" and not data.lstrip().startswith(b"%PDF-"):
        return PARSERS.build(by_suffix)  # it speaks of PDF, or carries one
    if by_suffix and not (
        by_bytes in {"pdf", "image", *_ZIP_MARKS.values()} and by_suffix in _TEXTUAL
    ):
        return PARSERS.build(by_suffix)
    if by_bytes:
        return PARSERS.build(by_bytes)
    foreign = next((name for mark, name in _FOREIGN.items() if data.startswith(mark)), "")
    if data.startswith(b"PK\x03\x04"):
        is_binary = b"xl/workbook.bin" in data
        foreign = "a workbook in binary form (.xlsb)" if is_binary else "a zip archive"
    if foreign:
        raise DataError(
            f"this is {foreign}",
            code="document.unknown-format",
            where=path,
            expected="one of: " + ", ".join(sorted(parser_suffixes())[:60]),
            next="convert it (save as .docx, .pdf or .txt), or leave it out",
        )
    if not data.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")) and not guess_wide(data):
        check_not_binary(data[:4096], path)
    is_markdown = _READ_ME.fullmatch(path.rsplit("/", 1)[-1]) and _MARKED.search(data[:4096])
    return PARSERS.build("md" if is_markdown else "txt")


@lru_cache(maxsize=1)
def parser_suffixes() -> dict[str, str]:
    """Return the parser's name of every suffix that a parser claims."""
    found: dict[str, str] = {}
    for name in PARSERS.names():
        for suffix in PARSERS.get(name).suffixes:
            found.setdefault(suffix, name)
    return found


def _by_suffix(path: str) -> str:
    name = path.rsplit("/", 1)[-1].lower()
    return parser_suffixes().get("." + name.rsplit(".", 1)[-1], "") if "." in name else ""


def _by_bytes(data: bytes) -> str:
    head = data[:1024]
    if _PDF.search(head):
        return "pdf"
    if head.startswith(_PICTURES):
        return "image"
    if data.startswith(b"PK\x03\x04"):
        return _by_members(data)
    if _PAGE.match(head.removeprefix(b"\xef\xbb\xbf")):
        return "html"
    if head.lstrip()[:1] in {b"{", b"["} and len(data) <= _SNIFFED:
        return _by_json(data)
    return "eml" if _MAIL.match(head.removeprefix(b"\xef\xbb\xbf")) else ""


def _by_json(data: bytes) -> str:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    is_notebook = isinstance(content, dict) and "nbformat" in content and "cells" in content
    return "ipynb" if is_notebook else "json"


def _by_members(data: bytes) -> str:
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()[:10_000]
    except (zipfile.BadZipFile, ValueError, OSError, EOFError):
        return ""
    if data[30:].startswith(b"mimetypeapplication/vnd.oasis.opendocument."):
        return "odf"
    if "xl/workbook.bin" in names:
        return ""
    for mark, parser in _ZIP_MARKS.items():
        if any(name.startswith(mark) for name in names):
            return parser
    return ""
