"""Rebuild of an index with other settings beside the live one, switched after comparison.

The new index is a job of its own in a hidden folder, and goes on after a kill. Both are then put to
the same questions: judged ones where they are given, else known-item questions, which are some
words of some passages whose document is to be found again. (Words of a passage favour keyword
search and the chunker that cut it; what they can tell is whether something was lost.) The switch
exchanges the two folders in one step, and the one before stays for a rollback, which first brings
it up to its documents: what was deleted since does not answer again.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stillroom.errors import Cancelled, DataError, IntegrityError, StillroomError
from stillroom.evaluate.qa.collections import read_qrels, read_queries
from stillroom.jobs import Job, check_fits, describe_machine
from stillroom.jobs.files import swap_folders
from stillroom.provenance import digest_text, find_output, read_artifact
from stillroom.rag.evaluation.retrieval import (
    JudgedUnit,
    MetricTable,
    RunResults,
    choose_unit,
    compare_pipelines,
    get_query_id,
    search_query,
)
from stillroom.rag.index.searcher import Index
from stillroom.rag.maintenance.update import UpdateResult, locate_index, update_index
from stillroom.rag.retrieval.pipeline import parse_pipeline
from stillroom.rag.run import estimate, run
from stillroom.rag.storage.snapshots import open_store, update_manifest
from stillroom.recipes import dump_recipe

if TYPE_CHECKING:
    from stillroom.jobs import Reporter
    from stillroom.rag.index.view import AccessContext
    from stillroom.rag.recipe import RagRecipe

__all__ = ["RebuildResult", "RecallCheck", "drop_previous", "rebuild_index", "roll_back"]

_KNOWN_ITEMS = 200
_DEPTH = 10
_MIN_WORDS, _MAX_WORDS = 4, 12


@dataclass(frozen=True, slots=True)
class RecallCheck:
    """How both indexes are measured.

    ``queries`` and ``qrels`` are files of judged questions; without them known items are drawn.
    The first of ``measures`` decides.
    """

    queries: Path | None = None
    qrels: Path | None = None
    way: str = "convex"
    measures: tuple[str, ...] = ("mrr@10", "success@10")
    access: AccessContext | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class RebuildResult:
    """What a rebuild made, how it compares, and whether it answers now."""

    kind: Literal["judged", "known-item"]
    queries: int
    board: MetricTable
    is_switched: bool

    @property
    def is_worse(self) -> bool:
        """Whether the first measure fell, and its interval leaves no doubt."""
        difference, _ = self.board.differences["after"][self.board.measures[0]]
        return difference.high < 0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "questions": self.kind,
            "queries": self.queries,
            "measures": {
                measure: {
                    "before": self.board.metrics["before"][measure].to_json(),
                    "after": self.board.metrics["after"][measure].to_json(),
                    "difference": self.board.differences["after"][measure][0].to_json(),
                    "p": self.board.differences["after"][measure][1],
                }
                for measure in self.board.measures
            },
            "switched": self.is_switched,
        }


def rebuild_index(
    index: Path,
    recipe: RagRecipe,
    questions: RecallCheck,
    *,
    anyway: bool = False,
    reporter: Reporter | None = None,
) -> RebuildResult:
    """Build an index anew beside the one that answers, measure both, and switch.

    Args:
        index: The artifact's folder.
        recipe: How the new one is built; of the same documents, or others.
        questions: How both are measured.
        anyway: Switch even where the new one is worse beyond doubt.
        reporter: What draws progress.

    Raises:
        DataError: If documents or judged questions cannot be used.
        IntegrityError: If the new one is worse beyond doubt, and ``anyway`` is not given; the new
            one then stays beside, and the index is as it was.
    """
    home, _ = locate_index(index)
    _finish_switch(home)
    shadow, before = _get_shadow_folder(home), _get_previous_folder(home)
    _build(home, shadow, recipe, reporter)
    made = _measure(home, shadow, questions)
    if made.is_worse and not anyway:
        raise _is_worse(home, made)
    done = RebuildResult(made.kind, made.queries, made.board, is_switched=True)
    with open_store(find_output(shadow, "index")).write() as writer:
        replaced = read_artifact(home).details["index"]
        update_manifest(writer, details={"rebuilt": {**done.to_json(), "replaced": replaced}})
    swap_folders(shadow, home)  # the switch; what was the index is now the shadow
    _remove(before)
    shadow.rename(before)
    return done


def roll_back(
    index: Path, *, anyway: bool = False, reporter: Reporter | None = None
) -> UpdateResult | None:
    """Let the index before the last rebuild answer again; the newer one stays in its place.

    It is brought up to its documents first: what was deleted or changed meanwhile would else answer
    again.

    Args:
        index: The artifact's folder.
        anyway: Switch to it as it is.
        reporter: What draws progress.

    Returns:
        What the update did; None if there was none.

    Raises:
        DataError: If there is none.
        StillroomError: If it cannot be brought up to its documents; the newer one then answers.
    """
    home, _ = locate_index(index)
    before = _get_previous_folder(home)
    _finish_switch(home)
    if not before.exists():
        raise DataError(
            "there is no index before this one",
            code="rag.no-previous",
            where=str(home),
            expected="an index that was rebuilt, and whose previous one was not dropped",
            next=f"stillroom rag rebuild {home} --recipe NEW",
        )
    done = None if anyway else _catch_up(home, before, reporter)
    swap_folders(before, home)
    return done


def drop_previous(index: Path) -> bool:
    """Remove what a rebuild kept; return whether there was anything.

    Raises:
        ResourceError: If its store cannot be reached.
    """
    home, _ = locate_index(index)
    _finish_switch(home)
    return _remove(_get_previous_folder(home))


def _catch_up(home: Path, before: Path, reporter: Reporter | None) -> UpdateResult:
    try:
        return update_index(before, reporter=reporter)
    except StillroomError as error:
        if isinstance(error, Cancelled):
            raise
        problem = error.problems[0]
        raise type(error)(
            f"the index before cannot be brought up to its documents: {problem.what}",
            code=problem.code,
            where=problem.where,
            expected=problem.expected,
            next=f"{problem.next}; or 'stillroom rag rebuild {home} --rollback --anyway', after "
            "which what was deleted or changed since answers as it was",
        ) from error


def _get_shadow_folder(home: Path) -> Path:
    return home.with_name(f".{home.name}.next")


def _get_previous_folder(home: Path) -> Path:
    return home.with_name(f".{home.name}.previous")


def _finish_switch(home: Path) -> None:
    """Give the index before its name, where a kill came between the switch and that."""
    shadow, before = _get_shadow_folder(home), _get_previous_folder(home)
    if not shadow.exists() or before.exists():
        return
    told = read_artifact(home).details.get("rebuilt")
    if told and told["replaced"] == read_artifact(shadow).details.get("index"):
        shadow.rename(before)


def _remove(folder: Path) -> bool:
    if not folder.exists():
        return False
    open_store(find_output(folder, "index")).discard()
    shutil.rmtree(folder)
    return True


def _build(home: Path, shadow: Path, recipe: RagRecipe, reporter: Reporter | None) -> None:
    """Build the new index, or bring one that was built already up to its documents."""
    text = dump_recipe(recipe)
    if Job.recover(shadow) and read_artifact(shadow).recipe_digest == digest_text(text):
        update_index(shadow, reporter=reporter)
        return
    check_fits(estimate(recipe), describe_machine(shadow), recipe.kind)
    _remove(shadow)
    try:
        job = Job.start(shadow, text, seed=recipe.seed, resume=True, reporter=reporter)
    except DataError as error:
        if error.problems[0].code != "data.other-recipe":
            raise
        job = Job.start(shadow, text, seed=recipe.seed, overwrite=True, reporter=reporter)
    job.previous = home  # vectors of equal texts are taken over where the embedder is the same
    try:
        with job.interruptible():
            run(recipe, job)
    finally:
        job.close()
    update_index(shadow, reporter=reporter)  # what came meanwhile


def _measure(home: Path, shadow: Path, questions: RecallCheck) -> RebuildResult:
    """Put the same questions to both indexes."""
    way = parse_pipeline(questions.way)
    with (
        Index.open(home, access=questions.access) as old,
        Index.open(shadow, access=questions.access) as new,
    ):
        if questions.queries is not None and questions.qrels is not None:
            kind: Literal["judged", "known-item"] = "judged"
            texts, qrels = read_queries(questions.queries), read_qrels(questions.qrels)
            units = [choose_unit(_iter_passages(one), qrels)[0] for one in (old, new)]
        else:
            kind = "known-item"
            texts, qrels = _sample_known_items(old, questions.seed)
            units = ["path", "path"]
        found = [
            RunResults(name, _search(one, way, texts, qrels, unit))
            for name, one, unit in zip(("before", "after"), (old, new), units, strict=True)
        ]
    board = compare_pipelines(found, qrels, questions.measures, seed=questions.seed)
    return RebuildResult(kind, len(qrels), board, is_switched=False)


def _iter_passages(index: Index) -> Any:
    return (index.passage_at(row) for row in range(len(index)))


def _search(
    index: Index,
    way: Any,
    texts: Mapping[str, str],
    qrels: Mapping[str, Any],
    unit: JudgedUnit,
) -> dict[str, Any]:
    return {
        query: search_query(
            index,
            way,
            texts[query],
            unit=unit,
            depth=_DEPTH,
            leave_out=get_query_id(query, unit, qrels[query]),
        )
        for query in qrels
        if query in texts
    }


def _sample_known_items(
    index: Index, seed: int
) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
    """Return known-item questions, and the path of the document that each was taken from.

    Raises:
        DataError: If there is nothing to draw from.
    """
    rng = np.random.default_rng(seed)
    count = min(_KNOWN_ITEMS, len(index))
    if not count:
        raise DataError(
            "the index shows no passage to draw questions from",
            code="rag.too-few-queries",
            where=str(index.folder),
            expected="judged questions, or an index that shows passages",
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


def _is_worse(home: Path, made: RebuildResult) -> IntegrityError:
    measure = made.board.measures[0]
    values = [made.board.metrics[name][measure].value for name in ("before", "after")]
    difference, p = made.board.differences["after"][measure]
    return IntegrityError(
        f"the new index is worse: {measure} {values[1]:.3f} instead of {values[0]:.3f} on "
        f"{made.queries} {made.kind} questions (difference {difference.low:.3f} to "
        f"{difference.high:.3f}, p {p:.3g})",
        code="rag.rebuild-worse",
        where=str(home),
        expected="an index that finds as much",
        next="change the recipe, or add --anyway; the index is as it was",
    )
