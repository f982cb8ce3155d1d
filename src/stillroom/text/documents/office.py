"""Office files (OOXML): archives checked for zip bombs, text, charts and diagrams.

Archives are checked for the known attacks on zip and XML before any office format is read. lxml
elements are duck-typed, so that no optional package is needed here. Charts and diagrams (DrawingML)
are read from their XML, so that all chart kinds are supported.
"""

from __future__ import annotations

import datetime
import io
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from stillroom.errors import DataError, MissingExtraError, StillroomError
from stillroom.text.documents.builder import render_table
from stillroom.text.interfaces import ParseLimits
from stillroom.text.unicode import raise_number

__all__ = [
    "CheckedArchive",
    "XmlElement",
    "extract_chart_text",
    "extract_text",
    "make_encrypted_error",
    "open_archive",
    "parse_bounded",
    "parse_xml",
    "read_drawings",
    "unreadable_as_error",
]


_STRICT = b"http://purl.oclc.org/ooxml/officeDocument/relationships/officeDocument"
_DELETED = frozenset({"del", "moveFrom"})
_SKIPPED = frozenset({"Fallback", "instrText", "delText", "pict"})
_COUNTED = {"drawing": "pictures", "ins": "inserted"}
_MARKS = {"footnoteReference": "", "endnoteReference": "e"}
_TEXT_ELEMENTS = frozenset({"t"})
_SPACE_ELEMENTS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-"}


class XmlElement(Protocol):
    """The part of the lxml element interface that is used here."""

    tag: object
    text: str | None

    @property
    def attrib(self) -> Mapping[str, str]:
        """Attributes by name, with namespaces in braces."""

    def __iter__(self) -> Iterator[XmlElement]:
        """Iterate over the children."""


@contextmanager
def unreadable_as_error(where: str) -> Iterator[None]:
    """Convert any exception of a format's library over a broken file into a DataError.

    Raises:
        DataError: If the body raises anything but a Stillroom error or MemoryError.
    """
    try:
        yield
    except (StillroomError, MemoryError):
        raise
    except Exception as error:
        raise DataError(
            f"the file cannot be read: {type(error).__name__}: {str(error)[:300]}",
            code="document.unreadable",
            where=where,
            expected="a whole file of its format",
            next="open and save it in its program, or leave it out",
        ) from error


def extract_text(element: XmlElement, counts: Counter[str] | None = None) -> str:
    """Return the text of an OOXML element in order: runs, links, insertions and equations.

    Tracked deletions, hidden runs, field codes and fallback content are left out. A note
    reference becomes ``[^1]``; superscript numbers become Unicode's. Works without recursion, so
    that nesting cannot overflow the stack.

    ``counts`` receives the number of ``deleted`` and ``hidden`` characters, of ``pictures``, and of
    insertions kept (``inserted``).
    """
    counts = Counter() if counts is None else counts
    parts: list[str] = []
    stack: list[Iterator[XmlElement]] = [iter([element])]
    raised = 0  # depth of the superscript run
    while stack:
        child = next(stack[-1], None)
        if child is None:
            stack.pop()
            raised = raised if len(stack) >= raised else 0
            continue
        name = str(child.tag).rpartition("}")[2]
        if name in _COUNTED:
            counts[_COUNTED[name]] += 1
        if name in _DELETED or (name == "r" and _is_hidden(child)):
            counts["deleted" if name in _DELETED else "hidden"] += _count_characters(child)
        elif name in _SKIPPED:
            continue
        elif name in _TEXT_ELEMENTS:
            parts.append(raise_number(child.text or "") if raised else child.text or "")
        elif name in _SPACE_ELEMENTS:
            parts.append(_SPACE_ELEMENTS[name])
        elif name in _MARKS:
            parts.append(f"[^{_MARKS[name]}{_get_attribute(child, 'id')}]")
        else:
            if name == "p" and parts and not parts[-1].endswith("\n"):
                parts.append("\n")  # a paragraph within, as in a text box
            stack.append(iter(child))
            raised = raised or len(stack) * (name == "r" and _is_raised(child))
    return "".join(parts)


