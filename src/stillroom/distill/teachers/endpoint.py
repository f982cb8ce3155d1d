"""Teacher behind a server: log-probabilities of prompt tokens, or generated text alone.

It fulfils ``TeacherScorer``, and fills the same caches as a teacher in this process. Requests are
sent several at once and kept in the order of the lessons, so that a killed job that goes on leaves
the same cache. A server draws no temperature into a prompt's log-probabilities: they are those of
the model at temperature 1.

A key goes only where nobody on the way can read it.

What lineage and cards say of a teacher, without a tokenizer and without weights.
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
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.settings import (
    CacheMode,
    EndpointTeacherSettings,
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
    "open_endpoint",
]


_MIN_TAIL = 2.0**-24  # what a sum of float32 probabilities can tell apart from 1


@dataclass
class _Usage:
    """What was asked so far."""

    requests: int = 0
    tokens: int = 0


@dataclass
class EndpointTeacher:
    """A model behind a server; ``find`` opens it, ``close`` ends its connections."""

    settings: EndpointTeacherSettings
    endpoint: Endpoint
    model: str
    tokenizer: Any
    probe: EndpointCapabilities
    bill: _Usage = field(default_factory=_Usage)

    @classmethod
    def find(cls, settings: EndpointTeacherSettings, job: Job) -> EndpointTeacher:
        """Open the endpoint, and find out what its server tells.

        Raises:
            BackendError: If it cannot be reached, or tells no log-probabilities of a prompt.
            CheckpointError: If the tokenizer cannot be read, or is not the model's.
            RecipeError: If the key would go over plain http to another machine.
        """
        path = resolve_checkpoint(str(settings.tokenizer), say=job.say)
        tokenizer = load_tokenizer(dequantize_gguf(path) if path.suffix == ".gguf" else path)
        endpoint = open_endpoint(settings)
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
            f"{endpoint.address} serves {model}; it speaks {probe.dialect} and tells "
            f"{probe.granted or 'only the own'} tokens a position"
            + (
                f" ({settings.top_logprobs} were asked for)"
                if _grants_fewer(settings, probe)
                else ""
            )
        )
        return cls(settings, endpoint, model, tokenizer, probe)

    @property
    def name(self) -> str:
        """Its model's name; of one that is called by its file, as llama.cpp does, the file's."""
        return PurePath(self.model).name if self.model.startswith("/") else self.model

    @property
    def reference(self) -> str:
        """Its address and model."""
        return f"{self.endpoint.address}#{self.model}"

    @property
    def fingerprint(self) -> str:
        """The digest of address, name, tokenizer and dialect: the weights are out of reach."""
        return digest_json(
            [self.endpoint.address, self.model, self.tokenizer_digest, self.probe.dialect]
        )

    @property
    def license(self) -> str:
        """What the recipe says; empty where it says nothing."""
        return self.settings.license

    @property
    def tokenizer_digest(self) -> str:
        """The digest of what the tokenizer does."""
        return digest_text(self.tokenizer.backend_tokenizer.to_str())

    @property
    def about(self) -> dict[str, Any]:
        """Where it is and what it was found to do."""
        return {
            "name": self.name,
            "model": self.model,
            "endpoint": self.endpoint.address,
            "probe": self.probe.to_json(),
        }

    def header(self, recipe: DistillRecipe, rows: int, precision: str) -> CacheHeader:
        """Return what a cache of its likeliest tokens says of itself.

        Raises:
            RecipeError: If the recipe asks for what a server cannot tell.
        """
        targets = recipe.targets
        if targets.mode != "top_k":
            raise _unsupported_error(
                "targets.mode", targets.mode, "top_k: its likeliest tokens and the rest"
            )
        if recipe.method.temperature != 1:
            raise _unsupported_error(
                "method.temperature", recipe.method.temperature, "1, as it answers"
            )
        if not self.probe.granted:
            raise BackendError(
                f"{self.endpoint.address} tells log-probabilities of a prompt's own tokens only",
                code="distill.server-ids",
                where="teacher.endpoint",
                expected="the likeliest tokens by id (vLLM's prompt_logprobs)",
                next="set crossing: {name: chunk_likelihood}, which needs the own tokens alone",
            )
        width = min(targets.k, self.probe.granted, rows)
        return self._header(rows, "top_k", width, targets.logprob_dtype)

    def own_header(self, precision: str) -> CacheHeader:
        """Return what a cache of its own tokens' log-probabilities says of itself."""
        return self._header(len(self.tokenizer), "own", 0, "float32")

    def score_tokens(self, lessons: Sequence[TokenizedRecord]) -> list[npt.NDArray[np.float32]]:
        """Return its log-probabilities of the lessons' own tokens; see ``TeacherScorer``."""
        asked = self._score(lessons, 0, lambda: None)
        return [scores.own.astype(np.float32) for _, scores in asked]

    def capture(self, lessons: Sequence[TokenizedRecord], cache: LogitCache, job: Job) -> int:
        """Keep its likeliest tokens at every position of the lessons that the cache lacks."""

        def rows(lesson: TokenizedRecord, scores: PromptScores) -> npt.NDArray[np.void]:
            return _pack_top_k(lesson, scores, cache)

        return self._capture(lessons, cache, job, cache.header.width, rows)

    def tell(
        self, lessons: Sequence[TokenizedRecord], cache: LogitCache, check: Callable[[], None]
    ) -> None:
        """Do as ``capture`` does for a few lessons of a step, within ``cache.writing``.

        Args:
            lessons: What the cache lacks.
            cache: That is being added to.
            check: Called while the server is waited for; may raise.
        """
        for lesson, scores in self._score(lessons, cache.header.width, check):
            cache.add(lesson, _pack_top_k(lesson, scores, cache))

    @contextmanager
    def billed(self, job: Job) -> Iterator[None]:
        """Tell afterwards what was asked within the body, and what it cost."""
        before = _Usage(self.bill.requests, self.bill.tokens)
        try:
            yield
        finally:
            self._say_cost(job, before)

    def capture_own(self, lessons: Sequence[TokenizedRecord], cache: LogitCache, job: Job) -> int:
        """Keep its log-probabilities of the lessons' own tokens that the cache lacks."""

        def rows(lesson: TokenizedRecord, scores: PromptScores) -> npt.NDArray[np.void]:
            return pack_token_logprobs(lesson, scores.own.astype(np.float32), cache.dtype)

        return self._capture(lessons, cache, job, 0, rows)

    def check_unchanged(self, cache: LogitCache) -> None:
        """Refuse a server that does not say what it said when a cache was begun.

        Raises:
            DataError: If a probability of the probe has moved.
        """
        begun = json.loads((cache.folder / "header.json").read_text(encoding="utf-8"))
        self.probe.check_same((begun.get("about") or {}).get("probe"), str(cache.folder))

    def unload(self) -> None:
        """Do nothing: it takes no memory here."""

    def close(self) -> None:
        """End the connections."""
        self.endpoint.close()

    def _capture(
        self,
        lessons: Sequence[TokenizedRecord],
        cache: LogitCache,
        job: Job,
        k: int,
        rows: Callable[[TokenizedRecord, PromptScores], npt.NDArray[np.void]],
    ) -> int:
        self.check_unchanged(cache)
        if not cache.lacking(lessons):
            return 0
        with self.billed(job), cache.writing():
            missing = cache.lacking(lessons)
            tokens = sum(len(lesson.ids) for lesson in missing)
            with job.phase("teacher", tokens, "tokens") as progress:
                for lesson, scores in self._score(missing, k, job.check_cancelled):
                    cache.add(lesson, rows(lesson, scores))
                    progress.advance(len(lesson.ids))
        return len(missing)

    def _say_cost(self, job: Job, before: _Usage) -> None:
        requests, tokens = self.bill.requests - before.requests, self.bill.tokens - before.tokens
        if not requests:
            return
        price = self.settings.price_per_million
        cost = f", which cost {tokens / 1e6 * price:.3g} at {price:g} a million" if price else ""
        job.say(f"{self.name} was asked {requests} times for {tokens} prompt tokens{cost}")
        job.event("endpoint", requests=requests, prompt_tokens=tokens)

    def _score(
        self, lessons: Sequence[TokenizedRecord], k: int, check: Callable[[], None]
    ) -> Iterator[tuple[TokenizedRecord, PromptScores]]:
        """Yield each lesson with its scores, in order, asking for several at once."""
        stopped = threading.Event()
        waiting: deque[tuple[TokenizedRecord, Future[PromptScores]]] = deque()
        todo = iter(lessons)
        with ThreadPoolExecutor(self.settings.concurrency, "stillroom-teacher") as pool:
            try:
                for lesson in todo:
                    waiting.append((lesson, pool.submit(self._ask, lesson, k, stopped)))
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
        lesson, future = waiting.popleft()
        while True:
            check()
            try:
                scores = future.result(timeout=_POLL_INTERVAL_S)
            except TimeoutError:
                if not future.done():
                    continue
                scores = future.result()  # done just after the wait for it gave up
            self.bill.requests += 1
            self.bill.tokens += scores.tokens
            return lesson, scores

    def _ask(self, lesson: TokenizedRecord, k: int, stopped: threading.Event) -> PromptScores:
        def ask(path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
            return self.endpoint.ask(path, body, stopped.is_set)

        places = (lesson.positions + 1).tolist()
        try:
            return find_prompt_logprob_api(self.probe.dialect).score(
                ask, self.model, lesson.ids.tolist(), places, k
            )
        except MalformedReply as problem:
            raise self._unfit(problem, lesson) from problem
        except BackendError as error:
            raise BackendError(
                f"record {lesson.record_id}: {error.problems[0].what}",
                code=error.code,
                where=f"record {lesson.record_id}",
                expected=error.problems[0].expected,
                next=error.problems[0].next,
            ) from error

    def _unfit(self, problem: MalformedReply, lesson: TokenizedRecord) -> Exception:
        at = f", position {problem.position - 1}" if problem.position > 0 else ""
        where = f"record {lesson.record_id}{at}"
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
            f"{self.endpoint.address} sent a reply that does not fit at {where}: {problem}",
            code="distill.server-reply",
            where=where,
            expected=f"what it sent when it was probed ({self.probe.dialect})",
            next="run again with --resume; lower teacher.top_logprobs if it grants fewer at times",
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


def _grants_fewer(settings: EndpointTeacherSettings, probe: EndpointCapabilities) -> bool:
    return probe.granted < settings.top_logprobs


def _pack_top_k(
    lesson: TokenizedRecord, scores: PromptScores, cache: LogitCache
) -> npt.NDArray[np.void]:
    """Return the likeliest tokens and the mass of the others as rows of a cache, (N,)."""
    vocabulary = cache.header.vocabulary
    if scores.ids.size and int(scores.ids.max()) >= vocabulary:
        raise DataError(
            f"the server names token {int(scores.ids.max())} of a vocabulary of {vocabulary}",
            code="distill.shape",
            where=f"record {lesson.record_id}",
            expected="ids of the tokenizer that teacher.tokenizer names",
            next="name the tokenizer of the model that the server runs",
        )
    rows = np.zeros(len(lesson.positions), dtype=cache.dtype)
    rows["ids"], rows["logprobs"] = scores.ids, scores.logprobs
    mass = 1.0 - np.exp(scores.logprobs).sum(-1)
    is_outside = ~(scores.ids == lesson.labels[:, None]).any(-1)
    # The own token, where it is none of them, is part of the rest: the rest is no less.
    mass = np.maximum(mass, np.where(is_outside, np.exp(scores.own), 0.0))
    if cache.header.width < vocabulary:
        mass = np.maximum(mass, _MIN_TAIL)
    with np.errstate(divide="ignore"):
        rows["tail"] = np.log(np.maximum(mass, 0.0))
    return rows


def _unsupported_error(setting: str, value: object, expected: str) -> RecipeError:
    return RecipeError(
        f"a teacher behind a server cannot give {setting} '{value}'",
        code="distill.server-target",
        where=setting,
        expected=expected,
        next=f"change {setting}, or load the teacher here",
    )


def open_endpoint(settings: EndpointTeacherSettings) -> Endpoint:
    """Open the connections to a teacher's server, with the recipe's patience.

    Raises:
        RecipeError: If the key would go over plain http to another machine.
    """
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
    """A model behind a server, known by its address and name alone."""

    settings: EndpointTeacherSettings

    @property
    def reference(self) -> str:
        """Its address and model."""
        return name_teacher(self.settings)

    @property
    def name(self) -> str:
        """Its model's name, or its address where the recipe names none."""
        return self.settings.model or self.settings.endpoint

    @property
    def fingerprint(self) -> str:
        """The digest of address and name: the weights are out of reach."""
        return digest_json([self.settings.endpoint, self.settings.model])

    @property
    def license(self) -> str:
        """What the recipe says; empty where it says nothing."""
        return self.settings.license

    @property
    def about(self) -> dict[str, Any]:
        """Where it is."""
        return {"name": self.name, "endpoint": self.settings.endpoint}

    def unload(self) -> None:
        """Do nothing: it takes no memory here."""
