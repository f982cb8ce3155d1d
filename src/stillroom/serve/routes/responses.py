"""``/v1/responses``: a chat turn as items (messages, function calls), as far as it is supported.

Unsupported fields, labels and neutral values are treated as in ``chat_completions``. Nothing is
stored, so references to an earlier answer are refused with an alternative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, Field, JsonValue
from pydantic_core import PydanticCustomError

from stillroom.errors import Problem
from stillroom.records import Message, Prompt, Sampling
from stillroom.records.text_credentials import remove_marks
from stillroom.serve.access import RequestLimits
from stillroom.serve.errors import ApiError
from stillroom.serve.openai.requests import (
    DocumentsRequest,
    GenerationRequest,
    RequestPart,
    SampledRequest,
    check_last_message,
    check_message_count,
)
from stillroom.serve.openai.responses_replies import ResponsesReply
from stillroom.serve.routing import RouteTable, ServerContext, StrictModel

__all__ = ["ResponseObject", "ResponsesRequest", "add_routes"]

_NOT_STORED = "answers are not stored here"
_MAX_DEPTH = 64
_PROXIED_FIELDS = ("temperature", "top_p", "top_k", "seed", "parallel_tool_calls")
"""Fields that are forwarded unchanged to another server, if given."""


def _require_known_type(noun: str, *known: str, default: str = "") -> BeforeValidator:
    """Return a validator that refuses unknown values of a ``type`` field."""

    def check(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kind = default if value.get("type") is None else value["type"]
        if isinstance(kind, str) and kind and kind not in known:
            shown = kind[:40].encode("ascii", "backslashreplace").decode()
            context = {"noun": noun, "kind": shown, "known": ", ".join(known)}
            message = "{noun} of type '{kind}' are not supported; expected {known}"
            raise PydanticCustomError("unknown_type", message, context)
        return {**value, "type": kind} if kind else value

    return BeforeValidator(check)


def _check_depth(value: Any) -> Any:
    """Refuse values that are nested too deeply to be forwarded or returned."""
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        level = [value for value in level if isinstance(value, dict | list)]
        rows = [value.values() if isinstance(value, dict) else value for value in level]
        level = [value for row in rows for value in row]
        if not level:
            return value
    raise PydanticCustomError("too_deep", "nested deeper than {most}", {"most": _MAX_DEPTH})


_JsonObject = Annotated[dict[str, JsonValue], BeforeValidator(_check_depth)]


class _TextPart(RequestPart):
    """Part of a message's text; the extra fields of earlier answers may be sent back."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[JsonValue] | None = None
    logprobs: list[JsonValue] | None = None


_TextContent = (
    str | list[Annotated[_TextPart, _require_known_type("parts", "input_text", "output_text")]]
)


class _InputMessage(RequestPart):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: _TextContent
    id: str | None = None
    status: str | None = None
    phase: str | None = None
    citations: list[JsonValue] | None = None
    answer: dict[str, JsonValue] | None = None
    turns_not_read: int | None = None


class _FunctionCall(RequestPart):
    type: Literal["function_call"]
    call_id: str = Field(min_length=1)
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None


class _FunctionCallOutput(RequestPart):
    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1)
    output: _TextContent
    id: str | None = None
    status: str | None = None


_InputItem = Annotated[
    _InputMessage | _FunctionCall | _FunctionCallOutput,
    Field(discriminator="type"),
    _require_known_type(
        "items", "message", "function_call", "function_call_output", default="message"
    ),
]


class _FunctionTool(RequestPart):
    type: Literal["function"]
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: _JsonObject | None = None
    strict: bool | None = None


class _FunctionToolChoice(RequestPart):
    type: Literal["function"]
    name: str = Field(min_length=1)


class _TextFormat(RequestPart):
    type: Literal["text"]


class _JsonObjectFormat(RequestPart):
    type: Literal["json_object"]


