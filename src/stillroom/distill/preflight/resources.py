"""Estimates of memory, disk, time, server requests and rollouts of a distillation.

Times are sums of matrix products over a speed that was measured once (docs, lab notebook), and so
good to a factor of three; bytes of caches follow from counted tokens and are exact up to sampling.

Bytes follow from counted tokens. How far what is kept is from the teacher is measured where the
teacher may be loaded, and bounded where it may not.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stillroom.distill.data.tokenized import DatasetSize, measure_dataset_size
from stillroom.distill.logit_cache.capture import CacheCost
from stillroom.distill.logit_cache.storage import CacheHeader, row_bytes
from stillroom.distill.preflight.audits import PreflightFinding
from stillroom.distill.recipe import DistillRecipe, TargetSettings
from stillroom.distill.settings import EndpointTeacherSettings, PruneSettings, name_teacher
from stillroom.jobs import Estimate
from stillroom.provenance import find_output

__all__ = [
    "ResourceEstimator",
    "bytes_per_position",
    "count_parameters",
    "estimate",
    "forecast_usage",
]


_DEFAULT_PARAMETERS = 135_000_000


_DEFAULT_VOCABULARY = 49_152


_DEFAULT_SHAPE = (576, 30)


_GGUF_BYTES = 0.65  # of one parameter in a four-bit file


_FLOPS_PER_CORE = 6e10  # of matrix products, as measured with bfloat16 on two cores


_DECODE_COST = 8.7  # a token written alone costs as much as so many that are read together


_DECODE_COST_BY_ROWS = -0.85  # and so much less beside others: rows to this power


_GENERATION_ROWS = 4  # texts that a writer is asked for side by side


_PROCESS_BYTES = 600_000_000


_TOKEN_LOGPROB_BYTES = (
    4,
    3,
)  # of a position whose own token alone is kept, and of a token beside it


_DISK_SETTINGS = {
    "top_k": "lower candidates or targets.k",
    "sampled": "lower candidates or targets.samples",
    "dense": "use targets.mode: top_k or sampled, which keep a hundredth of it",
    "live": "lower candidates",
}


def estimate(recipe: DistillRecipe) -> Estimate:
    """Return memory, disk and time of the job; a teacher that is not here counts as 135M."""
    sizes = ResourceEstimator(recipe)
    student, teacher = sizes.student, sizes.teacher
    work, speed = sizes.work(), sizes.speed
    out = 4 if recipe.out.dtype == "float32" else 2
    kept = out + 12 if sizes.has_control else 0  # its checkpoint, and its state for a resume
    held = 16 * student + 4 * teacher + 8 * sizes.vocabulary * 1024
    parts = ", ".join(
        f"{name} {flops / speed / 60:.1f}" for name, flops in work.items() if flops > 0
    )
    without = " (fidelity.control: false leaves the control out)" if sizes.has_control else ""
    counted = sizes.counted
    return Estimate(
        memory_bytes=held + sizes.step_bytes + _PROCESS_BYTES,
        disk_bytes=round(
            student * (out * (1 + recipe.candidates) + 4 + 24 + kept) + sizes.cache_bytes
        ),
        seconds=sum(work.values()) / speed + 10,
        memory_knob="lower student.max_parameters or train.micro_tokens, or set train.lora",
        disk_knob=_DISK_SETTINGS[recipe.targets.mode],
        basis=f"{sizes.basis}; {counted.records} records, {counted.basis}, {sizes.steps} steps; "
        f"minutes: {parts}{without}" + ("" if sizes.has_control else "; no control"),
    )


@dataclass(frozen=True)
class ResourceEstimator:
    """What a recipe's cost follows from, each counted when it is asked for."""

    recipe: DistillRecipe

    @cached_property
    def counted(self) -> DatasetSize:
        """Records and tokens."""
        return measure_dataset_size(self.recipe)

    @cached_property
    def teachers(self) -> list[tuple[int, int, str]]:
        """Parameters, vocabulary and basis of each teacher in this process."""
        teacher = self.recipe.teacher
        shares = [one.teacher for one in teacher] if isinstance(teacher, tuple) else [teacher]
        return [
            _read_size(str(one)) for one in shares if not isinstance(one, EndpointTeacherSettings)
        ]

    @property
    def teacher(self) -> int:
        """Parameters of the largest teacher here: several are in memory one after the other."""
        return max((size for size, _, _ in self.teachers), default=0)

    @cached_property
    def student(self) -> int:
        """The student's parameters."""
        return count_parameters(self.recipe)[1]

    @property
    def vocabulary(self) -> int:
        """Tokens that a position is a distribution over."""
        if self.teachers:
            return max(size for _, size, _ in self.teachers)
        return _read_size(str(self.recipe.student))[1]

    @property
    def speed(self) -> float:
        """Operations a second that are reckoned with."""
        return _FLOPS_PER_CORE * (os.cpu_count() or 1)

    @property
    def basis(self) -> str:
        """What the sizes of the models stand on."""
        if self.teachers:
            return self.teachers[0][2]
        return f"the teacher stands behind {name_teacher(self.recipe.teacher)}"

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.recipe.train.count_steps(self.counted.records)

    @property
    def share_read(self) -> float:
        """Share of the records that the steps reach; the teacher speaks of no others."""
        if self.recipe.rollouts is not None:
            return 1.0
        reached = self.steps * self.recipe.train.batch_size
        return min(reached / max(self.counted.records, 1), 1.0)

    @property
    def has_control(self) -> bool:
        """Whether a control is trained."""
        return self.recipe.fidelity.control and self.recipe.fidelity.records > 0

    @property
    def rollouts(self) -> tuple[int, int]:
        """How many rollouts are written, and their tokens, at most."""
        policy = self.recipe.rollouts
        if policy is None:
            return 0, 0
        blocks = -(-self.steps // policy.reuse)
        count = round(policy.written_share * blocks * self.recipe.train.batch_size)
        return count, count * min(policy.max_new_tokens, self.recipe.max_tokens)

    @property
    def cache_bytes(self) -> int:
        """Of what is kept of the teachers."""
        (row, token), (rows, tokens) = self._row_bytes, self._kept
        return round(rows * row + tokens * token)

    @property
    def cache_rows(self) -> float:
        """Positions that are kept of the teachers; of records that no step reaches, none is."""
        return self._kept[0]

    @property
    def _kept(self) -> tuple[float, float]:
        """Rows and tokens of what is kept of the teachers."""
        counted, policy = self.counted, self.recipe.rollouts
        if self.recipe.crossing is None and not self.recipe.method.asks_teacher:
            return 0.0, 0.0
        keeps = policy is None or policy.learns_from_records
        times = keeps * self.share_read
        teacher = self.recipe.teacher
        if isinstance(teacher, tuple) and teacher[0].source is None:  # each speaks of every record
            times *= len(teacher)
        count, written = self.rollouts
        beside = (count * counted.mean + written) * bool(count)
        return counted.positions * times + written, counted.tokens * times + beside

    @property
    def _row_bytes(self) -> tuple[int, int]:
        if self.recipe.crossing is not None:
            return _TOKEN_LOGPROB_BYTES
        return bytes_per_position(self.recipe.targets, self.vocabulary)

    @property
    def step_bytes(self) -> int:
        """Of what a micro-batch holds: activations, and states that features compare."""
        tokens = self.recipe.train.micro_tokens
        states = 4 * sum(hidden * layers for hidden, layers in self._shapes)
        return tokens * (40_000 + (states if self.recipe.features else 0))

    @cached_property
    def _shapes(self) -> list[tuple[int, int]]:
        """Hidden size and layers of teacher and student."""
        named = name_teacher(self.recipe.teacher)
        student = self.recipe.student
        return [
            _read_shape(named),
            _read_shape(named if isinstance(student, PruneSettings) else student),
        ]

    def work(self) -> dict[str, float]:
        """Return the operations of each part of the job, by name."""
        recipe, counted, teacher = self.recipe, self.counted, self.teacher
        batch = recipe.train.batch_size
        plain = counted.mean * self.steps * batch
        count, written = self.rollouts
        learned = plain
        if recipe.rollouts is not None:
            texts = count * recipe.rollouts.reuse
            beside = 0 if recipe.rollouts.beside_records else texts
            prompts = max(counted.mean - counted.answer, 0)
            learned = plain - beside * counted.mean + texts * (prompts + written / max(count, 1))
        is_live = bool(self.teachers) and (
            recipe.targets.mode == "live"
            if recipe.crossing is None
            else recipe.crossing.compares == "rows"
        )
        asks = recipe.crossing is not None or recipe.method.asks_teacher
        heard = round(counted.tokens * self.share_read)
        if recipe.crossing is not None and recipe.rollouts is not None:  # each text once
            heard += round(count * counted.mean + written)
        told = asks * sum(size for size, _, _ in self.teachers) * heard
        return {
            "training": 6 * self.student * learned,
            "the teacher": 2 * (teacher * learned if is_live else told),
            "pruning": 2 * teacher * _count_measured(recipe, counted.mean),
            "writing rollouts": self._writing(written),
            "writing records": self._preparing(),
            "features": self._comparing(learned),
            "measuring": self._measuring(),
            "the control": 6 * self.student * plain * self.has_control,
        }

    def _writing(self, tokens: int) -> float:
        """Return the work of rollouts: the student's, and the teacher's where it takes part."""
        policy = self.recipe.rollouts
        if policy is None:
            return 0.0
        both = self.student + (self.teacher if policy.may_need_teacher else 0)
        return 2 * both * tokens * _compute_decode_cost(policy.rows)

    def _preparing(self) -> float:
        """Return the work of text that is written first, by the teacher or a model of its size."""
        recipe = self.recipe
        tokens = 0
        if recipe.sequence is not None:
            tokens += recipe.sequence.attempts * recipe.sequence.max_new_tokens
        if recipe.rationale is not None and recipe.rationale.write is not None:
            tokens += recipe.rationale.write.max_new_tokens
        return (
            2
            * self.teacher
            * tokens
            * self.counted.records
            * _compute_decode_cost(_GENERATION_ROWS)
        )

    def _comparing(self, tokens: float) -> float:
        """Return the work of features: projectors, or scores between all positions of a record."""
        (taught, _), (own, layers) = self._shapes
        each = {
            "states": 6 * own * taught,
            "attention": 12 * self.counted.mean * (own + taught),
            "projections": 12 * self.counted.mean * (own + taught),
        }
        return sum(each[one.reads] for one in self.recipe.features) * layers * tokens

    def _measuring(self) -> float:
        """Return the work of measuring: each side reads the records, and some write answers."""
        settings, teacher, student = self.recipe.fidelity, self.teacher, self.student
        students = 3 if settings.control else 2
        records = min(settings.records, self.counted.held_out)
        read = records * self.counted.mean * 2 * (teacher + students * student)
        answered = min(settings.answers, records)
        written = 2 * answered * settings.max_new_tokens * 2
        return read + _DECODE_COST * written * (teacher + (students - 1) * student)


def _compute_decode_cost(rows: int) -> float:
    """Return how many tokens that are read cost as much as one that is written beside others."""
    return float(_DECODE_COST * rows**_DECODE_COST_BY_ROWS)


def count_parameters(recipe: DistillRecipe) -> tuple[int, int]:
    """Return the parameters of teacher and student, by names, shapes and sizes of their files.

    Raises:
        CheckpointError: If a teacher to be pruned is not understood.
        RecipeError: If the teacher cannot give such a student.
    """
    named = name_teacher(recipe.teacher)
    teacher = _read_size(named)[0]
    if isinstance(recipe.student, PruneSettings):
        return teacher, _count_pruned(named, teacher, recipe.student)
    return teacher, _read_size(recipe.student)[0]


def _count_pruned(reference: str, teacher: int, settings: PruneSettings) -> int:
    """Return the student's parameters: exactly, from the teacher's names and shapes, if it is here.

    Raises:
        CheckpointError: If the teacher is not understood.
        RecipeError: If the teacher cannot give such a student.
    """
    path = Path(reference)
    if reference.startswith("hub:") or not path.is_dir():
        return round(teacher * settings.max_parameters)
    from stillroom.checkpoints import Checkpoint
    from stillroom.distill.pruning.student import count_student_parameters

    return count_student_parameters(Checkpoint.open(path), settings)


def _count_measured(recipe: DistillRecipe, tokens: float) -> float:
    """Return the tokens that the teacher reads while it is pruned, given those of a record."""
    if not isinstance(recipe.student, PruneSettings):
        return 0.0
    named = name_teacher(recipe.teacher)
    layers, path = _DEFAULT_SHAPE[1], Path(named)
    if not named.startswith("hub:") and path.is_dir():
        from stillroom.checkpoints import Checkpoint
        from stillroom.distill.pruning.shapes import map_layers

        layers = map_layers(Checkpoint.open(path))[1]
    return recipe.student.count_passes(layers) * recipe.student.calibration_records * tokens


def bytes_per_position(targets: TargetSettings, vocabulary: int) -> tuple[int, int]:
    """Return bytes that a cache keeps of one position, and of one token of a record beside it."""
    if targets.mode == "live":
        return 0, 0
    asked = targets.samples if targets.mode == "sampled" else targets.k
    header = CacheHeader(
        teacher="",
        tokenizer="",
        template="",
        vocabulary=vocabulary,
        mode=targets.mode,
        width=vocabulary if targets.mode == "dense" else min(asked, vocabulary),
        precision="",
        logprob_dtype=targets.logprob_dtype,
    )
    return row_bytes(header)


def _read_size(reference: str) -> tuple[int, int, str]:
    """Return parameters and vocabulary of a checkpoint, by its config or its file's size."""
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
    """Return hidden size and layers by a checkpoint's config, if it is here."""
    path = Path(reference)
    file = find_output(path, "checkpoint") / "config.json" if path.is_dir() else path
    if not path.is_dir() or not file.is_file():
        return _DEFAULT_SHAPE
    config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    config |= config.get("text_config") or {}
    hidden = config.get("hidden_size") or config.get("n_embd") or _DEFAULT_SHAPE[0]
    layers = config.get("num_hidden_layers") or config.get("n_layer") or _DEFAULT_SHAPE[1]
    return int(hidden), int(layers)


def forecast_usage(
    recipe: DistillRecipe, probe: Callable[[], CacheCost | None]
) -> list[PreflightFinding]:
    """Return what is kept, asked for and written, as findings.

    Args:
        recipe: Of the job.
        probe: Measures what a cache misses; gives None where the teacher may not be loaded.
    """
    sizes = ResourceEstimator(recipe)
    return [*_forecast_cache(sizes, probe), *_forecast_server(sizes), *_forecast_rollouts(sizes)]


def _forecast_cache(
    sizes: ResourceEstimator, probe: Callable[[], CacheCost | None]
) -> list[PreflightFinding]:
    recipe = sizes.recipe
    if not sizes.cache_bytes or not sizes.cache_rows:
        return []
    cost = probe() if recipe.crossing is None else None
    each = sizes.cache_bytes / sizes.cache_rows
    said = (
        f"about {each:.1f} bytes a token that is learned, {sizes.cache_bytes / 1e6:.2f} MB in all"
    )
    is_here = isinstance(recipe.teacher, str)
    return [
        PreflightFinding(
            "ok" if is_here else "note", "teacher cache", f"{said}; {_describe_bias(sizes, cost)}"
        )
    ]


def _describe_bias(sizes: ResourceEstimator, cost: CacheCost | None) -> str:
    """Return in words what the form of the targets leaves out."""
    targets = sizes.recipe.targets
    if sizes.recipe.crossing is not None:
        return "the own tokens' log-probabilities, nothing left out"
    if targets.mode == "dense":
        return f"whole distributions, rounded to {targets.logprob_dtype}"
    measured = "" if cost is None else f" (measured on {cost.probed} positions)"
    if targets.mode == "sampled":
        # of draws with replacement; distinct ones are nearer
        noise = 1 / math.sqrt(targets.samples) if cost is None else cost.noise or 0.0
        most = "at most " if cost is None else ""
        return f"no bias, and noise of {most}{noise:.3f} in a position's gradient{measured}"
    if cost is not None and cost.outside is not None:
        return f"{cost.outside:.2%} of the teacher's mass lies outside it{measured}, as one outcome"
    least = min(targets.k, sizes.vocabulary) / sizes.vocabulary
    return (
        f"at most {1 - least:.2%} of the teacher's mass lies outside it, as one outcome; how much "
        "it is, stillroom distill preflight RECIPE measures"
    )


def _forecast_server(sizes: ResourceEstimator) -> list[PreflightFinding]:
    """Say what servers are asked for: prompts are paid for."""
    recipe, counted = sizes.recipe, sizes.counted
    teacher = recipe.teacher
    shares = [one.teacher for one in teacher] if isinstance(teacher, tuple) else [teacher]
    served = [one for one in shares if isinstance(one, EndpointTeacherSettings)]
    if not served or recipe.teacher_only_writes:
        return []
    count, written = sizes.rollouts
    policy, asks = recipe.rollouts, recipe.method.asks_teacher or recipe.crossing is not None
    keeps = asks and (policy is None or policy.learns_from_records)
    times = 2 if asks and recipe.method.needs_scores else 1
    held = min(recipe.fidelity.records, counted.held_out)
    texts = counted.records * keeps + held + count * times
    tokens = round(
        counted.tokens * keeps
        + held * counted.mean
        + times * (count * max(counted.mean - counted.answer, 0) + written)
    )
    price = sum(one.price_per_million for one in served) * tokens / 1e6
    cost = f", which cost about {price:.3g}" if price else ""
    return [
        PreflightFinding(
            "note", "server", f"asked for {texts} texts of about {tokens} tokens in all{cost}"
        )
    ]


def _forecast_rollouts(sizes: ResourceEstimator) -> list[PreflightFinding]:
    count, tokens = sizes.rollouts
    if not count:
        return []
    minutes = sizes.work()["writing rollouts"] / sizes.speed / 60
    said = f"at most {count} texts are written, {tokens} tokens: about {minutes:.1f} min"
    return [PreflightFinding("ok", "rollouts", said)]
