"""Migration of an index between stores, verified before the switch.

Documents are copied in batches, each a commit of the new store, which nobody reads yet: a migration
that was killed goes on with what is missing. Then counts, digest and check of the copy must agree
with the source, and a sample of queries must find the same rows with the same scores. The switch
exchanges two folders in one step. The source stays, beside the index, until it is dropped.

The copy has the newest snapshot alone; readers that have the source open go on with it.

Questions are a few words in a row of passages drawn at random, for keyword search, and vectors of
passages drawn at random, for dense search, and where they are kept their term weights and token
vectors; all are exact, so that rows must be equal and scores, too. What is compared is all that the
stores hold, whoever may see it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
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
    from stillroom.rag.index.view import RowRanking
    from stillroom.rag.storage.protocol import (
        IndexStorage,
        IndexWriter,
        ReusableContent,
        SnapshotReader,
    )
    from stillroom.rag.types import DocumentMetadata, StagedDocument

__all__ = [
    "SOURCE_STORE",
    "MigrationResult",
    "StoreComparison",
    "compare_stores",
    "drop_source",
    "migrate_index",
]


_DEPTH = 20


_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class StoreComparison:
    """What was found equal, and the greatest difference of two scores of one row."""

    documents: int
    passages: int
    digest: str
    queries: int
    difference: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def compare_stores(
    old: SnapshotReader, new: SnapshotReader, where: Path, *, queries: int, seed: int = 0
) -> StoreComparison:
    """Hold a store against the one that it was made from.

    Args:
        old: The source, open.
        new: What was made of it, open.
        where: The index, for errors.
        queries: How many questions of each kind are put to both.
        seed: Which passages they are drawn from.

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
    asked = sample_queries(old, views[0], rng, count)
    greatest = 0.0
    for text in asked:
        found = [_search_keyword(view, text, where) for view in views]
        greatest = max(
            greatest, _compare_rankings(found[0], found[1], where, f"words {text[:60]!r}")
        )
    rows = rng.choice(size, count, replace=False) if size else np.zeros(0, dtype=np.int64)
    for row in rows:
        vectors = [view.opened.vectors_at(view.rows.places[[row]])[0] for view in views]
        if not np.array_equal(vectors[0], vectors[1]):
            raise _make_difference_error(where, f"passage {row} has another vector")
        found = [_search_dense(view, vectors[0]) for view in views]
        greatest = max(
            greatest, _compare_rankings(found[0], found[1], where, f"the vector of {row}")
        )
    greatest = max(greatest, _compare_auxiliary_vectors(views, rows, where))
    snapshot = new.snapshot
    return StoreComparison(snapshot.documents, snapshot.passages, snapshot.digest, count, greatest)


def _compare_auxiliary_vectors(
    views: Sequence[SearchView], rows: NDArray[np.int64], where: Path
) -> float:
    """Return the greatest difference of two scores by term weights or token vectors.

    Raises:
        IntegrityError: If only one store keeps them, or they find or are something else.
    """
    for name in ("sparse", "tokens"):
        if len({getattr(view, name) is None for view in views}) > 1:
            raise _make_difference_error(
                where, f"only one of both keeps what is asked for as {name}"
            )
    greatest = 0.0
    for row in rows.tolist():
        for ask, what in ((_search_terms_of, "term weights"), (_search_tokens_of, "token vectors")):
            (kept, found), (other, again) = (ask(view, row, rows) for view in views)
            if not np.array_equal(kept, other):
                raise _make_difference_error(where, f"passage {row} has other {what}")
            greatest = max(greatest, _compare_rankings(found, again, where, f"the {what} of {row}"))
    return greatest


def _search_terms_of(view: SearchView, row: int, rows: NDArray[np.int64]) -> tuple[Any, RowRanking]:
    """Return the term weights of a row, and what is found by them."""
    engine = view.sparse
    if engine is None:
        return [], []
    terms = engine.terms_of(int(view.rows.places[row]))
    kept = np.array(list(terms.items()), dtype=object)
    return kept, view.rank(lambda depth: engine.search(terms, depth), _DEPTH)


def _search_tokens_of(
    view: SearchView, row: int, rows: NDArray[np.int64]
) -> tuple[Any, RowRanking]:
    """Return the token vectors of a row, and what of some rows is found by them."""
    engine = view.tokens
    if engine is None:
        return [], []
    places = view.rows.places[rows]
    own = engine.vectors_of(int(view.rows.places[row]))
    if not len(own):
        return own, []
    return own, view.rank(lambda depth: engine.search(own, depth, rows=places), _DEPTH)


