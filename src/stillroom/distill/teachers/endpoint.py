"""Teacher behind an endpoint: log-probabilities of prompt tokens, or generated text only.

``EndpointTeacher`` implements ``TeacherScorer`` and fills the same caches as a local teacher.
Requests are concurrent, but results are kept in the order of the records, so that a resumed job
produces the same cache. Prompt log-probabilities are those of the model at temperature 1; servers
do not apply a sampling temperature to them. API keys are sent over https or to this machine only.

``TextOnlyTeacher`` has neither tokenizer nor weights, only a name for provenance and cards.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stillroom.checkpoints import dequantize_gguf
from stillroom.distill.data.tokenized import TokenizedRecord
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.logit_cache.storage import CacheHeader
from stillroom.distill.settings import (
    CachedTargetSettings,
    CacheMode,
    EndpointTeacherSettings,
    TextEndpointSettings,
    TopKTargetSettings,
    check_key_transport,
    name_teacher,
)
from stillroom.distill.teachers.local import pack_token_logprobs
from stillroom.distill.teachers.prompt_logprobs import (
    PROBE_TEXT,
    EndpointCapabilities,
    MalformedReply,
    PromptScores,
    find_prompt_logprob_api,
    probe_endpoint,
    tokenizer_mismatch_error,
)
from stillroom.errors import BackendError, DataError, RecipeError
from stillroom.jobs import Job
from stillroom.models import resolve_checkpoint
from stillroom.models.endpoints.client import Endpoint, RequestPolicy, find_only_model
from stillroom.models.local.causal_lm import load_tokenizer
from stillroom.provenance import digest_json, digest_text

__all__ = [
    "EndpointTeacher",
    "TextOnlyTeacher",
]

_MIN_TAIL = 2.0**-24  # resolution of a sum of float32 probabilities near 1


@dataclass
class _Usage:
    """Requests and prompt tokens so far."""

    requests: int = 0
    tokens: int = 0


@dataclass
class EndpointTeacher:
    """A model behind an endpoint; opened with ``find``, closed with ``close``."""

    settings: EndpointTeacherSettings
    endpoint: Endpoint
    model: str
    tokenizer: Any
    probe: EndpointCapabilities
    usage: _Usage = field(default_factory=_Usage)

    @classmethod
    def find(cls, settings: EndpointTeacherSettings, job: Job) -> EndpointTeacher:
        """Open the endpoint, and probe its capabilities.

        Raises:
            BackendError: If it cannot be reached, or returns no prompt log-probabilities.
            CheckpointError: If the tokenizer cannot be read, or is not the model's.
            RecipeError: If the key would be sent over plain http to another machine.
        """
        path = resolve_checkpoint(str(settings.tokenizer), say=job.say)
        tokenizer = load_tokenizer(dequantize_gguf(path) if path.suffix == ".gguf" else path)
        endpoint = _open_endpoint(settings)
        try:
            model = settings.model or find_only_model(endpoint)
            ids = tokenizer(PROBE_TEXT, add_special_tokens=False)["input_ids"]
            probe = probe_endpoint(
                endpoint.ask, endpoint.address, model, ids, settings.top_logprobs
            )
        except BaseException:
            endpoint.close()
            raise
        job.say(
            f"{endpoint.address} serves {model} with the {probe.dialect} dialect and returns "
            f"{probe.granted or 'only the label'} tokens per position"
            + (
                f" ({settings.top_logprobs} were requested)"
                if probe.granted < settings.top_logprobs
                else ""
            )
        )
        return cls(settings, endpoint, model, tokenizer, probe)

    @property
    def name(self) -> str:
        """Name of the model; of a model named by a path (llama.cpp), the file's name."""
        return PurePath(self.model).name if self.model.startswith("/") else self.model

    @property
    def reference(self) -> str:
        """Address and model."""
        return f"{self.endpoint.address}#{self.model}"

    @property
    def fingerprint(self) -> str:
        """Digest of address, model, tokenizer and dialect; the weights are not accessible."""
        return digest_json(
            [self.endpoint.address, self.model, self.tokenizer_digest, self.probe.dialect]
        )

    @property
    def license(self) -> str:
        """License set in the recipe; may be empty."""
        return self.settings.license

    @property
    def tokenizer_digest(self) -> str:
        """Digest of the tokenizer's behavior."""
        return digest_text(self.tokenizer.backend_tokenizer.to_str())

    @property
    def about(self) -> dict[str, Any]:
        """Address and probed capabilities."""
        return {
            "name": self.name,
            "model": self.model,
            "endpoint": self.endpoint.address,
            "probe": self.probe.to_json(),
        }

    def header(
        self,
        targets: CachedTargetSettings,
        rows: int,
        precision: str,
        *,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> CacheHeader:
        """Return the header of a top-k cache of this teacher; see ``LocalTeacher.header``.

        Raises:
            RecipeError: If the endpoint does not support the targets or the temperature.
        """
        if not isinstance(targets, TopKTargetSettings):
            raise _unsupported_error(
                "targets.mode", targets.mode, "top_k: the most likely tokens and the rest"
            )
        if temperature != 1:
            raise _unsupported_error("method.temperature", temperature, "1, that of prompt scores")
        if not self.probe.granted:
            raise BackendError(
                f"{self.endpoint.address} returns log-probabilities of the prompt's labels only",
                code="distill.server-ids",
                where="teacher.endpoint",
                expected="the most likely tokens by id (vLLM's prompt_logprobs)",
                next="use kind distill.cross_tokenizer, which needs only the labels",
            )
        width = min(targets.k, self.probe.granted, rows)
        return self._header(rows, "top_k", width, targets.logprob_dtype)

    def own_header(self, precision: str) -> CacheHeader:
        """Return the header of a cache of label log-probabilities."""
        return self._header(len(self.tokenizer), "own", 0, "float32")

    def score_tokens(self, records: Sequence[TokenizedRecord]) -> list[npt.NDArray[np.float32]]:
        """Return the log-probabilities of the records' labels; see ``TeacherScorer``."""
        scored = self._score(records, 0, lambda: None)
        return [scores.own.astype(np.float32) for _, scores in scored]

    def capture(self, records: Sequence[TokenizedRecord], cache: LogitCache, job: Job) -> int:
        """Capture the top-k tokens at every position missing from the cache."""

        def rows(record: TokenizedRecord, scores: PromptScores) -> npt.NDArray[np.void]:
            return _pack_top_k(record, scores, cache)

        return self._capture(records, cache, job, cache.header.width, rows)

    def capture_step(
        self, records: Sequence[TokenizedRecord], cache: LogitCache, check: Callable[[], None]
    ) -> None:
        """Capture some records of a step, within ``cache.writing``.

        Args:
            records: Records missing from the cache.
            cache: Cache open for writing.
            check: Called while waiting for the endpoint; may raise.
        """
        for record, scores in self._score(records, cache.header.width, check):
            cache.add(record, _pack_top_k(record, scores, cache))

    @contextmanager
    def log_usage(self, job: Job) -> Iterator[None]:
        """Log the requests made within the body, and their cost."""
        previous = _Usage(self.usage.requests, self.usage.tokens)
        try:
            yield
        finally:
            self._log_usage(job, previous)

    def capture_own(self, records: Sequence[TokenizedRecord], cache: LogitCache, job: Job) -> int:
        """Capture the log-probabilities of labels missing from the cache."""

        def rows(record: TokenizedRecord, scores: PromptScores) -> npt.NDArray[np.void]:
            return pack_token_logprobs(record, scores.own.astype(np.float32), cache.dtype)

        return self._capture(records, cache, job, 0, rows)

    def check_unchanged(self, cache: LogitCache) -> None:
        """Reject an endpoint whose outputs have changed since a cache was created.

        Raises:
            DataError: If a log-probability of the probe has changed.
        """
        header = json.loads((cache.folder / "header.json").read_text(encoding="utf-8"))
        self.probe.check_same((header.get("about") or {}).get("probe"), str(cache.folder))

    def unload(self) -> None:
        """Do nothing: the teacher uses no local memory."""

    def close(self) -> None:
        """Close the connections."""
        self.endpoint.close()

    def _capture(
        self,
        records: Sequence[TokenizedRecord],
        cache: LogitCache,
        job: Job,
        k: int,
        rows: Callable[[TokenizedRecord, PromptScores], npt.NDArray[np.void]],
    ) -> int:
        self.check_unchanged(cache)
        if not cache.lacking(records):
            return 0
        with self.log_usage(job), cache.writing():
            missing = cache.lacking(records)
            tokens = sum(len(record.ids) for record in missing)
            with job.phase("teacher", tokens, "tokens") as progress:
                for record, scores in self._score(missing, k, job.check_cancelled):
                    cache.add(record, rows(record, scores))
                    progress.advance(len(record.ids))
        return len(missing)

    def _log_usage(self, job: Job, previous: _Usage) -> None:
        requests = self.usage.requests - previous.requests
        tokens = self.usage.tokens - previous.tokens
        if not requests:
            return
        price = self.settings.price_per_million
        cost = f", cost {tokens / 1e6 * price:.3g} at {price:g} per million" if price else ""
        job.say(f"{self.name}: {requests} requests, {tokens} prompt tokens{cost}")
        job.event("endpoint", requests=requests, prompt_tokens=tokens)

    def _score(
        self, records: Sequence[TokenizedRecord], k: int, check: Callable[[], None]
    ) -> Iterator[tuple[TokenizedRecord, PromptScores]]:
        """Yield each record with its scores, in order, from concurrent requests."""
        stopped = threading.Event()
        waiting: deque[tuple[TokenizedRecord, Future[PromptScores]]] = deque()
        todo = iter(records)
        with ThreadPoolExecutor(self.settings.concurrency, "stillroom-teacher") as pool:
            try:
                for record in todo:
                    waiting.append((record, pool.submit(self._ask, record, k, stopped)))
                    if len(waiting) >= 2 * self.settings.concurrency:
                        yield self._next(waiting, check)
                while waiting:
                    yield self._next(waiting, check)
            finally:
                stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)

    def _next(
        self,
        waiting: deque[tuple[TokenizedRecord, Future[PromptScores]]],
        check: Callable[[], None],
    ) -> tuple[TokenizedRecord, PromptScores]:
        record, future = waiting.popleft()
        while True:
            check()
            try:
                scores = future.result(timeout=_POLL_INTERVAL_S)
            except TimeoutError:
                if not future.done():
                    continue
                scores = future.result()  # completed just after the timeout
            self.usage.requests += 1
            self.usage.tokens += scores.tokens
            return record, scores

    def _ask(self, record: TokenizedRecord, k: int, stopped: threading.Event) -> PromptScores:
        def ask(path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
            return self.endpoint.ask(path, body, stopped.is_set)

        positions = (record.positions + 1).tolist()
        try:
            return find_prompt_logprob_api(self.probe.dialect).score(
                ask, self.model, record.ids.tolist(), positions, k
            )
        except MalformedReply as problem:
            raise self._reply_error(problem, record) from problem
        except BackendError as error:
            raise BackendError(
                f"record {record.record_id}: {error.problems[0].what}",
                code=error.code,
                where=f"record {record.record_id}",
                expected=error.problems[0].expected,
                next=error.problems[0].next,
            ) from error

    def _reply_error(self, problem: MalformedReply, record: TokenizedRecord) -> Exception:
        position = f", position {problem.position - 1}" if problem.position > 0 else ""
        where = f"record {record.record_id}{position}"
        if problem.kind == "tokenizer":
            return tokenizer_mismatch_error(self.endpoint.address, self.name, f"{where}: {problem}")
        if problem.kind == "number":
            return DataError(
                f"the teacher's log-probabilities at {where} are not finite: {problem}",
                code="distill.teacher-not-finite",
                where=where,
                expected="finite numbers, at most 0",
                next="check the server's model and its precision",
            )
        return BackendError(
            f"{self.endpoint.address} sent a malformed reply at {where}: {problem}",
            code="distill.server-reply",
            where=where,
            expected=f"a reply as in the probe ({self.probe.dialect})",
            next="run again with --resume; lower teacher.top_logprobs if it varies",
        )

    def _header(
        self, rows: int, mode: CacheMode, width: int, logprob_dtype: Literal["float16", "float32"]
    ) -> CacheHeader:
        return CacheHeader(
            teacher=self.fingerprint,
            tokenizer=self.tokenizer_digest,
            template=digest_text(str(getattr(self.tokenizer, "chat_template", None) or "")),
            vocabulary=rows,
            mode=mode,
            width=width,
            temperature=1.0,
            precision="server",
            logprob_dtype=logprob_dtype,
            license=self.license,
            about=self.about,
        )


_POLL_INTERVAL_S = 0.2


def _pack_top_k(
    record: TokenizedRecord, scores: PromptScores, cache: LogitCache
) -> npt.NDArray[np.void]:
    """Return the top-k tokens and the mass of the others as rows of a cache, (N,)."""
    vocabulary = cache.header.vocabulary
    if scores.ids.size and int(scores.ids.max()) >= vocabulary:
        raise DataError(
            f"the server returned token {int(scores.ids.max())} of a vocabulary of {vocabulary}",
            code="distill.shape",
            where=f"record {record.record_id}",
            expected="ids of the tokenizer set as teacher.tokenizer",
            next="set the tokenizer of the model that the server runs",
        )
    rows = np.zeros(len(record.positions), dtype=cache.dtype)
    rows["ids"], rows["logprobs"] = scores.ids, scores.logprobs
    mass = 1.0 - np.exp(scores.logprobs).sum(-1)
    is_outside = ~(scores.ids == record.labels[:, None]).any(-1)
    # A label outside of the top k is part of the rest, so the rest has at least its mass.
    mass = np.maximum(mass, np.where(is_outside, np.exp(scores.own), 0.0))
    if cache.header.width < vocabulary:
        mass = np.maximum(mass, _MIN_TAIL)
    with np.errstate(divide="ignore"):
        rows["tail"] = np.log(np.maximum(mass, 0.0))
    return rows


def _unsupported_error(setting: str, value: object, expected: str) -> RecipeError:
    return RecipeError(
        f"a teacher behind an endpoint does not support {setting} '{value}'",
        code="distill.server-target",
        where=setting,
        expected=expected,
        next=f"change {setting}, or use a local teacher",
    )


def _open_endpoint(settings: EndpointTeacherSettings) -> Endpoint:
    """Open the connections to a teacher's endpoint, with the recipe's timeouts."""
    check_key_transport(settings)
    return Endpoint(
        settings.endpoint,
        api_key=settings.api_key.reveal() if settings.api_key else "",
        patience=RequestPolicy(
            tries=settings.tries,
            read_timeout_s=settings.timeout,
            max_wait_s=settings.max_wait,
            concurrency=settings.concurrency,
        ),
    )


@dataclass(frozen=True)
class TextOnlyTeacher:
    """A model behind an endpoint, identified by address and name only."""

    settings: TextEndpointSettings

    @property
    def reference(self) -> str:
        """Address and model."""
        return name_teacher(self.settings)

    @property
    def name(self) -> str:
        """Name of the model, or the address if the recipe sets none."""
        return self.settings.model or self.settings.endpoint

    @property
    def fingerprint(self) -> str:
        """Digest of address and name; the weights are not accessible."""
        return digest_json([self.settings.endpoint, self.settings.model])

    @property
    def license(self) -> str:
        """License set in the recipe; may be empty."""
        return self.settings.license

    @property
    def about(self) -> dict[str, Any]:
        """Address."""
        return {"name": self.name, "endpoint": self.settings.endpoint}

    def unload(self) -> None:
        """Do nothing: the teacher uses no local memory."""
