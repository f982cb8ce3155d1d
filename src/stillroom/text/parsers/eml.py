"""E-mail messages, mailboxes and MHTML pages: headers, body and attached text.

A message within a message is read after it, with its own headers. An unencoded plain body keeps
its exact bytes; quoted-printable and base64 bodies have the bytes of their encoded part. Of
alternatives the plain text is read; attachments without text are only named. The messages of a
mailbox are sections of one document. The metadata field ``date`` holds the days on which messages
were sent, one or a list.
"""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Sequence
from email import policy
from email.message import EmailMessage, Message
from email.parser import BytesParser
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar

from typing_extensions import override

from stillroom.errors import DataError
from stillroom.records import Document
from stillroom.text.documents.builder import DocumentBuilder
from stillroom.text.documents.main_content import extract_main_content
from stillroom.text.encoding import ByteMap, decode_text
from stillroom.text.interfaces import Parser, SourceFile

__all__ = ["Eml"]

_HEADERS = ("Subject", "From", "To", "Cc", "Date")
_MAX_PARTS = 20_000
# With a time, a year and a header below it, which prose after "From " has not.
_FROM_LINE = re.compile(
    rb"(?:(?<=\n\n)|(?<=\n\r\n))From \S(?=[^\n]{0,300}\d:\d\d)(?=[^\n]{0,300}\d{4})[^\n]*+\n"
    rb"(?=>From |[!-9;-~]{1,99}:)"
)
_MAX_HEADER = 16 * 1024
_MAX_DATES = 1000


class Eml(Parser):
    """Mail messages, mailboxes and archived web pages (RFC 5322, mbox, MHTML)."""

    suffixes: ClassVar[tuple[str, ...]] = (".eml", ".mbox", ".mht", ".mhtml")
    media_type: ClassVar[str] = "message/rfc822"
    is_risky: ClassVar[bool] = True

    @override
    def parse(self, data: bytes, source: SourceFile) -> Document:
        assembly = DocumentBuilder(source)
        spans = _messages(data)
        metadata: dict[str, Any] = {"attachments": []}
        title = ""
        for start, end in spans:
            message = _parse(data[start:end], source.path)
            if isinstance(message, EmailMessage) and message.keys():
                subject = _MailReader(message, data[start:end], start).write(
                    assembly, metadata, spans
                )
                title = title or subject
            else:
                metadata["messages_left_out"] = metadata.get("messages_left_out", 0) + 1
        if metadata.get("messages_left_out", 0) == len(spans):
            raise DataError(
                "the file has no mail headers",
                code="document.unreadable",
                where=source.path,
                expected="a message as RFC 5322 has it: headers, an empty line, a body",
                next="rename the file to .txt if it is plain text",
            )
        days = sorted(set(metadata.pop("dates", ())))
        if days:
            metadata["date"] = days[0] if len(days) == 1 else days[-_MAX_DATES:]
        if len(spans) > 1:
            metadata["messages"] = len(spans)
            title = source.stem
        return assembly.finish(title=title, metadata=metadata)


def _messages(data: bytes) -> list[tuple[int, int]]:
    """Return the byte range of each message: one, or those of a mailbox (RFC 4155)."""
    begin = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    if not data.startswith(b"From ", begin):
        return [(begin, len(data))]
    starts = [begin, *(match.start() for match in _FROM_LINE.finditer(data))]
    return list(zip(starts, [*starts[1:], len(data)], strict=True))


def _parse(data: bytes, where: str) -> Message:
    """Take a message apart; letters of its headers in another encoding than UTF-8 are decoded."""
    message = BytesParser(policy=policy.default).parsebytes(data)
    head = data[: _body_start(data)]
    try:
        head.decode()
    except UnicodeDecodeError:
        with contextlib.suppress(DataError):
            head = decode_text(head, where, declared=_get_charset(message)).text.encode()
            return BytesParser(policy=policy.default).parsebytes(head + data[_body_start(data) :])
    return message


class _MailReader:
    """One message and its bytes, which start at ``offset`` in the file."""

    def __init__(self, message: EmailMessage, data: bytes, offset: int) -> None:
        self._message, self._data, self._offset = message, data, offset

    def write(
        self, assembly: DocumentBuilder, metadata: dict[str, Any], all_of_them: Sequence[object]
    ) -> str:
        """Add headers and bodies to the document; return the subject."""
        headers = {name: _header(self._message, name) for name in _HEADERS}
        assembly.gap()
        if len(all_of_them) > 1:
            assembly.heading(1, headers["Subject"] or "(no subject)")
        _add_headers(headers, self._data, assembly, self._offset)
        bodies, attachments, unseen = _parts(self._message)
        cursor = _body_start(self._data)
        for part in bodies:
            if part is not self._message and _is_message(part):
                cursor = _add_inner_headers(part, self._data, cursor, assembly, self._offset)
            if not part.is_multipart():
                cursor = _add_body(part, self._data, cursor, assembly, self._offset)
        metadata["attachments"] += attachments
        with contextlib.suppress(ValueError, TypeError, IndexError, OverflowError):
            day = parsedate_to_datetime(headers["Date"]).date().isoformat()
            metadata.setdefault("dates", []).append(day)
        if unseen:
            metadata["parts_left_out"] = metadata.get("parts_left_out", 0) + unseen
        return headers["Subject"]