class _JsonSchemaFormat(RequestPart):
    type: Literal["json_schema"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    schema_: _JsonObject = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class _TextSettings(RequestPart):
    format: (
        Annotated[_TextFormat | _JsonObjectFormat | _JsonSchemaFormat, Field(discriminator="type")]
        | None
    ) = None
    verbosity: Literal["medium"] | None = None


class _Reasoning(RequestPart):
    effort: Literal["none"] | None = None
    summary: None = None
    generate_summary: None = None


class _StreamOptions(RequestPart):
    include_obfuscation: Literal[False] | None = None


_MetadataKey = Annotated[str, Field(max_length=64)]
_MetadataValue = Annotated[str, Field(max_length=512)]
_AbsentInclude = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
]
"""Accepted values of ``include``; all concern items that no answer here has."""


class ResponsesRequest(SampledRequest, DocumentsRequest):
    """POST /v1/responses."""

    input: str | list[_InputItem] = Field(min_length=1)
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    text: _TextSettings | None = None
    tools: list[Annotated[_FunctionTool, _require_known_type("tools", "function")]] | None = Field(
        None, max_length=128
    )
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | _FunctionToolChoice | None,
        _require_known_type("tool choices", "function"),
    ] = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = Field(
        None, ge=1, description="of built-in tools, which are not supported"
    )
    metadata: dict[_MetadataKey, _MetadataValue] | None = Field(None, max_length=16)
    store: bool | None = Field(None, description="nothing is stored: false is accepted")
    previous_response_id: str | None = Field(
        None, description="nothing is stored: null is accepted"
    )
    conversation: str | dict[str, JsonValue] | None = Field(
        None, description="nothing is stored: null is accepted"
    )
    stream_options: _StreamOptions | None = None
    include: list[_AbsentInclude] | None = None
    reasoning: _Reasoning | None = None
    truncation: Literal["disabled"] | None = None
    top_logprobs: Literal[0] | None = None
    background: Literal[False] | None = None
    moderation: None = None
    prompt: None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    def to_generation_request(self, limits: RequestLimits) -> GenerationRequest:
        """Return the normalized request, within the limits.

        Raises:
            ApiError: If it refers to an earlier answer, has too many items, does not end with a
                message of the user, exceeds a limit, or names unknown tools.
        """
        self._check_kept()
        items = self._items()
        check_message_count(len(items) + bool(self.instructions), limits, "input")
        sampling = self.sampling(
            limits, max_tokens=self.max_output_tokens, field="max_output_tokens"
        )
        self._check_choice()
        if self.tools or not all(isinstance(item, _InputMessage) for item in items):
            proxied_body = self._to_proxied_body(items, sampling)
            return GenerationRequest(
                self.model,
                samplings=(sampling,),
                is_streamed=bool(self.stream),
                proxied_body=proxied_body,
            )
        turns = [Message("system", self.instructions)] if self.instructions else []
        turns += [_to_message(item) for item in items if isinstance(item, _InputMessage)]
        check_last_message(turns, "input")
        return GenerationRequest(
            self.model,
            Prompt(tuple(turns), schema=self._schema()),
            (sampling,),
            bool(self.stream),
            self.k,
            self.ask_settings(),
            schema_field="text.format",
        )

    def echo(self, order: GenerationRequest) -> dict[str, Any]:
        """Return the request fields that the response repeats, with effective defaults.

        Sampling defaults of another server are unknown here, and therefore null.
        """
        sampling, is_ours = order.samplings[0], order.proxied_body is None
        text = self.text.model_dump(by_alias=True, exclude_none=True) if self.text else {}
        choice = self.tool_choice
        return {
            "model": self.model,
            "background": False,
            "instructions": self.instructions,
            "max_output_tokens": sampling.max_new_tokens,
            "max_tool_calls": self.max_tool_calls,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": sampling.temperature if is_ours else self.temperature,
            "text": {"format": {"type": "text"}, **text},
            "tool_choice": choice.model_dump()
            if isinstance(choice, BaseModel)
            else choice or "auto",
            "tools": [tool.model_dump() for tool in self.tools or ()],
            "top_logprobs": 0,
            "top_p": sampling.top_p if is_ours else self.top_p,
            "truncation": "disabled",
        }

    def _items(self) -> list[_InputMessage | _FunctionCall | _FunctionCallOutput]:
        if isinstance(self.input, str):
            return [_InputMessage(role="user", content=self.input)]
        return self.input

    def _check_kept(self) -> None:
        """Refuse references to an earlier answer, and requests to store this one."""
        if self.store:
            then = "leave store out, and send earlier items again with each request"
            raise _not_stored_error("store", "store is true", "false or nothing", then)
        for field in ("previous_response_id", "conversation"):
            if getattr(self, field) is not None:
                then = "send the earlier items again, in input"
                raise _not_stored_error(
                    field, f"{field} names an earlier answer", "null or nothing", then
                )

    def _check_choice(self) -> None:
        """Refuse a tool_choice of unknown tools."""
        known = [tool.name for tool in self.tools or ()]
        choice = self.tool_choice
        is_missing = isinstance(choice, _FunctionToolChoice) and choice.name not in known
        if is_missing or (choice == "required" and not known):
            there = f"available: {', '.join(known)[:200]}" if known else "available: none"
            raise ApiError(
                400,
                f"tool_choice names a tool that is not in tools; {there}",
                code="unknown_tool",
                param="tool_choice",
            )

    def _schema(self) -> dict[str, Any] | None:
        format = self.text.format if self.text else None
        if isinstance(format, _JsonSchemaFormat):
            return dict(format.schema_)
        return {"type": "object"} if isinstance(format, _JsonObjectFormat) else None

    def _to_proxied_body(
        self,
        items: Sequence[_InputMessage | _FunctionCall | _FunctionCallOutput],
        sampling: Sampling,
    ) -> dict[str, Any]:
        """Return the request as a chat body, which other servers accept."""
        extensions = [*self.ask_settings(), *(["k"] if self.k is not None else [])]
        if extensions:
            message = f"'{extensions[0]}' cannot be combined with tools"
            raise ApiError(400, message, code="no_tools", param=extensions[0])
        turns = [{"role": "system", "content": self.instructions}] if self.instructions else []
        sent: dict[str, Any] = {
            "messages": turns + _to_turns(items),
            "max_tokens": sampling.max_new_tokens,
            **self.model_dump(include=set(_PROXIED_FIELDS), exclude_unset=True, exclude_none=True),
        }
        if self.tools:
            sent["tools"] = [
                {
                    "type": "function",
                    "function": tool.model_dump(exclude={"type"}, exclude_none=True),
                }
                for tool in self.tools
            ]
            if isinstance(self.tool_choice, _FunctionToolChoice):
                named = {"name": self.tool_choice.name}
                sent["tool_choice"] = {"type": "function", "function": named}
            elif self.tool_choice is not None:
                sent["tool_choice"] = self.tool_choice
        format = self.text.format if self.text else None
        if isinstance(format, _JsonSchemaFormat):
            held = format.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
            sent["response_format"] = {"type": "json_schema", "json_schema": held}
        elif isinstance(format, _JsonObjectFormat):
            sent["response_format"] = {"type": "json_object"}
        if self.stream:
            sent["stream_options"] = {"include_usage": True}
        return sent


