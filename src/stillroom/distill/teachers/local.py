"""Teacher checkpoint in this process: loading, token log-probabilities, logit capture.

``TeacherScorer`` is the minimal interface of a teacher, implemented by a local model and by an
endpoint that returns prompt log-probabilities. It suffices for chunk losses: a cache in mode
``own`` stores four bytes per position.

``outline_checkpoint`` makes a checkpoint without weights: a safetensors file with a complete header
over a sparse hole, so that students are planned by the same code as from a real checkpoint.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.quantization import drop_quantization
from stillroom.distill.data.preparation import prepare_data
from stillroom.distill.data.tokenized import TokenizedRecord, make_batch
from stillroom.distill.logit_cache.cache import CacheCoverage, LogitCache, describe_cache
from stillroom.distill.logit_cache.capture import (
    CacheCost,
    add_missing,
    capture_teacher,
    cast_linear_layers,
    estimate_cache_cost,
)
from stillroom.distill.logit_cache.storage import CacheHeader
from stillroom.distill.losses.lm_head import LMHead, compute_teacher_hidden, compute_token_logprobs
from stillroom.distill.settings import (
    CachedTargetSettings,
    LiveTargetSettings,
    PruneSettings,
    SampledTargetSettings,
    TopKTargetSettings,
)
from stillroom.errors import CheckpointError, DataError, RecipeError, ShapeError
from stillroom.jobs import Estimate, Job, Reporter, check_fits, describe_machine, tell_warnings
from stillroom.models import load_causal_lm, load_model_only, resolve_checkpoint
from stillroom.models.local.causal_lm import load_tokenizer, read_tensor_shapes
from stillroom.objects import resolve_local
from stillroom.provenance import digest_text
from stillroom.recipes import dump_recipe
from stillroom.train.data import split_records
from stillroom.train.precision import autocast_body, choose_precision, limit_threads, matmul_dtype

if TYPE_CHECKING:
    from stillroom.distill.jobs.logits import LogitsRecipe

__all__ = [
    "CaptureSummary",
    "LocalTeacher",
    "ModelScorer",
    "TeacherScorer",
    "capture_recipe",
    "check_shared_vocabulary",
    "count_shared_rows",
    "fill_cache",
    "outline_checkpoint",
    "pack_token_logprobs",
]


@dataclass
class LocalTeacher:
    """A local checkpoint; ``model`` loads it on first use, ``unload`` frees its memory."""

    checkpoint: Checkpoint
    name: str
    reference: str = ""
    _loaded: Any | None = field(default=None, repr=False)
    _is_cast: bool = field(default=False, repr=False)

    @classmethod
    def find(cls, reference: str, job: Job) -> LocalTeacher:
        """Open the checkpoint of a reference, without loading its weights."""
        path = resolve_checkpoint(reference, say=job.say)
        hub_name = reference.removeprefix("hub:").partition("@")[0]
        short_name = hub_name if reference.startswith("hub:") else path.name
        return cls(Checkpoint.open(path), short_name, reference)

    @property
    def fingerprint(self) -> str:
        """Digest of its weights."""
        return self.checkpoint.fingerprint

    @property
    def license(self) -> str:
        """License in its model card; empty if unknown."""
        return self.checkpoint.license

    @property
    def about(self) -> dict[str, Any]:
        """Its name, and whether its weights are dequantized."""
        source = self.checkpoint.dequantized_from
        return {"name": self.name, **({"weights": f"dequantized from {source}"} if source else {})}

    @cached_property
    def head_rows(self) -> int:
        """Rows of its output head; loads the weights."""
        return LMHead.of(self.model).rows

    @property
    def template_digest(self) -> str:
        """Digest of its chat template."""
        return digest_text(str(getattr(self.tokenizer, "chat_template", None) or ""))

    @property
    def model(self) -> Any:
        """Model in float32 and evaluation mode; parameters require no gradient."""
        if self._is_cast:
            self.unload()
        if self._loaded is None:
            self._loaded = load_model_only(self.checkpoint.folder, dtype="float32")
            self._loaded.requires_grad_(False)
        return self._loaded

    @cached_property
    def tokenizer(self) -> Any:
        """Tokenizer; loaded without the weights, and kept after ``unload``."""
        return load_tokenizer(self.checkpoint.folder)

    def in_precision(self, precision: str) -> Any:
        """Return the model with linear layers cast to ``precision``, except the head.

        Modifies the loaded model; the next use of ``model`` loads float32 again.
        """
        if self._is_cast and precision == "bfloat16":
            return self._loaded
        model = self.model
        if precision == "bfloat16":
            self._is_cast = True
            cast_linear_layers(model)
        return model

    def describe(self) -> dict[str, Any]:
        """Return the details of a single teacher for artifact.json."""
        return {"teacher": self.fingerprint, "teacher_parameters": self.checkpoint.parameters}

    def unload(self) -> None:
        """Free the weights."""
        self._loaded, self._is_cast = None, False

    def header(
        self,
        targets: CachedTargetSettings,
        rows: int,
        precision: str,
        *,
        temperature: float = 1.0,
        seed: int = 0,
    ) -> CacheHeader:
        """Return the header of a cache of this teacher.

        Args:
            targets: Form and width of the stored distributions.
            rows: Number of vocabulary tokens shared with the student.
            precision: Precision of matrix products.
            temperature: Temperature of the stored distributions; dense ones are stored at 1.
            seed: Seed of sampled targets.

        Raises:
            ShapeError: If the width exceeds the vocabulary.
        """
        width, name = rows, "targets.k"
        if isinstance(targets, SampledTargetSettings):
            width, name = targets.samples, "targets.samples"
        elif isinstance(targets, TopKTargetSettings):
            width = targets.k
        if width > rows:
            raise ShapeError(
                f"{name} is {width}",
                code="distill.shape",
                where=name,
                expected=f"at most {rows}, the tokens shared by teacher and student",
                next=f"lower {name}, or use targets.mode: dense",
            )
        return CacheHeader(
            teacher=self.checkpoint.fingerprint,
            tokenizer=self.checkpoint.tokenizer_digest,
            template=self.template_digest,
            vocabulary=rows,
            mode=targets.mode,
            width=width,
            temperature=1.0 if targets.mode == "dense" else temperature,
            sampling_temperature=(
                targets.sampling_temperature if isinstance(targets, SampledTargetSettings) else 1.0
            ),
            precision=precision,
            logprob_dtype=targets.logprob_dtype,
            seed=seed if targets.mode == "sampled" else 0,
            license=self.license,
            about={**self.about, "reference": self.reference},
        )

    def own_header(self, precision: str) -> CacheHeader:
        """Return the header of a cache of label log-probabilities."""
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

    def capture(self, records: Sequence[TokenizedRecord], cache: LogitCache, job: Job) -> int:
        """Capture the records missing from the cache; see ``capture_teacher``."""
        if not cache.lacking(records):
            return 0
        return capture_teacher(self.in_precision(cache.header.precision), records, cache, job)

    def capture_own(self, records: Sequence[TokenizedRecord], cache: LogitCache, job: Job) -> int:
        """Capture the log-probability of every label that is missing from the cache."""
        if not cache.lacking(records):
            return 0
        precision = cache.header.precision
        scorer = ModelScorer(self.in_precision(precision), precision=precision)

        def compute_rows(record: TokenizedRecord) -> npt.NDArray[np.void]:
            (logprobs,) = scorer.score_tokens([record])
            return pack_token_logprobs(record, logprobs, cache.dtype)

        return add_missing(records, cache, job, compute_rows)


def count_shared_rows(teacher: LocalTeacher, student: Any, student_tokenizer: Any) -> int:
    """Return the number of shared vocabulary rows: those of the narrower head.

    A head may be padded beyond its tokenizer; padding is excluded from every softmax.

    Raises:
        CheckpointError: If the same tokens do not have the same ids.
    """
    rows = min(LMHead.of(teacher.model).rows, LMHead.of(student).rows)
    check_shared_vocabulary(teacher.tokenizer, student_tokenizer, rows)
    return rows


def check_shared_vocabulary(teacher_tokenizer: Any, student_tokenizer: Any, rows: int) -> None:
    """Check that two tokenizers assign the same ids, within the rows of both heads.

    Raises:
        CheckpointError: If they do not; the first differing token is named.
    """
    student_ids, teacher_ids = student_tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    used = max(student_ids.values(), default=-1) + 1
    if student_ids != teacher_ids or used > rows:
        differing = next(
            (token for token in teacher_ids if student_ids.get(token) != teacher_ids[token]), ""
        )
        raise CheckpointError(
            "teacher and student do not share a vocabulary"
            + (f": token {differing!r:.40} has another id" if differing else ""),
            code="distill.vocabulary",
            where="student",
            expected=f"the teacher's {len(teacher_ids)} tokens with the same ids",
            next="use kind distill.cross_tokenizer; or "
            "derive the student from the teacher, or use a model with its tokenizer",
        )


@runtime_checkable
class TeacherScorer(Protocol):
    """A source of a teacher's log-probabilities of given tokens."""

    def score_tokens(self, records: Sequence[TokenizedRecord]) -> list[npt.NDArray[np.float32]]:
        """Return, for each record, the log-probability of the next token at each position.

        Args:
            records: Records in the teacher's tokenization, with the positions to score.

        Returns:
            One array (N,) per record, in nats, at temperature 1, over the vocabulary shared with
            the student; independent of the other records in the call.

        Raises:
            DataError: If a value is not finite; the record is named.
        """


