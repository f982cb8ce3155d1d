"""Scripted TextModel for tests, and stream reading."""

from __future__ import annotations

from collections.abc import Generator

from stillroom.models.backends.scripted import Script, ScriptedModel
from stillroom.models.requests import stream_with_completion
from stillroom.records import Completion

__all__ = ["read_stream", "scripted_model"]


def read_stream(stream: Generator[str, None, Completion]) -> tuple[list[str], Completion]:
    """Consume a model's stream; return its parts and its final completion."""
    pieces, done = list[str](), Completion("")
    for item in stream_with_completion(stream):
        if isinstance(item, Completion):
            done = item
        else:
            pieces.append(item)
    return pieces, done


def scripted_model(
    answer: Script,
    *,
    name: str = "scripted",
    fingerprint: str = "",
    context_length: int = 8192,
) -> ScriptedModel:
    """Return a TextModel that answers with ``answer`` and records prompts in ``asked``.

    Args:
        answer: A function from Prompt to text; a list of texts, used in order; or a map from a
            part of the prompt to the text (``*`` for everything else).
        name: The model's name.
        fingerprint: The model's fingerprint; by default a digest of the script.
        context_length: Context length to report, in words and marks.
    """
    return ScriptedModel(answer, name=name, fingerprint=fingerprint, context_length=context_length)