def _not_stored_error(field: str, reason: str, expected: str, then: str) -> ApiError:
    message = f"{reason}, and {_NOT_STORED}; expected {expected}; next: {then}"
    problem = Problem(f"{reason}, and {_NOT_STORED}", "not_kept", field, expected, then)
    return ApiError(400, message, code="not_kept", param=field, problems=[problem])


def _join_text(texts: str | Sequence[_TextPart]) -> str:
    text = texts if isinstance(texts, str) else "\n".join(part.text for part in texts)
    return remove_marks(text)


def _to_message(item: _InputMessage) -> Message:
    role = "system" if item.role == "developer" else item.role
    return Message(role, _join_text(item.content))


def _to_turns(
    items: Sequence[_InputMessage | _FunctionCall | _FunctionCallOutput],
) -> list[dict[str, Any]]:
    """Convert items to chat messages; calls join the preceding message of the model.

    Raises:
        ApiError: If there is an output without its call.
    """
    turns: list[dict[str, Any]] = []
    called = set()
    for index, item in enumerate(items):
        if isinstance(item, _InputMessage):
            turns.append(_to_message(item).to_json())
        elif isinstance(item, _FunctionCall):
            if not turns or turns[-1]["role"] != "assistant":
                turns.append({"role": "assistant", "content": None})
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            turns[-1].setdefault("tool_calls", []).append(call)
            called.add(item.call_id)
        elif item.call_id in called:
            content = _join_text(item.output)
            turns.append({"role": "tool", "tool_call_id": item.call_id, "content": content})
        else:
            raise ApiError(
                400,
                f"no function_call with the call_id {item.call_id[:80]!r} comes before its output, "
                f"and {_NOT_STORED}; next: send the call again, before its output",
                code="unknown_call",
                param=f"input.{index}.call_id",
            )
    return turns


