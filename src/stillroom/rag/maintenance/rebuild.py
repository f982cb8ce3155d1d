"""Re-indexing with other settings beside the live index, switched after comparison; rollback.

The new index is a job of its own in a hidden folder, and can be resumed. Both indexes are then
evaluated on the same questions: judged ones if given, else known-item questions, which are words of
sampled passages whose document is to be found. (Such words favor keyword search and the chunker
that created the passages; they only show whether something was lost.) The switch swaps the two
folders atomically, and the previous index is kept for a rollback, which first updates it from its
documents, so that deleted documents do not reappear.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stillroom.errors import Cancelled, DataError, IntegrityError, StillroomError
from stillroom.evaluate.metrics.retrieval import RunComparison, compare_runs, parse_measure
from stillroom.jobs import Job, check_fits, describe_machine, tell_warnings
from stillroom.jobs.files import swap_folders
from stillroom.provenance import ARTIFACT_FILE, digest_text, find_output, read_artifact
from stillroom.rag.evaluation.retrieval import (
    JudgedUnit,
    RunResults,
    choose_unit,
    get_query_id,
    search_query,
)
from stillroom.rag.evaluation.retrieval_job import read_judged_queries
from stillroom.rag.index.builder import build_index, estimate_index
from stillroom.rag.index.searcher import Index
from stillroom.rag.maintenance.update import (
    UpdateResult,
    locate_index,
    start_or_resume,
    update_index,
)
from stillroom.rag.retrieval.pipeline import RetrievalPipeline, parse_pipeline
from stillroom.rag.storage.snapshots import open_store, update_manifest
from stillroom.recipes import dump_recipe

if TYPE_CHECKING:
    from stillroom.jobs import Reporter
    from stillroom.rag.index.view import AccessContext
    from stillroom.rag.jobs.index import IndexRecipe

__all__ = ["RebuildResult", "RecallCheck", "drop_previous", "rebuild_index", "roll_back"]

_KNOWN_ITEMS = 200
_DEPTH = 10
_MIN_WORDS, _MAX_WORDS = 4, 12


@dataclass(frozen=True, slots=True)
class RecallCheck:
    """Settings of the comparison of both indexes.

    ``queries`` and ``qrels`` are files of judged questions; without them, known-item questions are
    sampled. The first of ``measures`` decides.
    """

    queries: Path | None = None
    qrels: Path | None = None
    pipeline: str = "convex"
    measures: tuple[str, ...] = ("mrr@10", "success@10")
    access: AccessContext | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class RebuildResult:
    """Result of a rebuild: the comparison, and whether the new index is live."""

    kind: Literal["judged", "known-item"]
    queries: int
    board: RunComparison
    is_switched: bool

    @property
    def is_worse(self) -> bool:
        """Whether the first measure fell significantly (confidence interval below 0)."""
        difference, _ = self.board.differences["after"][self.board.measures[0]]
        return difference.high < 0

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {
            "questions": self.kind,
            "queries": self.queries,
            "measures": {
                measure: {
                    "before": self.board.means["before"][measure].to_json(),
                    "after": self.board.means["after"][measure].to_json(),
                    "difference": self.board.differences["after"][measure][0].to_json(),
                    "p": self.board.differences["after"][measure][1],
                }
                for measure in self.board.measures
            },
            "switched": self.is_switched,
        }


def rebuild_index(
    index: Path,
    recipe: IndexRecipe,
    questions: RecallCheck,
    *,
    anyway: bool = False,
    reporter: Reporter | None = None,
) -> RebuildResult:
    """Build a new index beside the live one, compare both, and switch.

    ``anyway`` switches even if the new index is significantly worse.

    Raises:
        DataError: If documents or judged questions cannot be used.
        IntegrityError: If the new index is significantly worse and ``anyway`` is false; the new
            index is then kept, and the live one is unchanged.
    """
    home, _ = locate_index(index)
    _finish_switch(home)
    shadow, previous = _get_shadow_folder(home), _get_previous_folder(home)
    asked = _read_questions(home, questions)  # before minutes of building
    _build(home, shadow, recipe, reporter)
    comparison = _measure(home, shadow, questions, asked)
    if comparison.is_worse and not anyway:
        raise _is_worse(home, comparison)
    done = RebuildResult(comparison.kind, comparison.queries, comparison.board, is_switched=True)
    with open_store(find_output(shadow, "index")).write() as writer:
        replaced = read_artifact(home).details["index"]
        update_manifest(writer, details={"rebuilt": {**done.to_json(), "replaced": replaced}})
    swap_folders(shadow, home)  # the switch; the shadow is now the previous index
    _remove(previous, successor=shadow)
    return done


def roll_back(
    index: Path, *, anyway: bool = False, reporter: Reporter | None = None
) -> UpdateResult | None:
    """Switch back to the index before the last rebuild; return the result of its update, if any.

    The previous index is first updated from its documents, unless ``anyway``: deleted or changed
    documents would otherwise reappear. The newer index is kept in its place.

    Raises:
        DataError: If there is no previous index.
        StillroomError: If the update fails; the newer index then remains live.
    """
    home, _ = locate_index(index)
    previous = _get_previous_folder(home)
    _finish_switch(home)
    if not previous.exists():
        raise DataError(
            "there is no previous index",
            code="rag.no-previous",
            where=str(home),
            expected="a rebuilt index whose previous one was not dropped",
            next=f"stillroom rag rebuild {home} --recipe NEW",
        )
    done = None if anyway else _catch_up(home, previous, reporter)
    swap_folders(previous, home)
    return done


def drop_previous(index: Path) -> bool:
    """Delete the previous index kept by a rebuild; return whether there was one.

    Raises:
        ResourceError: If its store cannot be reached.
    """
    home, _ = locate_index(index)
    _finish_switch(home)
    return _remove(_get_previous_folder(home))


def _catch_up(home: Path, previous: Path, reporter: Reporter | None) -> UpdateResult:
    try:
        return update_index(previous, reporter=reporter)
    except StillroomError as error:
        if isinstance(error, Cancelled):
            raise
        problem = error.problems[0]
        raise type(error)(
            f"the previous index cannot be updated from its documents: {problem.what}",
            code=problem.code,
            where=problem.where,
            expected=problem.expected,
            next=f"{problem.next}; or 'stillroom rag rebuild {home} --rollback --anyway', after "
            "which documents deleted or changed since reappear",
        ) from error


def _get_shadow_folder(home: Path) -> Path:
    return home.with_name(f".{home.name}.next")


def _get_previous_folder(home: Path) -> Path:
    return home.with_name(f".{home.name}.previous")


def _finish_switch(home: Path) -> None:
    """Complete a switch interrupted before the index that it replaced was renamed."""
    shadow, previous = _get_shadow_folder(home), _get_previous_folder(home)
    replaced = read_artifact(home).details.get("rebuilt", {}).get("replaced")
    if replaced and _read_digest(shadow) == replaced != _read_digest(previous):
        _remove(previous, successor=shadow)


def _read_digest(folder: Path) -> str:
    """Return the digest of an index; empty where there is none, or one that is not finished."""
    if not (folder / ARTIFACT_FILE).is_file():
        return ""
    return str(read_artifact(folder).details.get("index"))


def _remove(folder: Path, *, successor: Path | None = None) -> bool:
    """Delete an index, and give its name to a successor; return whether there was one.

    It is renamed first, so that one deleted in part is never taken for whole.
    """
    dropped = folder.with_name(f"{folder.name}.dropped")
    was_left = _delete(dropped)  # by an interruption
    if folder.exists():
        folder.rename(dropped)
    if successor is not None:
        successor.rename(folder)
    return _delete(dropped) or was_left


def _delete(folder: Path) -> bool:
    if not folder.exists():
        return False
    open_store(find_output(folder, "index")).discard()
    shutil.rmtree(folder)
    return True


def _build(home: Path, shadow: Path, recipe: IndexRecipe, reporter: Reporter | None) -> None:
    """Build the new index, or update one that was built already."""
    text = dump_recipe(recipe)
    if Job.recover(shadow) and read_artifact(shadow).recipe_digest == digest_text(text):
        update_index(shadow, reporter=reporter)
        return
    check_fits(estimate_index(recipe), describe_machine(shadow), recipe.kind)
    _remove(shadow)
    job = start_or_resume(shadow, text, seed=recipe.seed, reporter=reporter)
    job.previous = home  # reuse vectors of equal texts if the embedder is the same
    try:
        tell_warnings(recipe.describe_unused(), reporter)
        with job.interruptible():
            build_index(recipe, job)
    finally:
        job.close()
    update_index(shadow, reporter=reporter)  # documents added meanwhile


@dataclass(frozen=True, slots=True)
class _Questions:
    """Texts and judgments of what both indexes are asked; ``unit`` is that of the live one."""

    kind: Literal["judged", "known-item"]
    pipeline: RetrievalPipeline
    texts: Mapping[str, str]
    qrels: Mapping[str, dict[str, int]]
    unit: JudgedUnit


def _read_questions(home: Path, check: RecallCheck) -> _Questions:
    """Return the questions of a comparison, checked against the live index."""
    today = datetime.now(UTC).date()  # one day for all searches of both indexes
    pipeline = parse_pipeline(check.pipeline).on_day(today)
    for measure in check.measures:
        parse_measure(measure)
    with Index.open(home, access=check.access) as index:
        if check.queries is None or check.qrels is None:
            texts, items = _sample_known_items(index, check.seed)
            return _Questions("known-item", pipeline, texts, items, "path")
        texts, qrels = read_judged_queries(check.queries, check.qrels)
        unit = choose_unit(_iter_passages(index), qrels)[0]
        return _Questions("judged", pipeline, texts, qrels, unit)


def _measure(home: Path, shadow: Path, check: RecallCheck, asked: _Questions) -> RebuildResult:
    """Evaluate both indexes on the same questions."""
    qrels, unit = asked.qrels, asked.unit
    with (
        Index.open(home, access=check.access) as old,
        Index.open(shadow, access=check.access) as new,
    ):
        other = choose_unit(_iter_passages(new), qrels)[0] if asked.kind == "judged" else unit
        runs = {
            name: RunResults(name, _search(index, asked, unit)).run()
            for name, index, unit in (("before", old, unit), ("after", new, other))
        }
    board = compare_runs(runs, qrels, check.measures, seed=check.seed)
    return RebuildResult(asked.kind, len(qrels), board, is_switched=False)


def _iter_passages(index: Index) -> Any:
    return (index.passage_at(row) for row in range(len(index)))


def _search(index: Index, asked: _Questions, unit: JudgedUnit) -> dict[str, Any]:
    return {
        query: search_query(
            index,
            asked.pipeline,
            asked.texts[query],
            unit=unit,
            depth=_DEPTH,
            leave_out=get_query_id(query, unit, grades),
        )
        for query, grades in asked.qrels.items()
    }


def _sample_known_items(
    index: Index, seed: int
) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """Return known-item questions, and the path of the document of each.

    Raises:
        DataError: If the index has no visible passage.
    """
    rng = np.random.default_rng(seed)
    count = min(_KNOWN_ITEMS, len(index))
    if not count:
        raise DataError(
            "the index has no visible passage to sample questions from",
            code="rag.too-few-queries",
            where=str(index.folder),
            expected="judged questions, or an index with visible passages",
            next="give --queries and --qrels, or --tenant and --principal",
        )
    texts, qrels = {}, {}
    for row in np.sort(rng.choice(len(index), count, replace=False)):
        passage = index.passage_at(int(row))
        words = passage.text.split()
        size = int(rng.integers(_MIN_WORDS, _MAX_WORDS + 1))
        start = int(rng.integers(0, max(1, len(words) - size)))
        name = f"item{row}"
        texts[name] = " ".join(words[start : start + size]).replace('"', " ")
        qrels[name] = {passage.location.path: 1}
    return texts, qrels


def _is_worse(home: Path, comparison: RebuildResult) -> IntegrityError:
    measure = comparison.board.measures[0]
    values = [comparison.board.means[name][measure].value for name in ("before", "after")]
    difference, p = comparison.board.differences["after"][measure]
    return IntegrityError(
        f"the new index is worse: {measure} {values[1]:.3f} instead of {values[0]:.3f} on "
        f"{comparison.queries} {comparison.kind} questions (difference {difference.low:.3f} to "
        f"{difference.high:.3f}, p {p:.3g})",
        code="rag.rebuild-worse",
        where=str(home),
        expected="an index with equal or better results",
        next="change the recipe, or add --anyway; the index is unchanged",
    )
