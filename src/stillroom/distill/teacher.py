"""The teacher of a job: found, opened, loaded when needed, let go when not."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from stillroom.checkpoints import Checkpoint
from stillroom.distill.cache import CacheHeader
from stillroom.distill.head import Head
from stillroom.distill.recipe import DistillRecipe
from stillroom.errors import CheckpointError
from stillroom.jobs import Job
from stillroom.models import load_causal_lm, resolve_checkpoint
from stillroom.provenance import digest_text

__all__ = ["Teacher", "common_rows"]


@dataclass
class Teacher:
    """A checkpoint that teaches; ``model`` loads it on first use, ``unload`` frees its memory."""

    checkpoint: Checkpoint
    name: str
    _loaded: tuple[Any, Any] | None = field(default=None, repr=False)

    @classmethod
    def find(cls, reference: str, job: Job) -> Teacher:
        """Open the checkpoint that a reference means, without loading its weights."""
        path = resolve_checkpoint(reference, say=job.say)
        name = reference.removeprefix("hub:").partition("@")[0]
        return cls(Checkpoint.open(path), name if reference.startswith("hub:") else path.name)

    @property
    def model(self) -> Any:
        """The model in float32, in evaluation mode; no parameter takes a gradient."""
        return self._load()[0]

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._load()[1]

    def lowered(self, precision: str) -> Any:
        """The model with its layers' products in ``precision``: cast once, not in every call.

        The loaded model itself is changed; ``unload`` makes the next use load float32 again.
        """
        model = self.model
        if precision == "bfloat16":
            head = model.get_output_embeddings()
            for module in model.modules():
                if isinstance(module, nn.Linear) and module is not head:
                    module.to(torch.bfloat16)
        return model

    def unload(self) -> None:
        """Free the weights."""
        self._loaded = None

    def header(self, recipe: DistillRecipe, rows: int, precision: str) -> CacheHeader:
        """Return what a cache of this teacher's words says of itself.

        Args:
            recipe: Mode, width and temperature.
            rows: Tokens of the vocabulary that teacher and student share.
            precision: Of the matrix products.
        """
        targets = recipe.targets
        is_sampled = targets.mode == "sampled"
        return CacheHeader(
            teacher=self.checkpoint.fingerprint,
            tokenizer=self.checkpoint.tokenizer_digest,
            template=digest_text(str(getattr(self.tokenizer, "chat_template", None) or "")),
            vocabulary=rows,
            mode=targets.mode,
            width=targets.samples if is_sampled else min(targets.k, rows),
            temperature=recipe.method.temperature,
            precision=precision,
            logprob_dtype=targets.logprob_dtype,
            seed=recipe.seed if is_sampled else 0,
            license=self.checkpoint.license,
        )

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            self._loaded = load_causal_lm(self.checkpoint.folder, dtype="float32")
            self._loaded[0].requires_grad_(False)
        return self._loaded


def common_rows(teacher: Teacher, student: Any, student_tokenizer: Any) -> int:
    """Return how many tokens teacher and student share: the rows of the narrower head.

    A head may be padded past its tokenizer; the padding takes no part in any softmax.

    Raises:
        CheckpointError: If the two do not give the same tokens the same ids.
    """
    rows = min(Head.of(teacher.model).rows, Head.of(student).rows)
    ours, theirs = student_tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    used = max(ours.values(), default=-1) + 1
    if ours != theirs or used > rows:
        odd = next((token for token in theirs if ours.get(token) != theirs[token]), "")
        raise CheckpointError(
            "teacher and student do not share a vocabulary"
            + (f": token {odd!r:.40} has another id" if odd else ""),
            code="distill.vocabulary",
            where="student",
            expected=f"the teacher's {len(theirs)} tokens under the same ids",
            next="start from the teacher's layers, or from a model with its tokenizer",
        )
    return rows