class _UrlCitation(StrictModel):
    type: Literal["url_citation"]
    start_index: int
    end_index: int
    title: str
    url: str
    passage_id: str
    byte_start: int
    byte_end: int
    pages: list[int]


class _OutputText(StrictModel):
    type: Literal["output_text"]
    text: str
    annotations: list[_UrlCitation]
    logprobs: list[Any] = Field(max_length=0)


class _OutputRefusal(StrictModel):
    type: Literal["refusal"]
    refusal: str


class _MessageItem(StrictModel):
    type: Literal["message"]
    id: str
    role: Literal["assistant"]
    status: Literal["completed", "incomplete"]
    content: list[_OutputText | _OutputRefusal]
    citations: list[dict[str, Any]] | None = Field(None, description="of documents")
    answer: dict[str, Any] | None = Field(
        None, description="details of how it was made from documents"
    )
    turns_not_read: int | None = None


class _FunctionCallItem(StrictModel):
    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: Literal["completed", "incomplete"]


class _IncompleteDetails(StrictModel):
    reason: Literal["max_output_tokens", "content_filter"]


class _InputTokenDetails(StrictModel):
    cached_tokens: int
    cache_write_tokens: int


class _OutputTokenDetails(StrictModel):
    reasoning_tokens: int


class _ResponseUsage(StrictModel):
    input_tokens: int
    input_tokens_details: _InputTokenDetails
    output_tokens: int
    output_tokens_details: _OutputTokenDetails
    total_tokens: int


class ResponseObject(StrictModel):
    """Chat turn as items, with effective request fields; null means unknown."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["completed", "incomplete"]
    error: None
    incomplete_details: _IncompleteDetails | None
    output: list[_MessageItem | _FunctionCallItem]
    usage: _ResponseUsage | None
    user: None
    model: str
    background: Literal[False]
    instructions: str | None
    max_output_tokens: int
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None
    reasoning: dict[str, None]
    service_tier: Literal["default"]
    store: Literal[False]
    temperature: float | None
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: Literal[0]
    top_p: float | None
    truncation: Literal["disabled"]


def add_routes(table: RouteTable, server: ServerContext) -> None:
    """Add the route."""

    @table.add("POST", "/v1/responses", "models", reply=ResponseObject, is_streamed=True)
    async def responses(body: ResponsesRequest, request: Request) -> Response:
        """Answer a chat turn as items, whole or as typed events; nothing is stored."""
        served = server.models.find_writer(body.model)
        order = body.to_generation_request(server.limits)
        reply = ResponsesReply(body.echo(order))
        return await server.models.reply(served, order, reply, request)
