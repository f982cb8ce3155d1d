"""Teacher checkpoint in this process: loading, token log-probabilities, logit capture.

``TeacherScorer`` is the narrow door: a model in this process fulfils it here, and so can a server
that returns the log-probabilities of a prompt's tokens. Knows no divergence.

That is all a crossing of chunks needs: four bytes a position in the teacher cache, in the mode
``own``. Who scores is a ``TeacherScorer``: a model in this process, or an endpoint.

Its file of tensors has a true header over a hole, so that plans of a student are made of it by the
same code that makes them of the real one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.quantization import drop_quantization
from stillroom.distill.data.tokenized import TokenizedRecord, make_batch
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.logit_cache.capture import capture_teacher
from stillroom.distill.logit_cache.storage import CacheHeader
from stillroom.distill.losses.lm_head import LMHead, compute_teacher_hidden, compute_token_logprobs
from stillroom.distill.recipe import DistillRecipe
from stillroom.errors import CheckpointError, DataError, ShapeError
from stillroom.jobs import Job
from stillroom.models import load_causal_lm, resolve_checkpoint
from stillroom.models.local.causal_lm import load_tokenizer, read_tensor_shapes
from stillroom.provenance import digest_text
from stillroom.train.precision import autocast_body, matmul_dtype

__all__ = [
    "LocalTeacher",
    "ModelScorer",
    "TeacherScorer",
    "capture_token_logprobs",
    "check_shared_vocabulary",
    "count_shared_rows",
    "outline_checkpoint",
    "pack_token_logprobs",
]


@dataclass
class LocalTeacher:
    """A checkpoint that teaches; ``model`` loads it on first use, ``unload`` frees its memory."""

    checkpoint: Checkpoint
    name: str
    reference: str = ""
    _loaded: Any | None = field(default=None, repr=False)
    _is_lowered: bool = field(default=False, repr=False)

    @classmethod
    def find(cls, reference: str, job: Job) -> LocalTeacher:
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
        return LMHead.of(self.model).rows

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

    def capture(self, lessons: Sequence[TokenizedRecord], cache: LogitCache, job: Job) -> int:
        """Keep what it says of the lessons that the cache lacks; see ``capture``."""
        if not cache.lacking(lessons):
            return 0
        return capture_teacher(self.lowered(cache.header.precision), lessons, cache, job)

    def capture_own(self, lessons: Sequence[TokenizedRecord], cache: LogitCache, job: Job) -> int:
        """Keep its log-probabilities of the lessons' own tokens; see ``cross_capture``."""
        missing = [lesson for lesson in lessons if lesson not in cache]
        if not missing:
            return 0
        precision = cache.header.precision
        scorer = ModelScorer(self.lowered(precision), precision=precision)
        return capture_token_logprobs(scorer, missing, cache, job)


def count_shared_rows(teacher: LocalTeacher, student: Any, student_tokenizer: Any) -> int:
    """Return how many tokens teacher and student share: the rows of the narrower head.

    A head may be padded past its tokenizer; the padding takes no part in any softmax.

    Raises:
        CheckpointError: If the two do not give the same tokens the same ids.
    """
    rows = min(LMHead.of(teacher.model).rows, LMHead.of(student).rows)
    check_shared_vocabulary(teacher.tokenizer, student_tokenizer, rows)
    return rows


def check_shared_vocabulary(teacher_tokenizer: Any, student_tokenizer: Any, rows: int) -> None:
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


@runtime_checkable
class TeacherScorer(Protocol):
    """Anything that tells a teacher's log-probabilities of given tokens."""

    def score_tokens(self, lessons: Sequence[TokenizedRecord]) -> list[npt.NDArray[np.float32]]:
        """Return, for each lesson, the log-probability of the next token at each position.

        Args:
            lessons: Texts in the teacher's own tokens, with the positions that are asked for.

        Returns:
            One array (N,) a lesson, in nats, at temperature 1, over the tokens that teacher and
            student share; what a lesson gets does not depend on the lessons beside it.

        Raises:
            DataError: If a number is not finite; the record is named.
        """


