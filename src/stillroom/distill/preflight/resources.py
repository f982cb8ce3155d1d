"""Estimates of memory, disk, time, server requests and rollouts of a distillation.

Times are floating-point operations of matrix products divided by a speed measured once (see the lab
notebook in the docs), accurate to a factor of three. Bytes of caches follow from counted tokens and
are exact up to sampling. The accuracy of cached targets is measured if the teacher may be loaded,
and bounded otherwise.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from stillroom.distill.data.tokenized import DatasetSize, measure_dataset_size
from stillroom.distill.logit_cache.capture import CacheCost
from stillroom.distill.logit_cache.storage import CacheHeader, row_bytes
from stillroom.distill.preflight.workload import Workload
from stillroom.distill.pruning.shapes import LAYER_COUNT_KEYS
from stillroom.distill.settings import (
    CachedTargetSettings,
    CacheMode,
    EndpointTeacherSettings,
    PruneSettings,
    SampledTargetSettings,
    TopKTargetSettings,
    name_teacher,
)
from stillroom.jobs import Estimate
from stillroom.jobs.preflight import PreflightFinding
from stillroom.provenance import find_output

__all__ = [
    "ResourceEstimator",
    "bytes_per_position",
    "count_parameters",
    "count_pruned",
    "estimate_pruning",
    "estimate_resources",
    "forecast_usage",
]

_DEFAULT_PARAMETERS = 135_000_000
_DEFAULT_VOCABULARY = 49_152
_DEFAULT_SHAPE = (576, 30)
_GGUF_BYTES = 0.65  # of one parameter in a four-bit file
_FLOPS_PER_CORE = 6e10  # matrix products, as measured with bfloat16 on two cores
_DECODE_COST = 8.7  # cost of decoding one token alone, in tokens of prefill
_DECODE_COST_BY_ROWS = -0.85  # exponent of the batch size in that cost
_GENERATION_ROWS = 4  # batch size of a generating model
_PROCESS_BYTES = 600_000_000

_DISK_SETTINGS = {
    "top_k": "lower keep_checkpoints or targets.k",
    "sampled": "lower keep_checkpoints or targets.samples",
    "dense": "use targets.mode: top_k or sampled, which keep a hundredth of it",
}


def estimate_resources(workload: Workload) -> Estimate:
    """Estimate memory, disk and time of the job; a teacher that is not local counts as 135M."""
    sizes = ResourceEstimator(workload)
    recipe = workload.recipe
    student, teacher = sizes.student, sizes.teacher
    work, speed = sizes.work(), sizes.speed
    out = 4 if recipe.output.dtype == "float32" else 2
    baseline_bytes = out + 12 if sizes.has_baseline else 0  # its checkpoint, and its training state
    model_bytes = 16 * student + 4 * teacher + 8 * sizes.vocabulary * 1024
    parts = ", ".join(
        f"{name} {flops / speed / 60:.1f}" for name, flops in work.items() if flops > 0
    )
    without = " (fidelity.baseline: false leaves it out)" if sizes.has_baseline else ""
    counted = sizes.counted
    is_pruned = isinstance(recipe.student, PruneSettings)
    shrink = "lower student.max_parameters or train.micro_tokens" if is_pruned else ""
    return Estimate(
        memory_bytes=model_bytes + sizes.step_bytes + _PROCESS_BYTES,
        disk_bytes=round(
            student * (out * (1 + recipe.keep_checkpoints) + 4 + 24 + baseline_bytes)
            + sizes.cache_bytes
        ),
        seconds=sum(work.values()) / speed + 10,
        memory_knob=f"{shrink or 'lower train.micro_tokens'}, or set train.lora",
        disk_knob=(
            _DISK_SETTINGS[workload.targets.mode]
            if workload.targets is not None
            else "lower keep_checkpoints"
        ),
        basis=f"{sizes.basis}; {counted.records} records, {counted.basis}, {sizes.steps} steps; "
        f"minutes: {parts}{without}" + ("" if sizes.has_baseline else "; no baseline"),
    )


def estimate_pruning(
    teacher: str, records: str, settings: PruneSettings, *, max_tokens: int
) -> Estimate:
    """Estimate memory, disk and time of pruning a teacher without training."""
    size, _, basis = _read_size(teacher)
    student = count_pruned(teacher, size, settings)
    counted = measure_dataset_size(records, teacher, max_tokens=max_tokens, include_prompt=True)
    tokens = _count_measured_tokens(teacher, settings, counted.mean)
    measured = min(settings.calibration_records, counted.records) * counted.mean
    work = 2 * size * tokens + 2 * (2 * size + student) * measured
    return Estimate(
        memory_bytes=4 * (size + student) + _PROCESS_BYTES,
        disk_bytes=4 * student,
        seconds=work / (_FLOPS_PER_CORE * (os.cpu_count() or 1)) + 10,
        memory_knob="use a smaller teacher",
        disk_knob="lower student.max_parameters",
        basis=f"{basis}; {settings.calibration_records} calibration records",
    )


@dataclass(frozen=True)
class ResourceEstimator:
    """Quantities that determine a job's cost, each computed on first use."""

    workload: Workload

    @property
    def counted(self) -> DatasetSize:
        """Size of the training data."""
        return self.workload.dataset_size

    @cached_property
    def teachers(self) -> list[tuple[int, int, str]]:
        """Parameters, vocabulary and basis of each teacher in this process."""
        local = [teacher for teacher in self.workload.teachers if isinstance(teacher, str)]
        return [_read_size(teacher) for teacher in local]

    @property
    def teacher(self) -> int:
        """Parameters of the largest local teacher: several are loaded one after the other."""
        return max((size for size, _, _ in self.teachers), default=0)

    @cached_property
    def student(self) -> int:
        """Parameters of the student."""
        return count_parameters(self.workload)[1]

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary of a position's distribution."""
        if self.teachers:
            return max(size for _, size, _ in self.teachers)
        return _read_size(str(self.workload.recipe.student))[1]

    @property
    def speed(self) -> float:
        """Assumed operations per second."""
        return _FLOPS_PER_CORE * (os.cpu_count() or 1)

    @property
    def basis(self) -> str:
        """Text that states the basis of the models' sizes."""
        if self.teachers:
            return self.teachers[0][2]
        return f"the teacher stands behind {name_teacher(self.workload.teachers[0])}"

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.workload.recipe.train.count_steps(self.counted.records)

    @property
    def share_read(self) -> float:
        """Share of the records that the steps reach, and that the teacher scores."""
        if self.workload.rollout_policy is not None:
            return 1.0
        reached = self.steps * self.workload.recipe.train.batch_size
        return min(reached / max(self.counted.records, 1), 1.0)

    @property
    def has_baseline(self) -> bool:
        """Whether a baseline is trained."""
        fidelity = self.workload.recipe.fidelity
        return fidelity.baseline and fidelity.records > 0

    @property
    def rollouts(self) -> tuple[int, int]:
        """Maximum numbers of rollouts and of their tokens."""
        policy, recipe = self.workload.rollout_policy, self.workload.recipe
        if policy is None:
            return 0, 0
        blocks = -(-self.steps // policy.reuse)
        count = round(policy.generated_share * blocks * recipe.train.batch_size)
        return count, count * min(policy.max_new_tokens, recipe.max_tokens)

    @property
    def cache_bytes(self) -> int:
        """Size of the cached teacher outputs in bytes."""
        (row, token), (rows, tokens) = self._row_bytes, self._cached
        return round(rows * row + tokens * token)

    @property
    def cache_rows(self) -> float:
        """Number of cached positions; records that no step reaches are not cached."""
        return self._cached[0]

    @property
    def _cached(self) -> tuple[float, float]:
        """Rows and tokens of the cached teacher outputs."""
        counted, workload = self.counted, self.workload
        if not workload.asks_teacher:
            return 0.0, 0.0
        times = workload.reads_records * self.share_read * workload.teachers_per_record
        count, written = self.rollouts
        rollout_tokens = (count * counted.mean + written) * bool(count)
        return counted.positions * times + written, counted.tokens * times + rollout_tokens

    @property
    def _row_bytes(self) -> tuple[int, int]:
        if self.workload.cross_tokenizer_loss is not None and not self.workload.is_live:
            return row_bytes(_describe_rows("own", 0, self.vocabulary))
        return bytes_per_position(self.workload.targets, self.vocabulary)

    @property
    def step_bytes(self) -> int:
        """Bytes of a micro-batch: activations, and states compared by feature losses."""
        tokens = self.workload.recipe.train.micro_tokens
        states = 4 * sum(hidden * layers for hidden, layers in self._shapes)
        return tokens * (40_000 + (states if self.workload.feature_losses else 0))

    @cached_property
    def _shapes(self) -> list[tuple[int, int]]:
        """Hidden size and number of layers of teacher and student."""
        teacher = name_teacher(self.workload.teachers[0])
        student = self.workload.recipe.student
        return [
            _read_shape(teacher),
            _read_shape(teacher if isinstance(student, PruneSettings) else student),
        ]

    def work(self) -> dict[str, float]:
        """Return the operations of each part of the job, by name."""
        workload, counted, teacher = self.workload, self.counted, self.teacher
        recipe, policy = workload.recipe, workload.rollout_policy
        cross = workload.cross_tokenizer_loss
        batch = recipe.train.batch_size
        plain = counted.mean * self.steps * batch
        count, rollout_tokens = self.rollouts
        learned = plain
        if policy is not None:
            texts = count * policy.reuse
            replaced = 0 if policy.beside_records else texts
            prompts = max(counted.mean - counted.answer, 0)
            learned = (
                plain - replaced * counted.mean + texts * (prompts + rollout_tokens / max(count, 1))
            )
        is_live = bool(self.teachers) and workload.is_live
        teacher_tokens = round(counted.tokens * self.share_read)
        if cross is not None and policy is not None:  # each text once
            teacher_tokens += round(count * counted.mean + rollout_tokens)
        teacher_work = (
            workload.asks_teacher * sum(size for size, _, _ in self.teachers) * teacher_tokens
        )
        return {
            "training": 6 * self.student * learned,
            "the teacher": 2 * (teacher * learned if is_live else teacher_work),
            "pruning": 2 * teacher * _count_measured(workload, counted.mean),
            "writing rollouts": self._generation_work(rollout_tokens),
            "writing records": self._preparation_work(),
            "features": self._feature_work(learned),
            "measuring": self._evaluation_work(),
            "the baseline": 6 * self.student * plain * self.has_baseline,
        }

    def _generation_work(self, tokens: int) -> float:
        """Return the work of rollouts: the student's, and the teacher's if it takes part."""
        policy = self.workload.rollout_policy
        if policy is None:
            return 0.0
        both = self.student + (self.teacher if policy.may_need_teacher else 0)
        return 2 * both * tokens * _compute_decode_cost(policy.rows)

    def _preparation_work(self) -> float:
        """Return the work of generating records, by the teacher or a model of its size."""
        sequence, rationale = self.workload.recipe.sequence, self.workload.rationale
        tokens = 0
        if sequence is not None:
            tokens += sequence.num_completions * sequence.max_new_tokens
        if rationale is not None and rationale.generate is not None:
            tokens += rationale.generate.max_new_tokens
        return (
            2
            * self.teacher
            * tokens
            * self.counted.records
            * _compute_decode_cost(_GENERATION_ROWS)
        )

    def _feature_work(self, tokens: float) -> float:
        """Return the work of feature losses: projectors, or scores between all positions."""
        (teacher_width, _), (student_width, layers) = self._shapes
        per_token = {
            "states": 6 * student_width * teacher_width,
            "attention": 12 * self.counted.mean * (student_width + teacher_width),
            "projections": 12 * self.counted.mean * (student_width + teacher_width),
        }
        return (
            sum(per_token[feature_loss.reads] for feature_loss in self.workload.feature_losses)
            * layers
            * tokens
        )

    def _evaluation_work(self) -> float:
        """Return the work of evaluation: each model reads the records, some generate answers."""
        settings = self.workload.recipe.fidelity
        teacher, student = self.teacher, self.student
        students = 3 if settings.baseline else 2
        records = min(settings.records, self.counted.held_out)
        read = records * self.counted.mean * 2 * (teacher + students * student)
        answered = min(settings.answers, records)
        written = 2 * answered * settings.max_new_tokens * 2
        return read + _DECODE_COST * written * (teacher + (students - 1) * student)


def _compute_decode_cost(rows: int) -> float:
    """Return the cost of decoding one token in a batch, in tokens of prefill."""
    return float(_DECODE_COST * rows**_DECODE_COST_BY_ROWS)


def count_parameters(workload: Workload) -> tuple[int, int]:
    """Return the parameters of teacher and student, from names, shapes and sizes of their files.

    Raises:
        CheckpointError: If the architecture of a teacher to be pruned is not supported.
        RecipeError: If the teacher cannot be pruned to such a student.
    """
    reference, student = name_teacher(workload.teachers[0]), workload.recipe.student
    teacher = _read_size(reference)[0]
    if isinstance(student, PruneSettings):
        return teacher, count_pruned(reference, teacher, student)
    return teacher, _read_size(student)[0]


def count_pruned(reference: str, teacher: int, settings: PruneSettings) -> int:
    """Return the student's parameters; exact if the teacher is local.

    Raises:
        CheckpointError: If the architecture of the teacher is not supported.
        RecipeError: If the teacher cannot be pruned to such a student.
    """
    path = Path(reference)
    if reference.startswith("hub:") or not path.is_dir():
        return round(teacher * settings.max_parameters)
    from stillroom.checkpoints import Checkpoint
    from stillroom.distill.pruning.student import count_student_parameters

    return count_student_parameters(Checkpoint.open(path), settings)


def _count_measured(workload: Workload, tokens: float) -> float:
    """Return the tokens that the teacher reads for pruning, given those of a record."""
    student = workload.recipe.student
    if not isinstance(student, PruneSettings):
        return 0.0
    return _count_measured_tokens(name_teacher(workload.teachers[0]), student, tokens)


def _count_measured_tokens(reference: str, settings: PruneSettings, tokens: float) -> float:
    """Return the tokens that a teacher reads for pruning, given those of a record."""
    _, layers = _read_shape(reference)
    return settings.count_passes(layers) * settings.calibration_records * tokens


def bytes_per_position(targets: CachedTargetSettings | None, vocabulary: int) -> tuple[int, int]:
    """Return the bytes cached per position, and per token of its record."""
    if targets is None:
        return 0, 0
    width = vocabulary
    if isinstance(targets, SampledTargetSettings):
        width = targets.samples
    elif isinstance(targets, TopKTargetSettings):
        width = targets.k
    width = min(width, vocabulary)
    return row_bytes(_describe_rows(targets.mode, width, vocabulary, targets.logprob_dtype))


def _describe_rows(
    mode: CacheMode,
    width: int,
    vocabulary: int,
    logprob_dtype: Literal["float16", "float32"] = "float32",
) -> CacheHeader:
    return CacheHeader(
        teacher="",
        tokenizer="",
        template="",
        vocabulary=vocabulary,
        mode=mode,
        width=width,
        precision="",
        logprob_dtype=logprob_dtype,
    )


def _read_size(reference: str) -> tuple[int, int, str]:
    """Return parameters and vocabulary of a checkpoint, from its config or its file's size."""
    path = Path(reference)
    if reference.startswith("hub:") or not path.exists():
        return _DEFAULT_PARAMETERS, _DEFAULT_VOCABULARY, f"{reference} taken as 135M parameters"
    if path.is_file():
        size = round(path.stat().st_size / _GGUF_BYTES)
        return size, _DEFAULT_VOCABULARY, "the size of the teacher's file"
    from stillroom.checkpoints import Checkpoint

    folder = find_output(path, "checkpoint")
    if (folder / "config.json").is_file() and (opened := Checkpoint.open(folder)).dequantized_from:
        rows = int(opened.config.get("vocab_size") or _DEFAULT_VOCABULARY)
        return opened.parameters, rows, "the teacher's tensors, dequantized"
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    config: dict[str, Any] = {}
    if (folder / "config.json").is_file():
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    width = 4 if kind == "float32" else 2
    vocabulary = int(config.get("vocab_size") or _DEFAULT_VOCABULARY)
    return max(weights // width, 1), vocabulary, "the size of the teacher's weights"


def _read_shape(reference: str) -> tuple[int, int]:
    """Return hidden size and number of layers from a checkpoint's config, if it is local."""
    path = Path(reference)
    file = find_output(path, "checkpoint") / "config.json" if path.is_dir() else path
    if not path.is_dir() or not file.is_file():
        return _DEFAULT_SHAPE
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    config |= config.get("text_config") or {}
    hidden = config.get("hidden_size") or config.get("n_embd") or _DEFAULT_SHAPE[0]
    layers = next((config[key] for key in LAYER_COUNT_KEYS if config.get(key)), _DEFAULT_SHAPE[1])
    return int(hidden), int(layers)


def forecast_usage(
    workload: Workload, probe: Callable[[], CacheCost | None]
) -> list[PreflightFinding]:
    """Return forecasts of caches, server requests and rollouts as findings.

    Args:
        workload: What the job does.
        probe: Measures the accuracy of a cache; returns None if the teacher may not be loaded.
    """
    sizes = ResourceEstimator(workload)
    return [*_forecast_cache(sizes, probe), *_forecast_server(sizes), *_forecast_rollouts(sizes)]


def _forecast_cache(
    sizes: ResourceEstimator, probe: Callable[[], CacheCost | None]
) -> list[PreflightFinding]:
    workload = sizes.workload
    if not sizes.cache_bytes or not sizes.cache_rows:
        return []
    cost = probe() if workload.cross_tokenizer_loss is None else None
    bytes_per_token = sizes.cache_bytes / sizes.cache_rows
    summary = (
        f"about {bytes_per_token:.1f} bytes per loss token, {sizes.cache_bytes / 1e6:.2f} MB in all"
    )
    return [
        PreflightFinding(
            "ok" if workload.local_teacher is not None else "note",
            "logit cache",
            f"{summary}; {_describe_bias(sizes, cost)}",
        )
    ]


def _describe_bias(sizes: ResourceEstimator, cost: CacheCost | None) -> str:
    """Return a text on the bias and noise of the targets' form."""
    targets = sizes.workload.targets
    if targets is None:  # across tokenizers
        return "log-probabilities of the labels, without bias"
    if targets.mode == "dense":
        return f"whole distributions, rounded to {targets.logprob_dtype}"
    measured = "" if cost is None else f" (measured on {cost.probed} positions)"
    if isinstance(targets, SampledTargetSettings):
        # for samples with replacement; distinct ones are more accurate
        noise = 1 / math.sqrt(targets.samples) if cost is None else cost.noise or 0.0
        most = "at most " if cost is None else ""
        return f"no bias, and noise of {most}{noise:.3f} in a position's gradient{measured}"
    if cost is not None and cost.outside is not None:
        return f"{cost.outside:.2%} of the teacher's mass lies outside it{measured}, as one outcome"
    least = min(targets.k, sizes.vocabulary) / sizes.vocabulary
    return (
        f"at most {1 - least:.2%} of the teacher's mass lies outside it, as one outcome; "
        "stillroom check RECIPE --load measures how much"
    )


def _forecast_server(sizes: ResourceEstimator) -> list[PreflightFinding]:
    """Forecast requests to endpoints, which bill prompts."""
    workload, counted = sizes.workload, sizes.counted
    scorers = [
        teacher for teacher in workload.endpoints if isinstance(teacher, EndpointTeacherSettings)
    ]
    if not scorers:
        return []
    count, written = sizes.rollouts
    keeps = workload.asks_teacher and workload.reads_records
    needs_both = workload.method is not None and workload.method.needs_scores
    times = 2 if workload.asks_teacher and needs_both else 1
    held_out = min(workload.recipe.fidelity.records, counted.held_out)
    texts = counted.records * keeps + held_out + count * times
    tokens = round(
        counted.tokens * keeps
        + held_out * counted.mean
        + times * (count * max(counted.mean - counted.answer, 0) + written)
    )
    price = sum(teacher.price_per_million for teacher in scorers) * tokens / 1e6
    cost = f", which cost about {price:.3g}" if price else ""
    return [
        PreflightFinding(
            "note", "server", f"requests for {texts} texts of about {tokens} tokens in all{cost}"
        )
    ]


def _forecast_rollouts(sizes: ResourceEstimator) -> list[PreflightFinding]:
    count, tokens = sizes.rollouts
    if not count:
        return []
    minutes = sizes.work()["writing rollouts"] / sizes.speed / 60
    summary = f"at most {count} texts are generated, {tokens} tokens: about {minutes:.1f} min"
    return [PreflightFinding("ok", "rollouts", summary)]
