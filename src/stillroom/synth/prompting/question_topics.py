"""Questions that name what their document is about: "In GnuCash, what ...?".

A reader who sees only "What does the import file contain?" does not know which program is meant;
the title of the document often does. A manual's title names its product, a license's or a law's
title is its name, and a novel is cited by its title. A title of any other form ("Steam engine") and
a heading fit into no sentence, so they stand before it, as people head what they ask in a forum:
"Steam engine - Boiler: What does the valve control?" That needs no grammar of the language.

Own method, by the form of titles and questions in English, German, French, Spanish and Chinese.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from stillroom.records import Passage
from stillroom.synth.lexical_overlap import (
    FUNCTION_WORDS,
    are_balanced,
    collapse_whitespace,
    extract_content_stems,
    extract_names_and_numbers,
    stem,
    word_set,
)
from stillroom.text.unicode import split_words

__all__ = [
    "DocumentTopic",
    "find_innermost_heading",
    "find_topic",
    "head_question",
    "is_untold",
    "name_topic",
    "strip_topic",
]

_GENRES = word_set(
    """manual manuals guide guides handbook reference documentation docs tutorial tutorials faq
    help introduction primer cookbook book concepts howto handbuch benutzerhandbuch referenz
    referenzkarte anleitung dokumentation leitfaden einführung hilfe manuel notice aide manuel
    manual guía tutorial ayuda introducción documentación référence références referencia
    développeur développeurs desarrollador desarrolladores 手册 指南 文档 教程 user user's users
    users' developer's developers developer administrator's administrators' administration
    beginner's beginners quick start getting started installation installing complete official
    programmer's programming reference owner's utilisateur utilisateurs utilisation usuario
    usuarios uso"""
)
"""Words of a manual's title that do not name its product."""

_GENRE_ENDING = re.compile(
    r"-?\w*(?:handbuch|referenz|anleitung|dokumentation|leitfaden|faq)$", re.I
)
_ARTICLES = word_set("the a an das die der le la les el los las l' ein eine")
_JOINING = word_set("and & to for of with zu zum zur für von und de du et pour y para in")
_PARTS = re.compile(r" [–—-] |: | / | \(| \| ")
_ASIDE = re.compile(r" \(((?:[^()]|\([^()]*\))*)\)")  # the brackets of "chroot(2)" are its own
_SITE = re.compile(r" [–—|-] ")
"""Between the title of a page and what it is a page of."""

_SECTION = re.compile(
    r"^(?:chapter|part|section|appendix|kapitel|teil|anhang|abschnitt|chapitre|partie|capítulo|"
    r"parte|sección|第|\d)",
    re.IGNORECASE,
)
_MAX_NAME = 4
_TYPES = word_set(
    """Program System Library Project Editor Server Language Compiler Framework Suite Toolkit
    Protocol Collection Environment"""
)
"""Last words of a product's name that ask for an article before it."""

