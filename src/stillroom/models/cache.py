"""Completion cache in SQLite, shared between processes and safe after a kill.

The key is everything a completion depends on: the model's fingerprint, the prompt and the sampling
with its seed. Kept in SQLite with a write-ahead log: a row is safe against a kill as soon as
``put`` returns, and several processes may read and write one file.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.jobs import Job
from stillroom.jobs.files import full_disk_as_error, open_shared_database
from stillroom.models.choice import ChoiceProbabilities, score_options_by_logprob
from stillroom.models.interfaces import (
    AsyncModel,
    ConcurrentModel,
    DelegatingModel,
    Score,
    TemplatedModel,
    TextModel,
)
from stillroom.models.requests import broadcast_sampling
from stillroom.provenance import canonical_json, digest_json
from stillroom.records import Completion, Message, Prompt, Sampling

__all__ = ["CachedModel", "CompletionCache", "wrap_with_cache"]

OnDone = Callable[[Completion | BaseException], None]
_CREATE_TABLE = "CREATE TABLE IF NOT EXISTS completions (key TEXT PRIMARY KEY, value TEXT NOT NULL)"


class CompletionCache:
    """A file of completions by what they depend on."""

    def __init__(self, path: Path) -> None:
        """Open or create the cache at ``path``.

        Raises:
            DataError: If the file is not a cache.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        try:
            with full_disk_as_error(path):
                self._database = open_shared_database(path, _CREATE_TABLE)
        except sqlite3.DatabaseError as error:
            raise DataError(
                f"{path} cannot be used as a completion cache: {error}",
                code="data.cache",
                expected="a file that Stillroom made, on a disk that locks files",
                next="delete the file (completions are asked again) or give another path",
            ) from error

    def __len__(self) -> int:
        """Return how many completions are kept."""
        with self._lock:
            return int(self._database.execute("SELECT count(*) FROM completions").fetchone()[0])

    @staticmethod
    def key(fingerprint: str, prompt: Prompt, sampling: Sampling) -> str:
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
        """Keep a completion; the first one kept for a key stays, and is returned."""
        row = key, canonical_json(completion.to_json())
        with self._lock, _disk_errors(self.path):
            added = self._database.execute("INSERT OR IGNORE INTO completions VALUES (?, ?)", row)
            is_first = added.rowcount > 0
        return completion if is_first else self.get(key) or completion

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()


