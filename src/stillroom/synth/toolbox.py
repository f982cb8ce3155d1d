"""Tools that an assistant may call, and what gives the result of a call.

Reads a JSON file of tools; results come of a table of calls or of Python functions that run in the
sandbox. Knows no model.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.evaluate.sandbox import run_code

__all__ = ["Tool", "Toolbox", "read_tools"]

_CALL = """
import json, sys
_given = json.loads(sys.stdin.read())
_result = globals()[_given["name"]](**_given["arguments"])
sys.stdout.write("\\n" + json.dumps(_result))
"""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool: its name, what it does, and the JSON Schema of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    @property
    def shown(self) -> str:
        """The tool as a teacher is shown it."""
        return json.dumps(self.to_json()["function"], ensure_ascii=False)

    def to_json(self) -> dict[str, Any]:
        """Return the tool as OpenAI's API has it."""
        told = {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
        return {"type": "function", "function": told}


@dataclass(frozen=True, slots=True)
class Toolbox:
    """Tools with what gives their results."""

    tools: tuple[Tool, ...]
    table: Mapping[str, Any] = field(default_factory=dict)
    code: str = ""

    def offer(self, tool: Tool, distractors: int, rng: random.Random) -> list[Tool]:
        """Return a tool among others, in drawn order."""
        others = [one for one in self.tools if one.name != tool.name]
        offered = [tool, *rng.sample(others, min(distractors, len(others)))]
        rng.shuffle(offered)
        return offered

    def run(self, tool: Tool, arguments: Mapping[str, Any]) -> tuple[Any, str]:
        """Return the result of a call, or None and why there is none.

        Raises:
            ResourceError: If functions cannot be isolated on this machine.
        """
        if not self.code:
            key = _key(tool.name, arguments)
            if key not in self.table:
                return None, "a call that the table does not hold"
            return self.table[key], ""
        given = json.dumps({"name": tool.name, "arguments": dict(arguments)})
        outcome = run_code([self.code, _CALL], stdin=given)
        if not outcome.is_done:
            return None, f"a call that ends in {outcome.reason}"
        try:
            return json.loads(outcome.output.rsplit("\n", 1)[-1]), ""
        except ValueError:
            return None, "a call whose result is not JSON"


@lru_cache(maxsize=8)
def read_tools(tools: str, results: str, source: str) -> Toolbox:
    """Read tools, and the table or the functions that give results.

    Raises:
        DataError: If a file is missing, is not what it should be, or has no function for a tool.
    """
    rows = _read_json(Path(tools))
    if not isinstance(rows, list) or not rows:
        raise _broken(tools, "it holds no list of tools")
    known = tuple(_tool_of(row, tools, number) for number, row in enumerate(rows))
    if results == "model":
        return Toolbox(known)
    if not source:
        raise _broken(tools, f"results by {results} need source, a file")
    if results == "functions":
        code = _read(Path(source))
        missing = [tool.name for tool in known if f"def {tool.name}(" not in code]
        if missing:
            raise _broken(source, f"it defines no function {missing[0]}")
        return Toolbox(known, code=code)
    table = {}
    for number, line in enumerate(_read(Path(source)).splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
                table[_key(row["name"], row["arguments"])] = row["result"]
            except (ValueError, KeyError, TypeError) as error:
                raise _broken(f"{source}:{number}", f"no call: {error}") from error
    return Toolbox(known, table)


def _tool_of(row: Any, where: str, number: int) -> Tool:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    if isinstance(row, Mapping) and isinstance(row.get("function"), Mapping):
        row = row["function"]
    name = row.get("name") if isinstance(row, Mapping) else None
    if not isinstance(name, str) or not name.isidentifier():
        raise _broken(where, f"tool {number} has no name that is an identifier")
    parameters = row.get("parameters") or {"type": "object", "properties": {}}
    try:
        Draft202012Validator.check_schema(parameters)
    except SchemaError as error:
        raise _broken(where, f"{name}: parameters are no JSON Schema: {error.message}") from error
    if parameters.get("type") != "object":
        raise _broken(where, f"{name}: parameters are no object")
    return Tool(name, str(row.get("description", "")), parameters)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read(path))
    except ValueError as error:
        raise _broken(str(path), f"it is no JSON: {error}") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _broken(str(path), f"it cannot be read: {error}") from error


def _key(name: str, arguments: Mapping[str, Any]) -> str:
    return json.dumps([name, arguments], sort_keys=True, ensure_ascii=False)


def _broken(where: str, what: str) -> DataError:
    return DataError(
        f"the tools cannot be used: {what}",
        code="synth.tools",
        where=where,
        expected='[{"name": ..., "description": ..., "parameters": JSON Schema}, ...]',
        next="correct the file, or choose results: model",
    )
