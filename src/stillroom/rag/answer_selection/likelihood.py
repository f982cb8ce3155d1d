"""Question likelihood: how much a sentence raises the probability of a question.

A small causal language model scores the question after a sentence with its heading, and after
neither. The difference, in nats, is their pointwise mutual information under the model; it is added
to the scores of the few sentences that a reader likes best. The model is used as it is, and writes
nothing.

Source: Ponte and Croft 1998, "A Language Modeling Approach to Information Retrieval"; Sachan et al.
2022, "Improving Passage Retrieval with Zero-Shot Question Generation", arXiv:2204.07496. Differs:
sentences instead of passages, and the question's likelihood without any is subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from stillroom.errors import CheckpointError
from stillroom.models.encoders.numpy_llama import NumpyLlama, open_llama
from stillroom.models.hub import resolve_checkpoint

__all__ = ["QuestionLikelihood", "open_likelihood"]

_MAX_HEADING, _MAX_SENTENCE, _MAX_QUESTION = 60, 300, 300
"""Characters that are read: a token costs about two milliseconds."""
_REQUEST = "\n\nThe user asked:"
_KEPT = 4096


class QuestionLikelihood:
    """Scores of questions after sentences; use ``open_likelihood``."""

    def __init__(self, model: NumpyLlama) -> None:
        """Keep the model, and the last few thousand scores."""
        self.fingerprint = model.fingerprint
        self._score = lru_cache(maxsize=_KEPT)(
            lambda context, question: model.score(model.encode(context), model.encode(question))
        )

    def gains(self, question: str, sentences: Sequence[tuple[str, str]]) -> list[float]:
        """Return the gain of each sentence, in nats.

        Args:
            question: The question.
            sentences: Heading and text of each.
        """
        asked = f" {' '.join(question.split())[:_MAX_QUESTION]}"
        alone = self._score(_render("", ""), asked)
        return [self._score(_render(heading, text), asked) - alone for heading, text in sentences]


def _render(heading: str, text: str) -> str:
    lowest = heading.rpartition(" > ")[2][:_MAX_HEADING]
    return f"{lowest}: {' '.join(text.split())[:_MAX_SENTENCE]}{_REQUEST}"


@lru_cache(maxsize=2)
def open_likelihood(reference: str) -> QuestionLikelihood:
    """Open the language model of a reader; the last two stay open.

    Args:
        reference: Folder, GGUF file or hub name of a plain Llama.

    Raises:
        CheckpointError: If there is none, or it has another architecture.
        MissingExtraError: If it is a GGUF file and the package that reads it is not installed.
    """
    path = resolve_checkpoint(reference)
    model = open_llama(_find_folder(path))
    if model is None:
        raise CheckpointError(
            f"{path} is no plain Llama",
            code="checkpoint.not-a-llama",
            where="likelihood",
            expected="a language model such as SmolLM2-135M-Instruct",
            next="choose another model, or null for none",
        )
    return QuestionLikelihood(model)


def _find_folder(path: Path) -> Path:
    from stillroom.checkpoints import dequantize_gguf

    return dequantize_gguf(path) if path.suffix == ".gguf" else path
