"""Table rows: values drawn by a schema or like seed rows, texts written by the teacher to fit.

Source: Patki et al. 2016 (the Synthetic Data Vault), arXiv:1906.08230 for the Gaussian copula; the
texts of a row follow Borisov et al. 2022 (GReaT), arXiv:2210.06280 in that a model is shown the
other columns. Differs: numbers are never left to the model; rank correlations of the seed rows and
of what was made stand in the report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator
from typing_extensions import override

from stillroom.recipes import Reference
from stillroom.records import Message, Record
from stillroom.synth.asking import fence
from stillroom.synth.columns import Column, Copula, draw_row, order_columns, read_rows, unweighted
from stillroom.synth.method import Corpus, SeedKind, Writer
from stillroom.synth.steps import Steps, Stepwise, Unit
from stillroom.synth.structured import object_of, text_of
from stillroom.synth.templates import Template

__all__ = ["TableRows"]

_NORMAL = NormalDist()


class TableRows(Stepwise):
    """Makes rows of a table; the record is one assistant message, the row as JSON."""

    paper: ClassVar[str] = "arXiv:1906.08230"
    takes: ClassVar[tuple[SeedKind, ...]] = ("nothing",)
    default_filters: ClassVar[tuple[str, ...]] = ("injection", "decontaminate")
    templates: ClassVar = {
        "texts": Template(
            "A row of a table{about}:\n\n{row}\n\nWrite what is missing, so that it fits the rest "
            "of the row: {missing}"
        ),
    }

    columns: tuple[Column, ...] = Field(
        min_length=1,
        description="the columns, in order",
        examples=[
            [
                {"name": "product", "type": "category", "values": {"tea": 3, "coffee": 1}},
                {"name": "price", "type": "number", "min": 1, "max": 20},
                {"name": "review", "type": "text", "about": "a customer's short review"},
            ]
        ],
    )
    about: str = Field("", description="what the table is about, for the teacher")
    rows: Reference | None = Field(
        None,
        description="seed rows (CSV or JSON lines) whose distributions and correlations are kept",
    )

    @model_validator(mode="after")
    def _are_whole(self) -> Self:
        order_columns(self.columns)
        if self.rows is None:
            for column in self.columns:
                if wanted := column.lacks():
                    raise ValueError(f"column {column.name} needs {wanted}, or seed rows")
            if problem := unweighted(self.columns):
                raise ValueError(problem)
        return self

    @property
    @override
    def asks(self) -> int:
        return int(any(not column.is_drawn for column in self.columns))

    @property
    @override
    def longest(self) -> int:
        return sum(column.max_characters for column in self.columns if not column.is_drawn) or 1

    @override
    def begin(self, corpus: Corpus) -> Writer:
        self._copula()  # rows that cannot be read are said before anything is asked
        return self

    @override
    def describe(self, records: Sequence[Record]) -> dict[str, Any]:
        rows = [row for one in records if isinstance(row := one.fields.get("row"), Mapping)]
        copula = self._copula()
        if copula is None:
            return {"rows": len(rows)}
        seeds = _rows(str(self.rows), self.columns)
        wanted, made = copula.correlations(seeds), copula.correlations(rows)
        gaps = [abs(wanted[name] - made[name]) for name in made]
        return {
            "rows": len(rows),
            "seed_rows": len(seeds),
            "rank_correlation_of_seeds": wanted,
            "rank_correlation_of_rows": made,
            "largest_gap": round(max(gaps), 4) if gaps else None,
        }

    @override
    def write(self, unit: Unit) -> Steps[None]:
        rng, copula = unit.rng("row"), self._copula()
        drawn = [column for column in order_columns(self.columns) if column.is_drawn]
        if copula is not None:
            row = copula.draw(
                [_NORMAL.inv_cdf(rng.uniform(1e-9, 1 - 1e-9)) for _ in copula.columns]
            )
        else:
            row = draw_row(drawn, {column.name: rng.random() for column in drawn})
        texts = [column for column in self.columns if not column.is_drawn]
        if texts:
            written = yield from self._write_texts(unit, row, texts)
            if written is None:
                return
            row |= written
        ordered = {column.name: row[column.name] for column in self.columns}
        shown = json.dumps(ordered, ensure_ascii=False)
        unit.keep([Message("assistant", shown)], {"row": ordered, "answer": shown})

    def _write_texts(
        self, unit: Unit, row: Mapping[str, Any], texts: Sequence[Column]
    ) -> Steps[dict[str, Any] | None]:
        known = {one.name: row[one.name] for one in self.columns if one.is_drawn}
        words = unit.words(
            "texts",
            about=f" ({self.about})" if self.about else "",
            row=fence(json.dumps(known, ensure_ascii=False)),
            missing="; ".join(f"{one.name} ({one.about or 'text'})" for one in texts),
        )
        schema = object_of(**{one.name: text_of(one.max_characters) for one in texts})
        found = yield from unit.fill(words, schema, what="texts of the row")
        return dict(found) if found else None

    def _copula(self) -> Copula | None:
        return _copula(str(self.rows), self.columns) if self.rows is not None else None


@lru_cache(maxsize=4)
def _rows_of(path: str, columns: str) -> tuple[dict[str, Any], ...]:
    known = [Column.model_validate(row) for row in json.loads(columns)]
    return tuple(read_rows(Path(path), known))


def _rows(path: str, columns: Sequence[Column]) -> tuple[dict[str, Any], ...]:
    return _rows_of(path, json.dumps([one.model_dump(mode="json") for one in columns]))


@lru_cache(maxsize=4)
def _copula_of(path: str, columns: str) -> Copula:
    known = [Column.model_validate(row) for row in json.loads(columns)]
    return Copula(known, _rows_of(path, columns))


def _copula(path: str, columns: Sequence[Column]) -> Copula:
    return _copula_of(path, json.dumps([one.model_dump(mode="json") for one in columns]))
