"""Service of all mounted models: finds the model of a request, runs it and marks its text (C2PA).

``middleware.concurrency`` does the waiting and threads, ``replies`` the formats.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import Response

from stillroom.errors import DataError, RecipeError
from stillroom.models import Embedder
from stillroom.models.interfaces import DenoisingModel, OpenAIPassthroughModel
from stillroom.models.requests import stream_with_completion
from stillroom.provenance.evidence import disclose_answer
from stillroom.provenance.text_marks import TextMarker
from stillroom.records import Sampling
from stillroom.records.text_credentials import find_spans
from stillroom.serve.access import RequestLimits
from stillroom.serve.errors import ApiError, tenant_needed
from stillroom.serve.evidence import AnswerEvidence, EvidenceStore
from stillroom.serve.middleware.auth import ACCESS_KEY, CLIENT_KEY
from stillroom.serve.middleware.concurrency import IsStopped, Work, WorkerSlots, get_single_result
from stillroom.serve.middleware.metrics import ServerMetrics
from stillroom.serve.mounts import ServedModel
from stillroom.serve.openai.collectors import (
    LocalCollector,
    OutputItem,
    ProxyCollector,
    ResponseCollector,
)
from stillroom.serve.openai.requests import GenerationRequest
from stillroom.serve.openai.stream import ResponseFormat, send_response

__all__ = ["CREDENTIAL_HEADER", "ModelService"]

CREDENTIAL_HEADER = "X-Stillroom-Credential"
"""Whether the text of a reply carries a content credential, and by which key; or why not."""

_UNSAID = "; unless=json,empty"  # of a stream, whose header is sent before its text

T = TypeVar("T")


class ModelService:
    """The mounted models, each with the worker slots of its engine."""

    def __init__(
        self,
        served: Sequence[ServedModel],
        limits: RequestLimits,
        counters: ServerMetrics,
        marker: TextMarker | None = None,
    ) -> None:
        """Create the worker slots: one set for each mount, since each has its own engine."""
        self.limits, self.counters, self.marker = limits, counters, marker
        self.evidence = EvidenceStore()
        self._by_name = {name: model for model in served for name in model.names}
        self._slots = {model.name: WorkerSlots(limits, model.concurrency) for model in served}

    def end_by(self, moment: float) -> None:
        """End all running answers at a time on the monotonic clock: the server stops."""
        for slots in self._slots.values():
            slots.end_by(moment)

    def is_ready(self) -> bool:
        """Return whether any mount can answer; true without mounts."""
        mounts = self._by_name.values()
        return not mounts or any(mount.is_ready() for mount in mounts)

    @property
    def names(self) -> list[str]:
        """All names that a client may request."""
        return list(self._by_name)

    def describe(self, name: str) -> dict[str, Any]:
        """Return OpenAI's model object, extended by the model's endpoints.

        Raises:
            ApiError: If no model has that name.
        """
        if name not in self._by_name:
            raise _unknown_model_error(name, self.names)
        abilities = self._by_name[name].capabilities(name)
        head = {"id": name, "object": "model", "created": 0, "owned_by": "stillroom"}
        return {**head, "abilities": abilities}

    def find(self, name: str, ability: str) -> ServedModel:
        """Return the mount of a name.

        Raises:
            ApiError: If no model has that name, or it does not support the endpoint.
        """
        served = self._by_name.get(name)
        if served is None:
            raise _unknown_model_error(name, self.names)
        if ability not in served.capabilities(name):
            able = [
                candidate
                for candidate in self.names
                if ability in self._by_name[candidate].capabilities(candidate)
            ]
            there = f"; available: {', '.join(able)}" if able else ""
            raise ApiError(
                404,
                f"'{name}' does not support {ability}{there}",
                code="model_not_found",
                param="model",
            )
        return served

    def find_embedder(self, name: str) -> tuple[ServedModel, Embedder]:
        """Return the mount of a name with its embedder; raises like ``find``."""
        served = self.find(name, "embeddings")
        if served.embedder is None:
            raise _unknown_model_error(name, self.names)
        return served, served.embedder

    def find_writer(self, name: str) -> ServedModel:
        """Return the mount of a name with a text model; raises like ``find``."""
        return self.find(name, "chat.completions")

    def check_texts(self, texts: Sequence[str], param: str) -> None:
        """Refuse empty texts, and more than the limit.

        Raises:
            ApiError: Naming the field of the client's API.
        """
        if not 0 < len(texts) <= self.limits.texts or not all(text.strip() for text in texts):
            raise ApiError(
                400,
                f"the number of texts must be 1 to {self.limits.texts}, none of them empty",
                code="invalid_input",
                param=param,
            )

    async def compute(self, served: ServedModel, work: Work[T], request: Request) -> T:
        """Return the result of work on a mount's engine, when its turn comes."""
        return await get_single_result(self._slots[served.name].stream(work, request))

    async def reply(
        self, served: ServedModel, order: GenerationRequest, reply: ResponseFormat, request: Request
    ) -> Response:
        """Answer a request from documents, by the model alone, or through another server."""
        if order.proxied_body is not None:
            return await self._to_proxied_body(served, order.proxied_body, order, reply, request)
        if served.ask is None or order.model == served.model_name:
            if order.retrieval_field:
                raise ApiError(
                    400,
                    f"'{order.model}' has no documents and shows no passages",
                    code="no_documents",
                    param=order.retrieval_field,
                )
            return await self.generate(served, order, reply, request)
        if order.prompt.schema is not None:
            raise ApiError(
                400,
                f"answers from documents are text; request JSON from '{served.model_name}'",
                code="invalid_response_format",
                param=order.schema_field,
            )
        if order.wants_canvas:
            raise _canvas_error()
        return await self._ask(served, order, reply, request)

    async def _ask(
        self, served: ServedModel, order: GenerationRequest, reply: ResponseFormat, request: Request
    ) -> Response:
        """Answer from documents, one sampling at a time."""
        ask, prompt, k = served.ask, order.prompt, order.k or served.k
        if ask is None:
            raise _unknown_model_error(order.model, self.names)

        def answer(choice: int, sampling: Sampling, is_stopped: IsStopped) -> Iterator[OutputItem]:
            try:
                for item in ask(
                    prompt.messages,
                    sampling,
                    k,
                    settings=order.settings,
                    access=request.scope.get(ACCESS_KEY),
                    is_cancelled=is_stopped,
                ):
                    if isinstance(item, AnswerEvidence):
                        client = request.scope.get(CLIENT_KEY)
                        self.evidence.keep(reply.answer_id, choice, client, item)
                    else:
                        yield item
            except DataError as error:
                if error.problems[0].code == "rag.access-needed":
                    raise tenant_needed() from error
                raise
            except RecipeError as error:
                problem = error.problems[0]
                field = "answering" if "rag.answer_strategies" in problem.what else "pipeline"
                raise ApiError(
                    400,
                    f"{problem.what}; expected {problem.expected}",
                    code=problem.code,
                    param=field,
                ) from error

        def work(is_stopped: IsStopped) -> Iterator[Iterator[OutputItem]]:
            samplings = enumerate(order.samplings)
            return (answer(choice, sampling, is_stopped) for choice, sampling in samplings)

        return await self._send(served, work, order, reply, request)

    async def generate(
        self, served: ServedModel, order: GenerationRequest, reply: ResponseFormat, request: Request
    ) -> Response:
        """Answer by the model alone: whole texts in a batch if possible, streams in turn."""
        model, prompt, samplings = served.text_model, order.prompt, order.samplings
        shows = model if isinstance(model, DenoisingModel) and order.wants_canvas else None
        if order.wants_canvas and (shows is None or not order.is_streamed):
            raise _canvas_error()

        def work(is_stopped: IsStopped) -> Iterator[Iterator[OutputItem]]:
            if shows is not None:
                return (
                    stream_with_completion(shows.stream_canvas(prompt, sampling))
                    for sampling in samplings
                )
            if order.is_streamed:
                return (
                    stream_with_completion(model.stream(prompt, sampling)) for sampling in samplings
                )
            prompts = [prompt] * len(samplings)
            completions = model.generate(prompts, samplings, is_cancelled=is_stopped)
            return (iter([completion]) for completion in completions)

        return await self._send(served, work, order, reply, request)

    async def _to_proxied_body(
        self,
        served: ServedModel,
        sent: Mapping[str, Any],
        order: GenerationRequest,
        reply: ResponseFormat,
        request: Request,
    ) -> Response:
        """Forward a request with tools to a backend that supports tools."""
        model = served.model
        if not isinstance(model, OpenAIPassthroughModel) or (
            served.ask and order.model == served.name
        ):
            raise ApiError(
                400,
                f"'{order.model}' supports no tools: its engine generates text alone",
                code="no_tools",
                param="tools",
            )

        def work(is_stopped: IsStopped) -> Iterator[Iterator[OutputItem]]:
            if order.is_streamed:
                return iter([model.stream_chat(sent)])
            return iter([iter([model.relay_chat(sent, is_stopped)])])

        return await self._send(served, work, order, reply, request)

    async def _send(
        self,
        served: ServedModel,
        work: Work[Iterator[OutputItem]],
        order: GenerationRequest,
        reply: ResponseFormat,
        request: Request,
    ) -> Response:
        collectors: list[ResponseCollector] = [
            LocalCollector(served.text_model, order.prompt) for _ in order.samplings
        ]
        if order.proxied_body is not None:
            collectors = [ProxyCollector()]
        marker, description = self._choose_marker(order)
        description += _UNSAID if marker and order.is_streamed else ""
        response = await send_response(
            self._slots[served.name],
            work,
            collectors,
            reply,
            request,
            self.counters,
            is_streamed=order.is_streamed,
            make_mark=partial(_make_mark, marker, served.model_name) if marker else None,
        )
        if marker and not order.is_streamed:
            description = _describe_marks(collectors, description)
        response.headers[CREDENTIAL_HEADER] = description
        return response

    def _choose_marker(self, order: GenerationRequest) -> tuple[TextMarker | None, str]:
        """Return what marks a reply, and the header's value; invisible characters break JSON."""
        if self.marker is None:
            return None, "none; off"
        if order.proxied_body is not None:
            return None, "none; tools"
        if order.prompt.schema is not None:
            return None, "none; json"
        key = self.marker.signer.key_id if self.marker.is_kept else "not-kept"
        return self.marker, f"c2pa; key={key}"


