"""Export formats: rows and Parquet schemas, tool-call turns and Croissant metadata.

A schema is written down here and never inferred: what looks like a date in the first rows, or is
null in them, must not decide what the others may be. Knows records, no cards.

A record holds a call as text, ``<tool_call>`` around JSON, and the tools in its field ``tools``.
OpenAI's shape has the call beside the content and names it in the result; ShareGPT's, as trainers
read it, has turns of their own for both. Knows no file.

Source: Akhtar et al. 2024, arXiv:2403.19546 (format version 1.0), with the fields of its
vocabulary for responsible use that follow from origin.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from stillroom.errors import DataError
from stillroom.records import Message, Record, to_row

__all__ = [
    "ExportFormat",
    "FileKind",
    "get_columns",
    "get_tools",
    "make_croissant",
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


def get_columns(format: ExportFormat) -> tuple[str, ...]:
    """Return the columns of a shape, but for those that every row has."""
    return _KEYS.get(format, ())


def make_row(
    record: Record, format: ExportFormat, *, kind: FileKind = "jsonl", with_fields: bool = False
) -> dict[str, Any]:
    """Return a record as a row of a shape.

    A record that offers tools has them in ``tools`` and its calls as the shape has them. In Parquet
    what differs from row to row (tools, fields, a whole origin) is JSON text.

    Raises:
        DataError: If the shape cannot hold the record.
    """
    if format == "stillroom":
        return to_row(record)
    bare = replace(record, fields={})  # a field of a column's name does not take its place
    row = _make_preference_row(record) if format == "preference" else to_row(bare, format)
    told = {key: row[key] for key in _KEYS[format]} | _make_tool_columns(record, format)
    rest: dict[str, Any] = {"id": record.id, "origin": record.origin.kind}
    if with_fields:
        rest["origin"] = record.origin.to_json()
        if kind == "parquet":
            rest |= {"fields": dict(record.fields)}
        else:
            told = {**record.fields, **told}
    row = {**told, **rest}
    if kind == "parquet":
        for name in ("tools", "fields", "origin"):
            if name in row and not isinstance(row[name], str):
                row[name] = _to_json(row[name])
    return row


def write_parquet(lines: Path, target: Path) -> None:
    """Make a Parquet file of rows that ``make_row`` made and that lie in a file of JSON lines."""
    import pyarrow as pa
    from pyarrow import parquet

    names = _list_columns(lines)
    schema = pa.schema([(name, _get_arrow_type(name, "tools" in names)) for name in names])
    with parquet.ParquetWriter(target, schema, compression="zstd") as writer:
        for rows in _batches(lines):
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))


def _list_columns(lines: Path) -> list[str]:
    """Return the names of all columns, in the order in which they first come."""
    names: dict[str, None] = {}
    for rows in _batches(lines):
        for row in rows:
            names |= dict.fromkeys(row)
    return list(names)


def _batches(lines: Path) -> Iterator[list[dict[str, Any]]]:
    with lines.open(encoding="utf-8") as file:
        rows = (json.loads(line) for line in file)
        while batch := list(islice(rows, _BATCH)):
            yield batch


def _get_arrow_type(name: str, has_calls: bool) -> Any:
    import pyarrow as pa

    text = pa.string()
    if name in _TEXTS:
        return text
    if name == "conversations":
        return pa.list_(pa.struct([("from", text), ("value", text)]))
    turn = [("role", text), ("content", text)]
    if has_calls:
        function = pa.struct([("name", text), ("arguments", text)])
        call = pa.struct([("id", text), ("type", text), ("function", function)])
        turn += [("tool_calls", pa.list_(call)), ("tool_call_id", text)]
    return pa.list_(pa.struct(turn))


def _make_tool_columns(record: Record, format: ExportFormat) -> dict[str, Any]:
    """Return the tools that a record offers, and its turns with calls as the shape has them."""
    tools = get_tools(record)
    if not tools:
        return {}
    if format == "sharegpt":
        return {"conversations": to_sharegpt_turns(record.messages), "tools": _to_json(tools)}
    turns = to_openai_messages(record.messages)
    match format:
        case "messages":
            return {"messages": turns, "tools": tools}
        case "prompt_completion":
            return {"prompt": turns[:-1], "completion": turns[-1:], "tools": tools}
        case "preference":
            return {"prompt": turns[:-1], "chosen": turns[-1:], "tools": tools}
    return {}


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


def get_tools(record: Record) -> list[Any]:
    """Return the tools that a record offers; none where it offers none."""
    tools = record.fields.get("tools")
    return list(tools) if isinstance(tools, list) else []


def to_openai_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages in which calls are ``tool_calls``, each result with its call's id."""
    turns: list[dict[str, Any]] = []
    waiting: list[str] = []
    count = 0
    for message in messages:
        text, calls = _split_tool_calls(message)
        if message.role == "tool" and waiting:
            turns.append({"role": "tool", "tool_call_id": waiting.pop(0), "content": text})
            continue
        turn: dict[str, Any] = {"role": message.role, "content": text}
        if calls:
            names = [f"call_{count + at}" for at in range(len(calls))]
            count += len(calls)
            waiting = list(names)
            turn["tool_calls"] = [
                {"id": name, "type": "function", "function": _to_function(call)}
                for name, call in zip(names, calls, strict=True)
            ]
        turns.append(turn)
    return turns


