"""Export formats: messages, ShareGPT, Alpaca, preference (DPO) rows and others, also as Parquet.

Parquet schemas are declared and never inferred: a value that looks like a date in the first rows,
or is null in them, must not decide the type of the column.

distilabel's FormatTextGenerationSFT and FormatTextGenerationDPO write ``messages`` and preferences.

A record stores a call as text, ``<tool_call>`` around JSON, and its tools, if known, in ``tools``.
OpenAI's format has the call next to the content and references it in the result; ShareGPT's, as
trainers read it, has separate turns for both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from stillroom.errors import DataError
from stillroom.provenance.digests import load_json
from stillroom.records import Message, Record, to_row
from stillroom.records.formats import RESULTS_SEPARATOR
from stillroom.records.types import EXTRAS_FIELD

__all__ = [
    "ExportFormat",
    "FileKind",
    "get_columns",
    "has_text_with_calls",
    "list_lost_fields",
    "make_row",
    "to_openai_messages",
    "to_sharegpt_turns",
    "write_parquet",
]

ExportFormat = Literal[
    "messages", "sharegpt", "alpaca", "prompt_completion", "text", "preference", "stillroom"
]

FileKind = Literal["jsonl", "parquet"]

_KEYS: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "input", "output"),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
    "preference": ("prompt", "chosen", "rejected"),
}

_TEXTS = frozenset({"instruction", "input", "output", "text", "id", "origin", "tools", "fields"})
_BATCH = 1000
_BOOKKEEPING = frozenset(
    {"split", "document_id", "passage_id", "seed", "evidence", "question", "answer"}
)
_METHOD_FIELDS = frozenset(
    {
        *("style", "audience", "way", "round", "before", "critiques", "concepts", "sessions"),
        *("persona", "persona_id", "related_to", "hop", "task_kind", "turns", "ended", "voice"),
        *("curation_score", "closeness", "pass_rate", "samples", "answer_by", "final_answer"),
        *("chance_before", "chance_chosen", "chance_rejected", "prefix", "rejected_by"),
        *("calls", "result_by", "query_kind", "language", "chrf", "translation_of", "row"),
        *("instruction", "input", "output"),
    }
)
"""Fields of our generators that say how a record was made, or repeat it."""
_REASONING = "reasoning_content"
_TURNS = frozenset({"messages", "sharegpt", "prompt_completion", "preference"})


def get_columns(format: ExportFormat) -> tuple[str, ...]:
    """Return the columns of a format, without those common to every row."""
    return _KEYS.get(format, ())


def make_row(
    record: Record, format: ExportFormat, *, kind: FileKind = "jsonl", with_fields: bool = False
) -> dict[str, Any]:
    """Convert a record to a row of a format.

    Calls are in the format's representation, and the tools of a record in ``tools``. In Parquet,
    columns whose type differs from row to row (tools, fields, a whole origin) are JSON text.

    Raises:
        DataError: If the format cannot represent the record.
    """
    if format == "stillroom":
        return to_row(record)
    bare = replace(record, fields={})  # a field with a column's name must not replace it
    row = _make_preference_row(record) if format == "preference" else to_row(bare, format)
    columns = {key: row[key] for key in _KEYS[format]} | _make_tool_columns(record, format)
    if not with_fields and (unwanted := record.turns_without_loss):
        _refuse_unwanted(record, is_weighted=format == "messages" and kind == "jsonl")
        for index in unwanted & {*range(len(record.messages))}:
            columns["messages"][index]["weight"] = 0
    common_columns: dict[str, Any] = {"id": record.id, "origin": record.origin.kind}
    if with_fields:
        common_columns["origin"] = record.origin.to_json()
        if kind == "parquet":
            common_columns |= {"fields": dict(record.fields)}
        else:
            columns = {**record.fields, **columns}
    row = {**columns, **common_columns}
    if kind == "parquet":
        for name in ("tools", "fields", "origin"):
            if name in row and not isinstance(row[name], str):
                row[name] = _to_json(row[name])
    return row


def list_lost_fields(record: Record, format: ExportFormat) -> list[str]:
    """Return the fields of a record that a row without fields does not show, by name.

    Those that every record of ours has, those of the generators' bookkeeping, and texts that the
    turns contain, are not lost.
    """
    if format == "stillroom":
        return []
    shown = set(_BOOKKEEPING)
    if any(link.method.startswith("synth.generators.") for link in record.origin.chain):
        shown |= _METHOD_FIELDS
    if format in _TURNS:
        shown.add("tools")
    if format == "preference":
        shown |= {"chosen", "rejected"}
    texts = [message.content.strip() for message in record.messages]
    lost = [
        name
        for name, value in record.fields.items()
        if name not in {*shown, EXTRAS_FIELD}
        and value not in (None, "", [], {})
        and not (isinstance(value, str) and _is_shown(value.strip(), texts))
    ]
    kept = {"weight", "tool_call_id"} | ({_REASONING} if format in _TURNS else set())
    extras = record.fields.get(EXTRAS_FIELD)
    turns = extras.values() if isinstance(extras, dict) else ()
    names = {name for turn in turns if isinstance(turn, dict) for name in turn}
    return [*lost, *(f"{EXTRAS_FIELD}.{name}" for name in sorted(names - kept))]


def has_text_with_calls(record: Record) -> bool:
    """Return whether a turn has both a text and calls, which are two turns in ShareGPT's format."""
    return any(all(_split_tool_calls(one, bool(record.tools))) for one in record.messages)


