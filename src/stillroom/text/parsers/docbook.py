"""DocBook and Mallard: manuals in XML, as of GNOME and KDE, each block with its byte range.

Elements are renamed to those of HTML that look like them, and read as a page whose every block
counts. An element that has no such name is part of the text. Entities are expanded as the file, or
another one of its folder, declares them; of others the name stays. Authors of a manual are no text.
What a stylesheet would write is written: the signs between keys and menus, and for an empty
reference the title of its target, or the target's name if another file holds it.

Sources: DocBook 5.1 (OASIS 2016); Mallard 1.1 (projectmallard.org).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from html.entities import name2codepoint
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
from stillroom.text.documents.markup import MarkupToken, read_attributes, tokenize
from stillroom.text.encoding import decode_text
from stillroom.text.interfaces import Parser, SourceFile

__all__ = ["Docbook"]

_ENCODING = re.compile(rb"""<\?xml[^>]{0,100}?encoding\s*=\s*["']([\w.:-]+)""")
_ENTITY = re.compile(rb"&(?:([A-Za-z_:][\w.:-]{0,63});|\x00)")  # in UTF-16, too
# Latin letters and punctuation. Not the signs of mathematics: a manual's &prod; may be its product.
_CHARACTERS = frozenset(
    {"apos"} | {name for name, code in name2codepoint.items() if code < 0x2100 and code >> 8 != 3}
)
_MAX_SUBSET_BYTES = 64 * 1024
_MAX_GAP = 64  # characters of white space before an end tag
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
_ADMONITIONS = frozenset("note tip warning caution important".split())  # noqa: SIM905
_SEPARATORS = {"keycombo": "+", "keyseq": "+", "menuchoice": " \u2192 ", "guiseq": " \u2192 "}
_KEY_SEPARATORS = {"seq": " ", "sequence": " ", "press": "-", "click": "-", "double-click": "-"}
_REFERENCES = frozenset({"xref", "link", "ulink"})
_TARGET = re.compile(
    r"<[^<>\s/!?]++\s([^<>]*+)>(?:\s++|<!--(?>.{0,900}?-->)|<\w*info\b[^<>]*+>)*+"
    r"(?:<(title|term|refentrytitle)\b[^<>]*+>(.{0,500}?)</\2\s*>)?",
    re.DOTALL,
)
_MARKUP = re.compile(r"<[^<>]*+>")


class Docbook(Parser):
    """DocBook and Mallard documents."""

    suffixes: ClassVar[tuple[str, ...]] = (".docbook", ".dbk", ".page")
    media_type: ClassVar[str] = "application/docbook+xml"
    is_risky: ClassVar[bool] = True

    @staticmethod
    def has_entities(data: bytes) -> bool:
        """Return whether a document has entities that other files may declare."""
        return any(
            match[1] is None or match[1].decode() not in _CHARACTERS
            for match in _ENTITY.finditer(data)
        )

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


@dataclass(slots=True)
class _Opened:
    """An open element: its own name and HTML's, and what stands between its children, if set."""

    name: str
    html: str
    separator: str = ""
    children: int = 0


def _rename(text: str) -> Iterator[MarkupToken]:
    """Yield the tokens of a document with HTML's names, and what a stylesheet writes."""
    subset = find_subset(text)
    first = subset.end() if subset else 0
    titles = _find_titles(text) if any(f"<{name}" in text for name in _REFERENCES) else {}
    opened = [_Opened("", "")]
    counts: Counter[str] = Counter()
    for token in tokenize(text, has_raw_text=False):
        if token.start < first:
            continue
        if token.kind == "start":
            yield from _write(token, _find_opening(token, opened[-1]))
            name = _choose_name(token, opened)
            if not token.attributes.endswith("/"):
                opened.append(_Opened(token.name, name, _choose_separator(token)))
                counts[token.name] += 1
            yield replace(token, name=name)
            yield from _write(token, _describe_target(text, token, titles))
        elif token.kind == "end":
            yield from _write(token, _find_closing(text, token, opened))
            while counts[token.name]:
                element = opened.pop()
                counts[element.name] -= 1
                yield replace(token, name=element.html)
                if element.name == token.name:
                    break
        elif not (opened[-1].separator and text[token.start : token.end].isspace()):
            opened[-1].separator = ""  # the author wrote it
            yield token


def _write(token: MarkupToken, written: str) -> Iterator[MarkupToken]:
    """Yield a text in place of a tag, if it is not empty."""
    if written:
        yield replace(token, kind="text", name="", written=written)


def _find_opening(token: MarkupToken, parent: _Opened) -> str:
    """Return what stands before an element: keys and menus, and their shortcut in parentheses."""
    is_shortcut = token.name == "shortcut"
    follows = parent.separator and parent.children
    parent.children += not is_shortcut
    if is_shortcut:
        return " (" if follows else "("
    return parent.separator if follows else ""


def _choose_separator(token: MarkupToken) -> str:
    """Return what stands between the children of an element: keys and menus."""
    separator = _SEPARATORS.get(token.name, "")
    if separator != "+":
        return separator
    attributes = read_attributes(token.attributes)
    return _KEY_SEPARATORS.get(attributes.get("action", attributes.get("type", "")), separator)


def _find_titles(text: str) -> dict[str, str]:
    """Return the titles of the elements that have an id, or the labels for references to them."""
    titles: dict[str, str] = {}
    for match in _TARGET.finditer(text):
        attributes = read_attributes(match[1]) if "id" in match[1] else {}
        name = attributes.get("id", attributes.get("xml:id", ""))
        title = " ".join(_MARKUP.sub("", match[3] or "").split()).rstrip(".")
        if name:
            titles.setdefault(
                name, attributes.get("xreflabel") or (title and f"\u201c{title}\u201d")
            )
    return titles


def _describe_target(text: str, token: MarkupToken, titles: Mapping[str, str]) -> str:
    """Return the text of an empty reference: a title, the id of a target elsewhere, an address."""
    is_empty = token.attributes.endswith("/") or text.startswith("</", token.end)
    if token.name not in _REFERENCES or not is_empty:
        return ""
    attributes = read_attributes(token.attributes)
    if "type" in attributes and token.name == "link":  # of Mallard's links to the page
        return ""
    name = attributes.get("linkend", attributes.get("xref", ""))
    return titles.get(name) or name or attributes.get("url", attributes.get("xlink:href", ""))


def _find_closing(text: str, token: MarkupToken, opened: list[_Opened]) -> str:
    """Return what ends a shortcut, or the title of a note or warning that is no sentence."""
    names = [element.name for element in opened[-2:]]
    if names[1:] != [token.name]:
        return ""
    if token.name == "shortcut":
        return ") "
    is_label = text[max(token.start - _MAX_GAP, 0) : token.start].rstrip()[-1:].isalnum()
    return ":" if token.name == "title" and names[0] in _ADMONITIONS and is_label else ""


def _choose_name(token: MarkupToken, opened: list[_Opened]) -> str:
    """Return HTML's name for an element within those of ``opened``."""
    name, near = token.name, [element.name for element in opened[-3:]]
    parent = near[-1] if near else ""
    if name == "title":
        if "type=" in token.attributes:  # of Mallard's links to the page
            return "template"
        if not _SECTIONS.isdisjoint(near[-2:-1] if parent.endswith("info") else near[-1:]):
            return f"h{min(sum(element.name in _SECTIONS for element in opened), 6)}"
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
