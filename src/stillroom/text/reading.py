"""Reading files and folders: which files, by which parser, in which process, and what failed.

A folder is read in the order of its paths. One bad file is one Failure and stops nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stillroom.errors import DataError, ResourceError, StillroomError
from stillroom.jobs import plain_line
from stillroom.provenance import digest_bytes
from stillroom.records import Document, Origin
from stillroom.text.examining import examine_file
from stillroom.text.language import detect_language
from stillroom.text.method import Limits, Source
from stillroom.text.normalize import count_invisible
from stillroom.text.office import unreadable
from stillroom.text.sniffing import choose_parser
from stillroom.text.worker import Worker

__all__ = [
    "Failure",
    "Scan",
    "examine_document",
    "list_documents",
    "parse_bytes",
    "parse_file",
    "parse_folder",
    "scan_folder",
]


_SMALL = 2**20  # bytes; larger texts are read apart too, where time and memory are bounded


@dataclass(frozen=True, slots=True)
class Failure:
    """A file that gave no document: its path below the folder, the error's code, and why."""

    path: str
    code: str
    reason: str

    def __str__(self) -> str:
        """Return one line for a person, whatever the file is called."""
        return plain_line(f"{self.path}: {self.reason}  [{self.code}]")


@dataclass(frozen=True, slots=True)
class Scan:
    """What a folder holds: files to read, how many were hidden, and what is refused."""

    files: tuple[Path, ...]
    hidden: int = 0
    refused: tuple[Failure, ...] = ()


def scan_folder(root: Path) -> Scan:
    """Walk a folder, or take one file.

    Hidden files and folders (a leading dot) are skipped and counted. Links that leave the folder,
    links to folders, and anything that is neither file nor folder are refused.

    Raises:
        DataError: If there is no such file or folder.
    """
    if root.is_file():
        return Scan((root,))
    if not root.is_dir():
        raise DataError(
            f"there is no folder or file '{root}'",
            code="document.no-folder",
            where=str(root),
            expected="a folder of documents, or one document",
            next="check the path",
        )
    files: list[Path] = []
    refused: list[Failure] = []
    hidden = 0
    real_root = root.resolve()
    for folder, folders, names in os.walk(root, followlinks=False):
        here = Path(folder)
        hidden += sum(name.startswith(".") for name in [*folders, *names])
        visible = [name for name in folders if not name.startswith(".")]
        links = [name for name in visible if (here / name).is_symlink()]
        folders[:] = sorted(name for name in visible if name not in links)
        for name in [*links, *(name for name in names if not name.startswith("."))]:
            why = _refusal(here / name, real_root)
            if why:
                relative = (here / name).relative_to(root).as_posix()
                refused.append(Failure(relative, "document.refused-path", why))
            else:
                files.append(here / name)
    by_path = sorted(files, key=lambda path: path.relative_to(root).as_posix())
    return Scan(tuple(by_path), hidden, tuple(sorted(refused, key=lambda one: one.path)))


def list_documents(root: Path) -> list[Path]:
    """Return the files of a folder that would be read, sorted by path; see ``scan_folder``.

    Raises:
        DataError: If there is no such file or folder.
    """
    return list(scan_folder(root).files)


def parse_file(
    path: Path,
    *,
    root: Path | None = None,
    limits: Limits | None = None,
    origin: Origin | None = None,
    worker: Worker | None = None,
) -> Document:
    """Read one file into a Document.

    Args:
        path: The file.
        root: The document's path is relative to this folder; by default to the file's own.
        limits: What the file may cost.
        origin: Who made the file; unknown unless said.
        worker: A process for risky formats to reuse; by default one is started and ended.

    Returns:
        The document, with its language where one can be told.

    Raises:
        DataError: If the file is missing, too large, broken, or of an unknown format.
        MissingExtraError: If its format needs a package that is not installed.
    """
    limits = limits or Limits()
    name = _relative(path, root)
    data = _read(path, name, limits)
    known, told = examine_file(path, origin or Origin())
    document = parse_bytes(data, name, limits=limits, origin=known, worker=worker)
    return _with_notices(document, told)


