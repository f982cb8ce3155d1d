"""``Verifier``: what judges the completions that a teacher wrote for one prompt.

A verifier rejects a completion or gives it a score; it sees all completions of a prompt at once, so
that it may compare them. Knows no files and no journal.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from stillroom.records import Prompt, Record
from stillroom.registry import Method, Seam

if TYPE_CHECKING:
    from stillroom.models import TextModel

__all__ = ["VERIFIERS", "Judgement", "Verifier", "own_answer"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a verifier says of one completion; higher scores are better, a reason rejects it."""

    score: float = 0.0
    reason: str = ""


class Verifier(Method):
    """Judges completions; its fields are its settings."""

    needs_answer: ClassVar[bool] = False
    """Whether the record must carry an answer of its own to compare with."""

    needs_scores: ClassVar[bool] = False
    """Whether the writer must tell the log-probability of a given text: no endpoint does."""

    @abstractmethod
    def judge(
        self, record: Record, prompt: Prompt, texts: Sequence[str], model: TextModel
    ) -> list[Judgement]:
        """Judge every completion of one prompt, in order.

        Args:
            record: What the prompt was made of; its last assistant message is its own answer.
            prompt: What the writer was given.
            texts: The completions, none of them empty or cut off.
            model: The writer.

        Raises:
            BackendError: If the writer is asked and fails.
        """


def own_answer(record: Record) -> str:
    """Return the record's own answer: ``fields.answer``, or else its last assistant message."""
    answer = record.fields.get("answer")
    if isinstance(answer, str) and answer.strip():
        return answer
    last = record.messages[-1] if record.messages else None
    return last.content if last is not None and last.role == "assistant" else ""


VERIFIERS: Seam[Verifier] = Seam("stillroom.distill.verifiers", Verifier)
