"""What a text asks, apart from the passage that it asks about.

Reading comprehension puts both into one text: a passage of a hundred words and a question of ten.
Compared as a whole, two questions about one passage are nine tenths alike, and the question by
itself is a tenth of what it came from. Knows forms (labels, blank lines, a closing question), and
no language but for the labels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from stillroom.text.normalize import words
from stillroom.text.sentences import split_sentences

__all__ = ["Asked", "asks", "split_asked"]

_MARKS = re.compile(r"[?？؟]")
_ENDS = re.compile(r"[?？؟][\s\"'”’)\]]*$")
_LABEL = re.compile(
    r"^[ \t>*#]*(?:question|query|frage|pregunta|pergunta|domanda|вопрос|问题|問題|質問)"
    r"(?:[ \t]*\d+)?[ \t*]*[:：.)][ \t*]*",
    re.IGNORECASE | re.MULTILINE,
)
_ANSWER = re.compile(
    r"\n[ \t>*#]*(?:answer|antwort|respuesta|resposta|réponse|risposta|ответ|答案|回答|a)"
    r"[ \t*]*[:：][ \t*]*$",
    re.IGNORECASE,
)
_PARAGRAPHS = re.compile(r"\n\s*\n")
_OPTION = re.compile(r"[ \t]*\(?[A-Ha-h1-9][).:]")
_BARE = re.compile(r"[^\n.!:;]{8,200}[^\W\d_]")
"""A closing line without a full stop: a question whose mark was forgotten."""
_PASSAGE = 25
"""Words of a passage that stands apart by a label or a line; at least twice the question's."""
_SHORT = 60
"""Characters below which no text holds a passage, in whatever script."""
_RUNNING = 40
"""Words of a passage that a question follows on the same line: shorter ones may be a problem."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A text in two: ``question``, and ``passage``, empty where there is none.

    ``is_apart`` says whether form tells them apart: in running text a passage may also be the
    conditions of a problem, without which nobody could answer.
    """

    question: str
    passage: str = ""
    is_apart: bool = False


def asks(text: str) -> bool:
    """Return whether there is a question mark in a text."""
    return bool(_MARKS.search(text))


def split_asked(text: str) -> Asked:
    """Return a text's question apart from its passage; the whole is the question where unsure."""
    body = _without_options(_ANSWER.sub("", text.strip())).strip()
    if len(body) < _SHORT:
        return Asked(text)
    labels = list(_LABEL.finditer(body))
    if labels:
        asked, _, after = body[labels[-1].end() :].partition("\n")
        found = _checked(asked, f"{body[: labels[-1].start()]}\n{after}")
        if found is not None:
            return found
    for parts in (_PARAGRAPHS.split(body), body.split("\n")):
        blocks = [part for part in parts if part.strip()]
        for at in (-1, 0) if len(blocks) > 1 else ():
            rest = blocks[:-1] if at else blocks[1:]
            is_bare = at == -1 and _BARE.fullmatch(blocks[at].strip())
            if _ENDS.search(blocks[at]) or is_bare:
                found = _checked(blocks[at], "\n".join(rest))
                if found is not None:
                    return found
    return _split_running(body) or Asked(text)


def _without_options(text: str) -> str:
    """Return a text without the lettered or numbered lines at its end; its first line stays."""
    lines = text.rstrip().split("\n")
    end = len(lines)
    while end > 1 and _OPTION.match(lines[end - 1]):
        end -= 1
    return "\n".join(lines[:end])


def _split_running(body: str) -> Asked | None:
    """Return the closing question of a long text, where it has one."""
    if not _ENDS.search(body):
        return None
    spans = split_sentences(body)
    if len(spans) < 3:
        return None
    start, end = spans[-1]
    passage = body[:start].strip()
    if len(words(passage)) < _RUNNING:
        return None
    return Asked(body[start:end].strip(), passage)


def _checked(question: str, passage: str) -> Asked | None:
    size = len(words(question))
    if not size or len(words(passage)) < max(_PASSAGE, 2 * size):
        return None
    return Asked(question.strip(), passage.strip(), is_apart=True)