def examine_document(document: Document, file: Path) -> Document:
    """Return a document that was read where nobody was asked of its file, with what is said here.

    Args:
        document: As ``parse_file`` gave it, without an examiner.
        file: What it was read from.
    """
    known, told = examine_file(file, document.origin)
    return _with_notices(replace(document, origin=known), told)


def _with_notices(document: Document, told: Sequence[str]) -> Document:
    if not told:
        return document
    notices = [*document.metadata.get("notices", ()), *told]
    return replace(document, metadata={**document.metadata, "notices": notices})


def parse_bytes(
    data: bytes,
    path: str,
    *,
    limits: Limits | None = None,
    origin: Origin | None = None,
    worker: Worker | None = None,
) -> Document:
    """Read the bytes of a file, as an upload brings them, into a Document.

    Args:
        data: The whole file.
        path: Its name, for the suffix and the document's path.
        limits: What the file may cost.
        origin: Who made the file; unknown unless said.
        worker: A process for risky formats to reuse; by default one is started and ended.

    Raises:
        DataError: If the bytes are too many, broken, or of an unknown format.
        MissingExtraError: If the format needs a package that is not installed.
    """
    limits = limits or Limits()
    _check_size(len(data), path, limits)
    parser = choose_parser(path, data)
    source = Source(path, digest_bytes(data), parser.media_type, origin or Origin(), limits)
    if not data.strip():
        raise DataError(
            "the file is empty",
            code="document.no-text",
            where=path,
            expected="some text",
            next="leave the file out",
        )
    if not parser.is_risky and len(data) <= _SMALL:
        with unreadable(path):
            document = parser.parse(data, source)
    elif worker is not None:
        document = worker.parse(parser, data, source)
    else:
        with Worker() as own:
            document = own.parse(parser, data, source)
    return _describe(document, limits)


def parse_folder(
    root: Path,
    *,
    limits: Limits | None = None,
    origin: Origin | None = None,
    paths: Iterable[Path] | None = None,
) -> Iterator[Document | Failure]:
    """Yield a Document or a Failure for every file of a folder, in order of path.

    Args:
        root: The folder, or one file.
        limits: What each file may cost.
        origin: Who made the files; unknown unless said.
        paths: Only these files of the folder; by default all that ``scan_folder`` finds, after a
            Failure for each path that it refuses.

    Raises:
        DataError: If there is no such file or folder.
    """
    limits = limits or Limits()
    base = root if root.is_dir() else root.parent
    if paths is None:
        scan = scan_folder(root)
        yield from scan.refused
        paths = scan.files
    with Worker() as worker:
        for path in paths:
            try:
                yield parse_file(path, root=base, limits=limits, origin=origin, worker=worker)
            except StillroomError as error:
                first = error.problems[0]
                reason = f"{first.what}; next: {first.next}" if first.next else first.what
                yield Failure(_relative(path, base), first.code, reason)


def _relative(path: Path, root: Path | None) -> str:
    """Return the path below the root with forward slashes, never with lone surrogates."""
    base = root if root is not None else path.parent
    name = (path.relative_to(base) if path.is_relative_to(base) else Path(path.name)).as_posix()
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _refusal(path: Path, real_root: Path) -> str:
    """Say why a path is not read, or nothing."""
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


def _check_size(size: int, name: str, limits: Limits) -> None:
    if size > limits.file_bytes:
        raise DataError(
            f"the file has {size} bytes",
            code="document.too-large",
            where=name,
            expected=f"at most {limits.file_bytes}",
            next="split the file, or raise the limit file_bytes",
        )


def _read(path: Path, name: str, limits: Limits) -> bytes:
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


def _describe(document: Document, limits: Limits) -> Document:
    """Return the document with its language and the count of hidden characters."""
    if len(document.text) > limits.text_characters:
        raise DataError(
            f"the document holds {len(document.text)} characters",
            code="document.too-large",
            where=document.path,
            expected=f"at most {limits.text_characters}",
            next="split the file, or raise the limit text_characters",
        )
    metadata = dict(document.metadata)
    invisible = count_invisible(document.text)
    if invisible:
        metadata["invisible_characters"] = invisible
    language = "" if metadata.get("is_code") else detect_language(document.text)
    return replace(document, language=language, metadata=metadata)