def _add_headers(
    headers: dict[str, str], data: bytes, assembly: DocumentBuilder, offset: int
) -> None:
    """Add a line for each header of the message whose bytes start at ``offset``."""
    lines = [(name, value) for name, value in headers.items() if value]
    for number, (name, value) in enumerate(lines):
        if number:
            assembly.gap("\n")
        start, end = _find_header(data, name)
        assembly.add(f"{name}: {value}", (start + offset, end + offset))


def _is_message(part: Message) -> bool:
    """Return whether a part is a message within a message: it has more than headers of content."""
    return any(name in part for name in _HEADERS)


def _add_inner_headers(
    message: EmailMessage, data: bytes, cursor: int, assembly: DocumentBuilder, offset: int
) -> int:
    """Add the headers of a message within a message; return where they start."""
    found = data.find(f"\n{message.keys()[0]}:".encode("ascii", "replace"), cursor - 1)
    if found < 0:
        return cursor
    start = found + 1
    head = data[start : start + 4 * _MAX_HEADER]
    head = head[: _body_start(head)]
    again = _parse(head, assembly.source.path)
    assembly.gap()
    headers = {name: _header(again, name) for name in _HEADERS}
    _add_headers(headers, head, assembly, start + offset)
    return start


def _header(message: Message, name: str) -> str:
    raw = next((str(raw) for key, raw in message.raw_items() if key.lower() == name.lower()), "")
    if len(raw) > _MAX_HEADER:  # taking it apart takes minutes
        start = raw[:2000].encode("ascii", "surrogateescape")
        return " ".join(start.decode("utf-8", "replace").split())
    try:
        return " ".join(str(message.get(name, "")).split())[:2000]
    except (ValueError, TypeError, IndexError, AttributeError):  # headers broken beyond the parser
        return ""


def _find_header(data: bytes, name: str) -> tuple[int, int]:
    """Return the byte range of a header, including folded lines."""
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
    starts = [
        position + len(mark)
        for mark in (b"\r\n\r\n", b"\n\n")
        if (position := data.find(mark)) >= 0
    ]
    return min(starts, default=len(data))


def _parts(message: EmailMessage) -> tuple[list[EmailMessage], list[str], int]:
    """Return the parts to read, the names of attachments, and the number of parts skipped.

    Of alternatives the plain text is read; text attachments are read too, and as it stands what
    was to have parts and has none.
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
            bodies += [part] if number and _is_message(part) else []
            continue
        is_text = part.get_content_maintype() in {"text", "multipart"}
        if part.is_attachment() or not is_text:
            attachments.append(str(part.get_filename() or part.get_content_type()))
        if is_text and id(part) not in instead:
            bodies.append(part)
    return bodies, attachments, unseen


def _alternatives(part: Message) -> set[int]:
    """Return the leaves of alternatives to skip: HTML where there is plain text too."""
    leaves = [subpart for subpart in part.get_payload() if isinstance(subpart, Message)]
    has_plain = any(
        subpart.get_content_type() == "text/plain" and str(subpart.get_payload()).strip()
        for subpart in leaves
    )
    if not has_plain:
        return set()
    inner = [
        leaf
        for subpart in leaves
        for leaf in (subpart.walk() if subpart.is_multipart() else [subpart])
    ]
    return {
        id(subpart) for subpart in inner[:_MAX_PARTS] if subpart.get_content_subtype() == "html"
    }


def _add_body(
    part: EmailMessage, data: bytes, cursor: int, assembly: DocumentBuilder, offset: int
) -> int:
    """Add one part of the message whose bytes start at ``offset``; return the part's end."""
    content = part.get_payload(decode=True)
    raw = _encoded_body(part, content)
    start = data.find(raw.rstrip(b"\r\n"), cursor) if raw.strip() else -1
    span = (start, start + len(raw)) if start >= 0 else (cursor, len(data))
    if not isinstance(content, bytes) or not content.strip():
        return span[1] if start >= 0 else cursor
    decoded = decode_text(content, assembly.source.path, declared=_get_charset(part))
    assembly.gap()
    if part.is_attachment():
        name = " ".join(str(part.get_filename() or "text").split())[:200]
        assembly.heading(2, name)
        assembly.add(f"## {name}\n\n")
    if part.get_content_subtype() == "html":
        extract_main_content(
            decoded, assembly, span=(span[0] + offset, span[1] + offset), keep_all=True
        )
    elif content == raw and start >= 0 and decoded.encoding in {"utf-8", "ascii", "latin-1"}:
        where = ByteMap(decoded, offset=start + offset)
        text = decoded.text
        for piece in range(0, len(text), 4096):
            stop = min(piece + 4096, len(text))
            exact = where.is_exact(piece, stop)
            assembly.add(text[piece:stop], (where.at(piece), where.at(stop)), is_exact=exact)
    else:
        assembly.add(decoded.text, (span[0] + offset, span[1] + offset))
    return span[1] if start >= 0 else cursor


def _get_charset(part: Message) -> str:
    """Return the charset that a part declares, or an empty string."""
    try:
        return str(part.get_content_charset() or "")
    except (LookupError, ValueError):
        return ""


def _encoded_body(part: EmailMessage, content: object) -> bytes:
    """Return a part's body in its transfer encoding."""
    try:
        encoded = part.get_payload(decode=False)
        if not isinstance(encoded, str):
            return b""
        return encoded.encode("ascii", "surrogateescape")
    except ValueError:  # an 8-bit body is not encoded; the charset may be unknown
        return content if isinstance(content, bytes) else b""
