"""From a reference to a model that is ready to be asked."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stillroom.errors import CheckpointError, RecipeError
from stillroom.jobs import Job
from stillroom.models.hub import resolve_checkpoint
from stillroom.models.method import BACKENDS, EMBEDDERS
from stillroom.models.naming import named_backend
from stillroom.models.protocols import ConcurrentModel, Embedder, Reranker, TextModel

__all__ = ["open_embedder", "open_reranker", "open_text_model"]

_ADDRESSES = ("http://", "https://")


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
    """Open a TextModel.

    Args:
        reference: A checkpoint's folder, a job's folder, a ``.gguf`` file, ``hub:NAME[@revision]``,
            an endpoint's address with the model's name (``http://host:8000/v1#name``), or
            ``scripted:FILE``.
        backend: A method of the seam models.backends; ``auto`` chooses by what the reference is:
            openai for addresses, llamacpp for GGUF where it is installed, else transformers.
        cache: A file that keeps every completion, so that nothing is asked twice.
        job: The job that asks. A model in this process answers many prompts in one call, which may
            take long: each completion is kept as it comes (in the job's scratch folder, where
            ``cache`` names no file), and the call ends when the job is stopped.
        num_threads: Processor threads; by default all cores this process may use.
        context_length: Tokens of prompt and completion together; by default the model's.
        say: Told what a ``hub:`` reference was resolved to.
        settings: Further fields of the backend.

    Raises:
        CheckpointError: If the reference leads to no checkpoint.
        RecipeError: If backend or settings are unknown.
        BackendError: If the engine cannot open the checkpoint.
    """
    place = reference
    if not reference.startswith((*_ADDRESSES, "scripted:")) and backend != "scripted":
        place = str(resolve_checkpoint(reference, say=say))
    chosen = BACKENDS.build(
        {
            "name": _choose_backend(place) if backend == "auto" else backend,
            "num_threads": num_threads,
            "context_length": context_length,
            **settings,
        }
    )
    model = chosen.open(place)
    if isinstance(model, ConcurrentModel) and model.concurrency > 1:
        job = None  # a server is asked request by request, and each unit of work is journaled
    if job is not None and cache is None:
        cache = job.scratch / "completions.sqlite"
    if cache is None:
        return model
    from stillroom.models.cache import cached

    return cached(model, cache, job)


def open_embedder(
    reference: str, *, say: Callable[[str], None] | None = None, **settings: Any
) -> Embedder:
    """Open an Embedder.

    Args:
        reference: A sentence-transformers folder or ``hub:NAME``; an endpoint's address with the
            model's name (``http://host:8000/v1#name``); or ``builtin:static`` for hashed words
            without any model.
        say: Told what a ``hub:`` reference was resolved to.
        settings: Further fields of the method.

    Raises:
        CheckpointError: If the reference leads to no checkpoint.
        RecipeError: If settings are unknown.
    """
    if reference.removeprefix("builtin:") == "static":
        return EMBEDDERS.build({"name": "static", **settings}).open("static")
    if reference.startswith(_ADDRESSES):
        return EMBEDDERS.build({"name": "openai", **settings}).open(reference)
    path = resolve_checkpoint(reference, say=say)
    if path.suffix == ".gguf":
        raise CheckpointError(
            f"{path} is a GGUF file; embedders are read from folders",
            code="checkpoint.not-an-embedder",
            expected="a sentence-transformers folder (modules.json, config.json, safetensors)",
            next="serve it behind an embeddings endpoint and give the address",
        )
    return EMBEDDERS.build({"name": "sentence", **settings}).open(str(path))


def open_reranker(
    reference: str, *, say: Callable[[str], None] | None = None, **settings: Any
) -> Reranker:
    """Open a Reranker.

    Args:
        reference: The folder of a sequence-classification checkpoint or ``hub:NAME``; or the
            address of an endpoint that serves ``/rerank``, with the model's name
            (``http://host:8000/v1#name``).
        say: Told what a ``hub:`` reference was resolved to.
        settings: ``max_tokens`` and ``device`` of a checkpoint; ``api_key_env``, ``tries`` and
            ``read_timeout_s`` of an endpoint.

    Raises:
        CheckpointError: If the reference leads to no cross-encoder.
        BackendError: If an address cannot be one.
    """
    if reference.startswith(_ADDRESSES):
        from stillroom.models.endpoint import Patience
        from stillroom.models.rerank_endpoint import RerankEndpoint

        key = str(settings.pop("api_key_env", "OPENAI_API_KEY"))
        return RerankEndpoint(reference, api_key_env=key, patience=Patience(**settings))
    from stillroom.models.cross_encoder import CrossEncoder

    return CrossEncoder(resolve_checkpoint(reference, say=say), **settings)


def _choose_backend(place: str) -> str:
    if place.startswith("scripted:"):
        return "scripted"
    if place.startswith(_ADDRESSES):
        return "openai"
    named = _named_backend(Path(place))
    if named:
        return named
    if place.endswith(".gguf") and importlib.util.find_spec("xllamacpp") is not None:
        return "llamacpp"
    return "transformers"


def _named_backend(path: Path) -> str:
    """Return the backend that a checkpoint names, which must be installed."""
    named = named_backend(path)
    if named and named not in BACKENDS.names():
        raise RecipeError(
            f"{path} asks for backend {named!r}, which is not installed",
            code="recipe.unknown-method",
            expected=f"one of: {', '.join(BACKENDS.names())}",
            next="install the plug-in that made the checkpoint",
        )
    return named