def to_sharegpt_turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Return turns of ``from`` and ``value``; calls and their results have turns of their own."""
    turns: list[dict[str, str]] = []
    for message in messages:
        text, calls = _split_tool_calls(message)
        if text or not calls:
            turns.append({"from": _SHAREGPT_ROLES[message.role], "value": text})
        for call in calls:
            value = json.dumps(call, ensure_ascii=False)
            turns.append({"from": "function_call", "value": value})
    return turns


def _split_tool_calls(message: Message) -> tuple[str, list[dict[str, Any]]]:
    """Return the text of a message and the calls in it; what is no call stays text."""
    if message.role != "assistant":
        return message.content, []
    calls = []
    for found in _TOOL_CALL.findall(message.content):
        try:
            call = json.loads(found)
        except ValueError:
            return message.content, []
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            return message.content, []
        calls.append({"name": call["name"], "arguments": call.get("arguments") or {}})
    return (_TOOL_CALL.sub("", message.content).strip(), calls) if calls else (message.content, [])


def _to_function(call: dict[str, Any]) -> dict[str, str]:
    return {
        "name": call["name"],
        "arguments": json.dumps(call["arguments"], ensure_ascii=False),
    }


_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}

_ENCODINGS = {"jsonl": "application/jsonlines", "parquet": "application/x-parquet"}


def make_croissant(
    name: str,
    license: str,
    files: Mapping[str, tuple[str, str]],
    columns: Sequence[str],
    origins: Mapping[str, int],
) -> dict[str, Any]:
    """Return the metadata of a dataset.

    Args:
        name: Of the dataset.
        license: SPDX id, or ``other``.
        files: By split, file name and sha256.
        columns: What every row has as text; lists (of messages) have no data type there, and are
            read from the file itself.
        origins: How many rows are human, synthetic and unknown.
    """
    synthetic = origins.get("synthetic", 0)
    total = sum(origins.values())
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": name,
        "description": f"{total} records, {synthetic} of them written by models.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "license": license,
        "url": "./",
        "rai:dataCollection": ", ".join(f"{count} {kind}" for kind, count in origins.items()),
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": file,
                "name": file,
                "contentUrl": file,
                "encodingFormat": _ENCODINGS[file.rpartition(".")[2]],
                "sha256": digest,
            }
            for file, digest in files.values()
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": split,
                "name": split,
                "field": [
                    {
                        "@type": "cr:Field",
                        "@id": f"{split}/{column}",
                        "name": column,
                        "dataType": "sc:Text",
                        "source": {
                            "fileObject": {"@id": file},
                            "extract": {"column": column},
                        },
                    }
                    for column in columns
                ],
            }
            for split, (file, _) in files.items()
        ],
    }
