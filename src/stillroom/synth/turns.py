"""What a record says: its last answer, what was asked for it, all of its words.

Takes any record; what is missing comes back empty.
"""

from __future__ import annotations

from stillroom.records import Message, Record

__all__ = ["answer_of", "asked_of", "instruction_of", "whole_text"]


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


def whole_text(record: Record) -> str:
    """Return all that is said, one message to a paragraph."""
    return "\n\n".join(message.content for message in record.messages)
