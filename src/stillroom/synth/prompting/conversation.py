"""Record content: questions, answers, conversation turns and evidence quotes.

The functions accept any record and return an empty value where something is missing. Offsets refer
to the document's text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from stillroom.evaluate.final_answer import extract_answer, is_answer_marked
from stillroom.records import Message, Passage, Record
from stillroom.synth.interfaces import FilterContext
from stillroom.synth.lexical_overlap import (
    FUNCTION_WORDS,
    are_balanced,
    collapse_whitespace,
    extract_content_stems,
    extract_content_words,
    rouge_l,
    word_set,
)
from stillroom.synth.prompting.english_questions import name_subject
from stillroom.synth.prompting.question_topics import find_topic
from stillroom.synth.prompting.requests import to_one_line
from stillroom.text.language import split_sentences
from stillroom.text.unicode import split_words

__all__ = [
    "Quote",
    "echoes_question",
    "end_sentence",
    "find_best_quote",
    "find_statements",
    "get_evidence_passage",
    "get_evidence_quote",
    "get_exchanges",
    "get_final_answer",
    "get_full_text",
    "get_history",
    "get_last_answer",
    "get_last_instruction",
    "get_prompt_messages",
    "get_question",
    "get_reference_answer",
    "get_solution",
    "get_text_field",
    "is_empty_answer",
    "is_refusal",
    "make_qa_messages",
    "parse_numbered_list",
    "refers_to_source",
]

_STOPS = ".!。．।"
_MIN_WORDS, _MAX_WORDS = 6, 44
_MIN_CHARACTERS, _MAX_CHARACTERS = 10, 120
"""Bounds of a sentence in a script without spaces."""

_MIN_CONTENT = 4

_OPENERS = word_set(
    """this that these those it its they them their he she his her such here there also however
    thus therefore hence otherwise then similarly likewise conversely finally moreover
    furthermore additionally instead consequently nevertheless but and or so yet note see
    both neither either another others one some above below previously next first second
    third we i let let's let’s"""
)

_ANAPHORA = re.compile(
    r"\b(see|sections?|for (?:more|details|example|instance|further)|"
    r"(?:described|shown|given|listed|discussed|defined|mentioned|noted|explained|documented|"
    r"covered) (?:above|below|earlier|later|here|in)|(?:previously|already) \w+ed|"
    r"the following|as follows|following "
    r"(?:example|code|table|list)|in this (?:case|section|example|chapter|way)|(?:this|these|those|"
    r"the (?:above|previous|preceding)) \w+|the (?:former|latter)\b|(?:above|below)(?=[:.,;)])|"
    r"(?:more|further) (?:information|details)|in (?:more|greater) detail|"
    r"such (?!as\b|that\b|an?\b)\w+|"
    r"(?:on|for|in|at|by|of|from|to|with) that (?!which|of)\w+|(?:therefore|thus|hence|however|"
    r"moreover|nevertheless|accordingly|consequently|likewise|furthermore)\b|"
    r"aforementioned|changed in version|"
    r"new in version|deprecated since)\b",
    re.IGNORECASE,
)

_CONNECTING = re.compile(
    r"^(?:(?:By|In) contrast|On the (?:other hand|contrary)|In (?:addition|other \w+|turn|short|"
    r"fact|such \w+|either case|both cases)|As (?:a result|such|before)|"
    r"At the same time|After all|Of "
    r"course|Even so|For (?:example|instance|(?:the same|that) reason)|Because of|"
    r"After that|At first|"
    r"Until then|Since then|Still|Again|Besides|Now|Here|Meanwhile|Accordingly|Rather)\b"
)
"""Openings that join a statement to the one before it."""

