"""Estimate which training records made a small student answer as it does.

Source: Grosse et al. 2023, arXiv:2308.03296 (influence functions by EK-FAC), through the library
bergson.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillroom.jobs.kind import JobKind, defer
from stillroom.recipes import Recipe, Reference

__all__ = ["JOB_KIND", "InfluenceRecipe"]


class InfluenceRecipe(Recipe):
    """Estimate which training records made a student answer as it does."""

    kind: Literal["distill.influence"] = Field("distill.influence", description="job kind")
    student: Reference = Field(
        examples=["path/to/student"], description="checkpoint of the trained student"
    )
    records: Reference = Field(description="records that it was trained on: an artifact or file")
    answers: Reference = Field(
        description="records whose assistant turns are the answers to explain: an artifact or file"
    )
    max_tokens: int = Field(512, ge=2, description="maximum tokens of a record")
    top: int = Field(10, ge=1, le=1000, description="records that the report lists for an answer")


JOB_KIND = JobKind(
    InfluenceRecipe,
    defer("stillroom.distill.evaluation.influence:measure_influence"),
    defer("stillroom.distill.evaluation.influence:estimate_influence"),
    extras=("influence",),
)
