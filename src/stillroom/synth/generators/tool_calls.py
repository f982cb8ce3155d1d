"""Tool calls: request, schema-valid call, tool result and final answer.

Source: Liu et al. 2024 (APIGen), arXiv:2406.18518, section 3 (queries and calls from a library of
tools, checked for format, by execution and semantically) and Patil et al. 2023 (Gorilla),
arXiv:2305.15334. Differs: arguments are constrained to the tool's schema by grammar where the
backend supports it; results come from a table of calls, from functions run in the sandbox, or from
the teacher, and the record says which. As the semantic check, every text and number of a call,
within lists and objects too, must occur in the request.

Reads a JSON file of tools, and a table of calls or Python functions that run in the sandbox.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic import Field
from typing_extensions import override

from stillroom.errors import DataError
from stillroom.evaluate.json_output import describe_violation
from stillroom.evaluate.sandbox import run_code
from stillroom.objects.disk import require_file
from stillroom.provenance.digests import load_json
from stillroom.recipes import Reference
from stillroom.records import Message
from stillroom.synth.interfaces import RECORD_FILTERS, GeneratorState
from stillroom.synth.lexical_overlap import collapse_whitespace
from stillroom.synth.prompting.requests import (
    fence_text,
    make_object_schema,
    make_string_schema,
)
from stillroom.synth.prompting.stepwise import GenerationUnit, RequestCoroutine, StepwiseGenerator
from stillroom.synth.types import GeneratorContext
from stillroom.text.dedup.paraphrases import find_numbers

__all__ = ["ToolCalls", "ToolDefinition", "Toolbox", "read_tools"]

_PROMPT_LEAK = re.compile(
    r"\ban assistant (?:has|can)\b|\b(?:this|these) tools?\b|\bnone of them\b|"
    r"\bthe tool (?:is|will|can|needs)\b|"
    r"\b(?:the|a|its) (?:tool )?call (?:will|would|needs?)\b|\bmessage of a user\b",
    re.IGNORECASE,
)
"""Words of the prompt: a user does not know that there are tools."""

_ANSWERS_NOBODY = re.compile(
    r"\bthe user(?:'s|\u2019s)?\b|\bthe tool\b|\bgave back\b", re.IGNORECASE
)

_NO_RESULT = re.compile(r"\b(?:was called with|the tool)\b|</?text\b", re.IGNORECASE)
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


class ToolCalls(StepwiseGenerator):
    """Generate conversations in which the assistant calls tools."""

    paper: ClassVar[str] = "arXiv:2406.18518"
    seed_kinds: ClassVar = ("nothing", "topics", "passages")
    default_filters: ClassVar[tuple[str, ...]] = RECORD_FILTERS
    templates: ClassVar = {
        "request": "An assistant has this tool:\n\n{tool}\n\nWrite a message of a user who needs "
        "it, with every value that the call will need{about}. Do not name the tool.",
        "call": "Tool:\n\n{tool}\n\nThe user says:\n{request}\n\nWrite the arguments of the call "
        "as JSON, with values that the user gave.",
        "result": "The tool {name} ({description}) was called with {arguments}. Make up what it "
        "gives back, as short JSON under the key result.",
        "answer": "The user says:\n{request}\n\nThe tool {name} gave back:\n{result}\n\nAnswer the "
        "user from that, in a sentence or two, without speaking of the tool.",
        "no_tool": "An assistant has these tools alone:\n\n{tool}\n\nWrite a message of a user who "
        "needs something that none of them can do.",
        "decline": "{request}",
    }

    tools: Reference = Field(
        description="file of tools: a JSON list of {name, description, parameters}, or in the "
        "format of OpenAI's API"
    )
    results: Literal["model", "table", "functions"] = Field(
        "model",
        description="model: written by the teacher; table: calls and results of a file; "
        "functions: Python code run in the sandbox",
    )
    source: Reference | None = Field(
        None, description="table (JSON lines of name, arguments, result) or functions (.py)"
    )
    distractors: int = Field(
        2, ge=0, le=32, description="other tools offered along with the one needed"
    )
    none_fits: float = Field(
        0.1, ge=0, le=1, description="share of requests that no tool fits, answered with text"
    )
    given_only: bool = Field(
        True, description="drop calls with a text or number that the request does not contain"
    )
    max_request_characters: int = Field(
        300, ge=40, le=4000, description="maximum characters of a request"
    )
    max_answer_tokens: int = Field(200, ge=16, le=4096, description="maximum tokens of an answer")
    max_argument_tokens: int = Field(
        256, ge=16, le=4096, description="maximum tokens of the arguments"
    )

    @property
    @override
    def max_requests(self) -> int:
        return 4 if self.results == "model" else 3

    @override
    def start(self, corpus: GeneratorContext) -> GeneratorState:
        self.toolbox()  # report an unusable file before any request
        return self

    def toolbox(self) -> Toolbox:
        """Read the tools and the source of their results.

        Raises:
            DataError: If a file is missing or invalid.
        """
        return read_tools(self.tools, self.results, self.source or "")

    @override
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        box, rng = self.toolbox(), unit.rng("tool")
        if rng.random() < self.none_fits:
            yield from self._decline(unit, box, rng)
            return
        tool = rng.choice(box.tools)
        offered = box.offer(tool, self.distractors, rng)
        request = yield from self._request(unit, tool)
        if request is None:
            return
        call = yield from self._call(unit, tool, request)
        if call is None:
            return
        result = yield from self._result(unit, box, tool, call)
        if result is None:
            return
        shown = json.dumps(result, ensure_ascii=False)
        answer = yield from unit.ask(
            unit.render(
                "answer", request=fence_text(request), name=tool.name, result=fence_text(shown)
            ),
            tokens=self.max_answer_tokens,
        )
        if answer is None:
            return
        source_text = f"{tool.description}\n{request}"  # a tool may be about users, or about tools
        if _ANSWERS_NOBODY.search(answer) and not re.search(
            r"\b(?:user|tool)", source_text, re.IGNORECASE
        ):
            unit.fail("words of the prompt in the answer", answer)
            return
        called = json.dumps({"name": tool.name, "arguments": call}, ensure_ascii=False)
        turns = [
            Message("user", request),
            Message("assistant", f"<tool_call>\n{called}\n</tool_call>"),
            Message("tool", shown),
            Message("assistant", answer),
        ]
        fields = {
            "question": request,
            "tools": [tool_offered.to_json() for tool_offered in offered],
            "calls": [{"name": tool.name, "arguments": call}],
            "result_by": self.results,
        }
        unit.add_record(turns, fields)

    def _request(self, unit: GenerationUnit, tool: ToolDefinition) -> RequestCoroutine[str | None]:
        subject = ""
        if unit.seed.kind == "topics":
            subject = f", about {' > '.join(unit.seed.topic.path)}"
        elif unit.seed.kind == "passages":
            subject = f", with values of this text: {fence_text(unit.seed.passage.text[:600])}"
        prompt_text = unit.render("request", tool=tool.shown, about=subject)
        schema = make_object_schema(message=make_string_schema(self.max_request_characters, 8))
        reply = yield from unit.ask_json(prompt_text, schema, label="request")
        return self._asked(unit, str(reply["message"]).strip(), (tool,)) if reply else None

    def _asked(
        self, unit: GenerationUnit, request: str, tools: Sequence[ToolDefinition]
    ) -> str | None:
        """Return a request, or None (a recorded failure) if it mentions the prompt or a tool."""
        names = [tool.name for tool in tools if "_" in tool.name or "." in tool.name]
        if _PROMPT_LEAK.search(request) or any(name in request for name in names):
            unit.fail("words of the prompt in the request", request)
            return None
        return request

    def _call(
        self, unit: GenerationUnit, tool: ToolDefinition, request: str
    ) -> RequestCoroutine[dict[str, Any] | None]:
        prompt_text = unit.render("call", tool=tool.shown, request=fence_text(request))
        arguments = yield from unit.ask_json(
            prompt_text, tool.parameters, tokens=self.max_argument_tokens, label="arguments"
        )
        if arguments is None:
            return None
        problem = describe_violation(arguments, tool.parameters)
        if problem:  # checked in fill; a call that does not fit its tool is never kept
            unit.fail("arguments do not fit the tool", problem)
            return None
        if self.given_only and (
            ungrounded := _find_ungrounded_argument(arguments, request, tool.parameters)
        ):
            unit.fail("an argument that the user did not give", f"{ungrounded}: {request}")
            return None
        return dict(arguments)

    def _result(
        self, unit: GenerationUnit, box: Toolbox, tool: ToolDefinition, call: Mapping[str, Any]
    ) -> RequestCoroutine[Any]:
        if self.results != "model":
            result, problem = box.run(tool, call)
            if problem:
                unit.fail(problem, f"{tool.name}: {json.dumps(call, ensure_ascii=False)}")
            return result
        prompt_text = unit.render(
            "result",
            name=tool.name,
            description=tool.description,
            arguments=fence_text(json.dumps(call, ensure_ascii=False)),
        )
        reply = yield from unit.ask_json(
            prompt_text, make_object_schema(result=make_string_schema(200)), label="result"
        )
        if reply is not None and _NO_RESULT.search(str(reply["result"])):
            unit.fail("words of the prompt in the result", str(reply["result"]))
            return None
        return reply

    def _decline(
        self, unit: GenerationUnit, box: Toolbox, rng: random.Random
    ) -> RequestCoroutine[None]:
        """Add a request that no tool fits, answered with text."""
        offered = box.offer(rng.choice(box.tools), self.distractors, rng)
        shown = "\n".join(tool.shown for tool in offered)
        schema = make_object_schema(message=make_string_schema(self.max_request_characters, 8))
        reply = yield from unit.ask_json(
            unit.render("no_tool", tool=shown), schema, label="request"
        )
        if reply is None:
            return
        request = self._asked(unit, str(reply["message"]).strip(), offered)
        if request is None:
            return
        answer = yield from unit.ask(
            unit.render("decline", request=request), tokens=self.max_answer_tokens
        )
        if answer is not None:
            fields = {
                "question": request,
                "tools": [tool_offered.to_json() for tool_offered in offered],
                "calls": [],
                "result_by": "",
            }
            unit.add_record([Message("user", request), Message("assistant", answer)], fields)


def _find_ungrounded_argument(
    call: Mapping[str, Any], request: str, schema: Mapping[str, Any]
) -> str:
    """Return the first argument that the request does not contain, or an empty string.

    An enum value need not occur, unless the request names another value of that enum.
    """
    normalized, numbers = collapse_whitespace(request).casefold(), _numbers_in(request)
    for name, value, part in _leaves("", call, schema):
        if isinstance(value, bool) or value is None or {"enum", "const"} & part.keys():
            alternatives = {
                choice for choice in part.get("enum", ()) if isinstance(choice, str)
            } - {value}
            is_other = any(_names(normalized, choice) for choice in alternatives)
            if isinstance(value, str) and is_other and not _names(normalized, value):
                return f"{name}={value}"
            continue
        if isinstance(value, str) and collapse_whitespace(value).casefold() not in normalized:
            return f"{name}={value}"
        if isinstance(value, int | float) and abs(float(value)) not in numbers:
            return f"{name}={value}"
    return ""


def _names(text: str, choice: str) -> bool:
    return (
        re.search(rf"(?<!\w){re.escape(collapse_whitespace(choice).casefold())}(?!\w)", text)
        is not None
    )


def _leaves(name: str, value: Any, schema: Any) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Yield every text and number of an argument with its name and its part of the schema."""
    part = schema if isinstance(schema, Mapping) else {}
    if isinstance(value, Mapping):
        known = part.get("properties") or {}
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}" if name else str(key), inner, known.get(key))
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(name, inner, part.get("items"))
    else:
        yield name, value, part