_LAW = re.compile(
    r"\b(?:License|Licence|Act|Law|Regulation|Directive|Constitution|Convention|Treaty|Agreement|"
    r"Charter|Statute|Covenant|(?:Civil|Penal|Criminal) Code|\w*[Gg]esetz(?:buch)?|\w*[Ll]izenz|"
    r"\w*[Oo]rdnung|Verfassung|Loi|Règlement|Code (?:civil|pénal)|Ley|Licencia|Reglamento|"
    r"Constitución|Código|Tratado|\w+(?:法|条例|许可证|公约))"
    r"(?:,? (?:of|on|for|über|zum|sur|de|del|of the) .+|,? (?:[vV]ersion )?[vV]?[\d.]+(?:/\d+)?"
    r"(?: \w+)?)?$"
)
_FEMININE = re.compile(r"^(?:Licen|Loi|Directive|Consti|Convention|Ley|Directiva)")
_PAST = re.compile(r"\b(?:was|were|did|had|happened)\b")
_SPEECH = re.compile(
    r"\b(?:said|cried|replied|exclaimed|whispered|answered) (?:he|she|I|the|[A-Z]\w+)|"
    r"[,!?][”\"] (?:he|she|I|said)\b|\b(?:Mr|Mrs)\.|\bMiss [A-Z]"
)
_PERSONS = re.compile(r"\b(?:he|she|his|her|him|herself|himself)\b", re.IGNORECASE)
_MIN_PERSONS = 4
_PROCEDURE = re.compile(r"^(?:How can one|What should one do|On what condition)\b")
_PLACED = re.compile(
    r"^(?:In|Under|Dans|Selon|En|Según) [^?]{2,90}?, "
    r"(?=(?:what|who|whom|how|when|where|which|why|on what|in what|for what|qu|que|"
    r"comment|où|à quoi|"
    r"de quoi|en quoi|sur quoi|¿))"
)
_HEADED = re.compile(r"^(?!¿)[^?？]{2,90}?: (?=[^\Wa-z_à-öø-ÿ\d]|[¿„«“])(?=[^?？]{4,}[?？]$)")
_NUMBERED = re.compile(
    r"^(?:(?:chapter|part|section|appendix|article|kapitel|teil|anhang|abschnitt|chapitre|partie|"
    r"annexe|capítulo|parte|sección|apéndice) )?(?:第 ?)?"
    r"(?:\d+(?:\.\d+)*[.):]*|[A-Z](?:(?:\.\d{1,2})+\.?|\.)(?= )|[ivx]+[.)])(?: ?[章节])?"
    r"(?:[\s:]+|(?=[\u4e00-\u9fff]))",
    re.IGNORECASE,
)
"""The number before a heading: "Chapter 3. ", "4.2 "."""

_STRUCTURAL = word_set(
    """overview objectives contents index glossary note notes tip tips hint warning caution example
    examples summary conclusion preface foreword abstract about home untitled document readme
    welcome miscellaneous other description synopsis options usage appendix einleitung überblick
    übersicht inhalt glossar anmerkung anmerkungen hinweis hinweise tipp tipps warnung achtung
    beispiel beispiele zusammenfassung vorwort sonstiges beschreibung anhang aperçu présentation
    sommaire glossaire remarque remarques astuce avertissement attention exemple exemples résumé
    préface divers annexe resumen descripción apéndice índice glosario nota notas consejo
    consejos sugerencia advertencia aviso ejemplo ejemplos prefacio
    概述 简介 介绍 目录 索引 术语表 注意 提示 警告
    示例 总结 前言"""
)
"""Words of a heading that tells only which part of a page it heads."""

_FILE_NAME = re.compile(r"[\w-]+\.(?:html?|md|txt|rst|pdf|docx?|odt)", re.IGNORECASE)
_MAX_HEADED = 70
_MIN_TELLING = 2
"""Content words with which a heading is a subject by itself: "Vendor Jobs", not "Jobs"."""

_NAME_LIKE = re.compile(r"\w[A-ZÄÖÜ]|\w+-[A-ZÄÖÜ]|\d|[\"„“`'»]|\w[._@/]\w|\b[A-Z]\b")
"""A German token that is a name, not only a noun: capitals inside, a hyphen, digits or quotes."""

_DE_DEFINITE = re.compile(r"\b(?:der|die|das|den|dem|des|Ihr\w*|Sie)\b")
_DE_CASE = re.compile(
    r", (?:wenn|falls|sobald|sofern|solange|um)\b.*\b(?:[Dd]er|[Dd]ie|[Dd]as|[Dd]en|[Dd]em|[Dd]es) "
    r"(?:[a-zäöüß]+ ){0,2}[A-ZÄÖÜ][a-zäöüß]+\b(?![-.@/])"
    r"(?! (?:für|von|vom|mit|in|im|aus|auf|des|der|eines|einer|zu|zum|zur)\b)"
)
"""A condition about a thing that only the passage tells: "wenn das Paket nicht ..."."""

_DE_UNTOLD = re.compile(
    r"^W\w+ (?!ist|sind)\w+(?: sich)? (?:der|die|das) [A-ZÄÖÜ][a-zäöüß]+(?: [a-zäöüß]+)*\?$|"
    r"\b(?:auch|aber|jedoch)\b"
)
"""A question about a thing without a trait ("das Programm"), or one that goes on with another."""