_POINTING_BACK = {
    "de": re.compile(
        r"\b(?:dort|hier\w*|besagt\w*|derartig\w*|obig\w*|oben|unten|siehe|(?:oben |vorher |zuvor |"
        r"bereits )?(?:genannte|erwähnte|beschriebene)[nrsm]?|nachstehend\w*|vorstehend\w*|folgend"
        r"\w*|solche[nrsm]?|jedoch|allerdings|daher|deshalb|somit|dagegen|hingegen|außerdem|"
        r"dazu|dafür|dabei|davon|daraus|darauf|darin|[Dd]ies(?:e[rsmn]?)?|[Jj]ene[rsmn]?|genau das|"
        r"Abschnitt|Kapitel|Abbildung|Tabelle|[Ll]esen Sie|(?:weitere|mehr|nähere|"
        r"ausführliche|umfassende) (?:Informationen|Einzelheiten|Details|Angaben))\b"
        r"|^(?!(?:Wenn|Falls|Sobald|Sofern|Solange)\b).*\bdann\b"
    ),
    "fr": re.compile(
        r"\b(?:ci-dessus|ci-dessous|ci-après|suivante?s?|précédente?s?|voir|cependant|toutefois|"
        r"ainsi|donc|également|plus d['’]information(?:s)?|plus de détails|"
        r"(?:davantage|de plus amples) (?:d['’]|de )?(?:information(?:s)?|détails)|"
        r"chapitre|section|ces|cette|cet|ce (?!qu|dont|n['’]|sont|soit)\w+)\b",
        re.IGNORECASE,
    ),
    "es": re.compile(
        r"\b(?:anterior\w*|siguientes?|véase|arriba|abajo|sin embargo|además|por lo tanto|también|"
        r"más (?:información|detalles)|capítulo|sección|(?:est[aeo]|ese|es[ao])s?)\b",
        re.IGNORECASE,
    ),
    "zh": re.compile(
        "上述|下述|以下|如下|(?<!在)[上下]面|此外|这[种类些一]|(?<![彼因如从至])此[处时类种]|^参[考见阅]|"
        "[参见阅]第 ?\\d|请?(?:参[考见阅]|查看第)|更多(?:信息|资料|详情)"
    ),
}
"""Words of an answer that point to another sentence, by ISO 639-1 code."""

_CODE = re.compile(
    r"\s\d{1,2}[.)] [A-ZÄÖÜ]|```|::=|>>>|[{}|\\]|\.\.\.|…|==|;\s*\n|\w+\(\w+=|\s=\s|https?://|\s\*\s"
)
_ENUMERATION = re.compile(r"(?:\d{1,3}|[a-zA-Z]|[ivxIVX]{1,5})[.)]\s|\w+:\s")
_BULLET = re.compile(
    r"(?:[-*•–] |\(?(?:\d{1,2}|[a-z]|[ivx]{1,4})[.)] |\d{1,2}(?:\.\d{1,2})+\.? )\s*"
    r"(?=[A-ZÄÖÜÉÀ¿\"“„«])"
)


@dataclass(frozen=True, slots=True)
class Quote:
    """A span of a passage; ``start`` and ``end`` are offsets in the document."""

    passage_id: str
    start: int
    end: int
    text: str

    def to_json(self) -> dict[str, Any]:
        """Return the record's ``evidence`` field."""
        return {
            "passage_id": self.passage_id,
            "quote": self.text,
            "start": self.start,
            "end": self.end,
        }