def _numbers_in(text: str) -> set[float]:
    """Return the numbers of a text, including English number words."""
    numbers = {float(number.replace(",", "")) for number in _NUMBER.findall(text)}
    return numbers | {float(number) for number in find_numbers(text) if number.isdigit()}


_CALL = """
import json, sys
_given = json.loads(sys.stdin.read())
_result = globals()[_given["name"]](**_given["arguments"])
sys.stdout.write("\\n" + json.dumps(_result))
"""


@dataclass(frozen=True, slots=True)
class ToolDefinition:
    """A tool: its name, its description, and the JSON Schema of its arguments."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    @property
    def shown(self) -> str:
        """The tool as JSON for a prompt."""
        return json.dumps(self.to_json()["function"], ensure_ascii=False)

    def to_json(self) -> dict[str, Any]:
        """Return the tool in the format of OpenAI's API."""
        function = {
            "name": self.name,
            "description": self.description,
            "parameters": dict(self.parameters),
        }
        return {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Toolbox:
    """Tools with the source of their results."""

    tools: tuple[ToolDefinition, ...]
    table: Mapping[str, Any] = field(default_factory=dict)
    code: str = ""

    def offer(
        self, tool: ToolDefinition, distractors: int, rng: random.Random
    ) -> list[ToolDefinition]:
        """Return a tool among distractors, in random order."""
        candidates = [candidate for candidate in self.tools if candidate.name != tool.name]
        offered = [tool, *rng.sample(candidates, min(distractors, len(candidates)))]
        rng.shuffle(offered)
        return offered

    def run(self, tool: ToolDefinition, arguments: Mapping[str, Any]) -> tuple[Any, str]:
        """Return the result of a call, or None and the reason there is none.

        Raises:
            ResourceError: If functions cannot be isolated on this machine.
        """
        if not self.code:
            key = _key(tool.name, arguments)
            if key not in self.table:
                return None, "a call that the table does not hold"
            return self.table[key], ""
        stdin = json.dumps({"name": tool.name, "arguments": dict(arguments)})
        outcome = run_code([self.code, _CALL], stdin=stdin)
        if not outcome.is_done:
            return None, f"a call that ends in {outcome.reason}"
        try:
            return load_json(outcome.output.rsplit("\n", 1)[-1]), ""
        except ValueError:
            return None, "a call whose result is not JSON"


@lru_cache(maxsize=8)
def read_tools(tools: str, results: str, source: str) -> Toolbox:
    """Read tools, and the table or the functions for their results.

    Raises:
        DataError: If a file is missing or invalid, or has no function for a tool.
    """
    rows = _read_json(Path(tools))
    if not isinstance(rows, list) or not rows:
        raise _broken(tools, "it has no list of tools")
    known = tuple(_parse_tool(row, tools, number) for number, row in enumerate(rows))
    if results == "model":
        return Toolbox(known)
    if not source:
        raise _broken(tools, f"results: {results} requires source, a file")
    if results == "functions":
        code = _read(Path(source))
        missing = [tool.name for tool in known if f"def {tool.name}(" not in code]
        if missing:
            raise _broken(source, f"it defines no function {missing[0]}")
        return Toolbox(known, code=code)
    table = {}
    for number, line in enumerate(_read(Path(source)).split("\n"), 1):
        if line.strip():
            try:
                row = load_json(line)
                table[_key(row["name"], row["arguments"])] = row["result"]
            except (ValueError, KeyError, TypeError) as error:
                raise _broken(f"{source}:{number}", f"invalid call: {error}") from error
    return Toolbox(known, table)


def _parse_tool(row: Any, where: str, number: int) -> ToolDefinition:
    if isinstance(row, Mapping) and isinstance(row.get("function"), Mapping):
        row = row["function"]
    name = row.get("name") if isinstance(row, Mapping) else None
    if not isinstance(name, str) or not name.isidentifier():
        raise _broken(where, f"tool {number} has no name that is an identifier")
    parameters = row.get("parameters") or {"type": "object", "properties": {}}
    try:
        Draft202012Validator.check_schema(parameters)
    except SchemaError as error:
        raise _broken(
            where, f"{name}: parameters are not a JSON Schema: {error.message}"
        ) from error
    if parameters.get("type") != "object":
        raise _broken(where, f"{name}: parameters are not an object")
    return ToolDefinition(name, str(row.get("description", "")), parameters)


def _read_json(path: Path) -> Any:
    try:
        return load_json(_read(path))
    except ValueError as error:
        raise _broken(str(path), f"it is not JSON: {error}") from error


def _read(path: Path) -> str:
    try:
        return require_file(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _broken(str(path), f"it cannot be read: {error}") from error


def _key(name: str, arguments: Mapping[str, Any]) -> str:
    return json.dumps([name, arguments], sort_keys=True, ensure_ascii=False)


def _broken(where: str, problem: str) -> DataError:
    return DataError(
        f"the tools cannot be used: {problem}",
        code="synth.tools",
        where=where,
        expected='[{"name": ..., "description": ..., "parameters": JSON Schema}, ...]',
        next="correct the file, or choose results: model",
    )
