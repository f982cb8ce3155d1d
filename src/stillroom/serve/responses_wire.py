"""What clients send to ``/v1/responses``: OpenAI's newer request, as far as it is served here.

The rule is that of ``wire``: what would change the answer and is not served is refused by name,
labels are taken and not kept, and the value that changes nothing is taken. Nothing is stored, so
what refers to an earlier answer is refused with what to send instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue
from pydantic_core import PydanticCustomError

from stillroom.errors import Problem
from stillroom.records import Message, Prompt, Sampling
from stillroom.serve.limits import Limits
from stillroom.serve.orders import Order
from stillroom.serve.refusals import Refusal
from stillroom.serve.wire import DocumentsRequest, SampledRequest, check_count, check_last

__all__ = ["ResponsesRequest"]

_NOT_KEPT = "answers are not kept here"
_DEPTH = 64
_RELAYED = ("temperature", "top_p", "top_k", "seed", "parallel_tool_calls")
"""Fields that another server takes as they are, where the client says them."""


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def _only(noun: str, *known: str, default: str = "") -> BeforeValidator:
    """Return what refuses values of other types than are known, by the name of their type.

    Args:
        noun: What they are, in the plural.
        known: The types.
        default: The type of a value that says none.
    """

    def check(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kind = default if value.get("type") is None else value["type"]
        if isinstance(kind, str) and kind and kind not in known:
            shown = kind[:40].encode("ascii", "backslashreplace").decode()
            told = {"noun": noun, "kind": shown, "known": ", ".join(known)}
            message = "{noun} of type '{kind}' are not served here; expected {known}"
            raise PydanticCustomError("unknown_type", message, told)
        return {**value, "type": kind} if kind else value

    return BeforeValidator(check)


def _check_depth(value: Any) -> Any:
    """Refuse what is nested so deep that it could not be sent on or back."""
    level: list[Any] = [value]
    for _ in range(_DEPTH):
        level = [one for one in level if isinstance(one, dict | list)]
        rows = [one.values() if isinstance(one, dict) else one for one in level]
        level = [one for row in rows for one in row]
        if not level:
            return value
    raise PydanticCustomError("too_deep", "nested deeper than {most}", {"most": _DEPTH})


_Json = Annotated[dict[str, JsonValue], BeforeValidator(_check_depth)]


class _Text(_Closed):
    """A piece of a message's text; what tells of an earlier answer may be sent back with it."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[JsonValue] | None = None
    logprobs: list[JsonValue] | None = None


_Texts = str | list[Annotated[_Text, _only("parts", "input_text", "output_text")]]


class _Message(_Closed):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: _Texts
    id: str | None = None
    status: str | None = None
    phase: str | None = None
    citations: list[JsonValue] | None = None
    answer: dict[str, JsonValue] | None = None
    turns_not_read: int | None = None


class _Call(_Closed):
    type: Literal["function_call"]
    call_id: str = Field(min_length=1)
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None


class _CallOutput(_Closed):
    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1)
    output: _Texts
    id: str | None = None
    status: str | None = None


_Item = Annotated[
    _Message | _Call | _CallOutput,
    Field(discriminator="type"),
    _only("items", "message", "function_call", "function_call_output", default="message"),
]


class _Function(_Closed):
    type: Literal["function"]
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: _Json | None = None
    strict: bool | None = None


class _ChosenFunction(_Closed):
    type: Literal["function"]
    name: str = Field(min_length=1)


class _AnyText(_Closed):
    type: Literal["text"]


class _AnyJson(_Closed):
    type: Literal["json_object"]


class _SchemaJson(_Closed):
    type: Literal["json_schema"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    schema_: _Json = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class _TextSettings(_Closed):
    format: Annotated[_AnyText | _AnyJson | _SchemaJson, Field(discriminator="type")] | None = None
    verbosity: Literal["medium"] | None = None


class _Reasoning(_Closed):
    effort: Literal["none"] | None = None
    summary: None = None
    generate_summary: None = None


class _StreamOptions(_Closed):
    include_obfuscation: Literal[False] | None = None


_Label = Annotated[str, Field(max_length=64)]
_Value = Annotated[str, Field(max_length=512)]
_NeverHere = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
]
"""What may be asked for besides, all of it of items that no answer here has."""


