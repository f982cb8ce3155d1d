"""Generate records with a teacher, filter, select and mix them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, cast

from pydantic import Field, model_validator

from stillroom.errors import RecipeError, count_noun
from stillroom.jobs import Estimate
from stillroom.jobs.kind import JobKind, defer
from stillroom.jobs.replay import JournalReplayer
from stillroom.jobs.segments import ReplayRequest
from stillroom.models.hub import DEFAULT_TEACHER
from stillroom.recipes import Destination, Recipe, Reference
from stillroom.synth.pipeline.steps import (
    UNLIMITED,
    FilterStep,
    GenerateStep,
    GeneratorPipeline,
    Pipeline,
    PipelineStep,
    check_steps,
    estimate_steps,
    format_steps,
    resolve_sources,
)
from stillroom.synth.seeds import count_bytes
from stillroom.synth.selection import MixSettings
from stillroom.synth.settings import BudgetSettings, EngineSettings, RecordTargets

if TYPE_CHECKING:
    from stillroom.synth.interfaces import Filter
    from stillroom.synth.types import Split

__all__ = ["JOB_KIND", "RecordsRecipe", "estimate"]

_DEFAULT_TARGETS = {"train": 100, "held_out": 25}
_TOKENS_PER_SECOND = 240.0


class RecordsRecipe(Recipe):
    """Generate records with a teacher, about passages or from other seeds, and filter them."""

    kind: Literal["synth.records"] = Field(
        default="synth.records", description="generate records with a teacher"
    )
    index: Reference | None = Field(
        None,
        description="documents to write about: an index artifact, or a file of passages (JSONL) "
        "or of records, whose texts then serve as passages",
    )
    seeds: Reference | None = Field(
        None,
        description="other seeds: a file of records (tasks, personas, solutions), or a taxonomy "
        "(YAML, or a folder of qna.yaml)",
    )
    model: Reference = Field(
        DEFAULT_TEACHER, description="teacher: a checkpoint, a .gguf file or an endpoint"
    )
    engine: EngineSettings = Field(
        default_factory=EngineSettings,
        description="how the teacher runs; ray, or a group 'ray' in it, distributes the work",
    )
    pipeline: Pipeline = Field(
        default_factory=lambda: GeneratorPipeline.model_validate({}),
        description="a generator with its filters, or steps by name",
    )
    budget: BudgetSettings = Field(
        default_factory=BudgetSettings,
        description="bounds that stop the generation before num_records is reached",
    )
    num_records: RecordTargets = Field(
        default_factory=RecordTargets, description="numbers of records to generate"
    )
    held_out: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="share of documents held out for evaluation, by hash of their id; documents "
        "with equal texts stay together. Seeds whose field 'split' names test rows are held out "
        "up to this share",
    )
    batch_size: int = Field(
        16, ge=1, le=1024, description="passages per batch; never changes the result"
    )
    cache: Destination | None = Field(
        None, description="cache file of completions, so that edited recipes send only new requests"
    )
    mix: MixSettings | None = Field(None, description="existing records to mix the new ones with")

    @property
    def steps(self) -> Mapping[str, PipelineStep]:
        """Steps by name, in order; of a generator with its filters, two."""
        return self.pipeline.steps

    @property
    def sources(self) -> dict[str, tuple[str, ...]]:
        """Sources of each step."""
        start = "index" if self.index else "seeds" if self.seeds else "nothing"
        return resolve_sources(self.steps, start)

    def list_teachers(self, asked: Iterable[str]) -> list[str]:
        """Return the references of the teachers of the steps that made requests, in order."""
        names = set(asked)
        return [
            step.model or self.model
            for name, step in self.steps.items()
            if isinstance(step, GenerateStep) and name in names
        ]

    @property
    def filters(self) -> list[Filter]:
        """All filters of the steps, in order."""
        filter_steps = (step for step in self.steps.values() if isinstance(step, FilterStep))
        return [check for step in filter_steps for check in step.filters]

    def get_target(self, split: Split) -> int:
        """Return the number of records that ends a side; ``UNLIMITED`` if there is none."""
        target = getattr(self.num_records, split)
        if target is None:
            is_single = isinstance(self.pipeline, GeneratorPipeline)
            target = _DEFAULT_TARGETS[split] if is_single else UNLIMITED
        return int(target)

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        """Check that every step has inputs that it takes, and every source a step."""
        starts = {"index": bool(self.index), "seeds": bool(self.seeds), "nothing": True}
        is_single = isinstance(self.pipeline, GeneratorPipeline)
        if problems := check_steps(self.steps, starts, is_single=is_single):
            raise RecipeError(problems)
        if self.held_out == 0 and self.num_records.held_out:
            raise ValueError("num_records.held_out needs a held_out above 0, which holds seeds out")
        return self


def estimate(recipe: RecordsRecipe) -> Estimate:
    """Estimate memory, disk and time from the targets and the size of the teacher's file."""
    step_estimates = estimate_steps(recipe)
    num_records = sum(step.outputs for step in step_estimates)
    num_requests = sum(step.requests for step in step_estimates)
    unasked = {
        step.generator.unasked for step in recipe.steps.values() if isinstance(step, GenerateStep)
    }
    requests = count_noun(f"{num_requests:.0f}", "request")
    requests = f"at most {requests}" if any(unasked) else f"about {requests}"
    if unasked and all(unasked):
        requests += f" (none for {' or '.join(sorted(unasked))})"
    model = Path(recipe.model)
    weights = model.stat().st_size if model.is_file() else 400_000_000
    seed_bytes = count_bytes(filter(None, (recipe.index, recipe.seeds)))
    return Estimate(
        memory_bytes=int(weights * 1.5 + seed_bytes * 4 + 300_000_000),
        disk_bytes=int(num_records * 8_000 + 1_000_000),
        seconds=sum(step.tokens for step in step_estimates) / _TOKENS_PER_SECOND,
        memory_knob="use a smaller teacher, or an endpoint",
        disk_knob="lower num_records",
        basis=f"{requests}, of which half are kept, on two cores",
    )


class _RecordsReplayer(JournalReplayer):
    """Replays records unless the clock ended their generation."""

    def find_open(self, request: ReplayRequest) -> str:
        budget = cast("RecordsRecipe", request.recipe).budget
        if budget.minutes is not None:
            return "budget.minutes may have ended it, and the clock does not repeat itself"
        return super().find_open(request)


JOB_KIND = JobKind(
    RecordsRecipe,
    defer("stillroom.synth.output.records:write_records"),
    estimate,
    outline=format_steps,
    replayer=_RecordsReplayer(without={"cache": None}, compared=("output/*.html",)),
)
