"""Migration of an index between stores, verified before the switch.

Documents are copied in batches, each a commit of the new store, which has no readers yet, so that
an interrupted migration can be resumed. The copy must then agree with the source in counts, digest
and integrity check, and sampled queries must return the same rows with the same scores. The switch
swaps two folders atomically. The source is kept beside the index until it is dropped.

Only the newest snapshot is copied; readers that have the source open keep reading it.

Queries are sequences of words from randomly sampled passages (keyword search) and vectors of
randomly sampled passages (dense search), and, if stored, their term weights and token vectors. All
searches are exact, so that rows and scores must be equal. The comparison ignores access rights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import DataError, IntegrityError
from stillroom.jobs import Job, atomic_write, get_working_folder, replace_folder, sync_folder
from stillroom.jobs.files import swap_folders
from stillroom.rag.index.ann_recall import refresh_recall, sample_queries
from stillroom.rag.index.view import SearchView
from stillroom.rag.interfaces import STORES, IndexStore
from stillroom.rag.maintenance.update import locate_index
from stillroom.rag.storage.filters import SqlCondition
from stillroom.rag.storage.protocol import IndexUpdate
from stillroom.rag.storage.snapshots import (
    IndexConfig,
    is_approximate,
    open_analyzer,
    open_store,
    read_store_file,
    update_manifest,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.jobs import Reporter
    from stillroom.rag.storage.protocol import (
        IndexStorage,
        IndexWriter,
        ReusableContent,
        SnapshotReader,
    )
    from stillroom.rag.types import DocumentMetadata, RankedRows, StagedDocument

__all__ = ["MigrationResult", "StoreComparison", "compare_stores", "drop_source", "migrate_index"]


_DEPTH = 20
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class StoreComparison:
    """Compared counts, and the maximum difference of two scores of one row."""

    documents: int
    passages: int
    digest: str
    queries: int
    difference: float

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return asdict(self)


def compare_stores(
    old: SnapshotReader, new: SnapshotReader, where: Path, *, queries: int, seed: int = 0
) -> StoreComparison:
    """Compare a store with its source.

    Raises:
        IntegrityError: If counts, digest, rows, vectors or scores differ.
    """
    if old.snapshot.counts != new.snapshot.counts:
        raise _make_difference_error(
            where, f"counts are {new.snapshot.counts}, not {old.snapshot.counts}"
        )
    if old.snapshot.digest != new.snapshot.digest:
        raise _make_difference_error(
            where, f"the digest is {new.snapshot.digest}, not {old.snapshot.digest}"
        )
    views = SearchView(old, SqlCondition()), SearchView(new, SqlCondition())
    rng = np.random.default_rng(seed)
    size = len(views[0].rows)
    count = min(queries, size)
    texts = sample_queries(old, views[0], rng, count)
    max_difference = 0.0
    for text in texts:
        rankings = [_search_keyword(view, text, where) for view in views]
        max_difference = max(
            max_difference,
            _compare_rankings(rankings[0], rankings[1], where, f"words {text[:60]!r}"),
        )
    rows = rng.choice(size, count, replace=False) if size else np.zeros(0, dtype=np.int64)
    for row in rows:
        vectors = [view.opened.vectors_at(view.rows.places[[row]])[0] for view in views]
        if not np.array_equal(vectors[0], vectors[1]):
            raise _make_difference_error(where, f"passage {row} has another vector")
        rankings = [_search_dense(view, vectors[0]) for view in views]
        max_difference = max(
            max_difference,
            _compare_rankings(rankings[0], rankings[1], where, f"the vector of {row}"),
        )
    max_difference = max(max_difference, _compare_auxiliary_vectors(views, rows, where))
    snapshot = new.snapshot
    return StoreComparison(
        snapshot.documents, snapshot.passages, snapshot.digest, count, max_difference
    )


def _compare_auxiliary_vectors(
    views: Sequence[SearchView], rows: NDArray[np.int64], where: Path
) -> float:
    """Return the maximum difference of two scores by term weights or token vectors.

    Raises:
        IntegrityError: If only one store has them, or values or results differ.
    """
    for name in ("sparse", "tokens"):
        if len({getattr(view, name) is None for view in views}) > 1:
            raise _make_difference_error(where, f"only one of the two stores has {name}")
    max_difference = 0.0
    for row in rows.tolist():
        for search, kind in (
            (_search_terms_of, "term weights"),
            (_search_tokens_of, "token vectors"),
        ):
            (old, old_ranking), (new, new_ranking) = (search(view, row, rows) for view in views)
            if not np.array_equal(old, new):
                raise _make_difference_error(where, f"passage {row} has other {kind}")
            difference = _compare_rankings(old_ranking, new_ranking, where, f"the {kind} of {row}")
            max_difference = max(max_difference, difference)
    return max_difference


def _search_terms_of(view: SearchView, row: int, rows: NDArray[np.int64]) -> tuple[Any, RankedRows]:
    """Return the term weights of a row, and the ranking of a search with them."""
    engine = view.sparse
    if engine is None:
        return [], []
    terms = engine.terms_of(int(view.rows.places[row]))
    weights = np.array(list(terms.items()), dtype=object)
    return weights, view.rank(lambda depth: engine.search(terms, depth), _DEPTH)


def _search_tokens_of(
    view: SearchView, row: int, rows: NDArray[np.int64]
) -> tuple[Any, RankedRows]:
    """Return the token vectors of a row, and the ranking of some rows by them."""
    engine = view.tokens
    if engine is None:
        return [], []
    candidates = view.rows.places[rows]
    vectors = engine.vectors_of(int(view.rows.places[row]))
    if not len(vectors):
        return vectors, []
    return vectors, view.rank(lambda depth: engine.search(vectors, depth, rows=candidates), _DEPTH)


def _search_keyword(view: SearchView, text: str, where: Path) -> RankedRows:
    description = IndexConfig.from_json(view.opened.description)
    terms = open_analyzer(description, where).query_terms(text)
    settings = description.settings["keyword"]
    return view.rank(
        lambda depth: view.keywords.search(
            terms,
            depth,
            k1=float(settings["k1"]),
            b=float(settings["b"]),
            heading_weight=float(settings["heading_weight"]),
        ),
        _DEPTH,
    )


def _search_dense(view: SearchView, vector: Any) -> RankedRows:
    return view.rank(lambda depth: view.search_dense(vector, depth, "exact"), _DEPTH)


def _compare_rankings(old: RankedRows, new: RankedRows, where: Path, query: str) -> float:
    """Return the maximum difference of two scores.

    Raises:
        IntegrityError: If rows or scores differ.
    """
    if [row for row, _ in old] != [row for row, _ in new]:
        raise _make_difference_error(where, f"other passages are found by {query}")
    max_difference = max((abs(a[1] - b[1]) for a, b in zip(old, new, strict=True)), default=0.0)
    if max_difference > _TOLERANCE:
        raise _make_difference_error(where, f"a score differs by {max_difference:.3g}, by {query}")
    return max_difference


def _make_difference_error(where: Path, difference: str) -> IntegrityError:
    return IntegrityError(
        f"the copy differs from the index: {difference}",
        code="rag.copy-differs",
        where=str(where),
        expected="equal counts, digests, rows and scores",
        next="stillroom rag verify INDEX; nothing was switched, and the source is unchanged",
    )


_SOURCE_STORE = "source"
"""Folder, next to output, with the store from before the migration."""

_BATCH_PASSAGES = 4_000
_TARGET_FILE = "target.json"


@dataclass(frozen=True, slots=True)
class MigrationResult:
    """Result of a migration: source and target store, copied documents, and the comparison."""

    before: str
    after: str
    copied: int
    comparison: StoreComparison

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {
            "from": self.before,
            "to": self.after,
            "copied": self.copied,
            **self.comparison.to_json(),
        }


def migrate_index(
    index: Path, method: IndexStore, *, queries: int = 64, reporter: Reporter | None = None
) -> MigrationResult:
    """Move an index to another store.

    ``index`` is the artifact's folder, or that of a step of a run; ``queries`` is how many of each
    kind are compared before the switch.

    Raises:
        DataError: If the source of an earlier migration was not dropped, the index is already
            there, or the store does not support all search methods of the index; nothing is then
            started.
        ResourceError: If another process writes the index, or a store cannot be reached.
        IntegrityError: If the copy differs; nothing is then switched.
    """
    home, output = locate_index(index)
    _finish_switch(home, output)
    if (home / _SOURCE_STORE).exists():
        raise _find_kept_source(home)
    config = read_store_file(output)
    source_method = STORES.build(config.get("store", "folder"))
    if source_method == method:
        raise DataError(
            f"the index is already in the store {method.method_name()}",
            code="rag.same-store",
            where=str(home),
            expected="another store, or the same with other settings",
            next="stillroom list methods rag.stores",
        )
    source = open_store(output)
    with source.write() as writer:  # locks out other writers; readers continue
        _reject_loss(home, method, writer.description["settings"])
        with closing(_start_job(home, method, writer, reporter)) as job, job.interruptible():
            copied = _copy(source, writer, method, job)
            comparison = _verify_copy(source, job.output, home, queries, job)
        _switch(home, output, job.output)
    shutil.rmtree(job.work)
    done = MigrationResult(source_method.method_name(), method.method_name(), copied, comparison)
    with open_store(output).write() as writer:
        update_manifest(writer, details={"migrated": done.to_json()})
    return done


def drop_source(index: Path) -> bool:
    """Delete the store kept from before a migration; return whether there was one.

    Raises:
        ResourceError: If the store cannot be reached.
    """
    home, output = locate_index(index)
    _finish_switch(home, output)
    source = home / _SOURCE_STORE
    if not source.exists():
        return False
    open_store(source).discard()
    shutil.rmtree(source)
    return True


def _start_job(
    home: Path, method: IndexStore, writer: IndexWriter, reporter: Reporter | None
) -> Job:
    """Resume a migration of the same state to the same store, or start one."""
    job = Job.start(_get_source_folder(home), "migrate\n", resume=True, reporter=reporter)
    target_file = job.scratch / _TARGET_FILE
    target = [writer.find_snapshot().digest, method.model_dump(mode="json")]
    if target_file.is_file() and json.loads(target_file.read_text(encoding="utf-8")) != target:
        job.say("the unfinished copy is of another state or to another store: starting over")
        open_store(job.output).discard()
        shutil.rmtree(job.output)
        job.output.mkdir()
    with atomic_write(target_file) as file:
        json.dump(target, file)
    return job


def _copy(source: IndexStorage, writer: IndexWriter, method: IndexStore, job: Job) -> int:
    """Copy the documents missing in the new store; return their number."""
    reusable = source.hold()
    copied = 0
    try:
        with _open_target(method, job.output, reusable) as target:
            has_any = bool(target.snapshots())
            done = target.list_documents() if has_any else {}
            missing = [part for part in reusable.list_parts() if part[0].entry.path not in done]
            total = len(missing) + len(done)
            with job.phase("copy", total, "documents", done=len(done)) as progress:
                for batch in _batches(missing):
                    _commit(target, IndexUpdate(puts=batch), job)
                    copied += len(batch)
                    progress.advance(len(batch), note=batch[-1][0].entry.path)
            names = ("path", "code", "reason")
            failures = [
                dict(zip(names, failure, strict=True)) for failure in writer.list_failures()
            ]
            if failures or not target.snapshots():
                _commit(target, IndexUpdate(failures=failures), job)
            update_manifest(target)
    finally:
        reusable.close()
    return copied


def _commit(target: IndexWriter, change: IndexUpdate, job: Job) -> None:
    target.commit(change, reason="migrated", keep=1, check=job.check_cancelled)


def _open_target(method: IndexStore, draft: Path, reusable: ReusableContent) -> IndexWriter:
    """Open the store of an interrupted migration if it has a commit, else create it."""
    with suppress(IntegrityError):  # killed before the first commit
        if any(draft.iterdir()) and open_store(draft).snapshots():
            return open_store(draft).write()
    return method.create(draft, reusable.description)


def _batches(
    parts: Sequence[tuple[StagedDocument, DocumentMetadata]],
) -> Iterator[list[tuple[StagedDocument, DocumentMetadata]]]:
    """Yield batches of documents, in order, with some thousands of passages each."""
    batch: list[tuple[StagedDocument, DocumentMetadata]] = []
    size = 0
    for part, facts in parts:
        batch.append((part, facts))
        size += part.entry.passages
        if size >= _BATCH_PASSAGES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _verify_copy(
    source: IndexStorage, draft: Path, home: Path, queries: int, job: Job
) -> StoreComparison:
    """Check the integrity of the copy, and compare it with the source.

    Raises:
        IntegrityError: If it is inconsistent or differs.
    """
    target = open_store(draft)
    with job.phase("prove", 3, "checks") as progress:
        issues = target.check()
        if issues:
            raise IntegrityError(
                f"the copy is inconsistent: {issues[0]}",
                code="rag.copy-differs",
                where=str(home),
                expected="a consistent copy",
                next="run the migration again; nothing was switched",
            )
        progress.advance(note="the copy is consistent")
        with closing(source.read(verify=True)) as old, closing(target.read(verify=True)) as new:
            progress.advance(note="comparing")
            comparison = compare_stores(old, new, home, queries=queries)
            passages, settings = new.snapshot.passages, new.description["settings"]
        if is_approximate(settings, passages):
            refresh_recall(draft)
        progress.advance(note="equal")
    return comparison


def _switch(home: Path, output: Path, draft: Path) -> None:
    """Swap in the new store, and keep the old one beside it."""
    sync_folder(draft)
    swap_folders(draft, output)
    replace_folder(draft, home / _SOURCE_STORE)


def _finish_switch(home: Path, output: Path) -> None:
    """Complete a switch interrupted before the old store was moved to its place."""
    work = get_working_folder(_get_source_folder(home))
    target, old = work / "scratch" / _TARGET_FILE, work / "output"
    if (home / _SOURCE_STORE).exists() or not target.is_file() or not old.is_dir():
        return
    method = STORES.build(read_store_file(output).get("store", "folder"))
    if json.loads(target.read_text(encoding="utf-8"))[1] == method.model_dump(mode="json"):
        replace_folder(old, home / _SOURCE_STORE)


def _get_source_folder(home: Path) -> Path:
    return home.with_name(f".{home.name}.migrate")


_AUXILIARY_NAMES = {
    "sparse": "term weights of learned sparse search (sparse)",
    "tokens": "token vectors of late interaction (late_interaction)",
}


def _reject_loss(home: Path, method: IndexStore, settings: Mapping[str, Any]) -> None:
    """Reject a store that does not support all search methods of the index.

    Raises:
        DataError: If so; lists what is missing.
    """
    kept = type(method).model_fields
    lacking = [
        label for name, label in _AUXILIARY_NAMES.items() if settings.get(name) and name not in kept
    ]
    if lacking:
        raise DataError(
            f"the store {method.method_name()} cannot store {' and '.join(lacking)}",
            code="rag.store-lacks",
            where=str(home),
            expected="a store that supports all search methods of the index: folder",
            next="choose such a store, or rebuild the index without them first: "
            f"stillroom rag rebuild {home} --recipe RECIPE",
        )


def _find_kept_source(home: Path) -> DataError:
    return DataError(
        "an earlier migration's source is still kept",
        code="rag.source-kept",
        where=str(home / _SOURCE_STORE),
        expected="one source at a time",
        next=f"stillroom rag migrate {home} --drop-source, once you are sure of the new store",
    )
