"""DocBook and Mallard: manuals in XML, as of GNOME and KDE, each block with its byte range.

Elements are renamed to those of HTML that look like them, and read as a page whose every block
counts. An element that has no such name is part of the text. Entities are expanded as the file, or
another one of its folder, declares them; of others the name stays. Authors of a manual are no text.

Sources: DocBook 5.1 (OASIS 2016); Mallard 1.1 (projectmallard.org).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from typing_extensions import override

from stillroom.records import Document
from stillroom.text.documents.builder import DocumentBuilder
from stillroom.text.documents.entities import (
    EntityExpander,
    find_subset,
    read_entity_declarations,
)
from stillroom.text.documents.main_content import extract_main_content
from stillroom.text.documents.markup import MarkupToken, tokenize
from stillroom.text.encoding import decode_text
from stillroom.text.interfaces import Parser, SourceFile

__all__ = ["Docbook"]

_ENCODING = re.compile(rb"""<\?xml[^>]{0,100}?encoding\s*=\s*["']([\w.:-]+)""")
_ENTITY = re.compile(rb"&(?!(?:amp|lt|gt|apos|quot);)[\x00A-Za-z_:]")  # in UTF-16, too
_MAX_SUBSET_BYTES = 64 * 1024
_SECTIONS = frozenset(
    "book part reference chapter appendix preface article section simplesect sect1 sect2 sect3"  # noqa: SIM905
    " sect4 sect5 refentry refsection refsect1 refsect2 refsect3 glossary bibliography page".split()
)
_NAMES = {
    name: html
    for html, names in (
        ("p", "para simpara p formalpara subtitle author editor copyright desc refname"),
        ("p", "refpurpose cmdsynopsis funcsynopsis screeninfo bridgehead"),
        ("div", "abstract legalnotice note warning tip caution important example informalexample"),
        ("div", "figure listing quote blockquote epigraph varlistentry glossentry qandaentry info"),
        ("div", "question answer procedure sidebar synopsis"),
        ("ul", "itemizedlist simplelist calloutlist list tree"),
        ("ol", "orderedlist steps substeps"),
        ("li", "listitem step member callout item"),
        ("dl", "variablelist glosslist terms"),
        ("dt", "term glossterm"),
        ("dd", "glossdef"),
        ("pre", "programlisting screen literallayout"),
        ("table", "table informaltable"),
        ("tr", "row tr"),
        ("td", "entry td"),
        ("sup", "superscript"),
        ("thead", "thead"),
        ("template", "keywordset revhistory revision indexterm imageobject textobject media"),
        ("template", "credit remark include othercredit"),
    )
    for name in names.split()
}
_PEOPLE = frozenset(
    "affiliation author authorgroup authorinitials collab corpauthor editor".split()  # noqa: SIM905
)


class Docbook(Parser):
    """DocBook and Mallard documents."""

    suffixes: ClassVar[tuple[str, ...]] = (".docbook", ".dbk", ".page")
    media_type: ClassVar[str] = "application/docbook+xml"
    is_risky: ClassVar[bool] = True

    @staticmethod
    def has_entities(data: bytes) -> bool:
        """Return whether a document has entities that other files may declare."""
        return bool(_ENTITY.search(data))

    @override
    def read_declared(self, data: bytes, file: Path, root: Path) -> Mapping[str, str]:
        if not self.has_entities(data):
            return {}
        start = data[:_MAX_SUBSET_BYTES].decode("utf-8", "replace")
        return read_entity_declarations(start, file, root)

    @override
    def parse(self, data: bytes, source: SourceFile) -> Document:
        declared = _ENCODING.match(data)
        decoded = decode_text(
            data, source.path, declared=declared.group(1).decode() if declared else ""
        )
        assembly = DocumentBuilder(source)
        extract_main_content(
            decoded,
            assembly,
            keep_all=True,
            is_xml=True,
            read_tokens=_rename,
            entities=EntityExpander(decoded.text, source.declared),
        )
        return assembly.finish(metadata=decoded.metadata)


def _rename(text: str) -> Iterator[MarkupToken]:
    """Yield the tokens of a document with HTML's names."""
    subset = find_subset(text)
    first = subset.end() if subset else 0
    opened: list[tuple[str, str]] = []
    counts: Counter[str] = Counter()
    for token in tokenize(text, has_raw_text=False):
        if token.start < first:
            continue
        if token.kind == "start":
            name = _choose_name(token, opened)
            if not token.attributes.endswith("/"):
                opened.append((token.name, name))
                counts[token.name] += 1
            yield replace(token, name=name)
        elif token.kind == "end":
            while counts[token.name]:
                element, name = opened.pop()
                counts[element] -= 1
                yield replace(token, name=name)
                if element == token.name:
                    break
        else:
            yield token


def _choose_name(token: MarkupToken, opened: list[tuple[str, str]]) -> str:
    """Return HTML's name for an element within ``opened``, pairs of own and HTML's names."""
    name, near = token.name, [element for element, _ in opened[-3:]]
    parent = near[-1] if near else ""
    if name == "title":
        if "type=" in token.attributes:  # of Mallard's links to the page
            return "template"
        if not _SECTIONS.isdisjoint(near[-2:-1] if parent.endswith("info") else near[-1:]):
            return f"h{min(sum(element in _SECTIONS for element, _ in opened), 6)}"
        return "dt" if "terms" in near[-2:] else "p"
    if name in _PEOPLE and parent.endswith("info"):
        return "template"
    if name == "code" and (parent in _SECTIONS or _NAMES.get(parent) in {"div", "li"}):
        return "pre"
    if name == "item" and parent == "terms":
        return "div"
    if name == "listitem" and parent == "varlistentry":
        return "dd"
    if name == "entry" and "thead" in near:
        return "th"
    return "section" if name in _SECTIONS else _NAMES.get(name, "span")
