"""OpenAI-compatible servers: vLLM, llama.cpp, Ollama, SGLang, or a hosted API.

Sends at most ``concurrency`` requests at once; retries, rate limits and timeouts are those of the
endpoint. For JSON Schemas it falls back until the server accepts one of: ``json_schema``,
``json_object`` with the schema in the prompt, the schema in the prompt alone. Sampling may depend
on the server's load: the completion cache makes repeated runs reproducible.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, SecretStr
from typing_extensions import override

from stillroom.errors import BackendError
from stillroom.models.choice import ChoiceProbabilities, score_first_tokens
from stillroom.models.endpoints.client import Endpoint, RequestPolicy, find_only_model
from stillroom.models.endpoints.transport import (
    get_first_choice,
    is_key_safe,
    read_count,
    read_finish_reason,
    split_model_address,
)
from stillroom.models.interfaces import Backend, Score, TextModel
from stillroom.models.requests import broadcast_sampling, complete_prompts
from stillroom.provenance import digest_json
from stillroom.provenance.digests import load_json
from stillroom.records import Completion, Prompt, Sampling
from stillroom.records.text_credentials import remove_marks

__all__ = ["Openai"]

_DEFAULT_KEY = "OPENAI_API_KEY"
_RUNGS = ("json_schema", "json_object", "prompt")


class Openai(Backend):
    """OpenAI-compatible endpoint."""

    paper: ClassVar[str] = ""

    model: str = Field("", description="model name; default: the part after # in the address")
    api_key_env: str = Field(
        _DEFAULT_KEY,
        description="environment variable with the API key; the default one is never sent over "
        "plain http to another machine",
    )
    api_key: SecretStr | None = Field(None, description="API key; never written to disk")
    concurrency: int = Field(16, ge=1, le=1024, description="maximum concurrent requests")
    requests_per_minute: float = Field(0, ge=0, description="rate limit; 0: none")
    tokens_per_minute: float = Field(
        0, ge=0, description="rate limit of prompt and completion tokens; 0: none"
    )
    others: tuple[str, ...] = Field((), description="fallback endpoints (http://host/v1#model)")
    weights: tuple[float, ...] = Field(
        (),
        description="shares of the requests, this endpoint first; default: all to this one, and "
        "to others if it fails",
    )
    hedge_after_s: float = Field(
        0,
        ge=0,
        description="seconds without an answer until another endpoint is asked, too; 0: never",
    )
    tries: int = Field(6, ge=1, le=20, description="maximum attempts per request")
    connect_timeout_s: float = Field(10, gt=0, description="connection timeout in seconds")
    read_timeout_s: float = Field(300, gt=0, description="timeout between two chunks in seconds")
    answer_timeout_s: float = Field(
        900,
        gt=0,
        description="timeout of a whole answer in seconds; at least read_timeout_s",
    )
    max_wait_s: float = Field(120, ge=0, description="maximum seconds of retries per request")

    @override
    def open(self, reference: str) -> TextModel:
        if not self.others:
            return self._open_one(reference)
        from stillroom.models.endpoints.pool import LoadBalancedModel, PoolEndpoint

        weights = self.weights or (1.0,) + (0.0,) * len(self.others)
        if (
            len(weights) != 1 + len(self.others)
            or min(weights) < 0
            or not weights[0] + max(weights)
        ):
            raise BackendError(
                f"{len(weights)} weights for {1 + len(self.others)} endpoints",
                code="backend.request",
                expected="one per endpoint, none negative, and at least one positive",
                next="list the weight of this endpoint first, then the others in order",
            )
        members = []
        for address, weight in zip((reference, *self.others), weights, strict=True):
            members.append(PoolEndpoint(self._open_one(address), weight))
        return LoadBalancedModel(members, hedge_after_s=self.hedge_after_s)

    def _open_one(self, reference: str) -> TextModel:
        address, named = split_model_address(reference)
        endpoint = Endpoint(
            address,
            api_key=self._find_key(address),
            patience=RequestPolicy(
                self.tries,
                self.connect_timeout_s,
                self.read_timeout_s,
                self.max_wait_s,
                self.requests_per_minute,
                self.concurrency,
                self.tokens_per_minute,
                self.answer_timeout_s,
            ),
        )
        try:
            name = self.model or named or find_only_model(endpoint)
        except BaseException:
            endpoint.close()
            raise
        return _EndpointModel(endpoint, name, self.context_length or 32768)

    def _find_key(self, address: str) -> str:
        if self.api_key is not None:
            return self.api_key.get_secret_value()
        is_explicit = "api_key_env" in self.model_fields_set
        if not is_explicit and not is_key_safe(address):
            return ""
        key = os.environ.get(self.api_key_env, "")
        if is_explicit and self.api_key_env and not key:
            raise BackendError(
                f"the environment variable {self.api_key_env} is empty",
                code="backend.unauthorized",
                expected="the endpoint's key",
                next=f"export {self.api_key_env}=...",
            )
        return key


class _EndpointModel:
    def __init__(self, endpoint: Endpoint, name: str, context_length: int) -> None:
        self.name = name
        self.fingerprint = f"endpoint:{endpoint.address}#{name}"
        self.context_length = context_length
        self.concurrency = endpoint.patience.concurrency
        self._endpoint = endpoint
        self._rung, self._tells_usage = 0, True
        self._taken: set[tuple[str, int]] = set()  # accepted schemas with their fallback level

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        *,
        on_done: Callable[[int, Completion], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """Complete all prompts; see ``TextModel.generate``.

        A refused prompt does not stop the others: the error, which lists all refused ones, is
        raised at the end.
        """
        samplings = broadcast_sampling(prompts, sampling)

        def ask(index: int, is_stopped: Callable[[], bool]) -> Completion:
            work = self._complete(prompts[index], samplings[index])
            return self._endpoint.wait(work, is_stopped)

        return complete_prompts(
            ask, len(prompts), self.concurrency, self.fingerprint, on_done, is_cancelled
        )

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Completion]:
        """Yield the text of the completion as the endpoint sends it.

        Raises:
            BackendError: If the endpoint fails, refuses, or aborts the answer.
        """
        path, body = _request(self.name, prompt, sampling, self._rung)
        pieces, finish_reason, usage = list[str](), "", None
        for event in self._events(path, {**body, "stream": True}):
            usage = event.get("usage") or usage
            choice = get_first_choice(event)
            finish_reason = str(choice.get("finish_reason") or finish_reason)
            delta = choice.get("delta")
            piece = (delta if isinstance(delta, dict) else {}).get("content") or choice.get("text")
            piece = remove_marks(piece) if isinstance(piece, str) else ""
            if piece:
                pieces.append(piece)
                yield piece
        text = remove_marks("".join(pieces))
        return Completion(
            text, self._read_end(finish_reason, text), *_read_usage(usage), self.fingerprint
        )

    def _events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the events of a stream; usage is requested only from servers that support it."""
        if self._tells_usage:
            counted = {**body, "stream_options": {"include_usage": True}}
            try:
                yield from self._endpoint.stream(path, counted)
                return
            except BackendError as error:
                if error.code != "backend.refused":  # raised before the first event
                    raise
        for event in self._endpoint.stream(path, body):
            self._tells_usage = False
            yield event

    def relay_chat(self, body: Mapping[str, Any], is_stopped: Callable[[], bool]) -> dict[str, Any]:
        """Send a chat request unchanged; see ``OpenAIPassthroughModel``."""
        sent = {**body, "model": self.name, "stream": False}
        sent.pop("stream_options", None)
        return self._endpoint.ask("/chat/completions", sent, is_stopped)

    def stream_chat(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Send a chat request and yield the chunks of the answer.

        Usage is requested only from servers that support it. See ``OpenAIPassthroughModel``.
        """
        sent = {**body, "model": self.name, "stream": True}
        if sent.get("stream_options") == {"include_usage": True}:
            del sent["stream_options"]
            return self._events("/chat/completions", sent)
        return self._endpoint.stream("/chat/completions", sent)

    def choose(
        self, prompts: Sequence[Prompt], options: Sequence[str]
    ) -> list[ChoiceProbabilities]:
        """Return the probabilities of options by the server's top first tokens.

        Raises:
            BackendError: If the server returns none (``backend.no-score``).
        """
        return score_first_tokens(
            self._endpoint, self.name, prompts, options, self._endpoint.patience.concurrency
        )

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Refuse: the API has no dependable request for log-probabilities of a given text."""
        raise BackendError(
            f"{self._endpoint.address} has no log-probabilities of given texts",
            code="backend.no-score",
            expected="a local model (backend transformers or llamacpp)",
            next="open the checkpoint locally",
        )

    def count_tokens(self, text: str) -> int:
        """Estimate the token count as one per 4 bytes of UTF-8; the tokenizer is the server's."""
        return -(-len(text.encode("utf-8", "surrogatepass")) // 4)

    def close(self) -> None:
        """Close connections."""
        self._endpoint.close()

    def submit(
        self, prompt: Prompt, sampling: Sampling, done: Callable[[Completion | BaseException], None]
    ) -> None:
        """Complete a prompt without blocking a thread; see ``AsyncModel``."""
        self._endpoint.submit(self._complete(prompt, sampling), done)

    async def _complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
        rung = self._rung
        schema = digest_json(dict(prompt.schema)) if prompt.schema is not None else ""
        while True:
            path, body = _request(self.name, prompt, sampling, rung)
            try:
                answer = await self._endpoint.request(path, body)
            except BackendError as error:
                if (
                    error.code != "backend.refused"
                    or prompt.schema is None
                    or rung + 1 == len(_RUNGS)
                    or (schema, rung) in self._taken  # accepted before: the schema is not the cause
                ):
                    raise
                rung += 1
                continue
            if prompt.schema is not None:
                self._rung = max(self._rung, rung)
                self._taken.add((schema, rung))
            return self._read(answer, prompt)

    def _read(self, answer: dict[str, Any], prompt: Prompt) -> Completion:
        try:
            choice = answer["choices"][0]
            text = _text_of(choice["message"]["content"] if prompt.messages else choice["text"])
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise BackendError(
                f"{self._endpoint.address} sent an answer without a completion: "
                f"{json.dumps(answer)[:200]}",
                code="backend.answer",
                expected="choices[0].message.content",
                next="check that the address is an OpenAI-compatible API (…/v1)",
            ) from error
        reason = self._read_end(choice.get("finish_reason"), text, choice.get("error"))
        counts = _read_usage(answer.get("usage"))
        text = remove_marks(_without_thoughts(_sound(text))).removeprefix(prompt.prefix)
        if prompt.schema is not None:
            text = _without_fence(text)
        return Completion(text, reason, *counts, self.fingerprint)

    def _read_end(self, finish_reason: object, text: str, failure: object = None) -> str:
        """Return the finish reason as ``stop`` or ``length``.

        Raises:
            BackendError: If the server aborted the answer, or a content filter cut it.
        """
        reason = read_finish_reason(finish_reason)
        if reason == "broken" or failure:
            raise BackendError(
                f"{self._endpoint.address} aborted the answer ({finish_reason or 'stop'}): "
                f"{json.dumps(failure or text)[:200]}",
                code="backend.broken",
                expected="finish_reason stop",
                next="check the server's log, and run again",
            )
        if reason == "content_filter":
            raise BackendError(
                f"the content filter of {self._endpoint.address} cut the answer",
                code="backend.answer",
                expected="finish_reason stop",
                next="change the prompt, or use another model",
            )
        return reason


def _read_usage(usage: object) -> tuple[int, int]:
    """Return the prompt and completion tokens of a usage object; 0 where missing."""
    used = usage if isinstance(usage, dict) else {}
    return read_count(used.get("prompt_tokens")), read_count(used.get("completion_tokens"))


def _request(
    name: str, prompt: Prompt, sampling: Sampling, rung: int
) -> tuple[str, dict[str, Any]]:
    body: dict[str, Any] = {
        "model": name,
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed & 0x7FFFFFFF,
    }
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.top_k:  # not part of OpenAI's API, so sent only if set
        body["top_k"] = sampling.top_k
    if sampling.repetition_penalty != 1.0:
        body["repetition_penalty"] = sampling.repetition_penalty
    messages = [message.to_json() for message in prompt.messages]
    if prompt.schema is not None:
        schema = json.dumps(prompt.schema, ensure_ascii=False)
        if _RUNGS[rung] == "json_schema":
            body["response_format"] = {
                "type": "json_schema",
                "json_schema": {
                    "name": "completion",
                    "schema": dict(prompt.schema),
                    "strict": True,
                },
            }
        elif _RUNGS[rung] == "json_object":
            body["response_format"] = {"type": "json_object"}
        if rung and messages:
            content = f"{messages[-1]['content']}\n\nAnswer with JSON only, valid for: {schema}"
            messages[-1] = {**messages[-1], "content": content}
    if not prompt.messages:
        return "/completions", {**body, "prompt": prompt.text + prompt.prefix}
    if prompt.prefix:
        messages.append({"role": "assistant", "content": prompt.prefix})
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return "/chat/completions", {**body, "messages": messages}


def _text_of(content: Any) -> str:
    """Return the text of a message's content: a string, a list of parts, or None.

    Raises:
        TypeError: If it is anything else.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise TypeError(f"content is {type(content).__name__}")
    parts = [part for part in content if part.get("type") in {"text", "output_text"}]
    return "".join(str(part["text"]) for part in parts)


def _sound(text: str) -> str:
    """Replace unpaired surrogates, which cannot be encoded."""
    return (
        text
        if text.isascii()
        else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )


def _without_thoughts(text: str) -> str:
    """Strip a leading ``<think>`` block of a reasoning model; an unclosed one is the whole text."""
    bare = text.lstrip()
    if not bare.startswith("<think>"):
        return text
    _, closed, answer = bare.partition("</think>")
    return answer.lstrip() if closed else ""


def _without_fence(text: str) -> str:
    """Return the JSON within a Markdown fence; other texts unchanged."""
    bare = text.strip()
    if bare.startswith("```") and bare.endswith("```") and "\n" in bare:
        inner = bare[bare.index("\n") + 1 : -3].strip()
        try:
            load_json(inner)
        except ValueError:
            return text
        return inner
    return text
