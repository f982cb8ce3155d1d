"""Request fields of several routes (max_tokens, temperature, stop, seed) and their limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from stillroom.rag.settings import AnswerSettings
from stillroom.records import Message, Prompt, Sampling
from stillroom.serve.access import RequestLimits
from stillroom.serve.errors import ApiError

__all__ = [
    "DocumentsRequest",
    "GenerationRequest",
    "OpenAIRequest",
    "RequestPart",
    "SampledRequest",
    "TextRequest",
    "check_last_message",
    "check_message_count",
]

_NON_SETTING_FIELDS = {"model", "user", "k"}
_SEED_MASK = 0x7FFFFFFF


class RequestPart(BaseModel):
    """Object within a request; of unknown members only null, which says nothing, is taken."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        known = {info.alias or name for name, info in cls.model_fields.items()}
        return {key: part for key, part in data.items() if part is not None or key in known}


class OpenAIRequest(BaseModel):
    """Fields that all requests to a model share; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str
    user: str | None = None


class SampledRequest(OpenAIRequest):
    """Sampling fields that all text requests share."""

    stream: bool | None = False
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    seed: int | None = None
    service_tier: Literal["auto", "default"] | None = None

    def sampling(
        self,
        limits: RequestLimits,
        *,
        max_tokens: int | None,
        stop: tuple[str, ...] = (),
        field: str = "max_tokens",
    ) -> Sampling:
        """Return the sampling settings, within the limits.

        Raises:
            ApiError: If more tokens are requested than allowed, or too many stop sequences.
        """
        tokens = max_tokens or limits.default_new_tokens
        if tokens > limits.max_new_tokens:
            raise ApiError(
                400,
                f"{tokens} tokens are requested; the maximum is {limits.max_new_tokens}",
                code="max_tokens",
                param=field,
            )
        if len(stop) > 4 or not all(stop):
            raise ApiError(
                400,
                "at most 4 stop sequences are allowed, none empty",
                code="invalid_stop",
                param="stop",
            )
        return Sampling(
            max_new_tokens=tokens,
            temperature=self.temperature or 0.0,
            top_k=self.top_k,
            top_p=1.0 if self.top_p is None else self.top_p,
            stop=stop,
            seed=(self.seed or 0) & _SEED_MASK,
        )


class TextRequest(SampledRequest):
    """Fields that chat and completion requests share."""

    stream_options: dict[str, bool] | None = None
    max_tokens: int | None = Field(None, ge=1)
    stop: str | list[str] | None = None
    n: int | None = Field(1, ge=1, description="number of texts; each has the next higher seed")
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: dict[str, float] | None = Field(None, max_length=0)
    metadata: dict[str, str] | None = None
    store: bool | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk of usage."""
        return bool((self.stream_options or {}).get("include_usage"))

    @property
    def wants_canvas(self) -> bool:
        """Whether a stream shows every step of a diffusion model; an extension."""
        return bool((self.stream_options or {}).get("include_canvas"))

    def samplings(self, limits: RequestLimits, *, max_tokens: int | None) -> tuple[Sampling, ...]:
        """Return the sampling of each of the ``n`` texts; the first equals that of ``n=1``.

        Raises:
            ApiError: If more texts are requested than allowed, or ``sampling`` raises.
        """
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        sampling, count = self.sampling(limits, max_tokens=max_tokens, stop=stop), self.n or 1
        if count > limits.choices:
            raise ApiError(
                400,
                f"{count} choices are requested; the maximum is {limits.choices}",
                code="too_many_choices",
                param="n",
            )
        if count > 1 and self.wants_canvas:
            raise ApiError(
                400, "canvas supports one choice", code="no_canvas", param="stream_options"
            )
        return tuple(
            replace(sampling, seed=(sampling.seed + index) & _SEED_MASK) for index in range(count)
        )


def _build_document_fields() -> dict[str, Any]:
    """Return the request fields of an answer's settings: type and default by name."""
    fields: dict[str, Any] = {}
    for name, (setting, option) in AnswerSettings.client_options().items():
        if not option.in_requests:
            continue
        kind: Any = str if option.is_method else setting.annotation
        bounds = [bound for bound in setting.metadata if bound is not option]
        bounds.append(
            Field(le=option.maximum, max_length=option.max_length, pattern=option.pattern)
        )
        description = option.request_description or option.description or setting.description
        default = Field(None, description=f"{description} An extension.")
        fields[name] = (Annotated[(kind, *bounds)] | None, default)
    return fields


if TYPE_CHECKING:

    class _DocumentFields(OpenAIRequest):
        k: int | None = None

else:
    _DocumentFields = create_model(
        "_DocumentFields", __base__=OpenAIRequest, __module__=__name__, **_build_document_fields()
    )


class DocumentsRequest(_DocumentFields):
    """Fields of answers from documents, derived from ``AnswerSettings``; all are extensions."""

    def ask_settings(self) -> dict[str, Any]:
        """Return the answer settings that the client gives.

        Methods are named without settings: those may hold addresses and paths, which the server
        chooses.
        """
        names = [name for name in DocumentsRequest.model_fields if name not in _NON_SETTING_FIELDS]
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


def check_message_count(count: int, limits: RequestLimits, field: str) -> None:
    """Refuse more messages than the limit.

    Raises:
        ApiError: Naming the field of the client's API.
    """
    if count > limits.messages:
        raise ApiError(
            400,
            f"{count} messages are more than {limits.messages}",
            code="too_many_messages",
            param=field,
        )


def check_last_message(messages: Sequence[Message], field: str) -> None:
    """Refuse a conversation without a question at its end.

    Raises:
        ApiError: If the last message is not the user's, or is empty.
    """
    if messages[-1].role != "user" or not messages[-1].content.strip():
        raise ApiError(
            400,
            "the last message must be the user's and not empty",
            code="no_question",
            param=field,
        )


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """Normalized request to a model.

    Args:
        model: Requested model name.
        prompt: Messages or raw text; empty if the request is forwarded.
        samplings: Sampling of each text.
        is_streamed: Whether the client requests a stream.
        k: Number of passages shown to the model, if given.
        settings: Answer settings that the client overrides.
        wants_canvas: Whether every step of a diffusion model is shown.
        proxied_body: Body for another server of the same API, if only a backend that supports
            tools can answer.
        schema_field: Name of the field that requests JSON in the client's API.
    """

    model: str
    prompt: Prompt = field(default_factory=Prompt)
    samplings: tuple[Sampling, ...] = ()
    is_streamed: bool = False
    k: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    wants_canvas: bool = False
    proxied_body: Mapping[str, Any] | None = None
    schema_field: str = "response_format"

    @property
    def retrieval_field(self) -> str | None:
        """Name of the first document field that is set, or None."""
        return next(iter(self.settings), None if self.k is None else "k")