def _is_hidden(run: XmlElement) -> bool:
    """Return whether a run is formatted as hidden text."""
    properties = _find_properties(run)
    if properties is None:
        return False
    marks = [
        element for element in properties if str(element.tag).endswith(("}vanish", "}webHidden"))
    ]
    return any(_get_attribute(element, "val") not in {"0", "false", "off"} for element in marks)


def _find_properties(run: XmlElement) -> XmlElement | None:
    return next((element for element in run if str(element.tag).endswith("}rPr")), None)


def _is_raised(run: XmlElement) -> bool:
    """Return whether a run is superscript: of a document's text, or of a slide's."""
    properties = _find_properties(run)
    if properties is None:
        return False
    baseline = _get_attribute(properties, "baseline")
    return parse_bounded(baseline, 0, 1) > 0 or any(
        str(element.tag).endswith("}vertAlign") and _get_attribute(element, "val") == "superscript"
        for element in properties
    )


def _count_characters(element: XmlElement) -> int:
    """Return the number of characters of an element, deleted ones too, without recursion."""
    size, pending = 0, [element]
    while pending:
        node = pending.pop()
        if str(node.tag).rpartition("}")[2] in {"t", "delText"}:
            size += len(node.text or "")
        pending += list(node)
    return size


def _get_attribute(element: XmlElement, name: str) -> str:
    """Return an attribute, ignoring its namespace."""
    return next(
        (value for key, value in element.attrib.items() if key.rpartition("}")[2] == name), ""
    )


_RATIO_FLOOR = 16 * 2**20
_LOCAL_HEADER = 30
_NESTED_ARCHIVES = (".zip", ".jar", ".7z", ".rar", ".gz", ".xz", ".bz2")
_OLE_MAGIC = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


@dataclass(frozen=True)
class CheckedArchive:
    """A zip archive whose members have been checked against the limits."""

    data: bytes
    file: zipfile.ZipFile
    where: str

    def __contains__(self, name: str) -> bool:
        return name in self.file.NameToInfo

    def read(self, name: str) -> bytes:
        """Return a member's bytes.

        Raises:
            DataError: If the member is missing, broken or encrypted.
        """
        try:
            info = self.file.getinfo(name)
            with self.file.open(info) as member:
                content = member.read(info.file_size + 1)
        except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            if "password" in str(error):
                raise make_encrypted_error(self.where) from error
            raise _broken_error(self.where, f"member '{name}': {error}") from error
        if len(content) > info.file_size:
            raise _refused_error(self.where, f"member '{name}' is larger than its declared size")
        return content

    def span(self, name: str) -> tuple[int, int]:
        """Return the byte range of a member in the file, its local header included."""
        info = self.file.NameToInfo.get(name)
        if info is None:
            return 0, len(self.data)
        start = info.header_offset
        header = self.data[start : start + _LOCAL_HEADER]
        if len(header) < _LOCAL_HEADER:
            return 0, len(self.data)
        name_size, extra_size = struct.unpack("<HH", header[26:30])
        end = start + _LOCAL_HEADER + name_size + extra_size + info.compress_size
        return start, min(end, len(self.data))


def open_archive(
    data: bytes, where: str, limits: ParseLimits, *, required: str = ""
) -> CheckedArchive:
    """Open an archive after checking its directory.

    Raises:
        DataError: If it is no archive, is encrypted, is a zip bomb, or holds unsafe names, other
            archives, or XML that declares entities.
    """
    if data.startswith(_OLE_MAGIC):
        raise make_encrypted_error(
            where, "the file is password-protected, or of the format before 2007"
        )
    try:
        file = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, struct.error) as error:
        raise _broken_error(where, str(error)) from error
    archive = CheckedArchive(data, file, where)
    _check_sizes(file.infolist(), where, limits, len(data))
    names: set[str] = set()
    for info in file.infolist():
        _check_name(info.filename, where)
        if info.filename in names:
            raise _refused_error(where, f"member '{info.filename}' occurs twice in the archive")
        names.add(info.filename)
        if info.flag_bits & 1:
            raise make_encrypted_error(where)
        if info.filename.lower().endswith(_NESTED_ARCHIVES):
            raise _refused_error(where, f"the archive holds another archive, '{info.filename}'")
    if required and required not in archive:
        raise _broken_error(where, f"the archive holds no '{required}'")
    for info in file.infolist():
        if info.filename.lower().endswith((".xml", ".rels", ".opf", ".ncx", ".vml")):
            _check_xml(archive.read(info.filename), where, info.filename)
    return archive