class ModelScorer:
    """A teacher in this process as a ``TeacherScorer``."""

    def __init__(self, teacher: nn.Module, *, rows: int = 0, precision: str = "float32") -> None:
        """Set up.

        Args:
            teacher: In evaluation mode.
            rows: Tokens that teacher and student share; 0 takes all of the teacher's.
            precision: ``float32`` or ``bfloat16``, of the matrix products.
        """
        self.teacher, self.precision = teacher, precision
        self._head = LMHead.of(teacher, rows)

    def score_tokens(self, lessons: Sequence[TokenizedRecord]) -> list[npt.NDArray[np.float32]]:
        """Return the teacher's log-probabilities; one lesson is run at a time."""
        return [self._score(lesson) for lesson in lessons]

    def _score(self, lesson: TokenizedRecord) -> npt.NDArray[np.float32]:
        device = self._head.weight.device
        batch = make_batch([lesson], None, device)
        with torch.no_grad(), autocast_body(self.precision, device):
            hidden = compute_teacher_hidden(self.teacher, batch.input_ids, batch.flat)
        found = compute_token_logprobs(
            hidden, self._head, batch.labels, matmul_dtype(self.precision)
        )
        scores: npt.NDArray[np.float32] = found.float().cpu().numpy()
        if not np.isfinite(scores).all():
            at = int(lesson.positions[int(np.flatnonzero(~np.isfinite(scores))[0])])
            raise DataError(
                f"the teacher's log-probabilities for record {lesson.record_id} are not finite",
                code="distill.teacher-not-finite",
                where=f"record {lesson.record_id}, position {at}",
                expected="finite numbers",
                next="set train.precision to float32, or check the teacher's weights",
            )
        return scores


def capture_token_logprobs(
    scorer: TeacherScorer, lessons: Sequence[TokenizedRecord], cache: LogitCache, job: Job
) -> int:
    """Keep the teacher's log-probability of every lesson's own next tokens that the cache lacks.

    Args:
        scorer: Asked for one lesson at a time, so that a kill loses one.
        lessons: As the teacher's tokenizer cuts them.
        cache: Of mode ``own``.
        job: For progress and cancellation.

    Returns:
        How many lessons were captured now.

    Raises:
        DataError: If the teacher gives a number that is not finite.
        ResourceError: If another process is adding to the cache, or the disk is full.
        Cancelled: If the user asked for it; what was captured is kept.
    """
    if not cache.lacking(lessons):
        return 0
    with cache.writing():
        missing = cache.lacking(lessons)
        tokens = sum(len(lesson.ids) for lesson in missing)
        with job.phase("teacher", tokens, "tokens") as progress:
            for lesson in missing:
                job.check_cancelled()
                (found,) = scorer.score_tokens([lesson])
                cache.add(lesson, pack_token_logprobs(lesson, found, cache.dtype))
                progress.advance(len(lesson.ids))
    return len(missing)


def pack_token_logprobs(
    lesson: TokenizedRecord, logprobs: npt.NDArray[np.float32], dtype: np.dtype[np.void]
) -> npt.NDArray[np.void]:
    """Return a lesson's log-probabilities, (N,), as rows of a cache of mode ``own``."""
    rows = np.zeros(len(lesson.positions), dtype=dtype)
    rows["logprob"] = logprobs
    return rows


_BYTES = 2  # bfloat16, which is named and never read


@contextmanager
def outline_checkpoint(config: Path) -> Iterator[Checkpoint]:
    """Give a checkpoint of the right names and shapes; its numbers must not be read.

    Args:
        config: A ``config.json`` or a ``.gguf`` file.

    Raises:
        CheckpointError: If no model can be made of it.
    """
    told, shapes = read_tensor_shapes(config)
    with TemporaryDirectory(prefix="stillroom-outline-") as place:
        folder = Path(place)
        (folder / "config.json").write_text(
            json.dumps(drop_quantization(told), default=str), encoding="utf-8"
        )
        entries, end = {}, 0
        for name, shape in shapes.items():
            start, end = end, end + _BYTES * math.prod(shape)
            entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        with (folder / "model.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + end)
        yield Checkpoint.open(folder)