def _search_keyword(view: SearchView, text: str, where: Path) -> RowRanking:
    description = IndexConfig.from_json(view.opened.description)
    terms = open_analyzer(description, where).query_terms(text)
    told = description.settings["keyword"]
    return view.rank(
        lambda depth: view.keywords.search(
            terms,
            depth,
            k1=float(told["k1"]),
            b=float(told["b"]),
            heading_weight=float(told["heading_weight"]),
            variant=told.get("variant", "lucene"),
            delta=told.get("delta"),
        ),
        _DEPTH,
    )


def _search_dense(view: SearchView, vector: Any) -> RowRanking:
    return view.rank(lambda depth: view.search_dense(vector, depth, "exact"), _DEPTH)


def _compare_rankings(old: RowRanking, new: RowRanking, where: Path, what: str) -> float:
    """Return the greatest difference of two scores.

    Raises:
        IntegrityError: If other rows are found, or with other scores.
    """
    if [row for row, _ in old] != [row for row, _ in new]:
        raise _make_difference_error(where, f"other passages are found by {what}")
    greatest = max((abs(a[1] - b[1]) for a, b in zip(old, new, strict=True)), default=0.0)
    if greatest > _TOLERANCE:
        raise _make_difference_error(where, f"a score is {greatest:.3g} off, by {what}")
    return greatest


def _make_difference_error(where: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"the copy is not the index: {what}",
        code="rag.copy-differs",
        where=str(where),
        expected="equal counts, digests, rows and scores",
        next="stillroom rag verify INDEX; nothing was switched, and the source is as it was",
    )


SOURCE_STORE = "source"


"""The folder, beside output, that keeps where an index lay before it was migrated."""


_BATCH_PASSAGES = 4_000


_TARGET_FILE = "target.json"


