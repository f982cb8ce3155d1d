"""``/v1/chat/completions``: answers from documents or the model alone; tool calls are passed on.

An unsupported key that would change the answer is refused by name, as OpenAI does; keys that only
label a request (``user``, ``metadata``) are accepted and not stored; of unsupported keys the
neutral value is accepted (``logprobs: false``), since many clients send it.

Streaming (server-sent events): ``serve.openai.stream.send_response``; the JSON of a reply, whole or
in chunks: ``serve.openai.replies.ChatReply``.
"""

from __future__ import annotations

from typing import Any, Literal

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, JsonValue

from stillroom.records import Message, Prompt, Sampling
from stillroom.records.text_credentials import remove_marks
from stillroom.serve.access import RequestLimits
from stillroom.serve.errors import ApiError
from stillroom.serve.openai.replies import ChatReply, ProxiedReply
from stillroom.serve.openai.requests import (
    DocumentsRequest,
    GenerationRequest,
    RequestPart,
    TextRequest,
    check_last_message,
    check_message_count,
)
from stillroom.serve.routing import ExtensibleModel, RouteTable, ServerContext, TokenUsage

__all__ = ["ChatCompletion", "ChatRequest", "add_routes"]

_IGNORED_FIELDS = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
}

_REPLY_FIELDS = ("annotations", "citations", "answer", "turns_not_read", "refusal")
"""Extra fields of our messages, which other servers do not accept back."""


class _ContentPart(BaseModel):
    type: Literal["text"]
    text: str


class _ChatMessage(RequestPart):
    """One message; the extra fields of earlier answers may be sent back."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_ContentPart] | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: list[JsonValue] | None = None
    citations: list[JsonValue] | None = None
    answer: dict[str, JsonValue] | None = None
    turns_not_read: int | None = None
    tool_calls: list[dict[str, JsonValue]] | None = None
    tool_call_id: str | None = None

    @property
    def uses_tools(self) -> bool:
        return self.role == "tool" or bool(self.tool_calls) or self.tool_call_id is not None

    def to_message(self) -> Message:
        text = self.content
        if text is None or self.role == "tool":
            raise ApiError(
                400, "a message has no content", code="invalid_request", param="messages"
            )
        if not isinstance(text, str):
            text = "\n".join(part.text for part in text)
        role = "system" if self.role == "developer" else self.role
        return Message(role, remove_marks(text))


class ChatRequest(TextRequest, DocumentsRequest):
    """POST /v1/chat/completions."""

    messages: list[_ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    response_format: dict[str, JsonValue] | None = None
    tools: list[dict[str, JsonValue]] | None = Field(None, min_length=1, max_length=128)
    tool_choice: str | dict[str, JsonValue] | None = None
    parallel_tool_calls: bool | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Literal[0] | None = None
    modalities: tuple[Literal["text"]] | None = None
    prediction: None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def uses_tools(self) -> bool:
        """Whether only a backend that supports tools can answer."""
        return bool(self.tools) or any(turn.uses_tools for turn in self.messages)

    def to_generation_request(self, limits: RequestLimits) -> GenerationRequest:
        """Return the normalized request, within the limits.

        Raises:
            ApiError: If there are too many messages, the last is not the user's, a limit is
                exceeded, or an extension is combined with tools.
        """
        check_message_count(len(self.messages), limits, "messages")
        samplings = self.samplings(limits, max_tokens=self.max_completion_tokens or self.max_tokens)
        if self.uses_tools:
            proxied_body = self._to_proxied_body(samplings[0])
            return GenerationRequest(
                self.model, is_streamed=bool(self.stream), proxied_body=proxied_body
            )
        messages = tuple(turn.to_message() for turn in self.messages)
        check_last_message(messages, "messages")
        return GenerationRequest(
            self.model,
            Prompt(messages, schema=self._schema()),
            samplings,
            bool(self.stream),
            self.k,
            self.ask_settings(),
            self.wants_canvas,
        )

    def _to_proxied_body(self, sampling: Sampling) -> dict[str, Any]:
        """Return the body for another server of the same API."""
        extensions = {**self.ask_settings(), **({} if self.k is None else {"k": self.k})}
        if extensions or self.wants_canvas:
            param = next(iter(extensions), "stream_options")
            raise ApiError(
                400, f"'{param}' cannot be combined with tools", code="no_tools", param=param
            )
        body = self.model_dump(exclude_unset=True, exclude=_IGNORED_FIELDS)
        body.pop("max_completion_tokens", None)
        for turn in body["messages"]:
            for key in _REPLY_FIELDS:
                turn.pop(key, None)
            content = turn.get("content")
            if isinstance(content, str):
                turn["content"] = remove_marks(content)
            for part in content if isinstance(content, list | tuple) else ():
                part["text"] = remove_marks(part["text"])
        return {**body, "max_tokens": sampling.max_new_tokens}

    def _schema(self) -> dict[str, Any] | None:
        format = self.response_format
        if format is None or format.get("type") == "text":
            return None
        if format.get("type") == "json_object":
            return {"type": "object"}
        named = format.get("json_schema")
        schema = named.get("schema") if isinstance(named, dict) else None
        if format.get("type") != "json_schema" or not isinstance(schema, dict):
            raise ApiError(
                400,
                "response_format must be text, json_object, or json_schema with its schema",
                code="invalid_response_format",
                param="response_format",
            )
        return schema


class _ChatChoice(ExtensibleModel):
    class _ChatMessage(ExtensibleModel):
        role: Literal["assistant"]
        content: str | None

    index: int
    finish_reason: str | None
    message: _ChatMessage


class ChatCompletion(ExtensibleModel):
    """Chat reply."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[_ChatChoice]
    usage: TokenUsage


def add_routes(table: RouteTable, server: ServerContext) -> None:
    """Add the route."""

    @table.add("POST", "/v1/chat/completions", "models", reply=ChatCompletion, is_streamed=True)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """Answer a chat turn, from documents or by the model alone, whole or streamed."""
        served = server.models.find_writer(body.model)
        order = body.to_generation_request(server.limits)
        if order.proxied_body is not None:
            return await server.models.reply(served, order, ProxiedReply(body.model), request)
        reply = ChatReply(body.model, is_chat=True, wants_usage=body.wants_usage)
        return await server.models.reply(served, order, reply, request)
