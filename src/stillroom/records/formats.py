"""Dataset formats: messages (OpenAI), ShareGPT, Alpaca and other rows to and from Records.

Supports the formats of Stillroom, OpenAI (``messages``), ShareGPT (``conversations``), Alpaca
(``instruction``/``output``), prompt and completion (text or message lists), preference pairs of TRL
(``chosen``/``rejected``), ``question`` and ``answer``, and plain ``text``. Beside them ``system``
is the system message. Prompts and pairs may be transcripts of ``Human:`` and ``Assistant:`` (as in
hh-rlhf). Unnamed keys of a format, and those of an object ``fields``, are kept in
``Record.fields``; content that cannot be kept raises an error.

A call of a tool (``tool_calls``, ``function_call``) becomes text, ``<tool_call>`` around JSON, as
in the chat templates of Qwen and Hermes; results follow in the order of their calls, because such
text has no ids.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import date, time
from types import MappingProxyType
from typing import Any, NoReturn

from typing_extensions import TypeIs

from stillroom.errors import DataError
from stillroom.records.origin import Origin
from stillroom.records.transcripts import STARTS, split_transcripts
from stillroom.records.types import EXTRAS_FIELD, Message, Record

__all__ = ["FORMATS", "RESULTS_SEPARATOR", "from_row", "guess_format", "to_row"]

RESULTS_SEPARATOR = "\n</tool_response>\n<tool_response>\n"
"""Between the results of calls at once in one turn of ShareGPT, as LLaMA-Factory joins them."""

FORMATS = (
    "stillroom",
    "messages",
    "sharegpt",
    "alpaca",
    "prompt_completion",
    "preference",
    "question_answer",
    "text",
)

_ORIGIN_KEYS = frozenset({"kind", "chain", "license"})
_ORIGIN_KINDS = frozenset({"human", "synthetic", "unknown"})
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_call": "assistant",  # ShareGPT's turn of a call alone
}
_CALLS = ("tool_calls", "function_call")
_MAX_LEVELS = 100


def guess_format(row: Mapping[str, Any]) -> str:
    """Return the format that matches the row's keys.

    Raises:
        DataError: If no format matches.
    """
    if "messages" in row and "fields" in row and "origin" in row:
        return "stillroom"
    if "messages" in row or "conversations" in row:
        # With the answers of a pair, as in LLaMA-Factory, or its conversations, as in UltraFeedback
        if isinstance(row.get("chosen"), Mapping | list | tuple) and "rejected" in row:
            return "preference"
        return "messages" if "messages" in row else "sharegpt"
    if "instruction" in row and "output" in row:
        return "alpaca"
    if "prompt" in row and ("completion" in row or "response" in row):
        return "prompt_completion"
    is_pair = "prompt" in row and isinstance(row.get("chosen"), Mapping | list | tuple)
    if is_pair and "rejected" in row:
        return "preference"
    if isinstance(row.get("question"), str) and isinstance(row.get("answer"), str):
        return "question_answer"
    if "chosen" in row and "rejected" in row:
        return "preference"
    if "text" in row:
        return "text"
    keys = ", ".join(str(key) for key in list(row)[:8]) or "none"
    return _format_error(
        f"the row's keys ({keys}) are those of no known format",
        expected="messages, conversations, instruction and output, prompt and completion, chosen "
        "and rejected, question and answer, or text",
        next="rename the keys (of a table: the columns in its first line), such as the one with "
        "the text to 'text', or let 'stillroom synth export FILE --rename KEY=text --format "
        "stillroom --out FOLDER' do so",
    )


def from_row(
    row: Mapping[str, Any],
    format: str | None = None,
    names: Mapping[str, str] = MappingProxyType({}),
    *,
    is_table: bool = False,
) -> Record:
    """Build a Record from one row.

    The format is one of ``FORMATS``, by default guessed from the row's keys. ``names`` are new
    names of keys by their old ones. The values of a table are text: beside prompt and completion,
    a label "True" or "False" is a boolean, as ``datasets`` and TRL read it.

    Raises:
        DataError: If the format is unknown, or the row does not match it or lacks a key of
            ``names``.
    """
    if not isinstance(row, Mapping):
        _format_error(f"the row is {_kind(row)}", expected="an object with named values")
    if names:
        row = _rename_keys(row, names)
    if format != "stillroom":
        format, row = _parse_text_columns(format, row)
    format = guess_format(row) if format is None else format
    if format not in _READERS:
        raise DataError(
            f"'{format}' is not a format of records",
            code="data.format",
            expected=f"one of: {', '.join(FORMATS)}",
            next="leave the format out to have it guessed row by row",
        )
    if is_table and format == "prompt_completion" and "label" in row:
        label = row["label"].strip().lower()
        row = {**row, "label": {"true": True, "false": False}.get(label, row["label"])}
    try:
        return _READERS[format](row)
    except KeyError as error:
        return _format_error(f"the row has no {error}", expected=f"a row of format {format}")


def _parse_text_columns(
    format: str | None, row: Mapping[str, Any]
) -> tuple[str | None, Mapping[str, Any]]:
    """Parse fields and origin, which exports in Parquet have as JSON text; columns go first."""
    texts = row.get("fields"), row.get("origin")
    if not all(isinstance(text, str) and text.startswith("{") for text in texts):
        return format, row
    try:
        fields, origin = (json.loads(str(one), parse_constant=_refuse_constant) for one in texts)
    except (ValueError, RecursionError):
        return format, row
    if not _is_origin(origin):
        return format, row
    columns = {**row, "origin": origin}
    del columns["fields"]
    rest = {key: value for key, value in fields.items() if key not in columns}
    return format or guess_format(columns), {**columns, "fields": rest}


def _rename_keys(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    renamed = {names.get(key, key): value for key, value in row.items()}
    if names.keys() - row.keys() or len(renamed) < len(row):
        keys = ", ".join(str(key) for key in list(row)[:8]) or "none"
        _format_error(
            f"the row's keys ({keys}) cannot be renamed",
            expected=f"the keys {', '.join(names)}, and none that a new name would replace",
            next="correct --rename",
        )
    return renamed


def to_row(record: Record, format: str = "stillroom") -> dict[str, Any]:
    """Convert a record to a row of a format, with fields and origin as further keys.

    Raises:
        DataError: If the format cannot hold the record's messages, or a field has the name of
            another key of the row, and another value.
    """
    if format == "stillroom":
        return record.to_json()
    row = _write_messages(record, format)
    both = row.keys() & record.fields.keys()
    if twice := sorted(key for key in both if row[key] != record.fields[key]):
        _format_error(
            f"{', '.join(twice)}: both a field and a key of format '{format}'",
            expected="fields of other names, or the format 'stillroom', which keeps them apart",
            next="rename the field",
        )
    return {**row, **record.fields, "origin": record.origin.to_json()}


def _write_messages(record: Record, format: str) -> dict[str, Any]:
    """Return a record's messages by the keys of a format."""
    messages = [message.to_json() for message in record.messages]
    roles = [message.role for message in record.messages]
    match format:
        case "messages":
            return {"messages": messages}
        case "sharegpt":
            names = {"user": "human", "assistant": "gpt"}
            turns = [
                {"from": names.get(m["role"], m["role"]), "value": m["content"]} for m in messages
            ]
            return {"conversations": turns}
        case "text" if roles == ["assistant"]:
            return {"text": messages[0]["content"]}
        case "alpaca" if roles == ["user", "assistant"]:
            question, reply = (message["content"] for message in messages)
            return {"instruction": question, "input": "", "output": reply}
        case "question_answer" if roles == ["user", "assistant"]:
            return {"question": messages[0]["content"], "answer": messages[1]["content"]}
        case "prompt_completion" if roles and roles[-1] == "assistant":
            return {"prompt": messages[:-1], "completion": messages[-1:]}
    return _format_error(
        f"format '{format}' cannot hold messages of roles {', '.join(roles) or 'none'}",
        expected=f"one of: {', '.join(FORMATS)}, and messages that fit it",
    )


