"""Remove records that contain a test question, also with changed words or reworded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from stillroom.jobs import Estimate
from stillroom.jobs.kind import JobKind
from stillroom.jobs.replay import JournalReplayer
from stillroom.objects import resolve_local
from stillroom.recipes import DISTINCT, Reference, Settings
from stillroom.synth.seeds import count_bytes
from stillroom.synth.settings import RecordFilesRecipe

if TYPE_CHECKING:
    from stillroom.jobs import Job
    from stillroom.provenance import Artifact

__all__ = [
    "JOB_KIND",
    "DecontaminationRecipe",
    "ParaphraseJudge",
    "ParaphraseSettings",
    "estimate",
    "run",
]

_BYTES_PER_SECOND, _BYTES_EMBEDDED_PER_SECOND = 1e6, 5e4


class ParaphraseJudge(Settings):
    """A model that decides on doubtful paraphrases."""

    model: Reference = Field(description="model that is asked whether two texts ask the same")
    min_score: float = Field(0.76, gt=0, description="score from which it is asked")


class ParaphraseSettings(Settings):
    """Search for reworded items."""

    embedder: Reference = Field(description="embedder of items and messages")
    min_score: float = Field(
        0.86, gt=0, description="score from which a text counts as reworded without a judge"
    )
    judge: ParaphraseJudge | None = Field(
        None, description="model that decides on lower scores; optional"
    )


class DecontaminationRecipe(RecordFilesRecipe):
    """Remove records that contain a test question."""

    kind: Literal["synth.decontaminate"] = Field(
        default="synth.decontaminate", description="remove records that contain a test question"
    )
    against: Annotated[tuple[Reference, ...], DISTINCT] = Field(
        min_length=1,
        description="files or artifacts of test items: a record's question, else its first user "
        "message, else its first message",
    )
    near: float = Field(
        0.65,
        gt=0,
        le=1,
        description="share of the information of an item's words, in order, that counts as "
        "contamination",
    )
    paraphrases: ParaphraseSettings | None = Field(
        None, description="also look for reworded items, with an embedder"
    )

    @property
    def item_paths(self) -> tuple[Path, ...]:
        """Local paths of the test items."""
        return tuple(map(resolve_local, self.against))


def run(recipe: DecontaminationRecipe, job: Job) -> Artifact:
    """Write the clean records, the contaminated ones with their items, and the unchecked ones.

    Raises as ``decontaminate``.
    """
    from stillroom.models import open_embedder, open_text_model
    from stillroom.synth.dedup.decontamination_job import decontaminate

    embedder = judge = None
    if recipe.paraphrases is not None:
        embedder = open_embedder(recipe.paraphrases.embedder, say=job.say)
        if recipe.paraphrases.judge is not None:
            judge = open_text_model(recipe.paraphrases.judge.model, say=job.say)
    return decontaminate(recipe, job, embedder, judge)


def estimate(recipe: DecontaminationRecipe) -> Estimate:
    """Estimate memory, disk and time from the size of the files."""
    size, items = count_bytes(recipe.records), count_bytes(recipe.against)
    speed = _BYTES_PER_SECOND if recipe.paraphrases is None else _BYTES_EMBEDDED_PER_SECOND
    return Estimate(
        memory_bytes=int(items * 20 + 600_000_000),
        disk_bytes=int(size * 2 + items + 1_000_000),
        seconds=(size + items) / speed,
        memory_knob="check against fewer items",
        disk_knob="check fewer files at a time",
        basis=f"{size / 1e6:.1f} MB of records and {items / 1e6:.1f} MB of items",
    )


JOB_KIND = JobKind(DecontaminationRecipe, run, estimate, replayer=JournalReplayer(("checked",)))
