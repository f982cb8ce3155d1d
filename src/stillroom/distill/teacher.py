"""The teacher of a job: found, opened, loaded when needed, let go when not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn

from stillroom.checkpoints import Checkpoint
from stillroom.distill.cache import TeacherCache
from stillroom.distill.cache_header import CacheHeader
from stillroom.distill.capture import capture_teacher
from stillroom.distill.cross_capture import capture_own
from stillroom.distill.encode import Lesson
from stillroom.distill.head import Head
from stillroom.distill.recipe import DistillRecipe
from stillroom.distill.scoring import ModelScorer
from stillroom.errors import CheckpointError, ShapeError
from stillroom.jobs import Job
from stillroom.models import load_causal_lm, resolve_checkpoint
from stillroom.models.causal import load_tokenizer
from stillroom.provenance import digest_text

__all__ = ["Teacher", "common_rows", "rows_in_common"]


@dataclass
class Teacher:
    """A checkpoint that teaches; ``model`` loads it on first use, ``unload`` frees its memory."""

    checkpoint: Checkpoint
    name: str
    reference: str = ""
    _loaded: Any | None = field(default=None, repr=False)
    _is_lowered: bool = field(default=False, repr=False)

    @classmethod
    def find(cls, reference: str, job: Job) -> Teacher:
        """Open the checkpoint that a reference means, without loading its weights."""
        path = resolve_checkpoint(reference, say=job.say)
        name = reference.removeprefix("hub:").partition("@")[0]
        named = name if reference.startswith("hub:") else path.name
        return cls(Checkpoint.open(path), named, reference)

    @property
    def fingerprint(self) -> str:
        """The digest of its weights."""
        return self.checkpoint.fingerprint

    @property
    def license(self) -> str:
        """The license that its card names; empty where nobody says."""
        return self.checkpoint.license

    @property
    def about(self) -> dict[str, Any]:
        """Its name, and whether its weights are those of a quantized file."""
        made = self.checkpoint.dequantized_from
        return {"name": self.name, **({"weights": f"dequantized from {made}"} if made else {})}

    @cached_property
    def head_rows(self) -> int:
        """Rows of its output head; the weights are loaded once to know."""
        return Head.of(self.model).rows

    @property
    def template_digest(self) -> str:
        """The digest of its chat template."""
        return digest_text(str(getattr(self.tokenizer, "chat_template", None) or ""))

    @property
    def model(self) -> Any:
        """The model in float32, in evaluation mode; no parameter takes a gradient."""
        if self._is_lowered:
            self.unload()
        if self._loaded is None:
            self._loaded, _ = load_causal_lm(self.checkpoint.folder, dtype="float32")
            self._loaded.requires_grad_(False)
        return self._loaded

    @cached_property
    def tokenizer(self) -> Any:
        """Its tokenizer; the weights are not loaded for it, and it outlives them."""
        return load_tokenizer(self.checkpoint.folder)

    def lowered(self, precision: str) -> Any:
        """The model with its layers' products in ``precision``: cast once, not in every call.

        The loaded model itself is changed; the next use of ``model`` loads float32 again.
        """
        if self._is_lowered and precision == "bfloat16":
            return self._loaded
        model = self.model
        if precision == "bfloat16":
            self._is_lowered = True
            head = model.get_output_embeddings()
            for module in model.modules():
                if isinstance(module, nn.Linear) and module is not head:
                    module.to(torch.bfloat16)
        return model

    def unload(self) -> None:
        """Free the weights."""
        self._loaded, self._is_lowered = None, False

    def header(self, recipe: DistillRecipe, rows: int, precision: str) -> CacheHeader:
        """Return what a cache of this teacher's words says of itself.

        Args:
            recipe: Mode, width and temperature.
            rows: Tokens of the vocabulary that teacher and student share.
            precision: Of the matrix products.

        Raises:
            ShapeError: If more tokens are to be kept than there are.
        """
        targets = recipe.targets
        if targets.mode == "live":
            raise ValueError("a teacher that runs in every step keeps nothing")
        is_sampled, is_dense = targets.mode == "sampled", targets.mode == "dense"
        asked = targets.samples if is_sampled else targets.k
        if asked > rows and not is_dense:
            name = "targets.samples" if is_sampled else "targets.k"
            raise ShapeError(
                f"{name} is {asked}",
                code="distill.shape",
                where=name,
                expected=f"at most {rows}, the tokens that teacher and student share",
                next=f"lower {name}, or use targets.mode: dense",
            )
        return CacheHeader(
            teacher=self.checkpoint.fingerprint,
            tokenizer=self.checkpoint.tokenizer_digest,
            template=self.template_digest,
            vocabulary=rows,
            mode=targets.mode,
            width=rows if is_dense else asked,
            temperature=1.0 if is_dense else recipe.method.temperature,
            sampling_temperature=targets.sampling_temperature if is_sampled else 1.0,
            precision=precision,
            logprob_dtype=targets.logprob_dtype,
            seed=recipe.seed if is_sampled else 0,
            license=self.license,
            about={**self.about, "reference": self.reference},
        )

    def own_header(self, precision: str) -> CacheHeader:
        """Return what a cache of this teacher's own log-probabilities says of itself."""
        return CacheHeader(
            teacher=self.fingerprint,
            tokenizer=self.checkpoint.tokenizer_digest,
            template=self.template_digest,
            vocabulary=self.head_rows,
            mode="own",
            width=0,
            temperature=1.0,
            precision=precision,
            logprob_dtype="float32",
            license=self.license,
            about=self.about,
        )

    def capture(self, lessons: Sequence[Lesson], cache: TeacherCache, job: Job) -> int:
        """Keep what it says of the lessons that the cache lacks; see ``capture``."""
        if not cache.lacking(lessons):
            return 0
        return capture_teacher(self.lowered(cache.header.precision), lessons, cache, job)

    def capture_own(self, lessons: Sequence[Lesson], cache: TeacherCache, job: Job) -> int:
        """Keep its log-probabilities of the lessons' own tokens; see ``cross_capture``."""
        missing = [lesson for lesson in lessons if lesson not in cache]
        if not missing:
            return 0
        precision = cache.header.precision
        scorer = ModelScorer(self.lowered(precision), precision=precision)
        return capture_own(scorer, missing, cache, job)


def common_rows(teacher: Teacher, student: Any, student_tokenizer: Any) -> int:
    """Return how many tokens teacher and student share: the rows of the narrower head.

    A head may be padded past its tokenizer; the padding takes no part in any softmax.

    Raises:
        CheckpointError: If the two do not give the same tokens the same ids.
    """
    rows = min(Head.of(teacher.model).rows, Head.of(student).rows)
    rows_in_common(teacher.tokenizer, student_tokenizer, rows)
    return rows


def rows_in_common(teacher_tokenizer: Any, student_tokenizer: Any, rows: int) -> None:
    """Check that two tokenizers number the same tokens alike, within the rows of both heads.

    Raises:
        CheckpointError: If they do not; the first odd token is named.
    """
    ours, theirs = student_tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    used = max(ours.values(), default=-1) + 1
    if ours != theirs or used > rows:
        odd = next((token for token in theirs if ours.get(token) != theirs[token]), "")
        raise CheckpointError(
            "teacher and student do not share a vocabulary"
            + (f": token {odd!r:.40} has another id" if odd else ""),
            code="distill.vocabulary",
            where="student",
            expected=f"the teacher's {len(theirs)} tokens under the same ids",
            next="set crossing: {name: chunk_likelihood}, which distills across tokenizers; or "
            "start from the teacher's layers, or from a model with its tokenizer",
        )
