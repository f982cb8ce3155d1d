"""Rows of a dataset that others load, and the Parquet schema of each shape.

A schema is written down here and never inferred: what looks like a date in the first rows, or is
null in them, must not decide what the others may be. Knows records, no cards.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from stillroom.errors import DataError
from stillroom.records import Record, to_row
from stillroom.synth.tool_turns import to_openai_turns, to_sharegpt_turns, tools_of

__all__ = ["ExportFormat", "FileKind", "columns_of", "make_row", "write_parquet"]

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


def columns_of(format: ExportFormat) -> tuple[str, ...]:
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
    row = _preference(record) if format == "preference" else to_row(bare, format)
    told = {key: row[key] for key in _KEYS[format]} | _calls(record, format)
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
                row[name] = _dump(row[name])
    return row


def write_parquet(lines: Path, target: Path) -> None:
    """Make a Parquet file of rows that ``make_row`` made and that lie in a file of JSON lines."""
    import pyarrow as pa
    from pyarrow import parquet

    names = _names(lines)
    schema = pa.schema([(name, _type(name, "tools" in names)) for name in names])
    with parquet.ParquetWriter(target, schema, compression="zstd") as writer:
        for rows in _batches(lines):
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))


def _names(lines: Path) -> list[str]:
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


def _type(name: str, has_calls: bool) -> Any:
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


def _calls(record: Record, format: ExportFormat) -> dict[str, Any]:
    """Return the tools that a record offers, and its turns with calls as the shape has them."""
    tools = tools_of(record)
    if not tools:
        return {}
    if format == "sharegpt":
        return {"conversations": to_sharegpt_turns(record.messages), "tools": _dump(tools)}
    turns = to_openai_turns(record.messages)
    match format:
        case "messages":
            return {"messages": turns, "tools": tools}
        case "prompt_completion":
            return {"prompt": turns[:-1], "completion": turns[-1:], "tools": tools}
        case "preference":
            return {"prompt": turns[:-1], "chosen": turns[-1:], "tools": tools}
    return {}


def _preference(record: Record) -> dict[str, Any]:
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


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
