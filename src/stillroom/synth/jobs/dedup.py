"""Remove near duplicates from files of records."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stillroom.jobs import Estimate
from stillroom.jobs.kind import JobKind, defer
from stillroom.jobs.replay import JournalReplayer
from stillroom.recipes import DISTINCT, ENGINE, EngineChoice
from stillroom.synth.seeds import count_bytes
from stillroom.synth.settings import RecordFilesRecipe

__all__ = ["JOB_KIND", "DedupRecipe", "estimate"]

_BYTES_PER_SECOND = 5e6


class DedupRecipe(RecordFilesRecipe):
    """Remove near duplicates from files of records, by an exact join of word n-grams."""

    kind: Literal["synth.dedup"] = Field(
        default="synth.dedup", description="remove near duplicates from files of records"
    )
    threshold: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Jaccard similarity of word n-grams above which two records are duplicates",
    )
    ngram_size: int = Field(5, ge=1, description="number of words of an n-gram")
    fields: Annotated[tuple[str, ...], DISTINCT] = Field(
        (),
        description="fields of a record to compare; by default all messages, and "
        "apart from them the rejected answer and the label",
    )
    prefer: str = Field(
        "",
        description="numeric field: of several duplicates, the record with its highest value"
        " is kept",
    )
    engine: EngineChoice = ENGINE


def estimate(recipe: DedupRecipe) -> Estimate:
    """Estimate memory, disk and time from the size of the files."""
    size = count_bytes(recipe.records)
    return Estimate(
        memory_bytes=int(size * 0.5 + 300_000_000),
        disk_bytes=int(size * 3 + 1_000_000),
        seconds=size / _BYTES_PER_SECOND,
        memory_knob="compare fewer files at a time",
        disk_knob="compare fewer files at a time",
        basis=f"{size / 1e6:.1f} MB of records",
    )


JOB_KIND = JobKind(
    DedupRecipe,
    defer("stillroom.synth.dedup.deduplication_job:deduplicate"),
    estimate,
    replayer=JournalReplayer(),
)