def _from_stillroom(row: Mapping[str, Any]) -> Record:
    fields = row["fields"]
    if isinstance(fields, str):  # Parquet stores the open part of a record as JSON text
        try:
            fields = json.loads(fields or "{}", parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            _format_error(f"fields is not JSON: {error}", expected="an object as JSON text")
    if fields is not None and not isinstance(fields, Mapping):
        _format_error(f"fields is {_kind(fields)}", expected="an object")
    origin = row["origin"]
    if origin is not None and not isinstance(origin, Mapping):
        _format_error(
            f"origin is {_kind(origin)}", expected="an object with kind, chain and license"
        )
    turns = _list(row["messages"], "messages")
    data = {"messages": turns, "fields": _plain_json(fields or {}), "origin": origin}
    for turn in turns:
        if not isinstance(turn, Mapping):
            _format_error(f"a message is {_kind(turn)}", expected="an object with role and content")
    try:
        return Record.from_json(data)
    except (TypeError, AttributeError, KeyError) as error:
        return _format_error(
            f"the origin cannot be read: {error}", expected="what Stillroom writes"
        )


def _from_messages(row: Mapping[str, Any]) -> Record:
    turns = _turns(row["messages"], "messages")
    return _build(row, {"messages"} | _insert_system(row, turns), turns)


def _from_sharegpt(row: Mapping[str, Any]) -> Record:
    turns = _turns(row["conversations"], "conversations")
    return _build(row, {"conversations"} | _insert_system(row, turns), turns)


def _insert_system(row: Mapping[str, Any], turns: list[_Turn]) -> set[str]:
    """Insert the system message beside turns without one; return the keys that were used."""
    if any(role == "system" for role, _, _ in turns):
        return set()
    if system := row.get("system"):
        turns.insert(0, ("system", _text(system, "system"), {}))
    return {"system"}


def _read_history(row: Mapping[str, Any]) -> list[_Turn]:
    """Return the turns of earlier questions and answers beside a prompt."""
    turns: list[_Turn] = []
    for pair in _list(row.get("history") or [], "history"):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            _format_error("an item of history is not a pair", expected="[question, answer]")
        turns.append(("user", _text(pair[0], "history"), {}))
        turns.append(("assistant", _text(pair[1], "history"), {}))
    return turns


def _read_instruction(row: Mapping[str, Any]) -> str:
    instruction, context = _text(row["instruction"], "instruction"), row.get("input")
    return f"{instruction}\n\n{_text(context, 'input')}" if context else instruction


def _from_alpaca(row: Mapping[str, Any]) -> Record:
    question, answer = _read_instruction(row), _text(row["output"], "output")
    turns = [*_read_history(row), ("user", question, {}), ("assistant", answer, {})]
    used = {"instruction", "input", "output", "history"} | _insert_system(row, turns)
    return _build(row, used, turns)


def _from_prompt_completion(row: Mapping[str, Any]) -> Record:
    key = "completion" if "completion" in row else "response"
    texts = split_transcripts(row, key)
    turns = _read_history(row)
    if texts is row or texts["prompt"] is not None:
        turns += _read_turns(texts["prompt"], "prompt", "user")
    turns += _read_turns(texts[key], key, "assistant")
    return _build(row, {"prompt", key, "history"} | _insert_system(row, turns), turns)


def _read_turns(value: object, name: str, role: str) -> list[_Turn]:
    """Read one or more chat turns, or the text of a role."""
    if isinstance(value, str):
        return [(role, value, {})]
    return _turns([value] if isinstance(value, Mapping) else value, name)


def _from_preference(row: Mapping[str, Any]) -> Record:
    """Read a pair; both answers are the last turns after one prompt, which may be within them."""
    is_whole = isinstance(row["chosen"], list | tuple) and len(row["chosen"]) > 1
    if row.get("instruction") and not is_whole and not any(row.get(key) for key in STARTS):
        # Of Alpaca, as in LLaMA-Factory
        rest = {key: value for key, value in row.items() if key not in {"instruction", "input"}}
        row = {**rest, "prompt": _read_instruction(row)}
    row = split_transcripts(row, "chosen", "rejected")
    answers: list[_Turn] = []
    starts: list[list[_Turn]] = []
    for key in ("chosen", "rejected"):
        turns = _read_turns(row[key], key, "assistant")
        if turns[-1][0] != "assistant":
            _format_error(f"{key} does not end with an answer", expected="an assistant's turn last")
        answers.append(turns[-1])
        starts.append(turns[:-1])
    if starts[0] != starts[1]:
        _format_error(
            "chosen and rejected differ before their last turn", expected="one prompt for both"
        )
    before = _read_start(row, [*starts[0], answers[0]] if starts[0] else [])
    if not before and not starts[0]:
        _format_error(
            "a pair has no prompt",
            expected="the key prompt, or turns before the answers",
            next="rename the key with the question by 'stillroom synth export FILE --rename "
            "KEY=prompt --format stillroom --out FOLDER', or remove the row",
        )
    texts = {"chosen": answers[0][1], "rejected": answers[1][1]}
    turns = [*_read_history(row), *before, *starts[0], answers[0]]
    used = {*STARTS, "history"} | _insert_system(row, turns)
    return _build({**row, **texts}, used, turns)


def _read_start(row: Mapping[str, Any], whole: Sequence[_Turn]) -> list[_Turn]:
    """Return the turns before a pair that are not within it, as UltraFeedback repeats them."""
    before: list[_Turn] = []
    for key in STARTS:
        turns = _read_turns(row[key], key, "user") if row.get(key) else []
        known = {(role, text.strip()) for role, text, _ in (*before, *whole)}
        is_known = [(role, text.strip()) in known for role, text, _ in turns]
        lead = is_known.index(True) if True in is_known else len(turns)
        # Turns that end with a question cannot stand before another one
        if known and (not all(is_known[lead:]) or (lead and turns[lead - 1][0] == "user")):
            _format_error(f"{key} differs from the turns beside it", expected="one prompt")
        before = [*turns[:lead], *before]
    return before


def _from_question_answer(row: Mapping[str, Any]) -> Record:
    question, reply = (_text(row[key], key) for key in ("question", "answer"))
    turns: list[_Turn] = [("user", question, {}), ("assistant", reply, {})]
    return _build(row, {"question", "answer"} | _insert_system(row, turns), turns)


def _from_text(row: Mapping[str, Any]) -> Record:
    return _build(row, {"text"}, [("assistant", _text(row["text"], "text"), {})])


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Record]] = {
    "stillroom": _from_stillroom,
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "alpaca": _from_alpaca,
    "prompt_completion": _from_prompt_completion,
    "preference": _from_preference,
    "question_answer": _from_question_answer,
    "text": _from_text,
}