class _disk_errors:  # noqa: N801  # reads as a verb at its one kind of place
    """Turns SQLite's full disk into the error every other writer raises."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, sqlite3.OperationalError) and "full" in str(error):
            import errno

            with full_disk_as_error(self._path):
                raise OSError(errno.ENOSPC, str(error)) from error


class CachedModel(DelegatingModel):
    """A TextModel that asks the model behind it only for what the cache does not hold.

    It can be asked without a thread that waits, and shows its chat template, where the model behind
    can and does: it has ``submit`` and ``render`` then, else not.
    """

    submit: Callable[[Prompt, Sampling, OnDone], None]
    """See ``SubmittingModel``."""
    render: Callable[[Sequence[Message]], str]
    """See ``TemplatedModel``."""

    def __init__(self, model: TextModel, cache: CompletionCache, job: Job | None = None) -> None:
        """Put ``cache`` before ``model``; where ``job`` is stopped, so is ``generate``."""
        super().__init__(model)
        self.cache = cache
        self._job = job
        self.hits = 0
        """Completions that came from the cache, or of what was asked at the same time."""
        self._lock = threading.Lock()
        self._asked: dict[str, list[OnDone]] = {}  # by key, while the model behind is asked
        if isinstance(model, AsyncModel):
            self._pass_on = model.submit
            self.submit = self._submit
        if isinstance(model, TemplatedModel):
            self.render = model.render

    @property
    def concurrency(self) -> int:
        """How many requests the model behind takes at once; 1 unless it is a server's."""
        return self.model.concurrency if isinstance(self.model, ConcurrentModel) else 1

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        *,
        on_done: Callable[[int, Completion], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """Complete every prompt, asking each different one once; see ``TextModel.generate``.

        Raises:
            Cancelled: If the job is stopped meanwhile; finished completions are kept.
        """
        samplings = broadcast_sampling(prompts, sampling)
        places: dict[str, list[int]] = {}
        for index, (prompt, one) in enumerate(zip(prompts, samplings, strict=True)):
            places.setdefault(self.cache.key(self.fingerprint, prompt, one), []).append(index)
        completions = [Completion("", "cancelled", model=self.fingerprint)] * len(prompts)

        def give(key: str, completion: Completion) -> None:
            for index in places[key]:
                completions[index] = completion
                if on_done is not None:
                    on_done(index, completion)

        missing = {}
        for key, indexes in places.items():
            kept = self.cache.get(key)
            self.hits += len(indexes) - (kept is None)
            if kept is None:
                missing[key] = prompts[indexes[0]], samplings[indexes[0]]
            else:
                give(key, kept)
        self._ask(missing, give, is_cancelled)
        return completions

    def _ask(
        self,
        missing: Mapping[str, tuple[Prompt, Sampling]],
        give: Callable[[str, Completion], None],
        is_cancelled: Callable[[], bool] | None,
    ) -> None:
        """Ask the model behind for what the cache does not hold; give and keep what comes."""
        keys = list(missing)

        def keep(number: int, completion: Completion) -> None:
            # What is given is what is kept: another process may have been first.
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
        """Yield the kept completion whole, or a new one in pieces.

        A streamed completion is not kept: ``generate`` may take off what a stream has shown (an
        endpoint's thoughts and fences).
        """
        kept = self.cache.get(self.cache.key(self.fingerprint, prompt, sampling))
        if kept is not None:
            self.hits += 1
            yield kept.text
            return kept
        return (yield from self.model.stream(prompt, sampling))

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Score with the model behind; scores are not kept."""
        return self.model.score(prompts, completions)

    def choose(
        self, prompts: Sequence[Prompt], options: Sequence[str]
    ) -> list[ChoiceProbabilities]:
        """Weigh options with the model behind; chances are not kept.

        Raises:
            BackendError: If its engine tells none.
        """
        return score_options_by_logprob(self.model, prompts, options)

    def count_tokens(self, text: str) -> int:
        """Count with the model behind."""
        return self.model.count_tokens(text)

    def close(self) -> None:
        """Close the model behind and the cache."""
        self.model.close()
        self.cache.close()

    def _submit(self, prompt: Prompt, sampling: Sampling, done: OnDone) -> None:
        """Answer from the cache at once, or ask; what is in flight already is asked once."""
        key = self.cache.key(self.fingerprint, prompt, sampling)
        with self._lock:
            others = self._asked.get(key)
            if others is not None:
                others.append(done)
                return
            self._asked[key] = [done]
        try:
            kept = self.cache.get(key)
            if kept is None:
                self._pass_on(prompt, sampling, partial(self._take, key))
                return
        except BaseException as error:  # noqa: BLE001  # given to all who wait for it
            self._give(key, error)
            return
        self._give(key, kept, 0)

    def _take(self, key: str, value: Completion | BaseException) -> None:
        """Keep what the model behind gives, on its thread, and give it to all who wait for it."""
        if not isinstance(value, Completion) or value.finish_reason == "cancelled":
            self._give(key, value)
            return
        try:
            value = self.cache.put(key, value)
        except BaseException as error:  # noqa: BLE001  # as generate raises it
            self._give(key, error)
        else:
            self._give(key, value, -1)  # one of those who wait has asked

    def _give(self, key: str, value: Completion | BaseException, hits: int | None = None) -> None:
        """Give a value to all who wait for it; ``hits`` are added to their number."""
        with self._lock:
            waiting = self._asked.pop(key)
            if hits is not None:
                self.hits += len(waiting) + hits
        for done in waiting:
            done(value)


def wrap_with_cache(model: TextModel, path: Path, job: Job | None = None) -> CachedModel:
    """Return ``model`` behind the completion cache at ``path``."""
    return CachedModel(model, CompletionCache(path), job)