class ModelScorer:
    """A ``TeacherScorer`` of a local model."""

    def __init__(self, teacher: nn.Module, *, rows: int = 0, precision: str = "float32") -> None:
        """Initialize the scorer.

        Args:
            teacher: Model in evaluation mode.
            rows: Number of vocabulary tokens shared with the student; 0 uses all.
            precision: Precision of matrix products, ``float32`` or ``bfloat16``.
        """
        self.teacher, self.precision = teacher, precision
        self._head = LMHead.of(teacher, rows)

    def score_tokens(self, records: Sequence[TokenizedRecord]) -> list[npt.NDArray[np.float32]]:
        """Return the teacher's log-probabilities; records are run one at a time."""
        return [self._score(record) for record in records]

    def _score(self, record: TokenizedRecord) -> npt.NDArray[np.float32]:
        device = self._head.weight.device
        batch = make_batch([record], None, device)
        with torch.no_grad(), autocast_body(self.precision, device):
            hidden = compute_teacher_hidden(self.teacher, batch.input_ids, batch.flat)
        logprobs = compute_token_logprobs(
            hidden, self._head, batch.labels, matmul_dtype(self.precision)
        )
        scores: npt.NDArray[np.float32] = logprobs.float().cpu().numpy()
        if not np.isfinite(scores).all():
            position = int(record.positions[int(np.flatnonzero(~np.isfinite(scores))[0])])
            raise DataError(
                f"the teacher's log-probabilities for record {record.record_id} are not finite",
                code="distill.teacher-not-finite",
                where=f"record {record.record_id}, position {position}",
                expected="finite numbers",
                next="set train.precision to float32, or check the teacher's weights",
            )
        return scores


