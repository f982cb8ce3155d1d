"""EPUB books: chapters in reading order, labeled by file name."""

from __future__ import annotations

import posixpath
from typing import Any, ClassVar
from urllib.parse import unquote

from typing_extensions import override

from stillroom.errors import DataError, MissingExtraError
from stillroom.records import Document
from stillroom.text.documents.builder import DocumentBuilder
from stillroom.text.documents.main_content import extract_main_content
from stillroom.text.documents.office import CheckedArchive, open_archive, unreadable_as_error
from stillroom.text.documents.page_marks import collect_page_marks
from stillroom.text.documents.statements import MarkCollector
from stillroom.text.encoding import decode_text
from stillroom.text.interfaces import Parser, SourceFile

__all__ = ["Epub"]

_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_MAX_PROPERTY = 2000  # characters; statements of rights have hundreds


class Epub(Parser):
    """EPUB 2 and 3 without DRM."""

    suffixes: ClassVar[tuple[str, ...]] = (".epub",)
    media_type: ClassVar[str] = "application/epub+zip"
    is_risky: ClassVar[bool] = True

    @override
    def parse(self, data: bytes, source: SourceFile) -> Document:
        archive = open_archive(data, source.path, source.limits)
        root = _find_root(archive)
        missing = 0
        with unreadable_as_error(source.path):
            package, folder = _read_package(archive, root)
            title = _first(package, "title")
            chapters = [root + name for name in _chapters(package, folder)]
            _check_locks(archive, root, chapters, source.path)
            assembly, marks = DocumentBuilder(source), MarkCollector()
            marks.add_archive(archive)
            _read_properties(package, marks)
            for name in chapters[: source.limits.pages]:
                if name not in archive:
                    missing += 1
                    continue
                page = decode_text(archive.read(name), f"{source.path}/{name}")
                collect_page_marks(page.text, marks, f"{name}, ")
                extract_main_content(
                    page, assembly, span=archive.span(name), label=name, keep_all=True, is_xml=True
                )
        metadata: dict[str, Any] = {"chapters": len(chapters), "chapters_missing": missing}
        for key in ("creator", "language", "rights"):
            value = _first(package, key)
            if value:
                cut = value[: _MAX_PROPERTY - 1] + "\N{HORIZONTAL ELLIPSIS}"
                metadata[f"declared_{key}"] = value if len(value) <= _MAX_PROPERTY else cut
        return assembly.finish(title=title, metadata={**metadata, **marks.to_metadata()})


def _find_root(archive: CheckedArchive) -> str:
    """Return the folder that holds the book, ending in "/"; empty if that is the archive itself.

    Some books are zipped with the folder that they lay in, as Debian's handbooks (``epub/``).
    """
    names = archive.file.namelist()
    roots = [name.removesuffix(_CONTAINER) for name in names if name.endswith("/" + _CONTAINER)]
    return roots[0] if len(roots) == 1 and _CONTAINER not in archive else ""


def _read_package(archive: CheckedArchive, root: str) -> tuple[Any, str]:
    """Return the package document as an element, and its folder within the book."""
    with MissingExtraError.guard("defusedxml", "documents", "reading EPUB books"):
        from defusedxml import ElementTree
    container = ElementTree.fromstring(archive.read(root + _CONTAINER))
    path = next(
        element.get("full-path") for element in container.iter() if _name(element) == "rootfile"
    )
    return ElementTree.fromstring(archive.read(f"{root}{path}")), posixpath.dirname(path)


def _read_properties(package: Any, marks: MarkCollector) -> None:
    """Search the metadata of the book for marks of origin; not those of one of its files."""
    section = next((element for element in package if _name(element) == "metadata"), ())
    for element in section:
        if not element.get("refines"):
            name = element.get("property") or element.get("name") or _name(element)
            value = element.get("content") or "".join(element.itertext())
            marks.add_property("the book's metadata", name, value)


def _chapters(package: Any, folder: str) -> list[str]:
    """Return the spine's members in reading order, without the table of contents."""
    lists = {
        element.get("id")
        for element in package.iter()
        if _name(element) == "item" and "nav" in (element.get("properties") or "").split()
    }
    files = {
        element.get("id"): (element.get("href", ""), element.get("media-type", ""))
        for element in package.iter()
        if _name(element) == "item"
    }
    chapters = []
    for element in package.iter():
        if _name(element) == "itemref" and element.get("idref") in files:
            href, media_type = files[element.get("idref")]
            if element.get("idref") in lists:
                continue
            if "html" in media_type or not media_type:
                path = unquote(href.partition("#")[0])
                chapters.append(posixpath.normpath(posixpath.join(folder, path)))
    return list(dict.fromkeys(chapters))


def _check_locks(archive: CheckedArchive, root: str, chapters: list[str], where: str) -> None:
    if root + _ENCRYPTION not in archive:
        return
    locks = archive.read(root + _ENCRYPTION).decode("utf-8", "replace")
    # Obfuscated fonts do not matter.
    if any(name.removeprefix(root) in locks for name in chapters):
        raise DataError(
            "the book is protected by a digital lock",
            code="document.encrypted",
            where=where,
            expected="a book without one",
            next="get a copy without a lock, or leave it out",
        )


def _first(package: Any, name: str) -> str:
    texts = (element.text for element in package.iter() if _name(element) == name and element.text)
    return " ".join(next(texts, "").split())


def _name(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]
