"""What a record says: its last answer, what was asked for it, all of its words.

Takes any record; what is missing comes back empty.
"""

from __future__ import annotations

from stillroom.records import Message, Record

__all__ = ["answer_of", "asked_of", "exchanges_of", "instruction_of", "talk_before", "whole_text"]


def answer_of(record: Record) -> str:
    """Return what the assistant says last; empty where it says nothing."""
    said = [message.content for message in record.messages if message.role == "assistant"]
    return said[-1] if said else ""


def asked_of(record: Record) -> tuple[Message, ...]:
    """Return the turns before the assistant's last one."""
    places = [at for at, message in enumerate(record.messages) if message.role == "assistant"]
    return record.messages[: places[-1]] if places else record.messages


def instruction_of(record: Record) -> str:
    """Return what the user says last before the assistant's last turn."""
    asked = [message.content for message in asked_of(record) if message.role == "user"]
    return asked[-1] if asked else ""


def exchanges_of(record: Record) -> list[tuple[str, str]]:
    """Return what the user says and what the assistant answers, an exchange each, in order."""
    found, asked = [], ""
    for message in record.messages:
        if message.role == "user":
            asked = message.content
        elif message.role == "assistant" and message.content.strip():
            found.append((asked, message.content))
    return found


def talk_before(record: Record) -> str:
    """Return what was said before the last question, a turn a line; empty where nothing was."""
    asked = asked_of(record)
    places = [at for at, message in enumerate(asked) if message.role == "user"]
    before = asked[: places[-1]] if places else ()
    return "\n".join(f"{message.role}: {message.content}" for message in before)


def whole_text(record: Record) -> str:
    """Return all that is said, one message to a paragraph."""
    return "\n\n".join(message.content for message in record.messages)
