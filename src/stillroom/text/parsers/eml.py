"""Mail: sender, subject and date, then the body and attached text; other attachments are named.

A plain body that travels as it is keeps its exact bytes; quoted-printable and base64 bodies have
those of their encoded part. Of alternatives the plain one is read.
"""

from __future__ import annotations

from email import policy
from email.message import EmailMessage, Message
from email.parser import BytesParser
from typing import Any, ClassVar

from typing_extensions import override

from stillroom.errors import DataError
from stillroom.records import Document
from stillroom.text.assembly import Assembly
from stillroom.text.decoding import ByteMap, decode
from stillroom.text.method import Parser, Source
from stillroom.text.webpage import add_page

__all__ = ["Eml"]

_HEADERS = ("Subject", "From", "To", "Cc", "Date")
_MAX_PARTS = 20_000
_MAX_HEADER = 16 * 1024


class Eml(Parser):
    """Mail messages (RFC 5322 and MIME)."""

    suffixes: ClassVar[tuple[str, ...]] = (".eml",)
    media_type: ClassVar[str] = "message/rfc822"
    is_risky: ClassVar[bool] = True

    @override
    def parse(self, data: bytes, source: Source) -> Document:
        message = BytesParser(policy=policy.default).parsebytes(data)
        if not isinstance(message, EmailMessage) or not message.keys():
            raise DataError(
                "the file has no mail headers",
                code="document.unreadable",
                where=source.path,
                expected="a message as RFC 5322 has it: headers, an empty line, a body",
                next="rename the file to .txt if it is plain text",
            )
        assembly = Assembly(source)
        headers = {name: _header(message, data, name) for name in _HEADERS}
        for name, value in headers.items():
            if value:
                assembly.gap("\n")
                assembly.add(f"{name}: {value}", _find_header(data, name))
        bodies, attachments, unseen = _parts(message)
        cursor = _body_start(data)
        for part in bodies:
            cursor = _add_body(part, data, cursor, assembly)
        metadata: dict[str, Any] = {"attachments": attachments}
        if unseen:
            metadata["parts_left_out"] = unseen
        return assembly.finish(title=headers["Subject"], metadata=metadata)


def _header(message: EmailMessage, data: bytes, name: str) -> str:
    start, end = _find_header(data, name)
    if end - start > _MAX_HEADER:  # taking thousands of addresses apart takes minutes
        raw = data[start + len(name) + 1 : start + 2000]
        return " ".join(raw.decode("utf-8", "replace").split())
    try:
        return " ".join(str(message.get(name, "")).split())[:2000]
    except (ValueError, TypeError, IndexError, AttributeError):  # headers broken beyond the parser
        return ""


def _find_header(data: bytes, name: str) -> tuple[int, int]:
    """Return the bytes of a header, its folded lines included."""
    head = data[: _body_start(data)]
    start = max((b"\n" + head.lower()).find(b"\n" + name.lower().encode() + b":"), 0)
    end = start
    while True:
        line = head.find(b"\n", end)
        if line < 0:
            return start, len(head)
        end = line + 1
        if head[end : end + 1] not in {b" ", b"\t"}:
            return start, end


def _body_start(data: bytes) -> int:
    found = [
        position + len(mark)
        for mark in (b"\r\n\r\n", b"\n\n")
        if (position := data.find(mark)) >= 0
    ]
    return min(found, default=len(data))


def _parts(message: EmailMessage) -> tuple[list[EmailMessage], list[str], int]:
    """Return the parts to read, the names of attachments, and how many parts were not looked at.

    Of alternatives the plain one is read; attached text is read as well.
    """
    bodies: list[EmailMessage] = []
    attachments: list[str] = []
    instead: set[int] = set()
    unseen = 0
    for number, part in enumerate(message.walk()):
        if number > _MAX_PARTS:
            unseen += 1
            continue
        if part.get_content_type() == "multipart/alternative":
            instead |= _alternatives(part)
        if part.is_multipart() or not isinstance(part, EmailMessage):
            continue
        if part.is_attachment() or part.get_content_maintype() != "text":
            attachments.append(str(part.get_filename() or part.get_content_type()))
        if part.get_content_maintype() == "text" and id(part) not in instead:
            bodies.append(part)
    return bodies, attachments, unseen


def _alternatives(part: Message) -> set[int]:
    """Return which leaves of alternatives are not read: HTML where there is plain text too."""
    leaves = [one for one in part.get_payload() if isinstance(one, Message)]
    has_plain = any(
        one.get_content_type() == "text/plain" and str(one.get_payload()).strip() for one in leaves
    )
    if not has_plain:
        return set()
    inner = [leaf for one in leaves for leaf in (one.walk() if one.is_multipart() else [one])]
    return {id(one) for one in inner[:_MAX_PARTS] if one.get_content_subtype() == "html"}


def _add_body(part: EmailMessage, data: bytes, cursor: int, assembly: Assembly) -> int:
    """Add one part; return where its bytes end."""
    content = part.get_payload(decode=True)
    raw = _encoded(part, content)
    start = data.find(raw.rstrip(b"\r\n"), cursor) if raw.strip() else -1
    span = (start, start + len(raw)) if start >= 0 else (cursor, len(data))
    if not isinstance(content, bytes) or not content.strip():
        return span[1] if start >= 0 else cursor
    try:
        declared = str(part.get_content_charset() or "")
    except (LookupError, ValueError):
        declared = ""
    decoded = decode(content, assembly.source.path, declared=declared)
    assembly.gap()
    if part.is_attachment():
        name = " ".join(str(part.get_filename() or "text").split())[:200]
        assembly.heading(2, name)
        assembly.add(f"## {name}\n\n")
    if part.get_content_subtype() == "html":
        add_page(decoded, assembly, span=span, keep_all=True)
    elif content == raw and start >= 0 and decoded.encoding in {"utf-8", "ascii", "latin-1"}:
        where = ByteMap(decoded, offset=start)
        text = decoded.text
        for piece in range(0, len(text), 4096):
            stop = min(piece + 4096, len(text))
            exact = where.is_exact(piece, stop)
            assembly.add(text[piece:stop], (where.at(piece), where.at(stop)), is_exact=exact)
    else:
        assembly.add(decoded.text, span)
    return span[1] if start >= 0 else cursor


def _encoded(part: EmailMessage, content: object) -> bytes:
    """Return a part's body as it travels."""
    try:
        encoded = part.get_payload(decode=False)
        if not isinstance(encoded, str):
            return b""
        return encoded.encode("ascii", "surrogateescape")
    except ValueError:  # a body of 8 bits travels as it is; a charset may be no name
        return content if isinstance(content, bytes) else b""
