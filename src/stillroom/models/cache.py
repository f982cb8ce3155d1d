"""Completion cache (LLM response cache) in SQLite, shared between processes and crash-safe.

The cache key (``cache_key``) is a digest of everything a completion depends on: the model's
fingerprint, the prompt and the sampling with its seed. With the write-ahead log a row is durable as
soon as ``put`` returns, and several processes may share one file.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from stillroom.jobs import Job
from stillroom.jobs.files import open_cache
from stillroom.models.choice import ChoiceProbabilities, score_options_by_logprob
from stillroom.models.interfaces import (
    AsyncModel,
    ConcurrentModel,
    DelegatingModel,
    OnDone,
    TemplatedModel,
    TextModel,
)
from stillroom.models.requests import broadcast_sampling
from stillroom.objects.disk import full_disk_as_error
from stillroom.provenance import canonical_json, digest_json
from stillroom.records import Completion, Message, Prompt, Sampling

__all__ = ["CachedModel", "CompletionCache", "wrap_with_cache"]

_CREATE_TABLE = "CREATE TABLE IF NOT EXISTS completions (key TEXT PRIMARY KEY, value TEXT NOT NULL)"


class CompletionCache:
    """File of completions by key."""

    def __init__(self, path: Path) -> None:
        """Open or create the cache at ``path``.

        Raises:
            DataError: If the file is not a cache.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._database = open_cache(path, _CREATE_TABLE, "completions")

    def __len__(self) -> int:
        with self._lock:
            return int(self._database.execute("SELECT count(*) FROM completions").fetchone()[0])

    @staticmethod
    def cache_key(fingerprint: str, prompt: Prompt, sampling: Sampling) -> str:
        """Return the digest of everything a completion depends on."""
        return digest_json([fingerprint, prompt.to_json(), asdict(sampling)])

    def get(self, key: str) -> Completion | None:
        """Return the completion of a key, or None."""
        with self._lock:
            row = self._database.execute(
                "SELECT value FROM completions WHERE key = ?", (key,)
            ).fetchone()
        return Completion.from_json(json.loads(row[0])) if row else None

    def put(self, key: str, completion: Completion) -> Completion:
        """Store a completion, unless the key has one; return the stored one."""
        row = key, canonical_json(completion.to_json())
        with self._lock, full_disk_as_error(self.path):
            added = self._database.execute("INSERT OR IGNORE INTO completions VALUES (?, ?)", row)
            is_first = added.rowcount > 0
        return completion if is_first else self.get(key) or completion

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()