_UNTOLD = {
    "en": re.compile(
        r"^What (?:does|do|did|can|may|must|should|will|would|could) the (?P<noun>[a-z]+) [a-z]+"
        r"(?: (?:to [a-z]+|to|for|on|of|from|with|in|into|as))?\?$"
    ),
    "fr": re.compile(
        r"^(?:Qu(?:e |['’])|(?:À|De|Sur|En) quoi |Où )(?:[vn]ous |se )?\w+ "
        r"(?:l['’]|la |le |les )[a-zà-ÿ]+ \?$|"
        r"\b(?:si|quand|lorsque) (?:l['’]|la |le |les )[a-zà-ÿ]+ (?:est|sont|a|ont|était|n['’e])\b"
    ),
    "es": re.compile(
        r"^¿(?:(?:Para |De |En |A )?[Qq]ué|Dónde|Cómo) (?!es|son|era|fue)(?:\w+ )?\w+ "
        r"(?:la|el|los|las) [a-zà-ÿ]+\?$|"
        r"\b(?:si|cuando) (?:la|el|los|las) [a-zà-ÿ]+ (?:es|son|está|están|ha|han|no)\b"
    ),
}
"""Questions about a thing without a trait ("la courbe"), by ISO 639-1 code."""

_DE_TO_DO = re.compile(r"^Was ist zu tun\b")
_DE_PROCEDURE = re.compile(
    r"^(?:Wie (?:können|müssen|sollten)|Was (?:ist zu tun|wird benötigt), um)"
)

_DE_PLACE = re.compile(
    r"^(?:W\w+) (?:ist|sind|geschieht|wird|werden|wurde|wurden|muss|müssen"
    r"|kann|können|könnten|darf|dürfen|sollten?|lässt sich|lassen sich)(?: Sie| man)?\b"
)
_DE_ENDING = re.compile(
    r" (?:ab|an|auf|aus|bei|ein|fest|her|hin|mit|nach|vor|zurück|bereit|dar)\?$"
)


class DocumentTopic(NamedTuple):
    """What a document is about, as its title names it."""

    kind: Literal["product", "law", "work"]
    name: str


def find_topic(passage: Passage) -> DocumentTopic | None:
    """Return what the title of a passage's document, or its outermost heading, names.

    None for a title that is not a name: a subject ("Steam engine"), a chapter, a file's name.
    """
    for title in (passage.title, *passage.headings[:1]):
        line = collapse_whitespace(title).strip("\"'“”«»*`# ")
        is_page = line != passage.title and f": {line}" in passage.title  # "HiveBook: MothTraps"
        if not line or is_page or _SECTION.match(line) or _NUMBERED.match(line):
            continue
        if _LAW.search(line) and "\t" not in line:
            return DocumentTopic("law", re.sub(r" ?\([^)]*\)", "", line))
        if name := _find_product(line):
            return DocumentTopic("product", name)
        if _is_title_case(line) and _is_narrative(passage.text):
            return DocumentTopic("work", line)
    return None


def name_topic(question: str, passage: Passage) -> str:
    """Return a question with the topic of its document named; empty if it lacks one.

    A question that names the topic already is unchanged, and so is one about the past that is not
    about a novel: the document of an event is not where it happened.
    """
    language = passage.language or "en"
    topic = find_topic(passage)
    is_told = language == "en" and _is_narrative(passage.text)
    is_past = _PAST.search(question) is not None or question.startswith("Who ")
    if topic is None:
        return question if _stands_alone(question, language, is_told) else ""
    if topic.kind == "work":
        return f'In "{topic.name}", {_lower(question)}' if is_past else ""
    is_event = language == "en" and _PAST.search(question) is not None
    if language == "de" and (_DE_CASE.search(question) or _DE_UNTOLD.search(question)):
        return ""
    if _names(question, topic.name) or is_event:
        return question
    return _place(question, topic, language)


def is_untold(question: str, passage: Passage) -> bool:
    """Return whether an English question asks what a thing without a trait does ("the process").

    Not if a heading names it, and not in a law, where it is a defined term.
    """
    match = _UNTOLD["en"].match(question) if passage.language in {"", "en"} else None
    if match is None or ((topic := find_topic(passage)) is not None and topic.kind == "law"):
        return False
    headings = extract_content_stems(" ".join((passage.title, *passage.headings)))
    return stem(match["noun"]) not in headings


def find_innermost_heading(passage: Passage) -> str:
    """Return the innermost heading of a passage but for labels ("Notes:"); empty if none."""
    return next((name for name in reversed(passage.headings) if not name.endswith(":")), "")