_NOTICE = re.compile(
    r"©|\bcopyright (?:\(c\) )?(?:by |\d{4})|\(c\) (?:copyright )?\d{4}|"
    r"\ball rights reserved\b|\bpermission is hereby granted\b|"
    r"\bpermission is granted to (?:copy|use|make|modify|(?:re)?distribute|reproduce|any\w*)\b|"
    r"\bprovided [\"“']as[ -]is|\bwithout (?:any )?warranty\b|"
    r"\b(?:licensed|distributed|released|redistribut\w+) under (?:the )?terms\b|"
    r"\b(?:licensed|distributed|released|redistribut\w+|available) under [^.]{2,60} licen[cs]e|"
    r"\balle rechte vorbehalten|\btous droits réservés|\b(?:todos los )?derechos reservados|"
    r"\b(?:lizenziert|veröffentlicht|weitergegeben) unter der [^.]{2,50}lizenz|"
    r"保留所有权利|版权所有",
    re.IGNORECASE,
)
_ABOUT_RIGHTS = re.compile(r"copyright|licen[cs]|lizenz|urheber|derechos|droits|版权|许可", re.I)
_PARAGRAPH = re.compile(
    r"\n\s*\n|\n(?=[^\n]*(?:©|\bcopyright\b|\ball rights reserved\b))",  # also the foot of a page
    re.IGNORECASE,
)


def find_statements(passage: Passage) -> list[Quote]:
    """Return the sentences that are understandable by themselves, in order.

    Excluded are fragments, code, headings, overlong sentences, and those that depend on another
    ("This ...", "as follows", "see section ..."). The mark of a list item, and what follows the
    first semicolon of an overlong sentence, are left out. The signs of dependence are listed for
    English, German, French, Spanish and Chinese; in others only the form is checked. A sentence
    about "he" or "she" is taken with the one before it, which names the person. A paragraph that is
    a copyright or license notice has none, nor what follows such a line in it, except in documents
    about a license or a law.
    """
    notices = _find_notices(passage)
    sentences = [
        _skip_bullet(quote)
        for quote in _sentences(passage)
        if not any(quote.start in notice for notice in notices)
    ]
    clauses = [
        clause
        for quote in sentences
        if (clause := _take_clause(quote)).text[-1:] in _STOPS or clause != quote
    ]
    quotes = [*clauses, *_iter_named_pairs(sentences, passage)]
    return [quote for quote in quotes if _is_statement(end_sentence(quote.text), passage.language)]


def _find_notices(passage: Passage) -> list[range]:
    """Return where the paragraphs stand that are a notice, as offsets in the document."""
    topic = find_topic(passage)
    about = " ".join((passage.title, *passage.headings))
    if (topic is not None and topic.kind == "law") or _ABOUT_RIGHTS.search(about):
        return []
    ends = [*(match.end() for match in _PARAGRAPH.finditer(passage.text)), len(passage.text)]
    spans = [range(start, end) for start, end in pairwise([0, *ends])]
    return [
        range(passage.start + span.start, passage.start + span.stop)
        for span in spans
        if _NOTICE.search(passage.text[span.start : span.stop])
    ]


def end_sentence(text: str) -> str:
    """Return a quote as a sentence: with a full stop, if it is a clause without one."""
    return text if text[-1:] in _STOPS else f"{text}."


def find_best_quote(passage: Passage, answer: str) -> Quote:
    """Return the sentence of the passage that shares most content words with an answer.

    Ties go to the shorter, then to the earlier; without any sentence it is the whole passage.
    """
    answer_stems = set(extract_content_stems(answer))

    def rank(quote: Quote) -> tuple[int, int, int]:
        return (
            -len(answer_stems.intersection(extract_content_stems(quote.text))),
            len(quote.text),
            quote.start,
        )

    passage_quote = Quote(passage.id, passage.start, passage.end, passage.text)
    return min(_sentences(passage), key=rank, default=passage_quote)


def _sentences(passage: Passage) -> list[Quote]:
    quotes = []
    for start, end in split_sentences(passage.text):
        text = passage.text[start:end]
        first = start + len(text) - len(text.lstrip())
        last = start + len(text.rstrip())
        if last > first:
            offset = passage.start
            quotes.append(
                Quote(passage.id, offset + first, offset + last, passage.text[first:last])
            )
    return quotes


def _skip_bullet(quote: Quote) -> Quote:
    """Return the quote without the mark of a list item."""
    match = _BULLET.match(quote.text)
    skipped = match.end() if match is not None else 0
    return replace(quote, start=quote.start + skipped, text=quote.text[skipped:])


