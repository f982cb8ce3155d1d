"""Discount passages by their document's age (time decay), with a half-life in days.

Source: Li and Croft 2003, "Time-Based Language Models", CIKM, doi:10.1145/956863.956951 (an
exponential prior on a document's age). Differs from the paper: the first order's scores, as shares
of the highest, are multiplied by ``floor + (1 - floor) * 0.5 ** (age / half_life_days)``, so that
old passages keep a share of their score. A document's day is one of its fields: a date, a text that
starts with one (``2024-05-31 10:00``), or a year, which counts as its last day; of several values
the newest counts. A day in the future has age 0. After ``hybrid``, whose scores lie close together,
age counts more than after ``convex``: raise the floor there.

The method does not detect whether a question asks for recent documents. Use a filter
(``date >= 2024-01-01``) for those that do.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field
from typing_extensions import override

from stillroom.rag.interfaces import PassageReranker, Query
from stillroom.rag.retrieval.ranking import normalize_scores, sort_hits

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.index.searcher import Index
    from stillroom.records import Hit

__all__ = ["Recency"]

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}(?![\d-])")
_YEAR = re.compile(r"\d{4}")
_LAST_YEAR = 9999


class Recency(PassageReranker):
    """Exponential decay by a document's age."""

    paper: ClassVar[str] = "doi:10.1145/956863.956951"

    field: str = Field(
        "date", min_length=1, description="metadata field with a document's date or year"
    )
    half_life_days: float = Field(365.0, gt=0, description="half-life of the decay, in days")
    floor: float = Field(
        0.5, ge=0, le=1, description="minimum share of its score that an old passage keeps"
    )
    undated_days: float | None = Field(
        None, ge=0, description="age of documents without a date; by default half_life_days"
    )
    today: datetime.date | None = Field(
        None,
        description="reference day of ages; by default the current day in UTC; in an "
        "evaluation the day that it was started on",
    )

    @override
    def rerank(
        self,
        query: Query,
        hits: Sequence[Hit],
        index: Index,
        model: TextModel | None = None,
    ) -> list[Hit]:
        if not hits:
            return []
        today = self._day
        values = index.values_of([index.row_of(hit.passage.id) for hit in hits], self.field)
        scores = [hit.score for hit in hits]
        first = normalize_scores(scores, floor=min(0.0, *scores))
        return sort_hits(
            hits,
            [
                score * self._share(_find_newest_day(dates), today)
                for score, dates in zip(first, values, strict=True)
            ],
        )

    @property
    @override
    def moment(self) -> str:
        return self._day.isoformat()

    @override
    def on_day(self, day: datetime.date) -> Self:
        return self if self.today else self.model_copy(update={"today": day})

    @property
    def _day(self) -> datetime.date:
        return self.today or datetime.datetime.now(datetime.UTC).date()

    def _share(self, day: datetime.date | None, today: datetime.date) -> float:
        undated = self.half_life_days if self.undated_days is None else self.undated_days
        age = undated if day is None else max((today - day).days, 0)
        return self.floor + (1 - self.floor) * math.exp2(-age / self.half_life_days)


def _find_newest_day(values: Sequence[str | float]) -> datetime.date | None:
    """Return the newest day among the values, or None."""
    days = [day for value in values if (day := _read_day(value)) is not None]
    return max(days, default=None)


def _read_day(value: str | float) -> datetime.date | None:
    if isinstance(value, int | float):
        is_year = float(value).is_integer() and 1 <= value <= _LAST_YEAR
        return datetime.date(int(value), 12, 31) if is_year else None
    if _YEAR.fullmatch(value):
        return _read_day(int(value))
    match = _DAY.match(value)
    try:
        return datetime.date.fromisoformat(match.group()) if match else None
    except ValueError:
        return None
