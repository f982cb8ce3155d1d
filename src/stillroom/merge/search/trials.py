"""Trials of a search: candidates scored one after another, or by several workers.

A worker opens the sources and keeps one model; it receives changes of the recipe and returns
scores. A candidate that cannot be merged is a failed trial with its reason; the search continues.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pydantic import ValidationError

from stillroom.errors import CheckpointError, RecipeError, ShapeError
from stillroom.jobs.engines import Engine, WorkerResources
from stillroom.merge.engine.merge import Merge, open_merge, reconfigure_merge
from stillroom.merge.search.scoring import MergeScorer, Score, ScoringSettings
from stillroom.merge.search.space import apply_changes
from stillroom.recipes import find_recipe_class
from stillroom.records import Record

if TYPE_CHECKING:
    from stillroom.merge.jobs.search import MergeSearchRecipe

__all__ = ["TrialPool", "TrialResult", "TrialRunner", "open_trial_pool"]


@dataclass(frozen=True, slots=True)
class TrialResult:
    """Result of a trial: the scores by record, or the reason of its failure."""

    scores: tuple[Score, ...] = ()
    failed: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return JSON-serializable values."""
        return {"failed": self.failed} if self.failed else {"scores": [*map(list, self.scores)]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrialResult:
        """Create a result from the output of ``to_json``."""
        scores = tuple((value, count) for value, count in data.get("scores", ()))
        return cls(scores, data.get("failed", ""))


@dataclass(frozen=True)
class TrialRunner:
    """Builds and scores candidates, one at a time."""

    recipe: MergeSearchRecipe
    merge: Merge
    scorer: MergeScorer

    def build(self, changes: Mapping[str, Any]) -> Merge:
        """Return the merge of a changed recipe.

        Raises:
            RecipeError: If the changed recipe is invalid.
        """
        return reconfigure_merge(self.merge, apply_changes(self.recipe, changes))

    def try_changes(self, changes: Mapping[str, Any], records: Sequence[Record]) -> TrialResult:
        """Build and score the candidate of a changed recipe."""
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
    """Runs trials inline, in processes, or on a cluster; use as a context manager."""

    def __init__(
        self,
        runner: TrialRunner,
        records: Sequence[Record],
        *,
        pool: Callable[[], Any] | None = None,
        engine: Engine | None = None,
    ) -> None:
        """Create a pool.

        Args:
            runner: Builds and scores candidates inline.
            records: Records to score on.
            pool: Starts processes, each with its own runner.
            engine: Remote engine whose workers each have their own runner.
        """
        self.runner, self.records = runner, records
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
        """Stop the processes."""
        if self._pool is not None:
            self._pool.terminate()
            self._pool.join()
            self._pool = None

    def try_all(self, candidates: Sequence[Mapping[str, Any]]) -> Iterator[TrialResult]:
        """Yield the result of every candidate, in order."""
        if self._engine is not None:
            yield from self._engine.stream(self._trying(), candidates)
            return
        if self._pool is not None:
            yield from self._pool.imap(_run_trial, candidates)
            return
        for changes in candidates:
            yield self.runner.try_changes(changes, self.records)

    def _trying(self) -> _TrialWork:
        recipe = json.dumps(self.runner.recipe.model_dump(mode="json"))
        return _TrialWork(recipe, tuple(self.records), self.runner.scorer.settings)


@dataclass(frozen=True)
class _TrialWork:
    """Work of a cluster's worker: run trials with its own runner."""

    recipe: str
    records: tuple[Record, ...] = field(hash=False)
    settings: ScoringSettings
    concurrency: int = 1

    def open(self) -> WorkerResources[Mapping[str, Any], TrialResult]:
        recipe: Any = find_recipe_class(_KIND).model_validate_json(self.recipe)
        # The scorer creates and removes the folder when needed.
        scratch = Path(tempfile.gettempdir()) / f"stillroom-candidate-{uuid4().hex}"
        scorer = MergeScorer(self.settings, scratch, lambda line: None)
        runner = TrialRunner(recipe, open_merge(recipe), scorer)

        def try_all(candidates: Sequence[Mapping[str, Any]]) -> list[TrialResult]:
            return [runner.try_changes(changes, self.records) for changes in candidates]

        return WorkerResources(try_all, (scorer.close,))


def open_trial_pool(runner: TrialRunner, records: Sequence[Record], engine: Engine) -> TrialPool:
    """Create the pool for a recipe's ``search`` and the job's engine."""
    if engine.is_remote:
        return TrialPool(runner, records, engine=engine)
    workers = runner.recipe.search.workers
    if workers == 1:
        return TrialPool(runner, records)
    import multiprocessing

    import torch

    scorer = runner.scorer
    arguments = (
        runner.recipe.model_dump(mode="json"),
        list(records),
        scorer.settings,
        str(scorer.scratch),
        # Same number of threads: the last bits of a score depend on it.
        torch.get_num_threads(),
    )
    make = multiprocessing.get_context("spawn").Pool
    return TrialPool(runner, records, pool=lambda: make(workers, _start_worker, arguments))


_KIND = "merge.search"
_STATE: dict[str, Any] = {}


def _start_worker(
    recipe: dict[str, Any],
    records: list[Record],
    settings: ScoringSettings,
    scratch: str,
    threads: int,
) -> None:
    """Create a worker's runner."""
    import os

    import torch

    torch.set_num_threads(threads)
    loaded: Any = find_recipe_class(_KIND).model_validate(recipe)
    scorer = MergeScorer(settings, Path(f"{scratch}-{os.getpid()}"), lambda line: None)
    _STATE["bench"] = TrialRunner(loaded, open_merge(loaded), scorer)
    _STATE["records"] = records


def _run_trial(changes: Mapping[str, Any]) -> TrialResult:
    runner: TrialRunner = _STATE["bench"]
    return runner.try_changes(changes, _STATE["records"])


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0]
