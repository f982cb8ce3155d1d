"""Trials of a search: one candidate after the other, or several at once in other processes.

A worker opens the sources itself and keeps one model; what goes to it is a recipe's changes, what
comes back is scores. A candidate that cannot be merged is a failed trial with its reason, not the
end of the search.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ValidationError

from stillroom.errors import CheckpointError, MissingExtraError, RecipeError, ShapeError
from stillroom.merge.opening import open_merge, retune_merge
from stillroom.merge.recipe import MergeRecipe
from stillroom.merge.scoring import Measure, Score, Scorer
from stillroom.merge.search_space import change_recipe
from stillroom.merge.stream import Merge
from stillroom.records import Record

__all__ = ["Bench", "Outcome", "Team", "open_team"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a trial: a score of every record, or why there is none."""

    scores: tuple[Score, ...] = ()
    failed: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"failed": self.failed} if self.failed else {"scores": [*map(list, self.scores)]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Outcome:
        """Read what ``to_json`` wrote."""
        scores = tuple((value, count) for value, count in data.get("scores", ()))
        return cls(scores, data.get("failed", ""))


@dataclass(frozen=True)
class Bench:
    """What one candidate after the other is made of and scored with."""

    recipe: MergeRecipe
    merge: Merge
    scorer: Scorer

    def build(self, changes: Mapping[str, Any]) -> Merge:
        """Return the merge that a recipe's changes describe.

        Raises:
            RecipeError: If the changed recipe is not allowed.
        """
        return retune_merge(self.merge, change_recipe(self.recipe, changes))

    def try_changes(self, changes: Mapping[str, Any], records: Sequence[Record]) -> Outcome:
        """Make and score the candidate of a recipe's changes."""
        try:
            scores = self.scorer.score(self.build(changes), records)
        except (RecipeError, ShapeError, ValidationError) as error:
            return Outcome(failed=_first_line(error))
        except CheckpointError as error:
            if error.code != "merge.not-finite":
                raise
            return Outcome(failed=_first_line(error))
        if not all(math.isfinite(value) for value, _ in scores):
            return Outcome(failed="its scores are not finite")
        return Outcome(tuple(scores))


class Team:
    """Tries candidates: here, or in ``workers`` processes; use as a context manager."""

    def __init__(
        self, bench: Bench, records: Sequence[Record], pool: Callable[[], Any] | None = None
    ) -> None:
        """Stand over a bench; ``pool`` starts processes that have one each."""
        self.bench, self.records = bench, records
        self._start = pool
        self._pool: Any = None

    def __enter__(self) -> Team:
        """Start the processes, if any."""
        if self._start is not None:
            self._pool = self._start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()
            self._pool = None

    def try_all(self, listed: Sequence[Mapping[str, Any]]) -> Iterator[Outcome]:
        """Yield the outcome of every candidate, in order."""
        if self._pool is not None:
            yield from self._pool.imap(_work, listed)
            return
        for changes in listed:
            yield self.bench.try_changes(changes, self.records)


def open_team(bench: Bench, records: Sequence[Record]) -> Team:
    """Return the team that a recipe's ``search`` asks for.

    Raises:
        MissingExtraError: If Ray is asked for and not installed.
    """
    search = bench.recipe.search
    if search is None or search.workers == 1:
        return Team(bench, records)
    import torch

    make = _pool_of(search.engine)
    scorer = bench.scorer
    arguments = (
        bench.recipe.model_dump(mode="json"),
        list(records),
        scorer.measure,
        str(scorer.scratch),
        # As many threads as here: with another number the last bits of a score differ.
        torch.get_num_threads(),
    )
    return Team(bench, records, lambda: make(search.workers, _begin, arguments))


def _pool_of(engine: str) -> Callable[..., Any]:
    if engine == "ray":
        try:
            from ray.util.multiprocessing import Pool
        except ImportError as error:
            raise MissingExtraError.of("ray", "ray", "search on a cluster") from error
        pool: Callable[..., Any] = Pool
        return pool
    import multiprocessing

    return multiprocessing.get_context("spawn").Pool


_STATE: dict[str, Any] = {}


def _begin(
    recipe: dict[str, Any], records: list[Record], measure: Measure, scratch: str, threads: int
) -> None:
    """Make a worker's own bench."""
    import os

    import torch

    torch.set_num_threads(threads)
    loaded = MergeRecipe.model_validate(recipe)
    scorer = Scorer(measure, Path(f"{scratch}-{os.getpid()}"), lambda line: None)
    _STATE["bench"] = Bench(loaded, open_merge(loaded), scorer)
    _STATE["records"] = records


def _work(changes: Mapping[str, Any]) -> Outcome:
    bench: Bench = _STATE["bench"]
    return bench.try_changes(changes, _STATE["records"])


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0]