def head_question(question: str, passage: Passage) -> str:
    """Return a question behind the title and heading of its passage; empty if they are too long.

    What the question names already is left out; it is unchanged if that is both.
    """
    known = set(extract_content_stems(question, frames=False, language=passage.language))
    heading = _clean_heading(find_innermost_heading(passage))
    title = _clean_heading(passage.title or "".join(passage.headings[:1]))
    heading = "" if title.endswith(f" - {heading}") else heading
    parts: list[str] = []
    stems = {
        text: set(extract_content_stems(text, language=passage.language))
        for text in (title, heading)
    }
    if heading and stems[heading] - known:
        parts.append(heading)
    known |= stems[heading]
    if title and len(stems[title]) <= 2 * len(stems[title] - known) > 0:
        is_needed = not heading or len(stems[heading]) < _MIN_TELLING or not parts
        parts = [title, *parts] if is_needed or len(title) + len(heading) < _MAX_HEADED else parts
    if not parts:
        return question
    fitting = (text for text in (" - ".join(parts), *reversed(parts)) if len(text) <= _MAX_HEADED)
    return f"{subject}: {question}" if (subject := next(fitting, "")) else ""


def _clean_heading(text: str) -> str:
    """Return a heading without its number, and without the name of the site behind it."""
    line = collapse_whitespace(text).strip("*`#¶_ ")
    line = line if " " in line else line.replace("_", " ")  # a file's name; "module mod_tls" names
    while (match := _NUMBERED.match(line)) is not None:
        line = line[match.end() :]
    before, colon, behind = line.partition(": ")
    if colon and not _SITE.search(before):  # "HiveBook: Combs", "Appendix: Combs"
        parts = (_split_parts(part)[0].strip() for part in (before, behind))
        bare = " - ".join(part for part in parts if part and not _is_structural(part))
    else:
        bare = _split_parts(line)[0].strip()
    is_mark = ":" in bare or "?" in bare or not any(map(str.isalpha, bare))
    if is_mark or not are_balanced(bare):
        return ""
    return "" if _FILE_NAME.fullmatch(bare) or _is_structural(bare) else bare


def _is_structural(heading: str) -> bool:
    words = heading.split()
    return all(_is_genre(word) or word.casefold() in _STRUCTURAL for word in words)


def strip_topic(question: str) -> str:
    """Return a question without what ``name_topic`` or ``head_question`` put before it."""
    if (headed := _HEADED.match(question)) is not None:
        return question[headed.end() :]
    match = _PLACED.match(question)
    if match is None:
        return question
    rest = question[match.end() :]
    return rest[:1].upper() + rest[1:]


def _stands_alone(question: str, language: str, is_told: bool) -> bool:
    """Return whether a question whose document has no known topic can be understood."""
    if language == "de":
        is_bound = _DE_DEFINITE.search(question) is None and _DE_PROCEDURE.match(question) is None
        is_bound = is_bound or question.startswith(("Was ist ein", "Was sind "))
        return is_bound or _NAME_LIKE.search(question) is not None
    if language != "en":
        return language not in _UNTOLD or _UNTOLD[language].search(question) is None
    has_name = bool(extract_names_and_numbers(question)) or '"' in question
    if question.startswith("Who ") or _PROCEDURE.match(question):
        return has_name
    return not is_told or (has_name and _PAST.search(question) is not None)