def _check_sizes(
    infos: list[zipfile.ZipInfo], where: str, limits: ParseLimits, compressed: int
) -> None:
    if len(infos) > limits.archive_entries:
        raise _refused_error(where, f"the archive holds {len(infos)} members")
    total = sum(info.file_size for info in infos)
    if total > limits.decompressed_bytes:
        raise _refused_error(where, f"the archive would unpack to {total} bytes")
    if total > _RATIO_FLOOR and total > limits.compression_ratio * max(compressed, 1):
        raise _refused_error(where, f"the archive would grow {total / compressed:.0f} times")


def _check_name(name: str, where: str) -> None:
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\x00" in name:
        raise _refused_error(where, f"member '{name}' has a name that leaves the archive")


def _check_xml(content: bytes, where: str, name: str) -> None:
    """Refuse entity declarations, in any encoding that XML allows, and Strict Open XML."""
    flat = content.replace(b"\x00", b"").upper()
    if b"<!ENTITY" in flat:
        raise DataError(
            f"member '{name}' declares XML entities",
            code="document.xml-entities",
            where=where,
            expected="XML without entity declarations, as office programs write it",
            next="open and save the file in an office program, or leave it out",
        )
    if name == "_rels/.rels" and _STRICT in content:
        raise DataError(
            "the file is saved as Strict Open XML (ISO/IEC 29500-1), which is not read",
            code="document.unreadable",
            where=where,
            expected="a file with the namespaces that office programs write by default",
            next="save it in its program without 'Strict' in the name of the format",
        )


def _broken_error(where: str, why: str) -> DataError:
    return DataError(
        f"the archive cannot be read: {why}",
        code="document.unreadable",
        where=where,
        expected="a whole file of its format",
        next="get the file anew, or open and save it in its program",
    )


def make_encrypted_error(where: str, why: str = "the file is encrypted") -> DataError:
    """Return the error for a file that needs a password."""
    return DataError(
        why,
        code="document.encrypted",
        where=where,
        expected="a file that opens without a password",
        next="save a copy without a password",
    )


def _refused_error(where: str, why: str) -> DataError:
    return DataError(
        why,
        code="document.unsafe-archive",
        where=where,
        expected="an archive within the limits (see Limits), with plain names",
        next="leave the file out, or unpack it and look what it holds",
    )


_C = "{http://schemas.openxmlformats.org/drawingml/2006/chart}"
_D = "{http://schemas.openxmlformats.org/drawingml/2006/diagram}"
_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_MAX_POINTS = 10_000
_EPOCH = datetime.datetime(1899, 12, 30)  # day 0 of spreadsheets, without a time zone


def extract_chart_text(chart: Any) -> str:
    """Return a chart's title and values as a table, for any kind of chart.

    The first column holds the categories (or the x of points), then there is one column per series;
    series of several plots are in one table.
    """
    names, columns, categories = [], [], dict[int, str]()
    for series in chart.iter(f"{_C}ser"):
        values = _series_points(_first_child(series, "val", "yVal"))
        if values:
            names.append(" ".join(_series_points(_first_child(series, "tx")).values()))
            columns.append({index: _format_number(value) for index, value in values.items()})
            for index, name in _series_points(_first_child(series, "cat", "xVal")).items():
                categories.setdefault(index, _format_number(name))
    title = _first_child(next(chart.iter(f"{_C}chart"), chart), "title")
    indices = sorted({index for column in (categories, *columns) for index in column})
    rows = [["", *names]] if any(names) else [["", *("value" for _ in columns)]]
    rows += [
        [categories.get(index, ""), *(column.get(index, "") for column in columns)]
        for index in indices
    ]
    heading = " ".join(extract_text(title).split()) if title is not None else ""
    table = render_table(rows) if columns else ""
    return "\n\n".join(part for part in (heading, table) if part)


