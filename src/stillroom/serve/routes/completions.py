"""``/v1/completions``: completion of a raw text by the model, without a chat template."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Request
from fastapi.responses import Response
from pydantic import Field

from stillroom.records import Prompt
from stillroom.records.text_credentials import remove_marks
from stillroom.serve.access import RequestLimits
from stillroom.serve.errors import ApiError
from stillroom.serve.openai.replies import ChatReply
from stillroom.serve.openai.requests import GenerationRequest, TextRequest
from stillroom.serve.routing import ExtensibleModel, RouteTable, ServerContext, TokenUsage

__all__ = ["CompletionRequest", "TextCompletion", "add_routes"]


class CompletionRequest(TextRequest):
    """POST /v1/completions: raw text, no chat template."""

    prompt: Annotated[str, Field(min_length=1)] | tuple[Annotated[str, Field(min_length=1)]]
    echo: Literal[False] | None = None
    best_of: int | None = Field(None, ge=1, description="must equal ``n``")
    logprobs: None = None
    suffix: None = None

    @property
    def text(self) -> str:
        """The one text to complete, without marks."""
        text = self.prompt if isinstance(self.prompt, str) else self.prompt[0]
        return remove_marks(text) or text

    def to_generation_request(self, limits: RequestLimits) -> GenerationRequest:
        """Return the normalized request, within the limits.

        Raises:
            ApiError: Like ``samplings``; also if ``best_of`` differs from ``n``.
        """
        if self.best_of not in {None, self.n or 1}:
            raise ApiError(
                400,
                "every generated text is returned: best_of must equal n",
                code="invalid_request",
                param="best_of",
            )
        return GenerationRequest(
            self.model,
            Prompt(text=self.text),
            self.samplings(limits, max_tokens=self.max_tokens),
            bool(self.stream),
            wants_canvas=self.wants_canvas,
        )


class _TextChoice(ExtensibleModel):
    index: int
    finish_reason: str | None
    text: str


class TextCompletion(ExtensibleModel):
    """Text completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[_TextChoice]
    usage: TokenUsage


def add_routes(table: RouteTable, server: ServerContext) -> None:
    """Add the route."""

    @table.add("POST", "/v1/completions", "models", reply=TextCompletion, is_streamed=True)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Complete a raw text, whole or streamed."""
        served = server.models.find_writer(body.model)
        order = body.to_generation_request(server.limits)
        reply = ChatReply(body.model, is_chat=False, wants_usage=body.wants_usage)
        return await server.models.generate(served, order, reply, request)
