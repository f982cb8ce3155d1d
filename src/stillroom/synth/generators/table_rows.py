"""Table rows: values sampled from a schema or a copula of seed rows, with generated text columns.

Source: Patki et al. 2016 (the Synthetic Data Vault), arXiv:1906.08230 for the Gaussian copula; the
texts of a row follow Borisov et al. 2022 (GReaT), arXiv:2210.06280 in that a model is shown the
other columns. Differs: numbers are never left to the model; rank correlations of the seed rows and
of what was made stand in the report.

Values are drawn by a Gaussian copula where there are seed rows (Nelsen 2006, section 2.10), which
keeps each column's distribution and the rank correlation of every two; else each by itself, or
given another. Knows no model.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import override

from stillroom.errors import DataError
from stillroom.recipes import Reference, Settings
from stillroom.records import Message, Record
from stillroom.synth.interfaces import GeneratorState
from stillroom.synth.prompting.coroutines import GenerationUnit, RequestCoroutine, StepwiseGenerator
from stillroom.synth.prompting.requests import (
    PromptTemplate,
    fence_text,
    make_object_schema,
    make_string_schema,
)
from stillroom.synth.types import GeneratorContext, SeedKind

__all__ = [
    "Copula",
    "TableColumn",
    "TableRows",
    "find_unweighted",
    "read_seed_rows",
    "sample_row",
    "sort_columns",
]


_STANDARD_NORMAL = NormalDist()
_SPREAD = 4.0


class TableColumn(Settings):
    """One column."""

    name: str = Field(pattern=r"^\w+$", description="of the column")
    type: Literal["integer", "number", "category", "boolean", "date", "text"] = Field(
        description="what its values are"
    )
    min: float | None = Field(None, description="least number")
    max: float | None = Field(None, description="greatest number")
    decimals: int = Field(2, ge=0, le=12, description="digits of a number after the point")
    mean: float | None = Field(None, description="of a bell-shaped number; else all alike often")
    first: date | None = Field(None, description="earliest date")
    last: date | None = Field(None, description="latest date")
    values: dict[str, float] = Field(
        default_factory=dict, description="values of a category with their weights"
    )
    given: str = Field("", description="another category on which the weights depend")
    by: dict[str, dict[str, float]] = Field(
        default_factory=dict, description="weights for each value of the other category"
    )
    about: str = Field("", description="what a text says; the teacher writes it, given the row")
    max_characters: int = Field(120, ge=1, le=2000, description="longest text")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        low, high = self.min, self.max
        if low is not None and high is not None and low > high:
            raise ValueError(f"column {self.name}: min is above max")
        if self.type == "date" and self.first and self.last and self.first > self.last:
            raise ValueError(f"column {self.name}: first is after last")
        weights = [*self.values.values(), *(w for row in self.by.values() for w in row.values())]
        if any(weight < 0 or not math.isfinite(weight) for weight in weights):
            raise ValueError(f"column {self.name}: a weight is negative")
        if bool(self.given) != bool(self.by):
            raise ValueError(f"column {self.name}: given and by come together")
        for row in (self.values, *self.by.values()):
            if self.type == "category" and row and not sum(row.values()):
                raise ValueError(f"column {self.name}: all weights are 0")
            if self.type == "boolean" and not set(row) <= {"true", "false"}:
                raise ValueError(f"column {self.name}: values of a boolean are true and false")
        return self

    @property
    def is_drawn(self) -> bool:
        """Whether its values are drawn, not written."""
        return self.type != "text"

    def lacks(self) -> str:
        """Return what a column without seed rows must say, or nothing."""
        if self.type in {"integer", "number"} and (self.min is None or self.max is None):
            return "min and max"
        if self.type == "date" and (self.first is None or self.last is None):
            return "first and last"
        has_weights = bool(self.values or self.by)
        return "values, or given and by" if self.type == "category" and not has_weights else ""


def find_unweighted(columns: Sequence[TableColumn]) -> str:
    """Return which column says nothing for a value of the one it is given; empty if none."""
    known = {column.name: column for column in columns}
    for column in columns:
        other = known.get(column.given)
        if other is None or column.values or column.type != "category":
            continue
        found = {*other.values, *(value for row in other.by.values() for value in row)}
        found |= {"true", "false"} if other.type == "boolean" else set()
        missing = sorted(found - column.by.keys())
        if missing:
            return f"column {column.name} has no weights where {other.name} is {missing[0]}"
    return ""


def sort_columns(columns: Sequence[TableColumn]) -> list[TableColumn]:
    """Return columns so that each comes after the one it is given.

    Raises:
        ValueError: If a name comes twice, a column is given an unknown one, or they go in a circle.
    """
    names = [column.name for column in columns]
    if len(set(names)) < len(names):
        raise ValueError("a column's name comes twice")
    ordered: list[TableColumn] = []
    done: set[str] = set()
    while len(ordered) < len(columns):
        ready = [one for one in columns if one.name not in done and one.given in {"", *done}]
        if not ready:
            left = [one.name for one in columns if one.name not in done]
            raise ValueError(f"columns {', '.join(left)} are given unknown ones, or each other")
        ordered += ready
        done |= {one.name for one in ready}
    return ordered


def sample_row(columns: Sequence[TableColumn], uniforms: Mapping[str, float]) -> dict[str, Any]:
    """Return a row of drawn values, from a number between 0 and 1 for each column."""
    row: dict[str, Any] = {}
    for column in columns:
        if column.is_drawn:
            row[column.name] = _value(column, uniforms[column.name], row)
    return row


def read_seed_rows(path: Path, columns: Sequence[TableColumn]) -> list[dict[str, Any]]:
    """Read seed rows (CSV or JSON lines) as the columns have them.

    Raises:
        DataError: If the file is missing or broken, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows: list[Any] = (
                [json.loads(line) for line in file if line.strip()]
                if path.suffix == ".jsonl"
                else list(csv.DictReader(file))
            )
    except (OSError, ValueError, csv.Error) as error:
        raise _broken(path, str(error)) from error
    if not rows:
        raise _broken(path, "it holds no row")
    read = []
    for number, row in enumerate(rows, 1):
        try:
            read.append({one.name: _parse(one, row[one.name]) for one in columns if one.is_drawn})
        except (KeyError, TypeError, ValueError) as error:
            raise _broken(path, f"row {number}: {error!r}") from error
    return read


