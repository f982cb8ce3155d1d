"""Model pool: models of filters and selectors, opened once by reference and shared.

Models are opened on first use.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.jobs import Job
from stillroom.jobs.engines import Engine, LocalEngine

if TYPE_CHECKING:
    from stillroom.models import Embedder, TextModel
    from stillroom.models.encoders.sequence_classifiers import NLIModel, TextClassifier

__all__ = ["ModelPool"]


@dataclass
class ModelPool:
    """Pool of models by reference.

    Args:
        settings: Engine settings of every text model without its own.
        cache: Cache file of completions.
        say: Callback for log messages, such as the resolution of a ``hub:`` reference.
        settings_of: Engine settings by reference.
        job: Job that stores the completions of local models, and cancels them with itself.
        models: Models opened already, by kind and reference.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    cache: Path | None = None
    say: Callable[[str], None] | None = None
    settings_of: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    job: Job | None = None
    models: dict[tuple[str, str], Any] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @property
    def engine(self) -> Engine:
        """Engine whose workers run text models and filters."""
        return LocalEngine() if self.job is None else self.job.engine

    def text_model(self, reference: str) -> TextModel:
        """Return the text model of a reference.

        Raises:
            CheckpointError: If the reference leads to no checkpoint.
            BackendError: If the engine cannot open it.
        """
        return self._get(  # type: ignore[no-any-return]  # the opener's type
            "text", reference, lambda: self._open_text_model(reference)
        )

    def embedder(self, reference: str) -> Embedder:
        """Return the embedder of a reference.

        Raises:
            CheckpointError: If the reference leads to no checkpoint.
        """
        from stillroom.models import open_embedder

        return self._get(  # type: ignore[no-any-return]
            "embedder", reference, lambda: open_embedder(reference, say=self.say)
        )

    def entailment(self, reference: str) -> NLIModel:
        """Return the natural language inference model of a reference.

        Raises:
            CheckpointError: If the reference leads to no such checkpoint.
        """
        from stillroom.models.encoders.sequence_classifiers import NLIModel
        from stillroom.models.hub import resolve_checkpoint

        return self._get(  # type: ignore[no-any-return]
            "entailment", reference, lambda: NLIModel(resolve_checkpoint(reference))
        )

    def classifier(self, reference: str) -> TextClassifier:
        """Return the text classifier of a reference.

        Raises:
            CheckpointError: If the reference leads to no such checkpoint.
        """
        from stillroom.models.encoders.sequence_classifiers import TextClassifier
        from stillroom.models.hub import resolve_checkpoint

        return self._get(  # type: ignore[no-any-return]
            "classifier", reference, lambda: TextClassifier(resolve_checkpoint(reference))
        )

    def counter(self, reference: str) -> Callable[[str], int]:
        """Return a function that counts a text's tokens, without special ones.

        Raises:
            CheckpointError: If the reference leads to no checkpoint.
        """
        return self._get(  # type: ignore[no-any-return]
            "counter", reference, lambda: self._open_counter(reference)
        )

    def _open_text_model(self, reference: str) -> TextModel:
        from stillroom.models import open_text_model

        settings = self.settings_of.get(reference, self.settings)
        if not self.engine.is_remote:
            return open_text_model(
                reference, cache=self.cache, job=self.job, say=self.say, **settings
            )
        from stillroom.models.cache import wrap_with_cache
        from stillroom.models.factory import RemoteModel

        model = open_text_model(reference, say=self.say, **settings)
        remote = RemoteModel(model, self.engine, reference, settings)
        return wrap_with_cache(remote, self.cache) if self.cache is not None else remote

    def _open_counter(self, reference: str) -> Callable[[str], int]:
        from tokenizers import Tokenizer

        from stillroom.models.hub import resolve_checkpoint
        from stillroom.models.tokenization.growth import check_growth

        if reference.startswith(("http://", "https://", "scripted:")):
            return self.text_model(reference).count_tokens
        file = resolve_checkpoint(reference, say=self.say) / "tokenizer.json"
        if not file.is_file():
            return self.text_model(reference).count_tokens
        check_growth(file)
        tokenizer = Tokenizer.from_file(str(file))
        return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)

    def close(self) -> None:
        """Close all models; closing twice is allowed."""
        with self._lock:
            for (kind, _), model in self.models.items():
                if kind == "text":
                    model.close()
            self.models.clear()

    def _get(self, kind: str, reference: str, open_model: Callable[[], Any]) -> Any:
        with self._lock:
            if (kind, reference) not in self.models:
                self.models[kind, reference] = open_model()
            return self.models[kind, reference]