def pack_token_logprobs(
    record: TokenizedRecord, logprobs: npt.NDArray[np.float32], dtype: np.dtype[np.void]
) -> npt.NDArray[np.void]:
    """Return a record's log-probabilities, (N,), as rows of a cache of mode ``own``."""
    rows = np.zeros(len(record.positions), dtype=dtype)
    rows["logprob"] = logprobs
    return rows


_BYTES = 2  # size of bfloat16, declared in the header but never read


@contextmanager
def outline_checkpoint(config: Path) -> Iterator[Checkpoint]:
    """Yield a checkpoint with names and shapes only; its values must not be read.

    Args:
        config: A ``config.json`` or a ``.gguf`` file.

    Raises:
        CheckpointError: If no model can be built from it.
    """
    values, shapes = read_tensor_shapes(config)
    with TemporaryDirectory(prefix="stillroom-outline-") as temporary:
        folder = Path(temporary)
        (folder / "config.json").write_text(
            json.dumps(drop_quantization(values), default=str), encoding="utf-8"
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


@dataclass(frozen=True, slots=True)
class CaptureSummary:
    """Coverage before a capture, its estimated cost, and the cache afterwards."""

    before: CacheCoverage
    cost: CacheCost | None
    cache: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the summary by name."""
        return {
            "wanted": {"records": self.before.records, "positions": self.before.positions},
            "found_before": {
                "records": self.before.records_found,
                "positions": self.before.positions_found,
            },
            "cost": self.cost.to_json() if self.cost else None,
            "cache": self.cache,
        }


def fill_cache(
    cache: LogitCache,
    teacher: LocalTeacher,
    records: Sequence[TokenizedRecord],
    job: Job,
    *,
    only_estimate: bool = False,
) -> CaptureSummary:
    """Capture the records missing from the cache, after logging the estimated cost.

    Raises:
        DataError: If a teacher's value is not finite.
        IntegrityError: If existing rows are damaged.
        ResourceError: If the disk is too small, or another process is writing.
        Cancelled: If cancellation was requested; captured records are kept.
    """
    coverage = cache.cover(records)
    job.say(f"logit cache {cache.folder}: {coverage}")
    cost = None
    missing = cache.lacking(records)
    if missing:
        model = teacher.in_precision(cache.header.precision)
        cost = estimate_cache_cost(model, cache.header, missing)
        job.say(str(cost))
        setting = "capture less: targets.mode sampled is the smallest"
        need = Estimate(disk_bytes=cost.size_bytes, disk_knob=setting)
        check_fits(need, describe_machine(cache.folder), str(cache.folder))
        if not only_estimate:
            capture_teacher(model, records, cache, job)
    if not only_estimate:
        cache.verify()
    return CaptureSummary(coverage, cost, describe_cache(cache))


def capture_recipe(
    recipe: LogitsRecipe, folder: Path, *, only_estimate: bool = False, reporter: Reporter
) -> CaptureSummary:
    """Fill a cache for a recipe without training; a repeated call continues.

    Raises:
        RecipeError: If the recipe stores no distributions: its targets are live.
        DataError: If records or cache cannot be used.
        ResourceError: If the disk is too small, or another process is writing.
    """
    if isinstance(recipe.targets, LiveTargetSettings):
        raise RecipeError(
            "targets.mode live stores nothing that could be captured without a run",
            code="distill.nothing-kept",
            where="targets.mode",
            expected="top_k, sampled or dense",
            next="change targets.mode, or run the recipe: stillroom run",
        )
    with _open_job(recipe, folder, reporter) as job, limit_threads(recipe.train.threads):
        teacher = LocalTeacher.find(recipe.teacher, job)
        prepared = prepare_data(
            recipe,
            split_records(resolve_local(recipe.records)),
            teacher.tokenizer,
            job,
        )
        records = [record.teacher_view for record in prepared.tokenized]
        header = teacher.header(
            recipe.targets,
            _count_rows(recipe, teacher),
            choose_precision(recipe.train.precision, next(teacher.model.parameters()).device),
            temperature=recipe.method.temperature,
            seed=recipe.seed,
        )
        with LogitCache.open(folder, header, on_damage=job.warn_of_damage) as cache:
            return fill_cache(cache, teacher, records, job, only_estimate=only_estimate)


def _count_rows(recipe: LogitsRecipe, teacher: LocalTeacher) -> int:
    """Return the number of vocabulary rows that a run of the recipe shares."""
    if isinstance(recipe.student, PruneSettings):
        return LMHead.of(teacher.model).rows
    student, tokenizer = load_causal_lm(resolve_checkpoint(recipe.student), dtype="float32")
    return count_shared_rows(teacher, student, tokenizer)


@contextmanager
def _open_job(recipe: LogitsRecipe, folder: Path, reporter: Reporter) -> Iterator[Job]:
    """Yield a job with journals next to the cache; they are removed on success."""
    folder.mkdir(parents=True, exist_ok=True)
    out, text = folder / "capture", dump_recipe(recipe)
    try:
        job = Job.start(out, text, seed=recipe.seed, resume=True, reporter=reporter)
    except DataError as error:
        if error.code != "data.other-recipe":
            raise
        job = Job.start(out, text, seed=recipe.seed, overwrite=True, reporter=reporter)
    try:
        tell_warnings(recipe.describe_unused(), reporter)
        yield job
    finally:
        job.close()
    shutil.rmtree(job.work)
