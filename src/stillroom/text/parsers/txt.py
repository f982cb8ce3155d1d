"""Plain text and source code, byte for byte.

The encoding is detected by byte order mark, then UTF-8, then statistics; see ``encoding``.
Functions and classes of source code are sections, so that it can be split between them, and so are
the chapters, articles and the like of other texts, and their underlined headings.
"""

from __future__ import annotations

import re
from typing import ClassVar

from typing_extensions import override

from stillroom.records import Document, Heading
from stillroom.text.code import CODE_SUFFIXES, detect_code_language, find_definitions, is_code
from stillroom.text.documents.builder import build_document, require_text
from stillroom.text.documents.underlined_headings import find_underlined_headings
from stillroom.text.encoding import build_anchors, decode_text
from stillroom.text.interfaces import Parser, SourceFile

__all__ = ["Txt"]


class Txt(Parser):
    """Text files of any encoding, and source code."""

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".text", ".log", *CODE_SUFFIXES)
    media_type: ClassVar[str] = "text/plain"

    @override
    def parse(self, data: bytes, source: SourceFile) -> Document:
        decoded = decode_text(data, source.path)
        metadata = dict(decoded.metadata)
        headings = []
        title = ""
        if is_code(source.path, decoded.text):
            metadata["is_code"] = True
            language = detect_code_language(source.path, decoded.text)
            if language:
                metadata["programming_language"] = language
                headings = list(find_definitions(decoded.text, language))
            title = source.stem
        else:
            headings = _find_numbered_headings(decoded.text)
            title = source.stem if len(headings) > 1 else ""  # one chapter may name its file
            if not headings:
                headings = list(find_underlined_headings(decoded.text, is_plain=True))
                tops = [one.start for one in headings if one.level == 1]
                title = "" if len(tops) == 1 and tops[0] < _TITLE_WITHIN else source.stem
        document = build_document(
            decoded.text,
            build_anchors(decoded),
            source,
            headings=headings,
            title=title,
            metadata=metadata,
        )
        return require_text(document)


# English, German, French, Spanish and Chinese names of parts, the outermost first.
_OUTER = r"volume|book|part|band|buch|teil|tome|livre|partie|tomo|libro|parte"
_MIDDLE = r"chapter|canto|act|kapitel|akt|chapitre|acte|cap[ií]tulo|acto"
_INNER = (
    r"article|section|amendment|appendix|annex|letter|s[cz]ene|artikel|abschnitt|anhang|brief"
    r"|annexe|lettre|sc[eè]ne|art[ií]culo|secci[oó]n|anexo|carta|escena|§"
)
_NUMBER = (
    r"(?:\d{1,4}|[ivxlc]{1,8}|[a-z]|the \w+"
    r"|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)"
)
_HEADING = re.compile(
    rf"(?:(?P<outer>{_OUTER})|(?P<middle>{_MIDDLE})|(?P<inner>{_INNER}))(?:\s+|(?<=§)){_NUMBER}\b"
    r"(?P<rest>\.?|\s*[.:–—-]\s*\S.*|\s+\(.*\)|\s+(?-i:[A-Z\d]).*)"
    r"|第[一二三四五六七八九十百千零〇\d]{1,6}(?:(?P<outer_zh>[部卷編编篇])|(?P<middle_zh>[章回])"
    r"|[节節条條])(?P<rest_zh>(?:\s+\S.*)?)",
    re.IGNORECASE,
)
_ALONE = re.compile(r"(?:\A|\n[ \t\r]*\n)[ \t]*(?P<line>\S[^\n]*?)[ \t\r]*(?=\n[ \t\r]*\n|\s*\Z)")
_MAX_LENGTH = 100
_TITLE_WITHIN = 300  # characters from the start, within which the one top heading names the file
_SENTENCE_ENDS = (".", ",", ";", "。", "；", "，")


def _find_numbered_headings(text: str) -> list[Heading]:
    """Return the headings of a plain text, in order; levels count the kinds that it has.

    They are lines of their own such as "CHAPTER 8. The Pulpit" or "Article IV": books and laws
    without markup name their parts so. Any other line may be a sentence, and is none.
    """
    found = []
    for line in _ALONE.finditer(text):
        if len(line["line"]) > _MAX_LENGTH:
            continue
        match = _HEADING.fullmatch(line["line"])
        if match is None:
            continue
        rank = 0 if match["outer"] or match["outer_zh"] else 1
        rank += not (match["outer"] or match["outer_zh"] or match["middle"] or match["middle_zh"])
        rest = match["rest"] or match["rest_zh"] or ""
        # "Article 3. No toll is due." is a law's sentence, "Chapter 3. The Toll." a book's title.
        if rank == 2 and len(rest) > 1 and rest.endswith(_SENTENCE_ENDS):
            continue
        found.append((line.start("line"), rank, line["line"]))
    ranks = sorted({rank for _, rank, _ in found})
    return [Heading(start, ranks.index(rank) + 1, title) for start, rank, title in found]