class ResponsesRequest(SampledRequest, DocumentsRequest):
    """POST /v1/responses."""

    input: str | list[_Item] = Field(min_length=1)
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    text: _TextSettings | None = None
    tools: list[Annotated[_Function, _only("tools", "function")]] | None = Field(
        None, max_length=128
    )
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | _ChosenFunction | None,
        _only("tool choices", "function"),
    ] = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = Field(None, ge=1, description="of built-in tools: there are none")
    metadata: dict[_Label, _Value] | None = Field(None, max_length=16)
    store: bool | None = Field(None, description="nothing is stored: only false")
    previous_response_id: str | None = Field(None, description="nothing is stored: only null")
    conversation: str | dict[str, JsonValue] | None = Field(
        None, description="nothing is stored: only null"
    )
    stream_options: _StreamOptions | None = None
    include: list[_NeverHere] | None = None
    reasoning: _Reasoning | None = None
    truncation: Literal["disabled"] | None = None
    top_logprobs: Literal[0] | None = None
    background: Literal[False] | None = None
    moderation: None = None
    prompt: None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    def to_order(self, limits: Limits) -> Order:
        """Return what is wanted, within the limits.

        Raises:
            Refusal: If it builds on what is not kept, there are too many items, the last message
                is not the user's, too much is wanted, or tools are spoken of that are not there.
        """
        self._check_kept()
        items = self._items()
        check_count(len(items) + bool(self.instructions), limits, "input")
        sampling = self.sampling(limits, wanted=self.max_output_tokens, field="max_output_tokens")
        self._check_choice()
        if self.tools or not all(isinstance(item, _Message) for item in items):
            passed_on = self._pass_on(items, sampling)
            return Order(
                self.model, draws=(sampling,), is_streamed=bool(self.stream), passed_on=passed_on
            )
        turns = [Message("system", self.instructions)] if self.instructions else []
        turns += [_to_message(item) for item in items if isinstance(item, _Message)]
        check_last(turns, "input")
        return Order(
            self.model,
            Prompt(tuple(turns), schema=self._schema()),
            (sampling,),
            bool(self.stream),
            self.k,
            self.ask_settings(),
            schema_field="text.format",
        )

    def echo(self, order: Order) -> dict[str, Any]:
        """Return what an answer says of its request: what was asked for, and what held else.

        How another server draws where nothing is said is not known here, and so null.
        """
        drawn, is_ours = order.draws[0], order.passed_on is None
        text = self.text.model_dump(by_alias=True, exclude_none=True) if self.text else {}
        choice = self.tool_choice
        return {
            "model": self.model,
            "background": False,
            "instructions": self.instructions,
            "max_output_tokens": drawn.max_new_tokens,
            "max_tool_calls": self.max_tool_calls,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": drawn.temperature if is_ours else self.temperature,
            "text": {"format": {"type": "text"}, **text},
            "tool_choice": choice.model_dump()
            if isinstance(choice, BaseModel)
            else choice or "auto",
            "tools": [tool.model_dump() for tool in self.tools or ()],
            "top_logprobs": 0,
            "top_p": drawn.top_p if is_ours else self.top_p,
            "truncation": "disabled",
        }

    def _items(self) -> list[_Message | _Call | _CallOutput]:
        if isinstance(self.input, str):
            return [_Message(role="user", content=self.input)]
        return self.input

    def _check_kept(self) -> None:
        """Refuse what builds on an earlier answer, or asks for this one to be kept."""
        if self.store:
            then = "leave store out, and send earlier items again with each request"
            raise _not_kept("store", "store is true", "false or nothing", then)
        for field in ("previous_response_id", "conversation"):
            if getattr(self, field) is not None:
                then = "send the earlier items again, in input"
                raise _not_kept(field, f"{field} names an earlier answer", "null or nothing", then)

    def _check_choice(self) -> None:
        """Refuse a choice of tools that are not there."""
        known = [tool.name for tool in self.tools or ()]
        choice = self.tool_choice
        is_missing = isinstance(choice, _ChosenFunction) and choice.name not in known
        if is_missing or (choice == "required" and not known):
            there = f"there is: {', '.join(known)[:200]}" if known else "there is none"
            raise Refusal(
                400,
                f"tool_choice asks for a tool that is not in tools; {there}",
                code="unknown_tool",
                param="tool_choice",
            )

    def _schema(self) -> dict[str, Any] | None:
        wanted = self.text.format if self.text else None
        if isinstance(wanted, _SchemaJson):
            return dict(wanted.schema_)
        return {"type": "object"} if isinstance(wanted, _AnyJson) else None

    def _pass_on(
        self, items: Sequence[_Message | _Call | _CallOutput], sampling: Sampling
    ) -> dict[str, Any]:
        """Return the request as a chat, which is what other servers of the dialect take."""
        ours = [*self.ask_settings(), *(["k"] if self.k is not None else [])]
        if ours:
            told = f"'{ours[0]}' does not go with tools"
            raise Refusal(400, told, code="no_tools", param=ours[0])
        turns = [{"role": "system", "content": self.instructions}] if self.instructions else []
        sent: dict[str, Any] = {
            "messages": turns + _to_turns(items),
            "max_tokens": sampling.max_new_tokens,
            **self.model_dump(include=set(_RELAYED), exclude_unset=True, exclude_none=True),
        }
        if self.tools:
            sent["tools"] = [
                {
                    "type": "function",
                    "function": tool.model_dump(exclude={"type"}, exclude_none=True),
                }
                for tool in self.tools
            ]
            if isinstance(self.tool_choice, _ChosenFunction):
                named = {"name": self.tool_choice.name}
                sent["tool_choice"] = {"type": "function", "function": named}
            elif self.tool_choice is not None:
                sent["tool_choice"] = self.tool_choice
        wanted = self.text.format if self.text else None
        if isinstance(wanted, _SchemaJson):
            held = wanted.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
            sent["response_format"] = {"type": "json_schema", "json_schema": held}
        elif isinstance(wanted, _AnyJson):
            sent["response_format"] = {"type": "json_object"}
        if self.stream:
            sent["stream_options"] = {"include_usage": True}
        return sent


