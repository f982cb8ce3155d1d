"""Trials of a search: candidates scored one after another, or by several workers.

A worker opens the sources and keeps one model; it receives changes of the recipe and returns
scores. A candidate that cannot be merged is a failed trial with its reason; the search continues.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
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

__all__ = ["TrialResult", "TrialRunner", "open_trials"]


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


@contextmanager
def open_trials(
    runner: TrialRunner, records: Sequence[Record], engine: Engine
) -> Iterator[Callable[[Sequence[Mapping[str, Any]]], Iterable[TrialResult]]]:
    """Yield a function that returns the result of every candidate on some records, in order.

    Candidates are tried here, in the processes of ``search.workers``, or on a cluster.
    """
    work = _TrialWork(
        json.dumps(runner.recipe.model_dump(mode="json")),
        tuple(records),
        runner.scorer.settings,
        "" if engine.is_remote else str(runner.scorer.scratch),
    )
    workers = runner.recipe.search.workers
    if engine.is_remote:
        yield partial(engine.stream, work)
    elif workers == 1:
        yield partial(map, lambda changes: runner.try_changes(changes, records))
    else:
        import multiprocessing

        import torch

        # Same number of threads: the last bits of a score depend on it.
        arguments = (work, torch.get_num_threads())
        make = multiprocessing.get_context("spawn").Pool
        with make(workers, _start_worker, arguments) as pool:
            yield partial(pool.imap, _run_trial)


@dataclass(frozen=True)
class _TrialWork:
    """Work of another process, with its own runner; ``scratch`` is empty on a cluster."""

    recipe: str
    records: tuple[Record, ...] = field(hash=False)
    settings: ScoringSettings
    scratch: str
    concurrency: int = 1

    def open(self) -> WorkerResources[Mapping[str, Any], TrialResult]:
        recipe: Any = find_recipe_class("merge.search").model_validate_json(self.recipe)
        # The scorer creates and removes the folder when needed.
        scratch = self.scratch or str(Path(tempfile.gettempdir()) / "stillroom-candidate")
        scorer = MergeScorer(self.settings, Path(f"{scratch}-{uuid4().hex}"), lambda line: None)
        runner = TrialRunner(recipe, open_merge(recipe), scorer)

        def try_all(candidates: Sequence[Mapping[str, Any]]) -> list[TrialResult]:
            return [runner.try_changes(changes, self.records) for changes in candidates]

        return WorkerResources(try_all, (scorer.close,))


_STATE: dict[str, WorkerResources[Mapping[str, Any], TrialResult]] = {}


def _start_worker(work: _TrialWork, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    _STATE["work"] = work.open()


def _run_trial(changes: Mapping[str, Any]) -> TrialResult:
    return _STATE["work"]([changes])[0]


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0]
