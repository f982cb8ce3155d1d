"""Rerank endpoints: POST /rerank as served by Cohere, Jina, vLLM and Infinity.

Retries are those of all endpoints: transient failures only.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

from stillroom.errors import BackendError
from stillroom.models.endpoints.client import Endpoint, RequestPolicy
from stillroom.models.endpoints.transport import is_key_safe, split_model_address

__all__ = ["RerankEndpoint"]


class RerankEndpoint:
    """Reranker of a server; the scale of scores is the server's, higher is better."""

    def __init__(
        self,
        reference: str,
        *,
        api_key_env: str = "OPENAI_API_KEY",
        patience: RequestPolicy | None = None,
    ) -> None:
        """Set up requests; nothing is sent yet.

        Raises:
            BackendError: If the address is invalid, or has no model name.
        """
        address, name = split_model_address(reference)
        if not name:
            raise BackendError(
                f"{address} needs the name of a reranking model",
                code="backend.which-model",
                expected="a model's name",
                next=f"write {address}#NAME",
            )
        key = os.environ.get(api_key_env, "") if is_key_safe(address) else ""
        self._name = name
        self._endpoint = Endpoint(address, api_key=key, patience=patience)
        self.fingerprint = f"endpoint:{self._endpoint.address}#{name}"

    def score(self, query: str, texts: Sequence[str]) -> list[float]:
        """Return one score per text, in order; see ``RerankerModel``."""
        if not texts:
            return []
        body = {
            "model": self._name,
            "query": query,
            "documents": list(texts),
            "top_n": len(texts),
            "return_documents": False,
        }
        answer = self._endpoint.ask("/rerank", body)
        scores = self._read(answer.get("results", answer.get("data")), len(texts))
        if len(scores) != len(texts):
            raise self._bad_answer(f"{len(scores)} scores for {len(texts)} documents")
        return [scores[index] for index in range(len(texts))]

    def close(self) -> None:
        """Close connections."""
        self._endpoint.close()

    def _read(self, rows: Any, count: int) -> dict[int, float]:
        scores: dict[int, float] = {}
        try:
            for row in rows:
                index = int(row["index"])
                score = float(row["relevance_score"] if "relevance_score" in row else row["score"])
                if index in scores or not 0 <= index < count or not math.isfinite(score):
                    raise self._bad_answer(
                        f"document {index} has an invalid or second score {score}"
                    )
                scores[index] = score
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise self._bad_answer("its rows cannot be read") from error
        return scores

    def _bad_answer(self, why: str) -> BackendError:
        return BackendError(
            f"{self._endpoint.address} sent no valid scores: {why}",
            code="backend.answer",
            expected="results[i] with index and relevance_score, one per document",
            next="check the model name, and that it is a reranking model",
        )
