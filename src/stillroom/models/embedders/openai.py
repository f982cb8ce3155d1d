"""OpenAI-compatible embeddings endpoints.

Texts are sent in small groups, several at once; retries, rate limits and timeouts are those of the
endpoint. Whether a vector depends on its group is up to the server.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
from pydantic import Field, SecretStr
from typing_extensions import override

from stillroom.errors import BackendError
from stillroom.models.encoders.text_encoder import check_not_empty, normalize_rows
from stillroom.models.endpoints.client import Endpoint, RequestPolicy
from stillroom.models.endpoints.transport import is_key_safe, split_model_address
from stillroom.models.interfaces import Embedder, EmbedderMethod, TextKind, Vectors

__all__ = ["Openai"]


class Openai(EmbedderMethod):
    """OpenAI-compatible embeddings endpoint."""

    paper: ClassVar[str] = ""

    model: str = Field("", description="model name; default: the part after # in the address")
    api_key_env: str = Field(
        "OPENAI_API_KEY",
        description="environment variable with the API key; never sent over plain http to another "
        "machine",
    )
    api_key: SecretStr | None = Field(None, description="API key; never written to disk")
    batch_size: int = Field(32, ge=1, le=2048, description="texts per request")
    concurrency: int = Field(4, ge=1, le=256, description="maximum concurrent requests")
    requests_per_minute: float = Field(0, ge=0, description="rate limit; 0: none")
    max_tokens: int = Field(8192, ge=8, description="maximum tokens per text")
    query_prompt: str = Field("", description="prefix of every query")
    passage_prompt: str = Field("", description="prefix of every passage")
    tries: int = Field(6, ge=1, le=20, description="maximum attempts per request")
    read_timeout_s: float = Field(120, gt=0, description="response timeout in seconds")

    @override
    def open(self, reference: str) -> Embedder:
        address, named = split_model_address(reference)
        name = self.model or named
        if not name:
            raise BackendError(
                f"{address} needs the name of an embedding model",
                code="backend.which-model",
                expected="a model's name",
                next=f"write {address}#NAME",
            )
        key = self.api_key.get_secret_value() if self.api_key else ""
        if not key and is_key_safe(address):
            key = os.environ.get(self.api_key_env, "")
        patience = RequestPolicy(
            tries=self.tries,
            read_timeout_s=self.read_timeout_s,
            requests_per_minute=self.requests_per_minute,
            concurrency=self.concurrency,
        )
        return _EndpointEmbedder(self, name, Endpoint(address, api_key=key, patience=patience))


class _EndpointEmbedder:
    def __init__(self, settings: Openai, name: str, endpoint: Endpoint) -> None:
        self._settings = settings
        self._name = name
        self._endpoint = endpoint
        prompts = (settings.query_prompt, settings.passage_prompt)
        self.max_tokens = settings.max_tokens - max(map(self.count_tokens, prompts))
        self.fingerprint = (
            f"endpoint:{endpoint.address}#{name}:{settings.query_prompt}:{settings.passage_prompt}"
        )
        self.truncated = 0
        try:
            self.dimensions = int(self._ask(["dimensions"]).shape[1])
        except BaseException:
            endpoint.close()
            raise

    def embed(self, texts: Sequence[str], *, kind: TextKind) -> Vectors:
        check_not_empty(texts)
        settings = self._settings
        prompt = settings.query_prompt if kind == "query" else settings.passage_prompt
        size = settings.batch_size
        groups = [
            [prompt + self._cut(text) for text in texts[start : start + size]]
            for start in range(0, len(texts), size)
        ]
        if not groups:
            return np.zeros((0, self.dimensions), dtype=np.float32)
        with ThreadPoolExecutor(settings.concurrency, "stillroom-embed") as workers:
            return normalize_rows(np.concatenate(list(workers.map(self._ask, groups))))

    def count_tokens(self, text: str) -> int:
        """Estimate the token count as one per 4 bytes of UTF-8; the tokenizer is the server's."""
        return -(-len(text.encode("utf-8", "surrogatepass")) // 4)

    def close(self) -> None:
        self._endpoint.close()

    def _cut(self, text: str) -> str:
        if self.count_tokens(text) <= self.max_tokens:
            return text
        self.truncated += 1
        return text.encode("utf-8", "replace")[: 4 * self.max_tokens].decode("utf-8", "ignore")

    def _ask(self, texts: list[str]) -> Vectors:
        body = {"model": self._name, "input": texts, "encoding_format": "float"}
        answer = self._endpoint.ask("/embeddings", body)
        try:
            rows = sorted(answer["data"], key=lambda row: int(row["index"]))
            vectors = np.array([row["embedding"] for row in rows], dtype=np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise self._bad_answer("its rows cannot be read") from error
        if vectors.ndim != 2 or len(vectors) != len(texts):
            raise self._bad_answer(f"{len(vectors)} rows for {len(texts)} texts")
        return vectors

    def _bad_answer(self, why: str) -> BackendError:
        return BackendError(
            f"{self._endpoint.address} sent no valid vectors: {why}",
            code="backend.answer",
            expected="data[i].embedding, one per text",
            next="check the model name, and that it is an embedding model",
        )
