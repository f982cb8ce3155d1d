"""Text models, embedders and rerankers opened by reference; the backend is chosen here.

Every worker opens the model by its reference and serves a call at a time. Prompts, caches and
journals stay in the job's process: answers received before a worker died are kept, and only its
open requests are repeated.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from stillroom.errors import CheckpointError, RecipeError, StillroomError
from stillroom.jobs import Job
from stillroom.jobs.engines import Engine, WorkerResources
from stillroom.models.choice import ChoiceProbabilities, score_options_by_logprob
from stillroom.models.hub import (
    BUILTIN_EMBEDDERS,
    LARGE_EMBEDDER,
    LARGE_EMBEDDER_BASE,
    read_backend_name,
    resolve_checkpoint,
)
from stillroom.models.interfaces import (
    BACKENDS,
    EMBEDDERS,
    ConcurrentModel,
    DelegatingModel,
    Embedder,
    RerankerModel,
    Score,
    TemplatedModel,
    TextModel,
)
from stillroom.models.requests import broadcast_sampling
from stillroom.records import Completion, Message, Prompt, Sampling

__all__ = ["DeferredModel", "RemoteModel", "open_embedder", "open_reranker", "open_text_model"]

_URL_PREFIXES = ("http://", "https://")


def open_text_model(
    reference: str,
    *,
    backend: str = "auto",
    cache: Path | None = None,
    job: Job | None = None,
    num_threads: int | None = None,
    context_length: int | None = None,
    say: Callable[[str], None] | None = None,
    **settings: Any,
) -> TextModel:
    """Open a text model.

    Args:
        reference: A checkpoint folder, a job's folder, a ``.gguf`` file, ``hub:NAME[@revision]``,
            an endpoint's address with the model name (``http://host:8000/v1#name``), or
            ``scripted:FILE``.
        backend: Method of the registry models.backends; ``auto`` selects by the reference: openai
            for addresses, llamacpp for GGUF if installed or torch is not, else transformers.
        cache: File of the completion cache; None for none.
        job: Calling job. A local model completes many prompts per call, which may take long: each
            completion is cached as it ends (in the job's scratch folder, unless ``cache`` is set),
            and cancelling the job ends the call.
        num_threads: CPU threads; default: all cores of this process.
        context_length: Maximum tokens of prompt and completion; default: that of the model.
        say: Called with the location of a resolved ``hub:`` reference.
        settings: Further fields of the backend.

    Raises:
        CheckpointError: If the reference is not a checkpoint.
        RecipeError: If backend or settings are unknown.
        BackendError: If the engine cannot open the checkpoint.
    """
    location = reference
    if not reference.startswith((*_URL_PREFIXES, "scripted:")) and backend != "scripted":
        location = str(resolve_checkpoint(reference, say=say))
    method = BACKENDS.build(
        {
            "name": _choose_backend(location) if backend == "auto" else backend,
            "num_threads": num_threads,
            "context_length": context_length,
            **settings,
        }
    )
    model = method.open(location)
    if isinstance(model, ConcurrentModel) and model.concurrency > 1:
        job = None  # servers are asked one request at a time, and units of work are journaled
    if job is not None and cache is None:
        cache = job.scratch / "completions.sqlite"
    if cache is None:
        return model
    from stillroom.models.cache import wrap_with_cache

    return wrap_with_cache(model, cache, job)


def open_embedder(
    reference: str, *, say: Callable[[str], None] | None = None, **settings: Any
) -> Embedder:
    """Open an embedder.

    Args:
        reference: A sentence-transformers folder or ``hub:NAME``; an endpoint's address with the
            model name (``http://host:8000/v1#name``); ``builtin:mpnet-int8`` for all-mpnet-base-v2
            in 8-bit integers; or ``builtin:static`` for hashed words, which needs no model.
        say: Called with the location of a resolved ``hub:`` reference.
        settings: Further fields of the method.

    Raises:
        CheckpointError: If the reference is not a checkpoint.
        RecipeError: If settings are unknown.
        MissingExtraError: If 8-bit integers need onnx and onnxruntime.
    """
    if reference == LARGE_EMBEDDER:
        reference, settings = LARGE_EMBEDDER_BASE, {"dtype": "int8", **settings}
    if reference.removeprefix("builtin:") == "static":
        return EMBEDDERS.build({"name": "static", **settings}).open("static")
    if reference.startswith(_URL_PREFIXES):
        return EMBEDDERS.build({"name": "openai", **settings}).open(reference)
    path = resolve_checkpoint(reference, say=say, builtin=BUILTIN_EMBEDDERS)
    if path.suffix == ".gguf":
        raise CheckpointError(
            f"{path} is a GGUF file; embedders are loaded from folders",
            code="checkpoint.not-an-embedder",
            expected="a sentence-transformers folder (modules.json, config.json, safetensors)",
            next="serve it as an embeddings endpoint, and use its address",
        )
    return EMBEDDERS.build({"name": "sentence", **settings}).open(str(path))


def open_reranker(
    reference: str, *, say: Callable[[str], None] | None = None, **settings: Any
) -> RerankerModel:
    """Open a reranker.

    Args:
        reference: Folder of a sequence-classification checkpoint or ``hub:NAME``; or the address of
            an endpoint with ``/rerank`` and the model name (``http://host:8000/v1#name``).
        say: Called with the location of a resolved ``hub:`` reference.
        settings: ``max_tokens`` and ``device`` of a checkpoint; ``api_key_env``, ``tries`` and
            ``read_timeout_s`` of an endpoint.

    Raises:
        CheckpointError: If the reference is not a cross-encoder.
        BackendError: If the address is invalid.
    """
    if reference.startswith(_URL_PREFIXES):
        from stillroom.models.endpoints.client import RequestPolicy
        from stillroom.models.endpoints.rerank import RerankEndpoint

        key = str(settings.pop("api_key_env", "OPENAI_API_KEY"))
        return RerankEndpoint(reference, api_key_env=key, patience=RequestPolicy(**settings))
    from stillroom.models.encoders.sequence_classifiers import CrossEncoder

    return CrossEncoder(resolve_checkpoint(reference, say=say), **settings)


def _choose_backend(location: str) -> str:
    if location.startswith("scripted:"):
        return "scripted"
    if location.startswith(_URL_PREFIXES):
        return "openai"
    # A backend that the checkpoint's config names must be installed.
    path = Path(location)
    named = read_backend_name(path)
    if named and named not in BACKENDS.names():
        raise RecipeError(
            f"{path} requires backend {named!r}, which is not installed",
            code="recipe.unknown-method",
            expected=f"one of: {', '.join(BACKENDS.names())}",
            next="install the plug-in of the checkpoint",
        )
    if named:
        return named
    has_torch, has_llamacpp = (importlib.util.find_spec(name) for name in ("torch", "xllamacpp"))
    # Without either, the error of llamacpp names the smaller extra.
    return (
        "llamacpp"
        if location.endswith(".gguf") and (has_llamacpp or not has_torch)
        else "transformers"
    )


_WorkerRequest = tuple[Literal["generate", "score", "choose"], Prompt, Any]


@dataclass(frozen=True)
class _WorkerModel:
    """Task of a worker: serve requests with a model opened by its reference."""

    reference: str
    settings: str
    concurrency: int

    def open(self) -> WorkerResources[_WorkerRequest, Any]:
        model = open_text_model(self.reference, **json.loads(self.settings))

        def answer(asks: Sequence[_WorkerRequest]) -> list[Any]:
            kind = asks[0][0] if asks else "generate"
            prompts, arguments = [ask[1] for ask in asks], [ask[2] for ask in asks]
            if kind == "generate":
                # An error stands in place of the completions that it prevented.
                completions: dict[int, Completion] = {}
                try:
                    return list(model.generate(prompts, arguments, on_done=completions.__setitem__))
                except StillroomError as error:
                    return [completions.get(index, error) for index in range(len(prompts))]
            if kind == "score":
                return list(model.score(prompts, arguments))
            return score_options_by_logprob(model, prompts, arguments[0])

        return WorkerResources(answer, (model.close,))


class RemoteModel(DelegatingModel):
    """TextModel whose requests are served by engine workers.

    It has ``render`` if the local model has it. It has no ``submit``: a call to a worker blocks a
    thread, and all its prompts go to one worker.
    """

    render: Callable[[Sequence[Message]], str]
    """See ``TemplatedModel``."""

    def __init__(
        self, model: TextModel, engine: Engine, reference: str, settings: Mapping[str, Any]
    ) -> None:
        super().__init__(model)
        self.engine = engine
        if isinstance(model, TemplatedModel):
            self.render = model.render
        concurrency = model.concurrency if isinstance(model, ConcurrentModel) else 1
        self._work = _WorkerModel(
            reference, json.dumps(dict(settings), sort_keys=True), concurrency
        )

    @property
    def concurrency(self) -> int:
        """Concurrency of all workers together."""
        return self.engine.num_workers * self._work.concurrency

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        *,
        on_done: Callable[[int, Completion], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        """Complete all prompts on one worker; see ``TextModel.generate``.

        ``is_cancelled`` is checked before the call only.
        """
        if is_cancelled is not None and is_cancelled():
            return [Completion("", "cancelled", model=self.fingerprint) for _ in prompts]
        samplings = broadcast_sampling(prompts, sampling)
        asks: list[_WorkerRequest] = [
            ("generate", *request) for request in zip(prompts, samplings, strict=True)
        ]
        answers = self.engine.call(self._work, asks) if asks else []
        failed = None
        for index, answer in enumerate(answers):
            if isinstance(answer, StillroomError):
                failed = failed or answer
            elif on_done is not None:
                on_done(index, answer)
        if failed is not None:
            raise failed
        return answers

    def score(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> list[Score]:
        """Return the log-probabilities of each completion's tokens."""
        asks: list[_WorkerRequest] = [
            ("score", *request) for request in zip(prompts, completions, strict=True)
        ]
        return self.engine.call(self._work, asks) if asks else []

    def choose(
        self, prompts: Sequence[Prompt], options: Sequence[str]
    ) -> list[ChoiceProbabilities]:
        """Return the probabilities of options by log-probabilities.

        Raises:
            BackendError: If the engine has none.
        """
        asks: list[_WorkerRequest] = [("choose", prompt, tuple(options)) for prompt in prompts]
        return self.engine.call(self._work, asks) if asks else []


class DeferredModel(DelegatingModel):
    """Text model behind a function that opens it; answers that quote never call it.

    Not safe for concurrent first use.
    """

    def __init__(self, name: str, open_model: Callable[[], TextModel]) -> None:
        self._name, self._open = name, open_model

    @cached_property
    def model(self) -> TextModel:  # type: ignore[override]  # opened at first use
        """The model, which is opened now."""
        return self._open()

    @property
    def name(self) -> str:
        """Display name."""
        return self.model.name if "model" in vars(self) else self._name

    def close(self) -> None:
        """Close the model if it was opened."""
        if "model" in vars(self):
            self.model.close()