_Turn = tuple[str, str, Mapping[str, Any]]


def _turns(value: object, name: str) -> list[_Turn]:
    """Read chat turns with keys role and content, or from and value."""
    turns: list[_Turn] = []
    ids: list[object] = []  # of the last calls
    for item in _list(value, name):
        if not isinstance(item, Mapping):
            _format_error(f"an item of {name} is {_kind(item)}", expected="an object")
        role_key = "role" if "role" in item else "from"
        content_key = "content" if "content" in item else "value"
        named = str(item.get(role_key, "")).lower()
        role = _ROLES.get(named)
        if role is None:
            _format_error(
                f"an item of {name} has the role {item.get(role_key)!r}",
                expected=f"one of: {', '.join(_ROLES)}",
            )
        extras = {
            key: part
            for key, part in item.items()
            if key not in {role_key, content_key, *_CALLS} and part is not None
        }
        content = item.get(content_key)
        calls = [call for key in _CALLS if item.get(key) for call in _list_calls(item[key], key)]
        if named == "function_call":
            parsed = _parse_json(content, "a call of a tool")
            calls, content = [*(parsed if isinstance(parsed, list) else [parsed]), *calls], ""
        if calls:
            parts = [_content(content or "", name), *(_write_call(call) for call in calls)]
            ids = [call.get("id") for call in calls if isinstance(call, Mapping)]
            text = "\n".join(part for part in parts if part)
            if named == "function_call" and turns and turns[-1][0] == "assistant":
                _, before, earlier = turns.pop()
                extras = {**earlier, **extras}
                text = "\n".join(part for part in (before, text) if part)
        else:
            text = _content(content, name)
        first, *more = text.split(RESULTS_SEPARATOR) if named == "observation" else [text]
        turns.append((role, first, extras))
        _sort_results(turns, ids)
        turns += [(role, part, {}) for part in more]
    if not turns:
        _format_error(f"{name} is empty", expected="at least one turn")
    return turns


