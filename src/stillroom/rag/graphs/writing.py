"""Asking a model for many texts so that none is asked for twice, not even after a kill.

Every completion is kept in a file beside the job as soon as it is done; those that the finished
graph uses are part of it, so that bringing it up to date asks only for what changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.models import CompletionCache
from stillroom.models.cache import CachedModel

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.records import Prompt, Sampling

__all__ = ["Writer"]


class Writer:
    """A model behind two caches; ``used`` are the texts that were given, by key."""

    def __init__(self, model: TextModel, path: Path, known: Mapping[str, str]) -> None:
        """Ask ``model``.

        Args:
            model: Closed by its owner.
            path: The file of completions beside the job.
            known: Texts of the previous graph, by key.
        """
        self._cache = CompletionCache(path)
        self._known = known
        self.model = CachedModel(model, self._cache)
        """Asks only for what the file does not hold."""
        self.used: dict[str, str] = {}
        self.asked = 0
        """How many texts were in neither cache."""

    def ask(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[str]:
        """Return the text of every prompt, in order; fewer where it was cancelled."""
        keys = [self._cache.key(self.model.fingerprint, one, sampling) for one in prompts]
        texts = {key: self._known[key] for key in keys if key in self._known}
        missing = [at for at, key in enumerate(keys) if key not in texts]
        before = self.model.hits
        done = self.model.generate(
            [prompts[at] for at in missing], sampling, is_cancelled=is_cancelled
        )
        self.asked += len(missing) - (self.model.hits - before)
        for at, completion in zip(missing, done, strict=True):
            if completion.finish_reason == "cancelled":
                return [texts[key] for key in keys[:at]]
            texts[keys[at]] = completion.text
        self.used.update((key, texts[key]) for key in keys)
        return [texts[key] for key in keys]

    def close(self) -> None:
        """Close the file; the model stays open."""
        self._cache.close()
