"""What clients send: OpenAI's request bodies, as far as they are served here.

A key that would change the answer and is not served is refused by name, as OpenAI does; keys that
only label a request (``user``, ``metadata``) are accepted and not kept, and of what is not served
the value that changes nothing is (``best_of: 1``, ``logprobs: false``), which many clients send.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from stillroom.records import Message, Prompt, Sampling
from stillroom.serve.limits import Limits
from stillroom.serve.refusals import Refusal

if TYPE_CHECKING:
    from stillroom.rag.asking import AskTexts

__all__ = ["ChatRequest", "CompletionRequest", "EmbeddingRequest", "RerankRequest"]


_LABELS = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
_NAME = r"^[a-z_]+$"
_NAMES = r"^(?:[a-z_]+>)?[a-z_]+(?:\+[a-z_]+)?$"
_SEED_MASK = 0x7FFFFFFF


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str
    user: str | None = None


class _Drawn(_Request):
    """What chat and completion requests share: how the text is drawn."""

    stream: bool = False
    stream_options: dict[str, bool] | None = None
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    stop: str | list[str] | None = None
    seed: int | None = None
    n: int | None = Field(1, ge=1, description="texts that are drawn, the seed one higher each")
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0)
    service_tier: Literal["auto", "default"] | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool((self.stream_options or {}).get("include_usage"))

    @property
    def wants_canvas(self) -> bool:
        """Whether a stream shows every step of a model that writes in any order; an extension."""
        return bool((self.stream_options or {}).get("include_canvas"))

    def sampling(self, limits: Limits, *, wanted: int | None) -> Sampling:
        """Return how to draw, within the limits.

        Raises:
            Refusal: If more tokens are wanted than are given, or too many stops.
        """
        tokens = wanted or limits.default_new_tokens
        if tokens > limits.max_new_tokens:
            raise Refusal(
                400,
                f"{tokens} tokens are wanted; at most {limits.max_new_tokens} are given",
                code="max_tokens",
                param="max_tokens",
            )
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(stop) > 4 or not all(stop):
            raise Refusal(400, "at most 4 stops, none empty", code="invalid_stop", param="stop")
        return Sampling(
            max_new_tokens=tokens,
            temperature=self.temperature or 0.0,
            top_k=self.top_k,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=stop,
            seed=(self.seed or 0) & _SEED_MASK,
        )

    def draws(self, limits: Limits, *, wanted: int | None) -> list[Sampling]:
        """Return how each of the ``n`` texts is drawn; the first as if it were the only one.

        Raises:
            Refusal: If more texts are wanted than are given, or ``sampling`` refuses.
        """
        one, count = self.sampling(limits, wanted=wanted), self.n or 1
        if count > limits.choices:
            raise Refusal(
                400,
                f"{count} choices are wanted; at most {limits.choices} are given",
                code="too_many_choices",
                param="n",
            )
        if count > 1 and self.wants_canvas:
            raise Refusal(
                400, "a canvas is shown of one choice", code="no_canvas", param="stream_options"
            )
        return [replace(one, seed=(one.seed + at) & _SEED_MASK) for at in range(count)]


class _Part(BaseModel):
    type: Literal["text"]
    text: str


class _Turn(BaseModel):
    """One message; annotations and citations of earlier answers may be sent back."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None
    name: str | None = None
    refusal: str | None = None
    annotations: list[JsonValue] | None = None
    citations: list[JsonValue] | None = None
    tool_calls: list[dict[str, JsonValue]] | None = None
    tool_call_id: str | None = None

    @property
    def speaks_of_tools(self) -> bool:
        return self.role == "tool" or bool(self.tool_calls) or self.tool_call_id is not None

    def to_message(self) -> Message:
        text = self.content
        if text is None or self.role == "tool":
            raise Refusal(400, "a message has no content", code="invalid_request", param="messages")
        if not isinstance(text, str):
            text = "\n".join(part.text for part in text)
        return Message("system" if self.role == "developer" else self.role, text)


