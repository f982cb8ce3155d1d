"""A record as a task: what is asked in it, and what it says is right.

Knows records and rules of form; asks no model.
"""

from __future__ import annotations

import re

from stillroom.evaluate.final_answer import find_answer, is_marked
from stillroom.records import Message, Record
from stillroom.synth.asking import one_line
from stillroom.synth.novelty import rouge_l
from stillroom.synth.wording import FUNCTION_WORDS
from stillroom.text.normalize import words

__all__ = [
    "answer_of",
    "final_of",
    "is_echo",
    "is_empty_answer",
    "is_refusal",
    "leans_on_text",
    "numbered",
    "pair",
    "question_of",
    "solution_of",
]

_ITEM = re.compile(r"(?:^|\n)\s*\d{1,3}\s*[.):]\s*")
_SORRY_WORDS = 80
_ECHO_WORDS = 6
_ECHO = 0.7
_LEANS = re.compile(
    r"\b(?:the|this|given|above) (?:given |above |following )?"
    r"(?:text|passage|article|document|excerpt|paragraph|statement)\b"
    r"(?! (?:of|editor|file|field|box|message|format|mode|string|type)s?\b)",
    re.IGNORECASE,
)


def question_of(record: Record) -> str:
    """Return what a record asks: its ``question`` field, or its last user message, or its text."""
    asked = record.fields.get("question") or record.fields.get("instruction")
    if isinstance(asked, str) and asked.strip():
        return asked.strip()
    users = [message.content for message in record.messages if message.role == "user"]
    if users:
        return users[-1].strip()
    return record.messages[0].content.strip() if len(record.messages) == 1 else ""


def solution_of(record: Record) -> str:
    """Return the record's whole answer: its last assistant message after a question, or nothing."""
    has_user = any(message.role == "user" for message in record.messages)
    last = record.messages[-1] if record.messages else None
    return last.content.strip() if has_user and last and last.role == "assistant" else ""


def answer_of(record: Record) -> str:
    """Return what a record says is right: its ``answer`` field, or its whole answer."""
    answer = record.fields.get("answer")
    if isinstance(answer, str | int | float) and str(answer).strip():
        return str(answer).strip()
    return solution_of(record)


def final_of(record: Record) -> str:
    """Return the final answer that a record says is right; all it says where none is marked."""
    final = record.fields.get("final_answer")
    if isinstance(final, str | int | float) and str(final).strip():
        return str(final).strip()
    told = answer_of(record)
    return (find_answer(told) or told) if is_marked(told) else told


def pair(question: str, answer: str, *before: Message) -> tuple[Message, ...]:
    """Return a user's and an assistant's turn."""
    return (*before, Message("user", question), Message("assistant", answer))


def numbered(text: str) -> list[str]:
    """Return the items of a numbered list, each on one line; nothing of what comes before."""
    parts = _ITEM.split(text)
    return [line for part in parts[1:] if (line := one_line(part))]


def is_refusal(answer: str) -> bool:
    """Return whether an answer is short and sorry, as WizardLM's elimination has it."""
    return "sorry" in answer.casefold() and len(words(answer)) < _SORRY_WORDS


def leans_on_text(text: str) -> bool:
    """Return whether a question speaks of the text it was asked about, which nobody will see."""
    return bool(_LEANS.search(text))


def is_echo(question: str, answer: str) -> bool:
    """Return whether an answer begins as its question does and goes on to say it again.

    A text that is asked to be corrected or translated begins after the words that ask for it.
    """
    asked, said = words(question), words(answer)
    begins_alike = len(asked) >= _ECHO_WORDS and asked[:_ECHO_WORDS] == said[:_ECHO_WORDS]
    is_part = f"{' '.join(said)} " in f"{' '.join(asked)} "
    return asked == said or (begins_alike and (is_part or rouge_l(question, answer) >= _ECHO))


def is_empty_answer(answer: str) -> bool:
    """Return whether an answer has only marks and words that mean nothing by themselves."""
    return not set(words(answer)) - FUNCTION_WORDS