def _make_mark(marker: TextMarker, name: str, collector: ResponseCollector) -> str:
    """Return a text's credential; none where something is in the way."""
    if not isinstance(collector, LocalCollector) or _find_obstacle(collector.text):
        return ""
    return marker.make_mark(
        collector.text, disclose_answer(collector.model, collector.details, name)
    )


def _find_obstacle(text: str) -> str:
    """Return why a text carries no credential of ours; empty if it can."""
    if not text:
        return "empty"
    if _is_json(text):
        return "json"
    if find_spans(text):
        return "marked"  # a model repeated a mark that it has read
    try:
        text.encode()
    except UnicodeEncodeError:
        return "unicode"
    return ""


def _describe_marks(collectors: Sequence[ResponseCollector], value: str) -> str:
    """Return the header's value for whole texts: which of them are marked, or why none is."""
    marked = [str(number) for number, one in enumerate(collectors) if one.mark]
    if not marked:
        return f"none; {next(map(_find_obstacle, (one.text for one in collectors)))}"
    return value if len(marked) == len(collectors) else f"{value}; choices={','.join(marked)}"


def _is_json(text: str) -> bool:
    if not text.lstrip().startswith(("{", "[")):
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _unknown_model_error(name: str, known: Sequence[str]) -> ApiError:
    there = f"available: {', '.join(known)}" if known else "available: none"
    return ApiError(
        404,
        f"model {name[:80]!r} is not served here; {there}",
        code="model_not_found",
        param="model",
    )


def _canvas_error() -> ApiError:
    return ApiError(
        400,
        "canvas needs stream: true and a diffusion model",
        code="no_canvas",
        param="stream_options",
    )