def _iter_named_pairs(sentences: Sequence[Quote], passage: Passage) -> Iterator[Quote]:
    """Yield each English sentence about "he" or "she" with the one that names the person."""
    if passage.language not in {"", "en"}:
        return
    for before, quote in pairwise(sentences):
        if quote.text.startswith(("He ", "She ")) and name_subject(
            collapse_whitespace(before.text), quote.text, passage.text
        ):
            text = passage.text[before.start - passage.start : quote.end - passage.start]
            yield Quote(passage.id, before.start, quote.end, text)


def _take_clause(quote: Quote) -> Quote:
    """Return the first clause, without its semicolon, of a sentence that is overlong."""
    clause, separator, _ = quote.text.partition(";")
    if not separator or len(quote.text.split()) <= _MAX_WORDS:
        return quote
    return replace(quote, end=quote.start + len(clause), text=clause)


def _is_statement(text: str, language: str = "") -> bool:
    line = collapse_whitespace(text)
    tokens = line.split()
    if not tokens or _ENUMERATION.match(line):
        return False
    if language in {"zh", "ja"}:
        if not _MIN_CHARACTERS <= len(line) <= _MAX_CHARACTERS:
            return False
    elif not _MIN_WORDS <= len(tokens) <= _MAX_WORDS:
        return False
    if not line[0].isalnum() and line[0] not in "\"“‘'`«":
        return False
    return (
        line[-1] in _STOPS
        and not (line[0].isalpha() and line[0].islower())
        and tokens[0].strip(",.'’\"").casefold() not in _OPENERS
        and len(set(extract_content_words(line))) >= _MIN_CONTENT
        and not _ANAPHORA.search(line)
        and not _CONNECTING.match(line)
        and not (language in _POINTING_BACK and _POINTING_BACK[language].search(line))
        and not _CODE.search(line)
        and line.count('"') % 2 == 0
        and line.count("`") % 2 == 0
        and are_balanced(line)
    )


def get_evidence_passage(record: Record, context: FilterContext) -> Passage | None:
    """Return the passage that a record's evidence names, if the context has it."""
    evidence = record.fields.get("evidence")
    if not isinstance(evidence, Mapping):
        return None
    return context.passages.get(str(evidence.get("passage_id", "")))


def get_evidence_quote(record: Record) -> str:
    """Return the quote that supports a record's answer; empty if there is none."""
    evidence = record.fields.get("evidence")
    quote = evidence.get("quote") if isinstance(evidence, Mapping) else None
    return quote if isinstance(quote, str) else ""


def get_text_field(record: Record, name: str) -> str:
    """Return a field as text; empty if it is missing or not text."""
    value = record.fields.get(name)
    return value if isinstance(value, str) else ""


_ITEM = re.compile(r"(?:^|\n)\s*\d{1,3}\s*[.):]\s*")
_MAX_REFUSAL_WORDS = 80
_ECHO_WORDS = 6
_ECHO_ROUGE = 0.7

_SOURCE_REFERENCE = re.compile(
    r"\b(?:the|this|given|above) (?:given |above |following )?"
    r"(?:text|passage|article|document|excerpt|paragraph|statement)\b"
    r"(?! (?:of|editor|file|field|box|message|format|mode|string|type)s?\b)",
    re.IGNORECASE,
)


def get_question(record: Record) -> str:
    """Return a record's question: its ``question`` field, its last user message, or its text."""
    question = record.fields.get("question") or record.fields.get("instruction")
    if isinstance(question, str) and question.strip():
        return question.strip()
    users = [message.content for message in record.messages if message.role == "user"]
    if users:
        return users[-1].strip()
    return record.messages[0].content.strip() if len(record.messages) == 1 else ""


def get_solution(record: Record) -> str:
    """Return a record's whole answer: its last assistant message after a question, or ""."""
    has_user = any(message.role == "user" for message in record.messages)
    last = record.messages[-1] if record.messages else None
    return last.content.strip() if has_user and last and last.role == "assistant" else ""