class CachedModel(DelegatingModel):
    """TextModel that queries the wrapped model only for completions not in the cache.

    It has ``submit`` and ``render`` if the wrapped model has them.
    """

    submit: Callable[[Prompt, Sampling, OnDone], None]
    """See ``AsyncModel``."""
    render: Callable[[Sequence[Message]], str]
    """See ``TemplatedModel``."""

    def __init__(self, model: TextModel, cache: CompletionCache, job: Job | None = None) -> None:
        """Wrap ``model``; cancelling ``job`` cancels ``generate``."""
        super().__init__(model)
        self.cache = cache
        self._job = job
        self.hits = 0
        """Completions from the cache, or from another request in flight."""
        self._lock = threading.Lock()
        self._asked: dict[str, list[OnDone]] = {}  # callbacks by key, of requests in flight
        if isinstance(model, AsyncModel):
            self._pass_on = model.submit
            self.submit = self._submit
        if isinstance(model, TemplatedModel):
            self.render = model.render

    @property
    def concurrency(self) -> int:
        """Concurrency of the wrapped model; 1 unless it is a server."""
        return self.model.concurrency if isinstance(self.model, ConcurrentModel) else 1

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        *,
        on_done: Callable[[int, Completion], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """Complete all prompts, equal ones once; see ``TextModel.generate``.

        Raises:
            Cancelled: If the job is cancelled; finished completions are stored.
        """
        samplings = broadcast_sampling(prompts, sampling)
        indices_by_key: dict[str, list[int]] = {}
        for index, (prompt, prompt_sampling) in enumerate(zip(prompts, samplings, strict=True)):
            indices_by_key.setdefault(
                self.cache.cache_key(self.fingerprint, prompt, prompt_sampling), []
            ).append(index)
        completions = [Completion("", "cancelled", model=self.fingerprint)] * len(prompts)

        def give(key: str, completion: Completion) -> None:
            for index in indices_by_key[key]:
                completions[index] = completion
                if on_done is not None:
                    on_done(index, completion)

        missing = {}
        for key, indexes in indices_by_key.items():
            cached = self.cache.get(key)
            self.hits += len(indexes) - (cached is None)
            if cached is None:
                missing[key] = prompts[indexes[0]], samplings[indexes[0]]
            else:
                give(key, cached)
        self._ask(missing, give, is_cancelled)
        return completions

    def _ask(
        self,
        missing: Mapping[str, tuple[Prompt, Sampling]],
        give: Callable[[str, Completion], None],
        is_cancelled: Callable[[], bool] | None,
    ) -> None:
        """Generate missing completions; store and return them."""
        keys = list(missing)

        def keep(number: int, completion: Completion) -> None:
            # The stored completion is returned: another process may have been first.
            if completion.finish_reason != "cancelled":
                completion = self.cache.put(keys[number], completion)
            give(keys[number], completion)

        if is_cancelled is None and self._job is not None:
            is_cancelled = self._job.is_cancelled
        if missing:
            prompts, samplings = zip(*missing.values(), strict=True)
            self.model.generate(prompts, samplings, on_done=keep, is_cancelled=is_cancelled)
        if self._job is not None:
            self._job.check_cancelled()

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Completion]:
        """Yield a cached completion in one piece, or a new one in pieces.

        Streamed completions are not stored: ``generate`` may strip parts of the text that a stream
        has yielded (reasoning, Markdown fences).
        """
        cached = self.cache.get(self.cache.cache_key(self.fingerprint, prompt, sampling))
        if cached is not None:
            self.hits += 1
            yield cached.text
            return cached
        return (yield from self.model.stream(prompt, sampling))

    def choose(
        self, prompts: Sequence[Prompt], options: Sequence[str]
    ) -> list[ChoiceProbabilities]:
        """Return the probabilities of options by the wrapped model; they are not cached.

        Raises:
            BackendError: If the engine has no log-probabilities.
        """
        return score_options_by_logprob(self.model, prompts, options)

    def close(self) -> None:
        """Close the wrapped model and the cache."""
        self.model.close()
        self.cache.close()

    def _submit(self, prompt: Prompt, sampling: Sampling, done: OnDone) -> None:
        """Answer from the cache, or submit; equal requests in flight are submitted once."""
        key = self.cache.cache_key(self.fingerprint, prompt, sampling)
        with self._lock:
            callbacks = self._asked.get(key)
            if callbacks is not None:
                callbacks.append(done)
                return
            self._asked[key] = [done]
        try:
            cached = self.cache.get(key)
            if cached is None:
                self._pass_on(prompt, sampling, partial(self._take, key))
                return
        except BaseException as error:  # noqa: BLE001  # passed to all callbacks
            self._give(key, error)
            return
        self._give(key, cached, 0)

    def _take(self, key: str, value: Completion | BaseException) -> None:
        """Store a completion, on the model's thread, and pass it to all callbacks."""
        if not isinstance(value, Completion) or value.finish_reason == "cancelled":
            self._give(key, value)
            return
        try:
            value = self.cache.put(key, value)
        except BaseException as error:  # noqa: BLE001  # as in generate
            self._give(key, error)
        else:
            self._give(key, value, -1)  # all but the first callback are hits

    def _give(self, key: str, value: Completion | BaseException, hits: int | None = None) -> None:
        """Pass a value to the callbacks of a key; ``hits`` is added to their number."""
        with self._lock:
            waiting = self._asked.pop(key)
            if hits is not None:
                self.hits += len(waiting) + hits
        for done in waiting:
            done(value)


def wrap_with_cache(model: TextModel, path: Path, job: Job | None = None) -> CachedModel:
    """Return ``model`` behind the completion cache at ``path``."""
    return CachedModel(model, CompletionCache(path), job)
