"""File and folder reader: file type detection (``detect_parser``), parsing, and failed files.

``detect_parser`` chooses by content and name (FileTypeRouter). A folder is read in the order of its
paths. A bad file gives one ParseFailure and stops nothing.

A file compressed by gzip, bzip2 or xz is read as the file in it.

An image or a document may contain claims about its origin. Rooms are independent of each other, so
the flow registers an origin check for the duration of a job, and the reader calls it for every
file.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from stillroom.errors import DataError, ResourceError, StillroomError
from stillroom.jobs import escape_line
from stillroom.provenance import ARTIFACT_FILE, digest_bytes
from stillroom.provenance.signing.artifacts import LOCK_FILE
from stillroom.records import Document, Origin
from stillroom.records.origin import check_origin
from stillroom.registry import list_names
from stillroom.text.credentials import take_credentials
from stillroom.text.documents.office import unreadable_as_error
from stillroom.text.encoding import check_not_binary, guess_wide_encoding
from stillroom.text.interfaces import PARSERS, ParseLimits, Parser, SourceFile
from stillroom.text.language import detect_language
from stillroom.text.parser_process import ParserProcess
from stillroom.text.unicode import count_invisible

__all__ = [
    "EMPTY_FILE",
    "FolderScan",
    "ParseFailure",
    "detect_parser",
    "list_documents",
    "map_suffixes",
    "parse_bytes",
    "parse_file",
    "parse_folder",
    "recheck_origin",
    "scan_folder",
]


EMPTY_FILE = "the file is empty"
"""The problem of a file without a character, in which nothing can be lost."""
_HIDDEN = (".", "~$")
_HEAD_BYTES = 4096
_SMALL_FILE_BYTES = (
    2**20
)  # bytes; larger texts are parsed in the subprocess too, with limited time and memory


@dataclass(frozen=True, slots=True)
class ParseFailure:
    """A file that could not be parsed: its path below the folder, error code and reason."""

    path: str
    code: str
    reason: str

    def __str__(self) -> str:
        """Return one line for a person, with control characters escaped."""
        return escape_line(f"{self.path}: {self.reason}  [{self.code}]")


@dataclass(frozen=True, slots=True)
class FolderScan:
    """Contents of a folder: files to read, numbers of hidden ones and links, and refused paths."""

    files: tuple[Path, ...]
    hidden: int = 0
    refused: tuple[ParseFailure, ...] = ()
    links: int = 0


def scan_folder(root: Path) -> FolderScan:
    """List the files of a folder, or one file.

    Hidden files and folders (a leading dot, or Office's ``~$`` of an open file) and folders of
    jobs, such as an index of these documents, are skipped and counted, and so are links to files
    that are listed by their own names. Links that leave the folder, links to folders, folders that
    cannot be opened, and anything that is neither file nor folder are refused.

    Raises:
        DataError: If there is no such file or folder.
    """
    if root.is_file():
        return FolderScan((root,))
    if not root.is_dir():
        raise DataError(
            f"there is no folder or file '{root}'",
            code="document.no-folder",
            where=str(root),
            expected="a folder of documents, or one document",
            next="check the path",
        )
    files: list[Path] = []
    refused: list[ParseFailure] = []
    hidden = 0
    real_root = root.resolve()

    def refuse(path: Path, code: str, why: str) -> None:
        refused.append(ParseFailure(_relative_path(path, root), code, why))

    def refuse_folder(error: OSError) -> None:
        why = f"the folder cannot be opened: {error.strerror}"
        refuse(Path(os.fsdecode(error.filename)), "document.unreadable", why)

    for folder, folders, names in os.walk(root, onerror=refuse_folder, followlinks=False):
        here = Path(folder)
        visible = [name for name in folders if not _is_skipped(here / name)]
        hidden += len(folders) - len(visible) + sum(name.startswith(_HIDDEN) for name in names)
        links = [name for name in visible if (here / name).is_symlink()]
        folders[:] = sorted(name for name in visible if name not in links)
        for name in [*links, *(name for name in names if not name.startswith(_HIDDEN))]:
            why = _refusal_reason(here / name, real_root)
            if why:
                refuse(here / name, "document.refused-path", why)
            else:
                files.append(here / name)
    linked = {path: path.resolve() for path in files if path.is_symlink()}
    own_names = {path.resolve() for path in files if linked and path not in linked}
    listed = [path for path in files if linked.get(path) not in own_names]
    return FolderScan(
        tuple(sorted(listed, key=lambda path: path.relative_to(root).as_posix())),
        hidden,
        tuple(sorted(refused, key=lambda failure: failure.path)),
        len(files) - len(listed),
    )


def _is_skipped(folder: Path) -> bool:
    """Return whether a folder is hidden, or of a job that runs or has ended."""
    if folder.name.startswith(_HIDDEN):
        return True
    if (folder / LOCK_FILE).is_file() and (folder / "recipe.yaml").is_file():
        return True
    try:
        with (folder / ARTIFACT_FILE).open("rb") as file:
            return b'"recipe_digest"' in file.read(_HEAD_BYTES)
    except OSError:
        return False


def list_documents(root: Path) -> list[Path]:
    """Return the files of a folder to read, sorted by path; see ``scan_folder``.

    Raises:
        DataError: If there is no such file or folder.
    """
    return list(scan_folder(root).files)


def parse_file(
    path: Path,
    *,
    root: Path | None = None,
    limits: ParseLimits | None = None,
    origin: Origin | None = None,
    worker: ParserProcess | None = None,
    parsers: Sequence[Parser] = (),
) -> Document:
    """Parse one file into a Document, with its language where it can be detected.

    The document's path is relative to ``root``, by default to the file's own folder; its origin is
    by default unknown. ``worker`` is a subprocess for risky formats to reuse, by default one is
    started and stopped; ``parsers`` take the files with their suffixes, before the detected format.

    Raises:
        DataError: If the file is missing, too large, broken, or of an unknown format.
        MissingExtraError: If its format needs a package that is not installed.
    """
    limits = limits or ParseLimits()
    name = _relative_path(path, root)
    data = _read_file(path, name, limits)
    known, notices = check_origin(path, origin or Origin())
    document = parse_bytes(
        data,
        name,
        limits=limits,
        origin=known,
        worker=worker,
        parsers=parsers,
        place=(path, root or path.parent),
    )
    return _add_notices(document, notices)


def recheck_origin(document: Document, file: Path) -> Document:
    """Check the origin of a document that was parsed without an origin check."""
    known, notices = check_origin(file, document.origin)
    return _add_notices(replace(document, origin=known), notices)


def _add_notices(document: Document, added: Sequence[str]) -> Document:
    if not added:
        return document
    notices = [*document.metadata.get("notices", ()), *added]
    return replace(document, metadata={**document.metadata, "notices": notices})


def parse_bytes(
    data: bytes,
    path: str,
    *,
    limits: ParseLimits | None = None,
    origin: Origin | None = None,
    worker: ParserProcess | None = None,
    parsers: Sequence[Parser] = (),
    place: tuple[Path, Path] | None = None,
) -> Document:
    """Parse the bytes of a file, such as an upload, into a Document.

    Of a compressed file every anchor spans all bytes. ``place`` is the file with the folder that is
    read, where other files may declare its entities.

    Raises:
        DataError: If the bytes are too many, broken, or of an unknown format.
        MissingExtraError: If the format needs a package that is not installed.
    """
    limits = limits or ParseLimits()
    _check_size(len(data), path, limits)
    suffix = _get_suffix(path)
    if suffix in _COMPRESSIONS and data:
        content, inner = _unpack(data, path, limits), path[: -len(suffix)]
        try:
            document = parse_bytes(
                content, inner, limits=limits, origin=origin, worker=worker, parsers=parsers
            )
        except DataError as error:
            raise DataError(tuple(replace(one, where=path) for one in error.problems)) from error
        anchors = tuple(
            replace(one, byte_start=0, byte_end=len(data), is_exact=False)
            for one in document.anchors
        )
        return replace(document, path=path, digest=digest_bytes(data), anchors=anchors)
    chosen = (parser for parser in parsers if suffix in parser.suffixes)
    parser = next(chosen, None) or detect_parser(path, data)
    source = SourceFile(
        path,
        digest_bytes(data),
        parser.media_type,
        origin or Origin(),
        limits,
        declared=parser.read_declared(data, *place) if place else {},
    )
    if not data.strip():
        raise DataError(
            EMPTY_FILE,
            code="document.no-text",
            where=path,
            expected="some text",
            next="leave the file out",
        )
    if not parser.is_risky and len(data) <= _SMALL_FILE_BYTES:
        with unreadable_as_error(path):
            document = parser.parse(data, source)
    elif worker is not None:
        document = worker.parse(parser, data, source)
    else:
        with ParserProcess() as process:
            document = process.parse(parser, data, source)
    return _add_metadata(take_credentials(document, data), limits)


def parse_folder(
    root: Path,
    *,
    limits: ParseLimits | None = None,
    origin: Origin | None = None,
) -> Iterator[Document | ParseFailure]:
    """Yield a ParseFailure for each path that ``scan_folder`` refuses, then each file's Document.

    Files are in order of path; for one that cannot be read there is a ParseFailure.

    ``root`` may be one file; limits are those of each file, and its origin is by default unknown.

    Raises:
        DataError: If there is no such file or folder.
    """
    limits = limits or ParseLimits()
    base = root if root.is_dir() else root.parent
    scan = scan_folder(root)
    yield from scan.refused
    with ParserProcess() as worker:
        for path in scan.files:
            try:
                yield parse_file(path, root=base, limits=limits, origin=origin, worker=worker)
            except StillroomError as error:
                first = error.problems[0]
                reason = f"{first.what}; next: {first.next}" if first.next else first.what
                yield ParseFailure(_relative_path(path, base), first.code, reason)


def _relative_path(path: Path, root: Path | None) -> str:
    """Return the path below the root with forward slashes, without lone surrogates."""
    base = root if root is not None else path.parent
    name = (path.relative_to(base) if path.is_relative_to(base) else Path(path.name)).as_posix()
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _refusal_reason(path: Path, real_root: Path) -> str:
    """Return the reason why a path is not read, or an empty string."""
    try:
        target = path.resolve(strict=True)
        mode = target.stat().st_mode
    except (OSError, RuntimeError):
        return "a link that leads nowhere"
    if path.is_symlink() and not target.is_relative_to(real_root):
        return "a link that leaves the folder"
    if stat.S_ISDIR(mode):
        return "a link to a folder"
    return "" if stat.S_ISREG(mode) else "neither a file nor a folder"


def _check_size(size: int, name: str, limits: ParseLimits, unit: str = "bytes") -> None:
    if size > limits.file_bytes:
        raise limits.make_excess_error("file_bytes", f"the file has {size} {unit}", name)


_COMPRESSIONS: dict[str, Any] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}


def _unpack(data: bytes, name: str, limits: ParseLimits) -> bytes:
    """Return what a compressed file holds, up to one byte more than a file may have."""
    try:
        with _COMPRESSIONS[_get_suffix(name)](io.BytesIO(data)) as file:
            content: bytes = file.read(limits.file_bytes + 1)
    except (OSError, EOFError, lzma.LZMAError, zlib.error, MemoryError) as error:
        raise DataError(
            f"the file cannot be unpacked: {str(error) or 'too little memory'}",
            code="document.unreadable",
            where=name,
            expected="a whole file of its format",
            next="get the file anew, or leave it out",
        ) from error
    _check_size(len(content), name, limits, "bytes or more when unpacked")
    return content


def _read_file(path: Path, name: str, limits: ParseLimits) -> bytes:
    try:
        opened = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(opened, "rb") as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise OSError("neither a file nor a link to one")
            _check_size(state.st_size, name, limits)
            data = file.read(limits.file_bytes + 1)
            _check_size(len(data), name, limits)
            return data
    except MemoryError as error:
        raise ResourceError(
            "the file does not fit into memory",
            code="document.memory",
            where=name,
            expected="a file smaller than the free memory",
            next="lower the limit file_bytes, or split the file",
        ) from error
    except OSError as error:
        raise DataError(
            f"the file cannot be opened: {error.strerror or error}",
            code="document.unreadable",
            where=name,
            expected="a file that may be read",
            next="check its permissions",
        ) from error


def _add_metadata(document: Document, limits: ParseLimits) -> Document:
    """Return the document with its language and the count of invisible characters."""
    if len(document.text) > limits.text_characters:
        found = f"the document holds {len(document.text)} characters"
        raise limits.make_excess_error("text_characters", found, document.path)
    metadata = dict(document.metadata)
    invisible = count_invisible(document.text)
    if invisible:
        metadata["invisible_characters"] = invisible
    language = "" if metadata.get("is_code") else detect_language(document.text)
    return replace(document, language=language, metadata=metadata)


_ZIP_MARKS = {
    "word/": "docx",
    "ppt/": "pptx",
    "xl/": "xlsx",
    "META-INF/container.xml": "epub",
}

_HTML_START = re.compile(
    rb"\s*(?:<(?:!--.{0,500}?--|[?a-z][^<>]{0,200})>\s*)?<(?:!doctype html|html|head|body)\b",
    re.I | re.S,
)

_DOCBOOK_START = re.compile(
    rb"""\s*+(?:<\?xml[^>]{0,200}>\s*+)?(?:<!--(?>.{0,3000}?-->)\s*+)*+"""
    rb"""<(?:!DOCTYPE\s+\w+\s+PUBLIC\s+["']"""
    rb"""[^"']{0,99}\bDocBook|\w+\s[^>]{0,300}?xmlns=["']http://(?:docbook\.org/ns/docbook"""
    rb"""|projectmallard\.org/)|(?:book|part|chapter|appendix|preface|article|sect[1-5]|section"""
    rb"""|refentry|glossary)(?:\s[^<>]{0,300})?>\s*+(?:<!--(?>.{0,3000}?-->)\s*+)*+"""
    rb"""<(?:title|\w*info)\b"""
    rb"""|(?:(?:sim)?para|legalnotice|(?:itemized|ordered|variable)list|varlistentry)"""
    rb"""(?:\s[^<>]{0,300})?>)""",
    re.S,
)

_MAIL_HEADER = re.compile(
    rb"(?:From \S[^\n]*\d{4}[^\n]*\n)?(?:(?:Return-Path|Received|Delivered-To|From|To|Subject|Date"
    rb"|Message-ID|MIME-Version|Sender|Reply-To|Content-[\w-]+|X-[\w-]+|DKIM-Signature|ARC-[\w-]+)"
    rb": [^\r\n]*\r?\n(?:[ \t][^\n]*\n)*){2}",
    re.I,
)

_PDF_HEADER = re.compile(
    rb"(?:\A|[^\t -~])%PDF-"
)  # the header may follow other bytes, but not text

_README_NAME = re.compile(r"read_?me|changelog|changes|contributing|history|news|todo", re.I)
_MARKDOWN_MARK = re.compile(rb"^(?:#{1,6} |```|\* |- )", re.M)
_MAX_SNIFFED_BYTES = 2**20
_IMAGE_MAGIC = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*")

_WEB_PAGE = re.compile(rb"<(?:!doctype\s+)?html\b", re.IGNORECASE)
_UNSUPPORTED_MAGIC = {
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "a file of Office before 2007 or Outlook",
    b"GIF8": "a GIF picture",
    b"ID3": "an MP3 recording",
    b"\x1f\x8b": "gzip-compressed, not read (a gzip archive, or a document that its program packs)",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x7fELF": "a program",
    b"SQLite format 3\x00": "a database",
    b"{\\rtf": "a Rich Text document",
    b"%!PS": "a PostScript program",
}

_BINARY_SUFFIXES = frozenset(
    ".doc .dot .xls .xlt .ppt .pps .msg .gif .zip .7z .rar .tar".split()  # noqa: SIM905
)
_SMALLEST_TEXT = 64  # bytes of one word, below which such a file is no text
_NOT_IN_TEXT = re.compile(rb"[\x00-\x07\x0e-\x19\x1c-\x1f]")  # old texts have backspaces and ^Z

_TEXT_FORMATS = ("txt", "md", "rst", "csv", "json", "ipynb", "html", "eml")


def detect_parser(path: str, data: bytes) -> Parser:
    """Return the parser for a file's bytes.

    The suffix decides, unless it is that of a text format and the bytes are a PDF, an office file
    or DocBook, or XML that is a web page. Without a known suffix the first bytes decide; anything
    that looks like text is plain text.

    Raises:
        DataError: If the format is not supported.
    """
    by_suffix = map_suffixes().get(_get_suffix(path), "")
    by_bytes = _parser_by_magic(data)
    if by_suffix in _TEXT_FORMATS and by_bytes == "pdf" and not data.lstrip().startswith(b"%PDF-"):
        return PARSERS.build(by_suffix)  # the text mentions PDF, or embeds one
    foreign_kinds = {"pdf", "image", "docbook", *_ZIP_MARKS.values()}
    if _get_suffix(path) == ".xml" and _WEB_PAGE.search(data[:_MAX_SNIFFED_BYTES]):  # else source
        foreign_kinds.add("html")
    if by_suffix and not (by_bytes in foreign_kinds and by_suffix in _TEXT_FORMATS):
        return PARSERS.build(by_suffix)
    if by_bytes:
        return PARSERS.build(by_bytes)
    foreign = next((name for mark, name in _UNSUPPORTED_MAGIC.items() if data.startswith(mark)), "")
    if data.startswith(b"PK\x03\x04"):
        is_binary = b"xl/workbook.bin" in data
        foreign = "a workbook in binary form (.xlsb)" if is_binary else "a zip archive"
    if data[257:262] == b"ustar":
        foreign = "a tar archive"
    if data and not foreign and _get_suffix(path) in _BINARY_SUFFIXES and _is_remnant(data):
        foreign = f"neither a whole {_get_suffix(path)} file nor text"
    if foreign:
        is_archive = foreign.endswith("archive")
        raise DataError(
            f"this is {foreign}",
            code="document.unknown-format",
            where=path,
            expected="one of: " + ", ".join(sorted(map_suffixes())[:60]),
            next=f"{'unpack it' if is_archive else 'save it as .docx, .xlsx, .pdf or .txt'}, "
            "or leave it out",
        )
    if not _is_wide(data):
        check_not_binary(data[:4096], path)
    is_markdown = _README_NAME.fullmatch(path.rsplit("/", 1)[-1]) and _MARKDOWN_MARK.search(
        data[:4096]
    )
    return PARSERS.build("md" if is_markdown else "txt")


def _is_wide(data: bytes) -> bool:
    """Return whether bytes look like UTF-16 or UTF-32."""
    marks = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
    return data.startswith(marks) or bool(guess_wide_encoding(data))


def _is_remnant(data: bytes) -> bool:
    """Return whether bytes under a suffix of a binary format are a damaged file, and no text."""
    if (len(data) < _SMALLEST_TEXT and len(data.split()) < 2) or not data.strip(b"\0"):
        return True
    return not _is_wide(data) and bool(_NOT_IN_TEXT.search(data[:4096]))


@lru_cache(maxsize=1)
def map_suffixes() -> dict[str, str]:
    """Return the parser's name for every supported suffix; a plug-in replaces no parser of ours."""
    names: dict[str, str] = {}
    ours = list_names(PARSERS.folder)
    for name in sorted(PARSERS.names(), key=lambda name: name not in ours):
        for suffix in PARSERS.get(name).suffixes:
            names.setdefault(suffix, name)
    return names


def _get_suffix(path: str) -> str:
    """Return the suffix in lower case; empty without one."""
    name = path.rsplit("/", 1)[-1].lower()
    return "." + name.rsplit(".", 1)[-1] if "." in name else ""


def _parser_by_magic(data: bytes) -> str:
    head = data[:1024]
    if _PDF_HEADER.search(head):
        return "pdf"
    if head.startswith(_IMAGE_MAGIC):
        return "image"
    if data.startswith(b"PK\x03\x04"):
        return _parser_of_archive(data)
    if _HTML_START.match(head.removeprefix(b"\xef\xbb\xbf")):
        return "html"
    if _DOCBOOK_START.match(data[:4096]):
        return "docbook"
    if head.lstrip()[:1] in {b"{", b"["} and len(data) <= _MAX_SNIFFED_BYTES:
        return _parser_of_json(data)
    return "eml" if _MAIL_HEADER.match(head.removeprefix(b"\xef\xbb\xbf")) else ""


def _parser_of_json(data: bytes) -> str:
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return ""
    is_notebook = isinstance(content, dict) and "nbformat" in content and "cells" in content
    return "ipynb" if is_notebook else "json"


def _parser_of_archive(data: bytes) -> str:
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