def get_reference_answer(record: Record) -> str:
    """Return a record's reference answer: its ``answer`` field, or its whole answer."""
    answer = record.fields.get("answer")
    if isinstance(answer, str | int | float) and str(answer).strip():
        return str(answer).strip()
    return get_solution(record)


def get_final_answer(record: Record) -> str:
    """Return a record's final answer; the whole reference answer if none is marked."""
    final = record.fields.get("final_answer")
    if isinstance(final, str | int | float) and str(final).strip():
        return str(final).strip()
    reference = get_reference_answer(record)
    return (extract_answer(reference) or reference) if is_answer_marked(reference) else reference


def make_qa_messages(question: str, answer: str, *before: Message) -> tuple[Message, ...]:
    """Return a user and an assistant message."""
    return (*before, Message("user", question), Message("assistant", answer))


def parse_numbered_list(text: str) -> list[str]:
    """Return the items of a numbered list, each on one line, without any preamble."""
    parts = _ITEM.split(text)
    return [line for part in parts[1:] if (line := to_one_line(part))]


def is_refusal(answer: str) -> bool:
    """Return whether an answer is a short apology, following WizardLM's elimination."""
    return "sorry" in answer.casefold() and len(split_words(answer)) < _MAX_REFUSAL_WORDS


def refers_to_source(text: str) -> bool:
    """Return whether a question refers to its source text, which readers will not see."""
    return bool(_SOURCE_REFERENCE.search(text))


def echoes_question(question: str, answer: str) -> bool:
    """Return whether an answer starts like its question and repeats it.

    A text to be corrected or translated starts after the words of the request.
    """
    question_words, answer_words = split_words(question), split_words(answer)
    begins_alike = (
        len(question_words) >= _ECHO_WORDS
        and question_words[:_ECHO_WORDS] == answer_words[:_ECHO_WORDS]
    )
    is_part = f"{' '.join(answer_words)} " in f"{' '.join(question_words)} "
    return question_words == answer_words or (
        begins_alike and (is_part or rouge_l(question, answer) >= _ECHO_ROUGE)
    )


def is_empty_answer(answer: str) -> bool:
    """Return whether an answer has only punctuation and function words."""
    return not set(split_words(answer)) - FUNCTION_WORDS


def get_last_answer(record: Record) -> str:
    """Return the last assistant message; empty if there is none."""
    answers = [message.content for message in record.messages if message.role == "assistant"]
    return answers[-1] if answers else ""


def get_prompt_messages(record: Record) -> tuple[Message, ...]:
    """Return the messages before the assistant's last one."""
    positions = [
        index for index, message in enumerate(record.messages) if message.role == "assistant"
    ]
    return record.messages[: positions[-1]] if positions else record.messages


def get_last_instruction(record: Record) -> str:
    """Return the last user message before the assistant's last message."""
    instructions = [
        message.content for message in get_prompt_messages(record) if message.role == "user"
    ]
    return instructions[-1] if instructions else ""


def get_exchanges(record: Record) -> list[tuple[str, str]]:
    """Return pairs of user message and assistant answer, in order."""
    exchanges, question = [], ""
    for message in record.messages:
        if message.role == "user":
            question = message.content
        elif message.role == "assistant" and message.content.strip():
            exchanges.append((question, message.content))
    return exchanges


def get_history(record: Record) -> str:
    """Return the conversation before the last question, one message per line."""
    prompt_messages = get_prompt_messages(record)
    positions = [index for index, message in enumerate(prompt_messages) if message.role == "user"]
    before = prompt_messages[: positions[-1]] if positions else ()
    return "\n".join(f"{message.role}: {message.content}" for message in before)


def get_full_text(record: Record) -> str:
    """Return all messages, one per paragraph."""
    return "\n\n".join(message.content for message in record.messages)
