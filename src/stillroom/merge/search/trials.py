"""Trials of a search: candidates scored one after another, or by several workers.

A worker opens the sources itself and keeps one model; what goes to it is a recipe's changes, what
comes back is scores. A candidate that cannot be merged is a failed trial with its reason, not the
end of the search.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

from pydantic import ValidationError

from stillroom.errors import CheckpointError, RecipeError, ShapeError
from stillroom.jobs.engines import Engine, WorkerResources
from stillroom.merge.engine.merge import Merge, open_merge, reconfigure_merge
from stillroom.merge.recipe import MergeRecipe
from stillroom.merge.search.scoring import MergeScorer, Score, ScoringSettings
from stillroom.merge.search.space import apply_changes
from stillroom.records import Record

__all__ = ["TrialPool", "TrialResult", "TrialRunner", "open_trial_pool"]


@dataclass(frozen=True, slots=True)
class TrialResult:
    """What came of a trial: a score of every record, or why there is none."""

    scores: tuple[Score, ...] = ()
    failed: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"failed": self.failed} if self.failed else {"scores": [*map(list, self.scores)]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrialResult:
        """Read what ``to_json`` wrote."""
        scores = tuple((value, count) for value, count in data.get("scores", ()))
        return cls(scores, data.get("failed", ""))


@dataclass(frozen=True)
class TrialRunner:
    """What one candidate after the other is made of and scored with."""

    recipe: MergeRecipe
    merge: Merge
    scorer: MergeScorer

    def build(self, changes: Mapping[str, Any]) -> Merge:
        """Return the merge that a recipe's changes describe.

        Raises:
            RecipeError: If the changed recipe is not allowed.
        """
        return reconfigure_merge(self.merge, apply_changes(self.recipe, changes))

    def try_changes(self, changes: Mapping[str, Any], records: Sequence[Record]) -> TrialResult:
        """Make and score the candidate of a recipe's changes."""
        try:
            scores = self.scorer.score(self.build(changes), records)
        except (RecipeError, ShapeError, ValidationError) as error:
            return TrialResult(failed=_first_line(error))
        except CheckpointError as error:
            if error.code != "merge.not-finite":
                raise
            return TrialResult(failed=_first_line(error))
        if not all(math.isfinite(value) for value, _ in scores):
            return TrialResult(failed="its scores are not finite")
        return TrialResult(tuple(scores))


class TrialPool:
    """Tries candidates: here, in other processes, or on a cluster; use as a context manager."""

    def __init__(
        self,
        bench: TrialRunner,
        records: Sequence[Record],
        *,
        pool: Callable[[], Any] | None = None,
        engine: Engine | None = None,
    ) -> None:
        """Stand over a bench.

        Args:
            bench: What makes and scores candidates here.
            records: What they are scored on.
            pool: Starts processes that have a bench each.
            engine: Whose workers have a bench each.
        """
        self.bench, self.records = bench, records
        self._start, self._engine = pool, engine
        self._pool: Any = None

    def __enter__(self) -> TrialPool:
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

    def try_all(self, listed: Sequence[Mapping[str, Any]]) -> Iterator[TrialResult]:
        """Yield the outcome of every candidate, in order."""
        if self._engine is not None:
            yield from self._engine.stream(self._trying(), listed)
            return
        if self._pool is not None:
            yield from self._pool.imap(_run_trial, listed)
            return
        for changes in listed:
            yield self.bench.try_changes(changes, self.records)

    def _trying(self) -> _TrialWork:
        recipe = json.dumps(self.bench.recipe.model_dump(mode="json"))
        return _TrialWork(recipe, tuple(self.records), self.bench.scorer.measure)


@dataclass(frozen=True)
class _TrialWork:
    """The work of a cluster's worker: try candidates on a bench of its own."""

    recipe: str
    records: tuple[Record, ...] = field(hash=False)
    measure: ScoringSettings
    concurrency: int = 1

    def open(self) -> WorkerResources[Mapping[str, Any], TrialResult]:
        recipe = MergeRecipe.model_validate_json(self.recipe)
        # The scorer makes the folder for a candidate that needs one, and removes it.
        scratch = Path(tempfile.gettempdir()) / f"stillroom-candidate-{uuid4().hex}"
        scorer = MergeScorer(self.measure, scratch, lambda line: None)
        bench = TrialRunner(recipe, open_merge(recipe), scorer)

        def try_all(listed: Sequence[Mapping[str, Any]]) -> list[TrialResult]:
            return [bench.try_changes(changes, self.records) for changes in listed]

        return WorkerResources(try_all, (scorer.close,))


def open_trial_pool(bench: TrialRunner, records: Sequence[Record], engine: Engine) -> TrialPool:
    """Return the team that a recipe's ``search`` and the job's engine make."""
    if engine.is_remote:
        return TrialPool(bench, records, engine=engine)
    search = bench.recipe.search
    if search is None or search.workers == 1:
        return TrialPool(bench, records)
    import multiprocessing

    import torch

    scorer = bench.scorer
    arguments = (
        bench.recipe.model_dump(mode="json"),
        list(records),
        scorer.measure,
        str(scorer.scratch),
        # As many threads as here: with another number the last bits of a score differ.
        torch.get_num_threads(),
    )
    make = multiprocessing.get_context("spawn").Pool
    return TrialPool(bench, records, pool=lambda: make(search.workers, _start_worker, arguments))


_STATE: dict[str, Any] = {}


def _start_worker(
    recipe: dict[str, Any],
    records: list[Record],
    measure: ScoringSettings,
    scratch: str,
    threads: int,
) -> None:
    """Make a worker's own bench."""
    import os

    import torch

    torch.set_num_threads(threads)
    loaded = MergeRecipe.model_validate(recipe)
    scorer = MergeScorer(measure, Path(f"{scratch}-{os.getpid()}"), lambda line: None)
    _STATE["bench"] = TrialRunner(loaded, open_merge(loaded), scorer)
    _STATE["records"] = records


def _run_trial(changes: Mapping[str, Any]) -> TrialResult:
    bench: TrialRunner = _STATE["bench"]
    return bench.try_changes(changes, _STATE["records"])


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0]