@dataclass(frozen=True, slots=True)
class MigrationResult:
    """What a migration did: from which store to which, what was copied, and what was compared."""

    before: str
    after: str
    copied: int
    comparison: StoreComparison

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
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

    Args:
        index: The artifact's folder, or the folder of a step of a run.
        method: Where to.
        queries: How many questions of each kind are put to both before the switch.
        reporter: What draws progress.

    Raises:
        DataError: If an earlier migration's source was not dropped, the index lies there, or the
            store cannot hold all that the index is searched by; nothing is then begun.
        ResourceError: If another process writes the index, or a store cannot be reached.
        IntegrityError: If the copy differs; nothing is then switched.
    """
    home, output = locate_index(index)
    _finish_switch(home, output)
    if (home / SOURCE_STORE).exists():
        raise _find_kept_source(home)
    told = read_store_file(output)
    before = STORES.build(told.get("store", "folder"))
    if before == method:
        raise DataError(
            f"the index lies in {method.method_name()} already",
            code="rag.same-store",
            where=str(home),
            expected="another store, or other settings of the same",
            next="stillroom list methods rag.stores",
        )
    source = open_store(output)
    with source.write() as writer:  # nobody changes it meanwhile; readers go on
        _reject_loss(home, method, writer.description["settings"])
        job = _start_job(home, method, writer, reporter)
        try:
            with job.interruptible():
                copied = _copy(source, writer, method, job)
                comparison = _verify_copy(source, job.output, home, queries, job)
        finally:
            job.close()
        _switch(home, output, job.output)
    shutil.rmtree(job.work)
    done = MigrationResult(before.method_name(), method.method_name(), copied, comparison)
    with open_store(output).write() as writer:
        update_manifest(writer, details={"migrated": done.to_json()})
    return done


def drop_source(index: Path) -> bool:
    """Remove what a migration kept of the store before; return whether there was anything.

    Args:
        index: The artifact's folder.

    Raises:
        ResourceError: If the store cannot be reached.
    """
    home, output = locate_index(index)
    _finish_switch(home, output)
    kept = home / SOURCE_STORE
    if not kept.exists():
        return False
    open_store(kept).discard()
    shutil.rmtree(kept)
    return True


def _start_job(
    home: Path, method: IndexStore, writer: IndexWriter, reporter: Reporter | None
) -> Job:
    """Go on with a migration of the same state to the same store, or begin one."""
    job = Job.start(_get_source_folder(home), "migrate\n", resume=True, reporter=reporter)
    kept = job.scratch / _TARGET_FILE
    told = [writer.find_snapshot().digest, method.model_dump(mode="json")]
    if kept.is_file() and json.loads(kept.read_text(encoding="utf-8")) != told:
        job.say("the copy that was begun is of another state or to another store: starting over")
        open_store(job.output).discard()
        shutil.rmtree(job.output)
        job.output.mkdir()
    with atomic_write(kept) as file:
        json.dump(told, file)
    return job


def _copy(source: IndexStorage, writer: IndexWriter, method: IndexStore, job: Job) -> int:
    """Copy the documents that the new store does not hold yet; return how many."""
    held = source.hold()
    copied = 0
    try:
        with _open_target(method, job.output, held) as target:
            has_any = bool(target.snapshots())
            done = target.list_documents() if has_any else {}
            missing = [one for one in held.list_parts() if one[0].entry.path not in done]
            total = len(missing) + len(done)
            with job.phase("copy", total, "documents", done=len(done)) as progress:
                for batch in _batches(missing):
                    _commit(target, IndexUpdate(puts=batch), job)
                    copied += len(batch)
                    progress.advance(len(batch), note=batch[-1][0].entry.path)
            names = ("path", "code", "reason")
            failures = [dict(zip(names, one, strict=True)) for one in writer.list_failures()]
            if failures or not target.snapshots():
                _commit(target, IndexUpdate(failures=failures), job)
            update_manifest(target)
    finally:
        held.close()
    return copied


def _commit(target: IndexWriter, change: IndexUpdate, job: Job) -> None:
    target.commit(change, reason="migrated", keep=1, check=job.check_cancelled)


def _open_target(method: IndexStore, draft: Path, held: ReusableContent) -> IndexWriter:
    """Open what an earlier try has made, where it has committed anything, or make it."""
    try:
        if any(draft.iterdir()) and open_store(draft).snapshots():
            return open_store(draft).write()
    except IntegrityError:  # it was killed before its first commit
        pass
    return method.create(draft, held.description)


def _batches(
    parts: Sequence[tuple[StagedDocument, DocumentMetadata]],
) -> Iterator[list[tuple[StagedDocument, DocumentMetadata]]]:
    """Yield documents in order, so many that a batch has some thousands of passages."""
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
    """Hold the copy against the source, and against itself.

    Raises:
        IntegrityError: If it is not the same.
    """
    target = open_store(draft)
    with job.phase("prove", 3, "checks") as progress:
        found = target.check()
        if found:
            raise IntegrityError(
                f"the copy does not agree with itself: {found[0]}",
                code="rag.copy-differs",
                where=str(home),
                expected="a sound copy",
                next="run the migration again; nothing was switched",
            )
        progress.advance(note="the copy agrees with itself")
        old = source.read(verify=True)
        try:
            new = target.read(verify=True)
            try:
                progress.advance(note="comparing")
                told = compare_stores(old, new, home, queries=queries)
                passages, settings = new.snapshot.passages, new.description["settings"]
            finally:
                new.close()
        finally:
            old.close()
        if is_approximate(settings, passages):
            refresh_recall(draft)
        progress.advance(note="equal")
    return told


def _switch(home: Path, output: Path, draft: Path) -> None:
    """Let the index lie in its new store from here, and keep the old one beside it."""
    sync_folder(draft)
    swap_folders(draft, output)
    replace_folder(draft, home / SOURCE_STORE)


def _finish_switch(home: Path, output: Path) -> None:
    """Put the old store where a source is kept, if a kill came between the switch and that."""
    work = get_working_folder(_get_source_folder(home))
    target, old = work / "scratch" / _TARGET_FILE, work / "output"
    if (home / SOURCE_STORE).exists() or not target.is_file() or not old.is_dir():
        return
    method = STORES.build(read_store_file(output).get("store", "folder"))
    if json.loads(target.read_text(encoding="utf-8"))[1] == method.model_dump(mode="json"):
        replace_folder(old, home / SOURCE_STORE)


def _get_source_folder(home: Path) -> Path:
    return home.with_name(f".{home.name}.migrate")


def _reject_loss(home: Path, method: IndexStore, settings: Mapping[str, Any]) -> None:
    """Refuse a store in which the index could not be searched as it can now.

    Raises:
        DataError: If the store cannot hold something; says what.
    """
    lacking = method.list_lacking(settings)
    if lacking:
        raise DataError(
            f"the store {method.method_name()} cannot hold {' and '.join(lacking)}",
            code="rag.store-lacks",
            where=str(home),
            expected="a store that holds all that the index is searched by: folder or qdrant",
            next="choose such a store, or rebuild the index without them first: "
            f"stillroom rag rebuild {home} --recipe RECIPE",
        )


def _find_kept_source(home: Path) -> DataError:
    return DataError(
        "an earlier migration's source is still kept",
        code="rag.source-kept",
        where=str(home / SOURCE_STORE),
        expected="one source at a time",
        next=f"stillroom rag migrate {home} --drop-source, once you are sure of the new store",
    )