def _is_shown(value: str, texts: Sequence[str]) -> bool:
    """Return whether a field repeats a turn, or a part of one that is no mere word."""
    return value in texts or (len(value) > 15 and any(value in text for text in texts))


def _refuse_unwanted(record: Record, *, is_weighted: bool) -> None:
    """Refuse a record whose bad answers a row would show as good ones.

    Weights of turns can be written in ``messages``, but not in columns of a fixed type.
    """
    answers = {at for at, one in enumerate(record.messages) if one.role == "assistant"}
    if not is_weighted or answers <= record.turns_without_loss:
        raise DataError(
            "answers of weight 0 or labelled false, which the row would show as good ones",
            code="data.format",
            expected="answers to learn from",
            next="add --with-fields, or choose --format stillroom",
        )


def write_parquet(lines: Path, target: Path) -> None:
    """Convert a JSON lines file of rows from ``make_row`` to Parquet."""
    import pyarrow as pa
    from pyarrow import parquet

    names, turn_keys = _list_columns(lines)
    schema = pa.schema([(name, _get_arrow_type(name, turn_keys)) for name in names])
    with parquet.ParquetWriter(target, schema, compression="zstd") as writer:
        for rows in _batches(lines):
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))


def _list_columns(lines: Path) -> tuple[list[str], set[str]]:
    """Return the names of all columns, in order of first occurrence, and all keys of turns.

    In rows for Parquet, lists are those of turns. Where there are tools, turns may have calls.
    """
    names: dict[str, None] = {}
    turn_keys: set[str] = set()
    for rows in _batches(lines):
        for row in rows:
            names |= dict.fromkeys(row)
            turns = chain.from_iterable(part for part in row.values() if isinstance(part, list))
            turn_keys.update(*turns)
    return list(names), turn_keys | ({"tool_calls"} if "tools" in names else set())


def _batches(lines: Path) -> Iterator[list[dict[str, Any]]]:
    with lines.open(encoding="utf-8") as file:
        rows = (json.loads(line) for line in file)
        while batch := list(islice(rows, _BATCH)):
            yield batch


def _get_arrow_type(name: str, turn_keys: set[str]) -> Any:
    import pyarrow as pa

    text = pa.string()
    if name in _TEXTS:
        return text
    reasoning = [(_REASONING, text)] if _REASONING in turn_keys else []
    if name == "conversations":
        return pa.list_(pa.struct([("from", text), ("value", text), *reasoning]))
    turn = [("role", text), ("content", text), *reasoning]
    if "tool_calls" in turn_keys:
        function = pa.struct([("name", text), ("arguments", text)])
        call = pa.struct([("id", text), ("type", text), ("function", function)])
        turn += [("tool_calls", pa.list_(call)), ("tool_call_id", text)]
    return pa.list_(pa.struct(turn))


def _make_tool_columns(record: Record, format: ExportFormat) -> dict[str, Any]:
    """Return the tools of a record, and its turns with calls in the format's representation."""
    tools, reasoning = [_wrap_tool(tool) for tool in record.tools], _get_reasoning(record)
    if format == "sharegpt":
        turns = to_sharegpt_turns(record.messages, has_tools=bool(tools), reasoning=reasoning)
        return {"conversations": turns} | ({"tools": _to_json(tools)} if tools else {})
    turns = to_openai_messages(record.messages, has_tools=bool(tools))
    for at, thought in reasoning.items():
        turns[at][_REASONING] = thought
    columns: dict[str, Any] = {}
    match format:
        case "messages":
            columns = {"messages": turns}
        case "prompt_completion":
            columns = {"prompt": turns[:-1], "completion": turns[-1:]}
        case "preference":
            other = (*record.messages[:-1], Message("assistant", record.fields["rejected"]))
            rejected = to_openai_messages(other, has_tools=bool(tools))[-1:]
            columns = {"prompt": turns[:-1], "chosen": turns[-1:], "rejected": rejected}
    return columns | ({"tools": tools} if columns and tools else {})