def _not_kept(field: str, what: str, expected: str, then: str) -> Refusal:
    told = f"{what}, and {_NOT_KEPT}; expected {expected}; next: {then}"
    problem = Problem(f"{what}, and {_NOT_KEPT}", "not_kept", field, expected, then)
    return Refusal(400, told, code="not_kept", param=field, problems=[problem])


def _join(texts: str | Sequence[_Text]) -> str:
    return texts if isinstance(texts, str) else "\n".join(part.text for part in texts)


def _to_message(item: _Message) -> Message:
    role = "system" if item.role == "developer" else item.role
    return Message(role, _join(item.content))


def _to_turns(items: Sequence[_Message | _Call | _CallOutput]) -> list[dict[str, Any]]:
    """Return items as a chat's messages; calls belong to the message of the model before them.

    Raises:
        Refusal: If there is the outcome of a call that is not among the items.
    """
    turns: list[dict[str, Any]] = []
    called = set()
    for at, item in enumerate(items):
        if isinstance(item, _Message):
            turns.append(_to_message(item).to_json())
        elif isinstance(item, _Call):
            if not turns or turns[-1]["role"] != "assistant":
                turns.append({"role": "assistant", "content": None})
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            turns[-1].setdefault("tool_calls", []).append(call)
            called.add(item.call_id)
        elif item.call_id in called:
            content = _join(item.output)
            turns.append({"role": "tool", "tool_call_id": item.call_id, "content": content})
        else:
            raise Refusal(
                400,
                f"no function_call with the call_id {item.call_id[:80]!r} comes before its output, "
                f"and {_NOT_KEPT}; next: send the call again, before its output",
                code="unknown_call",
                param=f"input.{at}.call_id",
            )
    return turns
