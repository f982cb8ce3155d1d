"""Character encoding detection and decoding, with offsets back to the bytes.

The order of evidence: byte order mark, zero bytes of UTF-16 and UTF-32, escapes of ISO 2022, UTF-8,
statistics. Undecodable bytes become U+FFFD and are counted. Line ends are kept, so that text and
bytes correspond.
"""

from __future__ import annotations

import bisect
import codecs
import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from charset_normalizer import from_bytes

from stillroom.errors import DataError
from stillroom.records import Anchor
from stillroom.text.language import guess_language

__all__ = [
    "ByteMap",
    "DecodedText",
    "build_anchors",
    "check_not_binary",
    "decode_text",
    "guess_wide_encoding",
]

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_STATEFUL = ("iso2022", "iso-2022", "hz", "utf-7", "utf7")
_SAMPLE_BYTES = 64 * 1024
_MIN_PAIRS = 16
_PIECE_CHARACTERS = 4096
_CONTROL = re.compile(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_HIGH_BYTE = re.compile(rb"[\x80-\xff]")
_LONE_HIGH = re.compile(rb"(?<![\x80-\xff])[\x80-\xff](?![\x80-\xff])")
# Code pages of languages in Latin letters, likeliest first; they differ in a few letters, which
# leave the language recognizable in a wrong one.
_CODE_PAGES = {
    code: pages
    for codes, pages in (
        (
            "af br ca cy da de en es eu fi fo fr ga gl is it lb nb nl nn no oc pt sv wa",
            ("cp1252",),
        ),
        ("bs cs hr hu pl ro sk sl sq", ("cp1250", "iso8859_2")),
        ("az ku tr", ("cp1254",)),
        ("et lt lv", ("cp1257",)),
    )
    for code in codes.split()
}
# The euro sign and "oe" of ISO 8859-15, where Windows-1252 has a currency sign and a half; the
# latter's own letters are control characters in the former.
_LATIN9 = re.compile(rb"\xa4|(?<![0-9])\xbd(?=[a-z])")
_NOT_LATIN9 = re.compile(rb"[\x80-\x9f]")
_RUSSIAN = ("cp1251", "koi8_r", "cp866")
# What a declared encoding stands for in practice: WHATWG Encoding Standard, section 4.2.
_SUPERSETS = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "iso8859-9": "cp1254",
    "gb2312": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "tis-620": "cp874",
}
_SIGN_IN_WORD = re.compile("(?<=[a-z])[^\\w\\s\x00-\x7f’\xad·](?=[a-z])")
_ASCII_LETTER = re.compile(rb"[A-Za-z]")
_ESCAPED_BYTES = re.compile("[\udc80-\udcff]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_REPLACED = re.compile("[\x00\ud800-\udfff]+")
_ISO2022_JP_ESCAPE = re.compile(rb"\x1b\$[@B]|\x1b\$\(D")
_REPLACEMENT_RUN = re.compile("\ufffd+")
_MAX_REPLACED_RUNS = 1_000


@dataclass(frozen=True, slots=True)
class DecodedText:
    """Decoded text and its mapping to bytes.

    ``broken`` are runs ``(start, end, byte_start, byte_end)`` of undecodable bytes, which became
    U+FFFD; ``replaced`` are runs ``(start, end)`` of zero characters and lone surrogates, which
    were replaced by characters of the same width. ``is_exact`` is False where the encoding has
    state or does not round-trip; every character then maps to all of the ``size`` bytes.
    """

    text: str
    encoding: str
    byte_start: int = 0
    broken: tuple[tuple[int, int, int, int], ...] = ()
    is_exact: bool = True
    zeros: int = 0
    replaced: tuple[tuple[int, int], ...] = ()
    size: int = 0

    @property
    def metadata(self) -> dict[str, object]:
        """Metadata fields: the encoding and the number of replaced characters."""
        fields: dict[str, object] = {"encoding": self.encoding}
        if self.broken:
            fields["undecodable_bytes"] = sum(run[3] - run[2] for run in self.broken)
        if self.zeros:
            fields["zero_characters"] = self.zeros
        return fields

    def drop_start(self, length: int) -> DecodedText:
        """Return the text from a whole line on, whose characters lead to the same bytes."""
        return replace(
            self,
            text=self.text[length:],
            byte_start=ByteMap(self).at(length),
            broken=tuple(
                (start - length, end - length, first, last)
                for start, end, first, last in self.broken
                if start >= length
            ),
            replaced=tuple(
                (start - length, end - length) for start, end in self.replaced if start >= length
            ),
        )


def decode_text(data: bytes, where: str, *, declared: str = "") -> DecodedText:
    """Decode bytes in their most likely encoding.

    ``data`` is the whole file, or a self-contained part of it; an encoding that the file declares
    is used if it decodes.

    Raises:
        DataError: If the bytes are not text.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return _decode_as(data, encoding, len(mark))
    wide = guess_wide_encoding(
        data
    )  # first: letters of ASCII in UTF-16 are valid UTF-8 with zero bytes
    if wide:
        return _decode_as(data, wide, 0)
    for encoding in _guess_stateful_encodings(
        data, declared
    ):  # all bytes are ASCII, and so valid UTF-8
        if decoded := _try_decode(data, encoding):
            return decoded
    with contextlib.suppress(UnicodeDecodeError):
        return _replace_invalid(data.decode("utf-8"), "utf-8")
    check_not_binary(data, where)
    if _is_nearly_utf8(data):
        return _decode_as(data, "utf-8", 0)
    for encoding in [_SUPERSETS.get(_lookup(declared), ""), declared, *_guess_encodings(data)]:
        if encoding and (decoded := _try_decode(data, encoding)):
            return decoded
    return _replace_invalid(data.decode("latin-1"), "latin-1")


def check_not_binary(data: bytes, where: str) -> None:
    """Refuse bytes that cannot be text.

    Raises:
        DataError: If there are more than a few zero bytes or control characters.
    """
    sample = data[:_SAMPLE_BYTES]
    zeros, controls = sample.count(0), len(_CONTROL.findall(sample))
    if zeros > max(len(sample) // 500, 1) or controls > max(len(sample) // 50, 4):
        raise DataError(
            f"the file holds binary data ({zeros} zero bytes and {controls} control characters"
            f" in the first {len(sample)} bytes)",
            code="document.binary",
            where=where,
            expected="text, or a format that 'stillroom list methods text.parsers' names",
            next="convert the file, or leave it out",
        )


def build_anchors(decoded: DecodedText, *, offset: int = 0) -> list[Anchor]:
    """Return anchors that map a text's characters to bytes.

    ``offset`` is the start of the decoded bytes in the file.
    """
    anchors: list[Anchor] = []
    position, byte = 0, decoded.byte_start
    for start, end, byte_start, byte_end in [*decoded.broken, (len(decoded.text), -1, 0, 0)]:
        for first, last, exact in _split_replaced(decoded, position, start):
            for begin, stop, size in _split_pieces(decoded, first, last):
                span = (offset + byte, offset + byte + size)
                anchors.append(Anchor(begin, stop, *span, 0, "", exact))
                byte += size
        if end < 0:
            break
        anchors.append(Anchor(start, end, offset + byte_start, offset + byte_end, 0, "", False))
        position, byte = end, byte_end
    return anchors


class ByteMap:
    """Byte offsets of the characters of a decoded text."""

    def __init__(self, decoded: DecodedText, *, offset: int = 0) -> None:
        """Map the characters of ``decoded``, whose bytes start at ``offset``."""
        self._text, self._encoding = decoded.text, decoded.encoding
        self._keeps_widths = decoded.is_exact
        self._anchors = build_anchors(decoded, offset=offset)
        self._end = self._anchors[-1].byte_end if self._anchors else offset
        self._is_inexact = [not anchor.is_exact for anchor in self._anchors]

    def at(self, position: int) -> int:
        """Return the byte offset of the character at ``position``."""
        index = bisect.bisect_right(self._anchors, position, key=lambda anchor: anchor.start) - 1
        if index < 0 or position >= len(self._text):
            return self._end
        anchor = self._anchors[index]
        if not self._keeps_widths:
            return anchor.byte_start
        if anchor.byte_end - anchor.byte_start == anchor.end - anchor.start:
            return anchor.byte_start + position - anchor.start
        return anchor.byte_start + len(self._text[anchor.start : position].encode(self._encoding))

    def is_exact(self, start: int, end: int) -> bool:
        """Return whether text[start:end] equals its bytes one to one."""
        first = bisect.bisect_right(self._anchors, start, key=lambda anchor: anchor.start) - 1
        last = bisect.bisect_left(self._anchors, end, key=lambda anchor: anchor.start)
        return not any(self._is_inexact[max(first, 0) : last])


def _split_replaced(decoded: DecodedText, start: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Yield (start, end, is_exact), with replaced runs separate from exact text."""
    if decoded.is_exact:
        first = bisect.bisect_right(decoded.replaced, start, key=lambda run: run[1])
        for run in decoded.replaced[first:]:
            if run[0] >= end:
                break
            begin, stop = max(run[0], start), min(run[1], end)
            yield start, begin, True
            yield begin, stop, False
            start = stop
    yield start, end, decoded.is_exact


def _split_pieces(decoded: DecodedText, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, end, bytes); pieces are short where the width of characters varies."""
    text, encoding = decoded.text, decoded.encoding
    if start == end:
        return
    if not decoded.is_exact:
        yield start, end, decoded.size
        return
    size = len(text[start:end].encode(encoding, "surrogatepass"))
    if size == end - start:
        yield start, end, size
        return
    for piece in range(start, end, _PIECE_CHARACTERS):
        stop = min(piece + _PIECE_CHARACTERS, end)
        yield piece, stop, len(text[piece:stop].encode(encoding, "surrogatepass"))


def _decode_as(data: bytes, encoding: str, skip: int) -> DecodedText:
    """Decode and count undecodable runs."""
    body = data[skip:]
    with contextlib.suppress(UnicodeDecodeError):
        return _replace_invalid(body.decode(encoding), encoding, skip)
    if encoding.startswith("utf-16"):
        return _decode_utf16(body, encoding, skip)
    if encoding.startswith("utf-32"):
        return _decode_utf32(body, encoding, skip)
    text = body.decode("utf-8", "surrogateescape")
    broken, byte, last = [], skip, 0
    for match in _ESCAPED_BYTES.finditer(text):
        byte += len(text[last : match.start()].encode("utf-8"))
        size = match.end() - match.start()
        broken.append((match.start(), match.end(), byte, byte + size))
        byte, last = byte + size, match.end()
    return _replace_invalid(
        _ESCAPED_BYTES.sub(lambda m: "\ufffd" * len(m.group()), text), "utf-8", skip, broken
    )


def _decode_utf16(body: bytes, encoding: str, skip: int) -> DecodedText:
    """Decode UTF-16 with lone surrogates or a truncated last character."""
    even = len(body) // 2 * 2
    text = body[:even].decode(encoding, "surrogatepass")
    if even == len(body):
        return _replace_invalid(text, encoding, skip)
    tail = (len(text), len(text) + 1, skip + even, skip + len(body))
    return _replace_invalid(text + "\ufffd", encoding, skip, [tail])


def _decode_utf32(body: bytes, encoding: str, skip: int) -> DecodedText:
    """Decode UTF-32 with invalid code points or a truncated last character."""
    complete = len(body) // 4 * 4
    text = body[:complete].decode(encoding, "replace")  # one character per four bytes
    runs = [match.span() for match in _REPLACEMENT_RUN.finditer(text)]
    broken = [(start, end, skip + 4 * start, skip + 4 * end) for start, end in runs]
    if complete < len(body):
        broken.append((len(text), len(text) + 1, skip + complete, skip + len(body)))
        text += "\ufffd"
    return _replace_invalid(text, encoding, skip, broken)


def _replace_invalid(
    text: str, encoding: str, skip: int = 0, broken: list[tuple[int, int, int, int]] | None = None
) -> DecodedText:
    """Replace lone surrogates and zero characters one to one, so that widths do not change."""
    zeros = text.count("\x00")
    replaced = _find_replaced(text)
    if zeros:
        text = text.replace("\x00", " ")
    if replaced:
        text = _SURROGATE.sub("\ufffd", text)
    return DecodedText(text, encoding, skip, tuple(broken or ()), True, zeros, replaced)


def _find_replaced(text: str) -> tuple[tuple[int, int], ...]:
    """Return the runs of replaced characters; near ones are joined where there are many."""
    runs = [match.span() for match in _REPLACED.finditer(text)]
    if len(runs) <= _MAX_REPLACED_RUNS:
        return tuple(runs)
    joined = runs[:1]
    for start, end in runs[1:]:
        if start - joined[-1][1] < _PIECE_CHARACTERS:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return tuple(joined)


def guess_wide_encoding(data: bytes) -> str:
    """Return the wide encoding suggested by the positions of zero bytes, or an empty string.

    UTF-32 has two zero bytes in each group of four, at fixed positions, and decodes; UTF-16 mostly
    has every other one. In a short text a stray zero is a large share, so there most must be zero.
    """
    sample = data[:_SAMPLE_BYTES]
    quarter = len(sample) // 4
    if quarter and len(data) % 4 == 0:
        high = {"utf-32-be": (0, 1), "utf-32-le": (3, 2)}
        for encoding, (top, upper) in high.items():
            if sample[top::4].count(0) == quarter and sample[upper::4].count(0) > 0.9 * quarter:
                with contextlib.suppress(UnicodeDecodeError):
                    data.decode(encoding)
                    return encoding
    if len(sample) < 4 or len(data) % 2:
        return ""
    half = len(sample) // 2
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    least = (0.3 if half >= _MIN_PAIRS else 0.75) * half
    if odd > least and even < 0.02 * half:
        return "utf-16-le"
    if even > least and odd < 0.02 * half:
        return "utf-16-be"
    return ""


def _guess_stateful_encodings(data: bytes, declared: str) -> Iterator[str]:
    """Yield 7-bit encodings that the file declares, or whose escapes it contains."""
    if declared.lower().replace("_", "-").startswith(_STATEFUL):
        yield declared
    sample = data[:_SAMPLE_BYTES]
    if b"\x1b$)C" in sample:
        yield "iso2022_kr"
    if _ISO2022_JP_ESCAPE.search(sample):
        yield "iso2022_jp_2"
        yield "iso2022_jp_ext"


def _is_nearly_utf8(data: bytes) -> bool:
    """Return whether the bytes are UTF-8 except for a few errors."""
    text = data.decode("utf-8", "surrogateescape")
    broken = sum(map(len, _ESCAPED_BYTES.findall(text)))
    good = sum(1 for character in text[:_SAMPLE_BYTES] if ord(character) > 127) - broken
    return broken <= max(len(data) // 1000, 1) and good > 2 * broken


def _guess_encodings(data: bytes) -> list[str]:
    """Return likely encodings, best first.

    The code pages of the text's language come first. If it is unknown, Windows-1252 does where it
    fits the bytes as well as the statistics' first choice: encodings of Latin letters look alike,
    and it is by far the most common.
    """
    sample = _sample_bytes(data)
    matches = list(from_bytes(sample))[:8]
    names = [match.encoding for match in matches]
    if 2 * len(_ASCII_LETTER.findall(sample)) > len(sample):  # by chance, as of a few letters
        names = [name for name in names if not name.startswith("utf_16")]
    if pages := _find_code_pages(sample):
        return [*(name for name in names if name in pages), *pages, *names]
    if not matches or matches[0].coherence == 0:
        high, alone = len(_HIGH_BYTE.findall(sample)), len(_LONE_HIGH.findall(sample))
        is_western = alone > 0.9 * high and high < 0.2 * len(sample)
    else:
        best = matches[0]
        is_western = any(
            "cp1252" in match.could_be_from_charset
            and match.chaos <= best.chaos + 0.1
            and match.coherence >= best.coherence
            for match in matches
        )
    return ["cp1252", *names] if is_western else [*names, "cp1252"]


def _find_code_pages(sample: bytes) -> tuple[str, ...]:
    """Return the code pages of a text's language; none unless it is of Latin letters or Russian."""
    high, alone = len(_HIGH_BYTE.findall(sample)), len(_LONE_HIGH.findall(sample))
    is_latin9 = _LATIN9.search(sample) and not _NOT_LATIN9.search(sample)
    western = "iso8859_15" if is_latin9 else "cp1252"
    text = sample.decode(western, "replace")
    letters = len(_ASCII_LETTER.findall(sample))
    if high > letters:  # in a wrong code page Russian is not taken for Russian
        return tuple(page for page in _RUSSIAN if _is_russian(sample.decode(page, "replace")))
    if letters < 2 * high or alone < 0.3 * high or len(_SIGN_IN_WORD.findall(text)) > 0.1 * high:
        return ()
    pages = _CODE_PAGES.get(guess_language(text), ())
    return (western,) if "cp1252" in pages else pages


def _is_russian(text: str) -> bool:
    """Return whether a text is Russian; Hebrew read as KOI8-R looks so, in capitals."""
    capitals = sum(map(str.isupper, text))
    return 2 * capitals < sum(map(str.isalpha, text)) and guess_language(text) == "ru"


def _sample_bytes(data: bytes) -> bytes:
    """Return a sample that ends at a space or line end, so that no character is truncated.

    Half a character at the end is enough to rule out every multi-byte encoding. The length is even,
    for UTF-16.
    """
    if len(data) <= _SAMPLE_BYTES:
        return data
    sample = data[:_SAMPLE_BYTES]
    end = max(sample.rfind(b" "), sample.rfind(b"\n")) + 1
    return sample[: end // 2 * 2] or sample


def _lookup(encoding: str) -> str:
    """Return Python's name of an encoding; empty if it has none."""
    try:
        return codecs.lookup(encoding).name
    except (LookupError, ValueError):
        return ""


def _try_decode(data: bytes, encoding: str) -> DecodedText | None:
    name = _lookup(encoding)
    try:
        text = data.decode(name) if name else None
    except (LookupError, ValueError):  # no encoding of text, or not of this one
        return None
    if not isinstance(text, str) or name in {"utf-16", "utf-32", "utf-8-sig"}:
        return None
    exact = not name.startswith(_STATEFUL) and _round_trips(text, name, data)
    cleaned = _replace_invalid(text, name)
    return replace(cleaned, is_exact=exact, size=len(data))


def _round_trips(text: str, encoding: str, data: bytes) -> bool:
    try:
        return text.encode(encoding) == data
    except UnicodeError:
        return False