def _list_calls(value: object, name: str) -> list[Any]:
    return [value] if isinstance(value, Mapping) else _list(value, name)


def _write_call(call: object) -> str:
    """Return a call as text; given as ``{function: {name, arguments}}``, or without ``function``.

    The arguments, and a whole call, may be JSON text.
    """
    call = _parse_json(call, "a call of a tool")
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        _format_error("a call of a tool has no name", expected="a function's name and arguments")
    arguments = _parse_json(function.get("arguments") or {}, "the arguments of a call")
    if not isinstance(arguments, Mapping):
        _format_error(f"the arguments of a call are {_kind(arguments)}", expected="an object")
    plain = _plain_json({"name": function["name"], "arguments": arguments})
    return f"<tool_call>\n{json.dumps(plain, ensure_ascii=False)}\n</tool_call>"


def _parse_json(value: object, name: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        return _format_error(f"{name} is not JSON: {error}", expected="an object as JSON text")


def _sort_results(turns: list[_Turn], ids: Sequence[object]) -> None:
    """Move the last turn, a result, before those of later calls."""
    at = len(turns) - 1
    while at > 0 and turns[at][0] == turns[at - 1][0] == "tool":
        later, earlier = (turns[index][2].get("tool_call_id") for index in (at, at - 1))
        if not (later in ids and earlier in ids and ids.index(later) < ids.index(earlier)):
            return
        turns[at - 1], turns[at] = turns[at], turns[at - 1]
        at -= 1


def _content(value: object, name: str) -> str:
    """Return text, given as such or as OpenAI's list of text parts."""
    if isinstance(value, list | tuple):
        parts = []
        for part in value:
            if not isinstance(part, Mapping) or part.get("type") != "text":
                _format_error(
                    f"an item of {name} has a part that is not text", expected="text parts"
                )
            parts.append(_text(part.get("text"), f"the content of an item of {name}"))
        return "".join(parts)
    return _text(value, f"the content of an item of {name}")


def _build(row: Mapping[str, Any], used: set[str], turns: list[_Turn]) -> Record:
    fields = {key: _plain_json(value) for key, value in row.items() if key not in used}
    if isinstance(fields.get("fields"), dict):
        inner = fields.pop("fields")
        if twice := sorted(inner.keys() & fields.keys()):
            _format_error(
                f"{', '.join(twice)}: both in fields and beside it", expected="each name once"
            )
        fields |= inner
    if isinstance(fields.get("tools"), str):  # JSON text in ShareGPT and Parquet
        with suppress(ValueError, RecursionError):
            fields["tools"] = json.loads(fields["tools"], parse_constant=_refuse_constant)
    functions = fields.get("functions")  # OpenAI's key for tools before 2023-11
    if isinstance(functions, list) and "tools" not in fields:
        del fields["functions"]
        fields["tools"] = [{"type": "function", "function": one} for one in functions]
    origin = _pop_origin(fields)
    extras = {str(i): _plain_json(extra) for i, (_, _, extra) in enumerate(turns) if extra}
    if extras:
        carried = fields.get(EXTRAS_FIELD)
        known = carried if isinstance(carried, dict) else {}
        extras = {at: {**_as_object(known.get(at)), **extra} for at, extra in extras.items()}
        fields[EXTRAS_FIELD] = {**known, **extras}
    messages = (Message.from_json({"role": role, "content": text}) for role, text, _ in turns)
    return Record(tuple(messages), fields, origin)


def _as_object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _pop_origin(fields: dict[str, Any]) -> Origin:
    """Remove and return the origin in the fields of a foreign row; else unknown."""
    carried = fields.get("origin")
    if isinstance(carried, str) and carried in _ORIGIN_KINDS:
        del fields["origin"]
        return Origin.from_json({"kind": carried, "license": _parse_license(fields)})
    if _is_origin(carried):
        try:
            origin = Origin.from_json(carried)
        except (KeyError, TypeError, AttributeError) as error:
            _format_error(f"the origin cannot be read: {error}", expected="what Stillroom writes")
        del fields["origin"]
        return origin
    return Origin(license=_parse_license(fields))


def _is_origin(value: object) -> TypeIs[Mapping[str, Any]]:
    return isinstance(value, Mapping) and set(value) <= _ORIGIN_KEYS and "kind" in value


def _parse_license(fields: Mapping[str, Any]) -> str:
    value = fields.get("license")
    return value if isinstance(value, str) else ""


def _plain_json(value: Any, level: int = 0) -> Any:
    """Convert to JSON values; dates become text, other types raise an error."""
    if level > _MAX_LEVELS:  # what reads the records may hold fewer frames of each
        _format_error(f"a value has over {_MAX_LEVELS} levels", expected="fewer")
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            _format_error(f"a value is {value}", expected="finite numbers, or null")
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain_json(part, level + 1) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_json(part, level + 1) for part in value]
    if isinstance(value, date | time):  # datetime is a subclass of date
        return value.isoformat()
    return _format_error(f"a value is {_kind(value)}", expected="values that JSON can hold")


def _refuse_constant(name: str) -> NoReturn:
    _format_error(f"a value is {name}", expected="finite numbers, or null")


def _list(value: object, name: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        _format_error(f"{name} is {_kind(value)}", expected="a list")
    return list(value)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        _format_error(f"{name} is {_kind(value)}", expected="text")
    return value


def _kind(value: object) -> str:
    names = {"NoneType": "null", "dict": "an object", "list": "a list", "str": "text"}
    return names.get(type(value).__name__, f"of type {type(value).__name__}")


def _format_error(
    message: str,
    *,
    expected: str,
    next: str = "repair or remove the row",
) -> NoReturn:
    raise DataError(message, code="data.row", expected=expected, next=next)