def _place(question: str, topic: DocumentTopic, language: str) -> str:
    name, is_law = topic.name, topic.kind == "law"
    if language == "de":
        place = f"laut {name}" if is_law else f"in {name}"
        if question.startswith(("Was ist ", "Was sind ")) and not _DE_TO_DO.match(question):
            has_article = re.match(r"Was \w+ (?:der|die|das|eine?) ", question) is not None
            is_name = _NAME_LIKE.search(question[9:]) is not None
            return f"{question[:-1]} {place}?" if has_article and not is_name else question
        match = _DE_PLACE.match(question) or _DE_ENDING.search(question)
        if match is None:
            is_cause = question.startswith(("Warum ", "Wodurch ", "Womit "))
            return "" if is_cause else f"{question[:-1]} {place}?"
        at = match.end() if match.start() == 0 else match.start()
        return f"{question[:at]} {place}{question[at:]}"
    if language == "fr":
        article = "la" if _FEMININE.match(name) else "le"
        return f"{f'Selon {article}' if is_law else 'Dans'} {name}, {_lower(question)}"
    if language == "es":
        article = "la" if _FEMININE.match(name) else "el"
        return (
            f"{f'Según {article}' if is_law else 'En'} {name}, {question[:1]}{_lower(question[1:])}"
        )
    if language == "zh":
        return f"根据{name}，{question}" if is_law else f"在{name}中，{question}"
    first, _, rest = name.partition(" ")
    bare = rest if first == "The" and rest else name
    article = "the " if is_law or bare.rsplit(" ", 1)[-1] in _TYPES else ""
    return f"{'Under' if is_law else 'In'} {article}{bare}, {_lower(question)}"


def _lower(question: str) -> str:
    return question[:1].lower() + question[1:]


def _names(question: str, name: str) -> bool:
    """Return whether a question holds a name's own words, or its initials."""
    plain = {"License", "Licence", "Public", "General", "Act", "Law", "Software", "Free"}
    own = {word for word in re.findall(r"\w{3,}", name) if word not in plain}
    asked = set(re.findall(r"\w{2,}", question))
    initials = "".join(word[0] for word in name.split() if word[0].isupper())
    return bool(own & asked) or any(
        len(word) > 1 and word.isupper() and word in initials for word in asked
    )


def _find_product(title: str) -> str:
    """Return the product that a manual's title names; empty if it is no manual's."""
    if not _holds_genre(title):
        words = title.split()
        is_coined = len(words) == 1 and re.search(r"\w[A-Z]", title) is not None
        return title if is_coined and title.replace("-", "").isalnum() else ""
    first, *rest = _SITE.split(title)  # "Menus - Hive Manual"
    if not _holds_genre(first) and any(
        _strip_genre(part.split()) for part in rest if _holds_genre(part)
    ):
        return ""
    for part in _split_parts(title):
        if name := _strip_genre(part.split()):
            return name
    return ""


def _split_parts(title: str) -> list[str]:
    return _PARTS.split(_ASIDE.sub(r" | \1 | ", title))


def _holds_genre(part: str) -> bool:
    return any(map(_is_genre, part.split()))


def _strip_genre(words: list[str]) -> str:
    shortened = [
        re.sub(r"-\w+$", "", word) if "-" in word and _is_genre(word) else word for word in words
    ]
    ends = [number for number, word in enumerate(shortened) if _is_genre(word)]
    head = shortened[: ends[0]] if ends else shortened
    if not _strip_ends(head) and ends:
        head = [word for word in shortened[ends[-1] + 1 :] if not _is_genre(word)]
    kept = _strip_ends(head)
    name = " ".join(kept)
    is_name = 1 <= len(kept) <= _MAX_NAME and any(letter.isalpha() for letter in name)
    return name if is_name and (len(kept) == 1 or name != name.lower()) else ""


def _strip_ends(words: list[str]) -> list[str]:
    kept = list(words)
    while kept and kept[0].casefold() in _ARTICLES | _JOINING:
        kept = kept[1:]
    while kept and kept[-1].casefold().strip(",") in _JOINING | _ARTICLES:
        kept = kept[:-1]
    return kept


def _is_genre(word: str) -> bool:
    plain = word.strip(',.:;()“”"').replace("’", "'").casefold()
    plain = plain[2:] if plain.startswith(("l'", "d'")) else plain
    return plain in _GENRES or _GENRE_ENDING.search(plain) is not None


def _is_title_case(title: str) -> bool:
    words = [word for word in split_words(title) if word.casefold() not in FUNCTION_WORDS]
    plain = re.findall(r"[^\W\d_][\w'’]*", title)
    capital = [word for word in plain if word[0].isupper()]
    return bool(words) and len(capital) >= len(words) and not re.search(r"[\d_]", title)


def _is_narrative(text: str) -> bool:
    """Return whether a passage tells a story: somebody speaks, or persons act without a date."""
    if _SPEECH.search(text):
        return True
    return not re.search(r"\d", text) and len(_PERSONS.findall(text)) >= _MIN_PERSONS
