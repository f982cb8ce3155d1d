"""Conversations that call tools, in the shapes in which others train on them.

A record holds a call as text, ``<tool_call>`` around JSON, and the tools in its field ``tools``.
OpenAI's shape has the call beside the content and names it in the result; ShareGPT's, as trainers
read it, has turns of their own for both. Knows no file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from stillroom.records import Message, Record

__all__ = ["to_openai_turns", "to_sharegpt_turns", "tools_of"]

_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
_NAMES = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


def tools_of(record: Record) -> list[Any]:
    """Return the tools that a record offers; none where it offers none."""
    tools = record.fields.get("tools")
    return list(tools) if isinstance(tools, list) else []


def to_openai_turns(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages in which calls are ``tool_calls``, each result with its call's id."""
    turns: list[dict[str, Any]] = []
    waiting: list[str] = []
    count = 0
    for message in messages:
        text, calls = _split(message)
        if message.role == "tool" and waiting:
            turns.append({"role": "tool", "tool_call_id": waiting.pop(0), "content": text})
            continue
        turn: dict[str, Any] = {"role": message.role, "content": text}
        if calls:
            names = [f"call_{count + at}" for at in range(len(calls))]
            count += len(calls)
            waiting = list(names)
            turn["tool_calls"] = [
                {"id": name, "type": "function", "function": _function(call)}
                for name, call in zip(names, calls, strict=True)
            ]
        turns.append(turn)
    return turns


def to_sharegpt_turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Return turns of ``from`` and ``value``; calls and their results have turns of their own."""
    turns: list[dict[str, str]] = []
    for message in messages:
        text, calls = _split(message)
        if text or not calls:
            turns.append({"from": _NAMES[message.role], "value": text})
        for call in calls:
            value = json.dumps(call, ensure_ascii=False)
            turns.append({"from": "function_call", "value": value})
    return turns


def _split(message: Message) -> tuple[str, list[dict[str, Any]]]:
    """Return the text of a message and the calls in it; what is no call stays text."""
    if message.role != "assistant":
        return message.content, []
    calls = []
    for found in _CALL.findall(message.content):
        try:
            call = json.loads(found)
        except ValueError:
            return message.content, []
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return message.content, []
        calls.append({"name": call["name"], "arguments": call.get("arguments") or {}})
    return (_CALL.sub("", message.content).strip(), calls) if calls else (message.content, [])


def _function(call: dict[str, Any]) -> dict[str, str]:
    return {
        "name": call["name"],
        "arguments": json.dumps(call["arguments"], ensure_ascii=False),
    }