class ChatRequest(_Drawn):
    """POST /v1/chat/completions."""

    messages: list[_Turn] = Field(min_length=1)
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
    k: int | None = Field(None, ge=1, le=50, description="passages shown; an extension")
    way: str | None = Field(
        None, max_length=80, pattern=_NAMES, description="methods of retrieval; an extension"
    )
    answering: str | None = Field(
        None, max_length=40, pattern=_NAME, description="method of answering; an extension"
    )
    unsupported: Literal["mark", "drop", "refuse"] | None = None
    neighbours: int | None = Field(None, ge=0, le=10)
    per_document: int | None = Field(None, ge=0, le=50)
    shorten: bool | None = None
    best_at_ends: bool | None = None
    parent_share: float | None = Field(None, ge=0, le=1)

    def ask_settings(self) -> AskTexts:
        """Return what the client wants of an answer from documents, as far as it says.

        Methods are named without settings: those may hold addresses and paths, which are the
        server's to choose.
        """
        names = (
            "way",
            "answering",
            "unsupported",
            "neighbours",
            "per_document",
            "shorten",
            "best_at_ends",
            "parent_share",
        )
        told = {name: getattr(self, name) for name in names}
        return cast("AskTexts", {name: value for name, value in told.items() if value is not None})

    @property
    def speaks_of_tools(self) -> bool:
        """Whether only a backend that knows tools can answer."""
        return bool(self.tools) or any(turn.speaks_of_tools for turn in self.messages)

    def to_relay(self, limits: Limits) -> dict[str, Any]:
        """Return the request as another server of the dialect takes it, within the limits.

        Raises:
            Refusal: If it asks for what is served here alone, or for too much.
        """
        ours = {**self.ask_settings(), **({} if self.k is None else {"k": self.k})}
        if ours or self.wants_canvas:
            param = next(iter(ours), "stream_options")
            raise Refusal(400, f"'{param}' does not go with tools", code="no_tools", param=param)
        self._check_count(limits)
        sampling = self.to_draws(limits)[0]
        given = self.model_dump(exclude_unset=True, exclude=_LABELS)
        given.pop("max_completion_tokens", None)
        for turn in given["messages"]:
            for key in ("annotations", "citations", "refusal"):
                turn.pop(key, None)
        return {**given, "max_tokens": sampling.max_new_tokens}

    def _check_count(self, limits: Limits) -> None:
        if len(self.messages) > limits.messages:
            raise Refusal(
                400,
                f"{len(self.messages)} messages are more than {limits.messages}",
                code="too_many_messages",
                param="messages",
            )

    def to_draws(self, limits: Limits) -> list[Sampling]:
        """Return how to draw each text, within the limits."""
        return self.draws(limits, wanted=self.max_completion_tokens or self.max_tokens)

    def to_prompt(self, limits: Limits) -> Prompt:
        """Return the conversation as a prompt.

        Raises:
            Refusal: If there are too many messages, or the last is not the user's.
        """
        self._check_count(limits)
        messages = tuple(turn.to_message() for turn in self.messages)
        if messages[-1].role != "user" or not messages[-1].content.strip():
            raise Refusal(
                400,
                "the last message must be the user's and not empty",
                code="no_question",
                param="messages",
            )
        return Prompt(messages, schema=self._schema())

    def _schema(self) -> dict[str, Any] | None:
        wanted = self.response_format
        if wanted is None or wanted.get("type") == "text":
            return None
        if wanted.get("type") == "json_object":
            return {"type": "object"}
        named = wanted.get("json_schema")
        schema = named.get("schema") if isinstance(named, dict) else None
        if wanted.get("type") != "json_schema" or not isinstance(schema, dict):
            raise Refusal(
                400,
                "response_format must be text, json_object, or json_schema with its schema",
                code="invalid_response_format",
                param="response_format",
            )
        return schema


class CompletionRequest(_Drawn):
    """POST /v1/completions: raw text, no chat template."""

    prompt: Annotated[str, Field(min_length=1)] | tuple[Annotated[str, Field(min_length=1)]]
    echo: Literal[False] | None = None
    best_of: int | None = Field(None, ge=1, description="only as many as ``n``")
    logprobs: None = None
    suffix: None = None

    @property
    def text(self) -> str:
        """The one text that is gone on with."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]

    def to_draws(self, limits: Limits) -> list[Sampling]:
        """Return how to draw each text, within the limits.

        Raises:
            Refusal: As ``draws``; and if more are wanted to be drawn than to be given.
        """
        if self.best_of not in {None, self.n or 1}:
            raise Refusal(
                400,
                "every text that is drawn is given: best_of can only be n",
                code="invalid_request",
                param="best_of",
            )
        return self.draws(limits, wanted=self.max_tokens)


class EmbeddingRequest(_Request):
    """POST /v1/embeddings."""

    input: str | list[str]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    kind: Literal["query", "passage"] = Field(
        "passage", description="what the texts are; an extension"
    )


class _Document(BaseModel):
    model_config = ConfigDict(extra="ignore")

    text: str


class RerankRequest(_Request):
    """POST /v1/rerank, as Cohere and Jina have it."""

    query: str
    documents: list[str | _Document] = Field(min_length=1)
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False

    def texts(self) -> list[str]:
        """Return the documents' texts."""
        return [one if isinstance(one, str) else one.text for one in self.documents]
