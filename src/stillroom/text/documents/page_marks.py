"""Statements of origin in web pages: JSON-LD, microdata, ``meta`` elements and attributes.

What a page says of its pictures and clips, or of works that it cites, says nothing of its text.

Sources: schema.org (``digitalSourceType``, ``creditText``); WHATWG HTML, section 5 (microdata).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stillroom.text.documents.markup import VOID_ELEMENTS, read_attributes, tokenize
from stillroom.text.documents.statements import MarkCollector

__all__ = ["collect_page_marks"]

_MENTIONED = re.compile(
    r"digital[_ -]?source[_ -]?type|credittext|aigc|ai[-_]?generated|ai-disclosure", re.I
)
_OWN_PROPERTIES = ("digitalSourceType", "creditText")
_PART_PROPERTIES = (
    *("@graph", "mainEntity", "mainEntityOfPage", "hasPart", "acceptedAnswer", "suggestedAnswer"),
    *("comment", "blogPost"),
)
_TEXT_TYPE = re.compile(
    r"(?:https?://schema\.org/|schema:)?(?:\w*(?:Article|Posting|Page|Document|Review|Thesis|Story)|"
    r"CreativeWork|Book|Chapter|Report|HowTo|Recipe|Question|Answer|Comment|Message|Quotation|"
    r"LearningResource|Course|Poem|Blog|Guide|Legislation|Manuscript|Newspaper)"
)
_WHOLE = frozenset({"html", "body", "main", "article"})


@dataclass(slots=True)
class _Scope:
    """An open element, and whether its properties are those of a text."""

    name: str
    is_text: bool


def collect_page_marks(page: str, marks: MarkCollector, where: str = "") -> None:
    """Read what a page says of the origin of its text; a page without such words costs a search."""
    if not _MENTIONED.search(page):
        return
    scopes = [_Scope("", is_text=True)]
    kind = ""
    for token in tokenize(page):
        if token.kind == "end":
            depth = next(
                (n for n in range(len(scopes) - 1, 0, -1) if scopes[n].name == token.name), 0
            )
            del scopes[depth or len(scopes) :]
        elif token.kind == "text":
            if token.name == "script" and kind == "application/ld+json":
                for name, value in _read_json_ld(page[token.start : token.end]):
                    marks.add_property(f"{where}JSON-LD", name, value)
        else:
            given = read_attributes(token.attributes) if token.attributes.strip() else {}
            kind = given.get("type", "").strip().lower()
            _read_element(token.name, given, scopes, marks, where)


def _read_element(
    name: str, given: Mapping[str, str], scopes: list[_Scope], marks: MarkCollector, where: str
) -> None:
    is_text = scopes[-1].is_text
    if "itemscope" in given or "typeof" in given:
        kinds = (given.get("itemtype") or given.get("typeof") or "").split()
        is_text = any(map(_TEXT_TYPE.fullmatch, kinds))
    value = given.get("content") or given.get("href") or given.get("resource") or ""
    if name == "meta" and (key := given.get("name") or given.get("property")):
        marks.add_property(f"{where}meta", key, value)
    item = given.get("itemprop") or ("" if name == "meta" else given.get("property", ""))
    if is_text and item.rpartition(":")[2] in _OWN_PROPERTIES:
        marks.add_property(f"{where}microdata", item, value)
    if name in _WHOLE and "ai-disclosure" in given:
        marks.add_property(f"{where}{name}", "ai-disclosure", given["ai-disclosure"])
    if name not in VOID_ELEMENTS:
        scopes.append(_Scope(name, is_text))


def _read_json_ld(text: str) -> Iterator[tuple[str, Any]]:
    """Yield what JSON-LD says of the origin of texts, in a page's own nodes."""
    try:
        waiting: list[Any] = [json.loads(text)]
    except (ValueError, RecursionError):
        return
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += node
        elif isinstance(node, Mapping):
            kinds = node.get("@type", "")
            kinds = kinds if isinstance(kinds, list) else [kinds]
            if any(_TEXT_TYPE.fullmatch(str(one)) for one in kinds):
                yield from ((key, node[key]) for key in _OWN_PROPERTIES if key in node)
            waiting += [node[key] for key in _PART_PROPERTIES if key in node]