def _extract_diagram_text(data: Any) -> str:
    """Return the text of a SmartArt diagram as a list, in the order of entry."""
    lines = []
    for point in data.iter(f"{_D}pt"):
        paragraphs = [
            " ".join(extract_text(paragraph).split()) for paragraph in point.iter(f"{_A}p")
        ]
        text = " ".join(paragraph for paragraph in paragraphs if paragraph)
        if text and point.get("type", "node") in {"node", "asst"}:
            lines.append(f"- {text}")
    return "\n".join(lines)


def parse_xml(content: bytes) -> Any:
    """Return the root of an office document's part; entities are left alone, nothing is fetched.

    Raises:
        MissingExtraError: If lxml is not installed.
    """
    with MissingExtraError.guard("lxml", "documents", "reading office documents"):
        from lxml import etree
    parser = etree.XMLParser(resolve_entities=False, no_network=True, huge_tree=False)
    return etree.fromstring(content, parser)


def read_drawings(element: Any, part: Any) -> Iterator[tuple[str, Any]]:
    """Yield the text of each chart and diagram of an element, with its package part."""
    for tag, attribute, read in (
        (f"{_C}chart", f"{_R}id", extract_chart_text),
        (f"{_D}relIds", f"{_R}dm", _extract_diagram_text),
    ):
        for drawing in element.iter(tag):
            target = part.rels.get(drawing.get(attribute, ""))
            if target is None or target.is_external:
                continue
            text = read(parse_xml(target.target_part.blob))
            if text:
                yield text, target.target_part


def _first_child(element: Any, *names: str) -> Any:
    """Return the first child of one of these names, or None."""
    return next(
        (child for name in names if (child := element.find(f"{_C}{name}")) is not None), None
    )


def _series_points(element: Any) -> dict[int, str]:
    """Return the cached points of a series' part by index; literal values have index 0."""
    if element is None:
        return {}
    points: dict[int, str] = {}
    form = "".join(node.text or "" for node in element.iter(f"{_C}formatCode")).lower()
    is_date = "d" in form and "m" in form and "y" in form
    for point in element.iter(f"{_C}pt"):
        place = point.get("idx", "")
        text = "".join(node.text or "" for node in point.iter(f"{_C}v")).strip()
        text = _serial_date(text) if is_date else text
        if place.isdecimal() and text and len(points) < _MAX_POINTS:
            index = parse_bounded(place, 0, 2**31)
            points[index] = (
                f"{text} {points[index]}" if index in points else text
            )  # the inner level comes first
    if not points:
        text = " ".join(node.text or "" for node in element.iter(f"{_C}v")).strip()
        points = {0: text} if text else {}
    return points


def _serial_date(value: str) -> str:
    """Convert a spreadsheet's serial date to ISO 8601; other values are returned unchanged."""
    try:
        return (_EPOCH + datetime.timedelta(days=float(value))).date().isoformat()
    except (ValueError, OverflowError):
        return value


def _format_number(value: str) -> str:
    """Format a value as a person would write it: charts store 8.2 as 8.1999999999999993."""
    try:
        number = float(value)
    except ValueError:
        return value
    short = f"{number:.15g}"
    return value if "e" in short or "n" in short else short


def parse_bounded(value: str | None, least: int, most: int) -> int:
    """Return a whole number within bounds; ``least`` for anything else."""
    # Python refuses to read thousands of digits.
    return min(max(int(value[:18]), least), most) if value and value.isdecimal() else least