def _wrap_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool as OpenAI's API has it, also one that was recorded as a bare function."""
    is_bare = "function" not in tool and isinstance(tool.get("name"), str)
    if is_bare and tool.get("type", "function") == "function":
        bare = {key: value for key, value in tool.items() if key != "type"}
        return {"type": "function", "function": bare}
    return tool


def _get_reasoning(record: Record) -> dict[int, str]:
    """Return the thoughts before the answers of a reasoning model, by number of the turn."""
    extras = record.fields.get(EXTRAS_FIELD)
    known = extras if isinstance(extras, dict) else {}
    turns = ((turn, known.get(str(turn))) for turn in range(len(record.messages)))
    found = ((turn, part.get(_REASONING)) for turn, part in turns if isinstance(part, dict))
    return {turn: thought for turn, thought in found if isinstance(thought, str) and thought}


def _make_preference_row(record: Record) -> dict[str, Any]:
    rejected = record.fields.get("rejected")
    roles = [message.role for message in record.messages]
    if not isinstance(rejected, str) or roles[-1:] != ["assistant"] or len(roles) < 2:
        raise DataError(
            "no pair of a chosen and a rejected answer",
            code="data.format",
            expected="a conversation that ends with an answer, and a field 'rejected'",
            next="choose --format messages",
        )
    turns = [message.to_json() for message in record.messages]
    return {
        "prompt": turns[:-1],
        "chosen": turns[-1:],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def _to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


_TOOL_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
_SHAREGPT_ROLES = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}


def to_openai_messages(
    messages: Sequence[Message], *, has_tools: bool = True
) -> list[dict[str, Any]]:
    """Return messages in OpenAI's format: calls are ``tool_calls``, results have the call's id.

    Where the tools are unknown, only calls that end a message are calls: a text may be about them.
    """
    turns: list[dict[str, Any]] = []
    pending_ids: list[str] = []
    count = 0
    for message in messages:
        text, calls = _split_tool_calls(message, has_tools)
        if message.role == "tool" and pending_ids:
            turns.append({"role": "tool", "tool_call_id": pending_ids.pop(0), "content": text})
            continue
        turn: dict[str, Any] = {"role": message.role, "content": text}
        if calls:
            names = [f"call_{count + index}" for index in range(len(calls))]
            count += len(calls)
            pending_ids = list(names)
            turn["tool_calls"] = [
                {"id": name, "type": "function", "function": _to_function(call)}
                for name, call in zip(names, calls, strict=True)
            ]
        turns.append(turn)
    return turns


def to_sharegpt_turns(
    messages: Sequence[Message],
    *,
    has_tools: bool = True,
    reasoning: Mapping[int, str] = MappingProxyType({}),
) -> list[dict[str, str]]:
    """Return turns of ``from`` and ``value``; calls and results are separate turns.

    As LLaMA-Factory requires, calls at once are one turn with a JSON list, and so are their
    results, which it separates as the chat template of Qwen does. Its turns of calls have no text
    (but thoughts, in some versions): a text before calls is a turn of its own, and it passes over
    such conversations, as two turns of the assistant follow each other.

    Args:
        messages: Turns of a record.
        has_tools: As for ``to_openai_messages``.
        reasoning: Thoughts by number of the message.
    """
    turns: list[dict[str, str]] = []
    for at, message in enumerate(messages):
        text, calls = _split_tool_calls(message, has_tools)
        if message.role == "tool" and at and messages[at - 1].role == "tool":
            turns[-1]["value"] += f"{RESULTS_SEPARATOR}{text}"
            continue
        first = len(turns)
        if text or not calls:
            turns.append({"from": _SHAREGPT_ROLES[message.role], "value": text})
        if calls:
            value = _to_json(calls if len(calls) > 1 else calls[0])
            turns.append({"from": "function_call", "value": value})
        if at in reasoning:
            turns[first][_REASONING] = reasoning[at]
    return turns


def _split_tool_calls(message: Message, has_tools: bool) -> tuple[str, list[dict[str, Any]]]:
    """Parse the tool calls (``tool_calls``) out of a message; invalid ones remain text."""
    is_call = has_tools or message.content.rstrip().endswith("</tool_call>")
    if message.role != "assistant" or not is_call:
        return message.content, []
    calls = []
    for payload in _TOOL_CALL.findall(message.content):
        try:
            call = load_json(payload)
        except ValueError:
            return message.content, []
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return message.content, []
        calls.append({"name": call["name"], "arguments": call.get("arguments") or {}})
    return (_TOOL_CALL.sub("", message.content).strip(), calls) if calls else (message.content, [])


def _to_function(call: dict[str, Any]) -> dict[str, str]:
    return {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