@dataclass(frozen=True, slots=True)
class _MarginalDistribution:
    """A column's values in order, with the share of rows up to each."""

    values: tuple[Any, ...]
    shares: NDArray[Any]
    is_stepwise: bool

    def at(self, uniform: float) -> Any:
        if self.is_stepwise:
            return self.values[
                min(int(np.searchsorted(self.shares, uniform)), len(self.values) - 1)
            ]
        return float(np.interp(uniform, self.shares, self.values))


class Copula:
    """The joint distribution of seed rows: each column's own, and how they go together."""

    def __init__(self, columns: Sequence[TableColumn], rows: Sequence[Mapping[str, Any]]) -> None:
        """Fit to rows."""
        self.columns = [column for column in columns if column.is_drawn]
        self._marginals = {one.name: _fit_marginal(one, rows) for one in self.columns}
        scores = np.array([[*self._scores(row)] for row in rows])
        matrix = _compute_correlation(scores)
        values, vectors = np.linalg.eigh(matrix)
        self._root = vectors @ np.diag(np.sqrt(np.clip(values, 0.0, None)))

    def draw(self, normals: Sequence[float]) -> dict[str, Any]:
        """Return a row, from a standard normal number for each column."""
        mixed = self._root @ np.asarray(normals)
        row = {}
        for column, value in zip(self.columns, mixed, strict=True):
            found = self._marginals[column.name].at(_STANDARD_NORMAL.cdf(float(value)))
            row[column.name] = _to_column_value(column, found)
        return row

    def correlations(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Return the rank correlation of every two columns over rows, by ``one~other``."""
        if len(rows) < 3:
            return {}
        scores = np.array([[*self._scores(row)] for row in rows])
        ranks = np.argsort(np.argsort(scores, axis=0, kind="stable"), axis=0, kind="stable")
        for place in range(scores.shape[1]):  # equal values have equal ranks
            _, inverse = np.unique(scores[:, place], return_inverse=True)
            sums = np.bincount(inverse, ranks[:, place]) / np.bincount(inverse)
            ranks = ranks.astype(np.float64)
            ranks[:, place] = sums[inverse]
        matrix = _compute_correlation(ranks)
        names = [column.name for column in self.columns]
        return {
            f"{names[one]}~{names[other]}": round(float(matrix[one, other]), 4)
            for one in range(len(names))
            for other in range(one + 1, len(names))
        }

    def _scores(self, row: Mapping[str, Any]) -> list[float]:
        """Return the normal score of each value: where it stands in its column."""
        found = []
        for column in self.columns:
            marginal, value = self._marginals[column.name], row[column.name]
            if marginal.is_stepwise:
                place = marginal.values.index(value) if value in marginal.values else 0
                low = float(marginal.shares[place - 1]) if place else 0.0
                share = (low + float(marginal.shares[place])) / 2
            else:
                number = _number(column, value)
                share = float(np.interp(number, marginal.values, marginal.shares))
            found.append(_STANDARD_NORMAL.inv_cdf(min(max(share, 1e-4), 1 - 1e-4)))
        return found


def _fit_marginal(column: TableColumn, rows: Sequence[Mapping[str, Any]]) -> _MarginalDistribution:
    values = [row[column.name] for row in rows]
    if column.type in {"category", "boolean"}:
        counts = sorted(Counter(values).items(), key=lambda item: (-item[1], str(item[0])))
        shares = np.cumsum([count for _, count in counts]) / len(values)
        return _MarginalDistribution(tuple(value for value, _ in counts), shares, is_stepwise=True)
    numbers = np.sort([_number(column, value) for value in values])
    shares = (np.arange(len(numbers)) + 0.5) / len(numbers)
    unique, first = np.unique(numbers, return_index=True)
    last = np.append(first[1:], len(numbers)) - 1
    return _MarginalDistribution(
        tuple(unique), (shares[first] + shares[last]) / 2, is_stepwise=False
    )


def _compute_correlation(scores: NDArray[Any]) -> NDArray[Any]:
    """Return Pearson's correlations; a column that never changes goes with nothing."""
    matrix: NDArray[Any]
    centered = scores - scores.mean(axis=0)
    norms = np.sqrt((centered**2).sum(axis=0))
    norms[norms == 0] = np.inf
    matrix = (centered.T @ centered) / np.outer(norms, norms)
    np.fill_diagonal(matrix, 1.0)
    return matrix


def _value(column: TableColumn, uniform: float, row: Mapping[str, Any]) -> Any:
    if column.type in {"category", "boolean"}:
        weights = column.by.get(_name_of(row[column.given]), {}) if column.given else {}
        weights = weights or column.values
        return (
            _sample_choice(weights, uniform)
            if column.type == "category"
            else _sample_boolean(weights, uniform)
        )
    if column.type == "date":
        first, last = column.first or date.min, column.last or date.max
        return (first + timedelta(days=int(uniform * ((last - first).days + 1)))).isoformat()
    low, high = column.min or 0.0, column.max if column.max is not None else 0.0
    if column.mean is None:
        return _to_column_value(column, low + uniform * (high - low))
    deviation = max(high - column.mean, column.mean - low) / _SPREAD
    center = _STANDARD_NORMAL.inv_cdf(min(max(uniform, 1e-6), 1 - 1e-6))
    return _to_column_value(column, column.mean + deviation * center)


def _name_of(value: Any) -> str:
    """Return a value of another column as ``by`` names it: true and false as YAML has them."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _sample_boolean(weights: Mapping[str, float], uniform: float) -> bool:
    """Return true as often as the weights say; one alone is a chance, none is even odds."""
    if set(weights) == {"true", "false"}:
        return uniform * (weights["true"] + weights["false"]) < weights["true"]
    if "false" in weights:
        return uniform >= weights["false"]
    return uniform < weights.get("true", 0.5)


def _sample_choice(weights: Mapping[str, float], uniform: float) -> str:
    total, seen = sum(weights.values()), 0.0
    for value, weight in weights.items():
        seen += weight
        if uniform * total < seen:
            return value
    return list(weights)[-1] if weights else ""


def _to_column_value(column: TableColumn, value: Any) -> Any:
    """Return a value as the column has it, within its bounds."""
    if column.type in {"category", "boolean"}:
        return value
    if column.type == "date":
        return value if isinstance(value, str) else date.fromordinal(round(value)).isoformat()
    low = -math.inf if column.min is None else column.min
    high = math.inf if column.max is None else column.max
    bounded = min(max(float(value), low), high)
    return round(bounded) if column.type == "integer" else round(bounded, column.decimals)


def _number(column: TableColumn, value: Any) -> float:
    if column.type == "date":
        return float(date.fromisoformat(str(value)).toordinal())
    return float(value)


def _parse(column: TableColumn, value: Any) -> Any:
    if value is None or value == "":
        raise ValueError(f"{column.name} is empty")
    if column.type == "boolean":
        return value if isinstance(value, bool) else str(value).lower() in {"true", "1", "yes"}
    if column.type == "category":
        return str(value)
    if column.type == "date":
        return date.fromisoformat(str(value)).isoformat()
    return float(value)


def _broken(path: Path, what: str) -> DataError:
    return DataError(
        f"the seed rows cannot be read: {what}",
        code="synth.rows",
        where=str(path),
        expected="CSV with a header, or JSON lines, with a value for every column that is drawn",
        next="correct the file, or leave rows out of the recipe",
    )


_NORMAL = NormalDist()


class TableRows(StepwiseGenerator):
    """Makes rows of a table; the record is one assistant message, the row as JSON."""

    paper: ClassVar[str] = "arXiv:1906.08230"
    takes: ClassVar[tuple[SeedKind, ...]] = ("nothing",)
    default_filters: ClassVar[tuple[str, ...]] = ("injection", "decontaminate")
    templates: ClassVar = {
        "texts": PromptTemplate(
            "A row of a table{about}:\n\n{row}\n\nWrite what is missing, so that it fits the rest "
            "of the row: {missing}"
        ),
    }

    columns: tuple[TableColumn, ...] = Field(
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
        sort_columns(self.columns)
        if self.rows is None:
            for column in self.columns:
                if wanted := column.lacks():
                    raise ValueError(f"column {column.name} needs {wanted}, or seed rows")
            if problem := find_unweighted(self.columns):
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
    def begin(self, corpus: GeneratorContext) -> GeneratorState:
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
    def write(self, unit: GenerationUnit) -> RequestCoroutine[None]:
        rng, copula = unit.rng("row"), self._copula()
        drawn = [column for column in sort_columns(self.columns) if column.is_drawn]
        if copula is not None:
            row = copula.draw(
                [_NORMAL.inv_cdf(rng.uniform(1e-9, 1 - 1e-9)) for _ in copula.columns]
            )
        else:
            row = sample_row(drawn, {column.name: rng.random() for column in drawn})
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
        self, unit: GenerationUnit, row: Mapping[str, Any], texts: Sequence[TableColumn]
    ) -> RequestCoroutine[dict[str, Any] | None]:
        known = {one.name: row[one.name] for one in self.columns if one.is_drawn}
        words = unit.words(
            "texts",
            about=f" ({self.about})" if self.about else "",
            row=fence_text(json.dumps(known, ensure_ascii=False)),
            missing="; ".join(f"{one.name} ({one.about or 'text'})" for one in texts),
        )
        schema = make_object_schema(
            **{one.name: make_string_schema(one.max_characters) for one in texts}
        )
        found = yield from unit.fill(words, schema, what="texts of the row")
        return dict(found) if found else None

    def _copula(self) -> Copula | None:
        return _copula(str(self.rows), self.columns) if self.rows is not None else None


@lru_cache(maxsize=4)
def _rows_of(path: str, columns: str) -> tuple[dict[str, Any], ...]:
    known = [TableColumn.model_validate(row) for row in json.loads(columns)]
    return tuple(read_seed_rows(Path(path), known))


def _rows(path: str, columns: Sequence[TableColumn]) -> tuple[dict[str, Any], ...]:
    return _rows_of(path, json.dumps([one.model_dump(mode="json") for one in columns]))


@lru_cache(maxsize=4)
def _copula_of(path: str, columns: str) -> Copula:
    known = [TableColumn.model_validate(row) for row in json.loads(columns)]
    return Copula(known, _rows_of(path, columns))


def _copula(path: str, columns: Sequence[TableColumn]) -> Copula:
    return _copula_of(path, json.dumps([one.model_dump(mode="json") for one in columns]))
