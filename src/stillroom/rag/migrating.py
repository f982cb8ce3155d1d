"""Migration: an index moves from one store to another, and nothing is switched before it is proved.

Documents are copied in batches, each a commit of the new store, which nobody reads yet: a migration
that was killed goes on with what is missing. Then counts, digest and check of the copy must agree
with the source, and a sample of queries must find the same rows with the same scores. The switch
exchanges two folders in one step. The source stays, beside the index, until it is dropped.

The copy has the newest snapshot alone; readers that have the source open go on with it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, IntegrityError
from stillroom.jobs import Job, atomic_write, replace_folder, sync_folder, working_folder
from stillroom.jobs.files import exchange_folders
from stillroom.rag.approximation import renew_recall
from stillroom.rag.comparing import Comparison, compare_readings
from stillroom.rag.store.manifest import renew_manifest
from stillroom.rag.store.publishing import Change
from stillroom.rag.store.structures import is_approximate
from stillroom.rag.storing import STORES, IndexStore, open_store, read_store_file
from stillroom.rag.updating import find_home

if TYPE_CHECKING:
    from stillroom.jobs import Reporter
    from stillroom.rag.store.parts import Facts, Part
    from stillroom.rag.store.protocol import Holdings, Store, StoreWriter

__all__ = ["SOURCE", "Migration", "drop_source", "migrate_index"]

SOURCE = "source"
"""The folder, beside output, that keeps where an index lay before it was migrated."""

_BATCH = 4_000
_TARGET = "target.json"


@dataclass(frozen=True, slots=True)
class Migration:
    """What a migration did: from which store to which, what was copied, and what was compared."""

    before: str
    after: str
    copied: int
    comparison: Comparison

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
) -> Migration:
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
    home, output = find_home(index)
    _settle(home, output)
    if (home / SOURCE).exists():
        raise _kept(home)
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
        _refuse_loss(home, method, writer.description["settings"])
        job = _start_job(home, method, writer, reporter)
        try:
            with job.interruptible():
                copied = _copy(source, writer, method, job)
                comparison = _prove(source, job.output, home, queries, job)
        finally:
            job.close()
        _switch(home, output, job.output)
    shutil.rmtree(job.work)
    done = Migration(before.method_name(), method.method_name(), copied, comparison)
    with open_store(output).write() as writer:
        renew_manifest(writer, details={"migrated": done.to_json()})
    return done


def drop_source(index: Path) -> bool:
    """Remove what a migration kept of the store before; return whether there was anything.

    Args:
        index: The artifact's folder.

    Raises:
        ResourceError: If the store cannot be reached.
    """
    home, output = find_home(index)
    _settle(home, output)
    kept = home / SOURCE
    if not kept.exists():
        return False
    open_store(kept).discard()
    shutil.rmtree(kept)
    return True


def _start_job(
    home: Path, method: IndexStore, writer: StoreWriter, reporter: Reporter | None
) -> Job:
    """Go on with a migration of the same state to the same store, or begin one."""
    job = Job.start(_place(home), "migrate\n", resume=True, reporter=reporter)
    kept = job.scratch / _TARGET
    told = [writer.find_snapshot().digest, method.model_dump(mode="json")]
    if kept.is_file() and json.loads(kept.read_text(encoding="utf-8")) != told:
        job.say("the copy that was begun is of another state or to another store: starting over")
        open_store(job.output).discard()
        shutil.rmtree(job.output)
        job.output.mkdir()
    with atomic_write(kept) as file:
        json.dump(told, file)
    return job


def _copy(source: Store, writer: StoreWriter, method: IndexStore, job: Job) -> int:
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
                    _commit(target, Change(puts=batch), job)
                    copied += len(batch)
                    progress.advance(len(batch), note=batch[-1][0].entry.path)
            names = ("path", "code", "reason")
            failures = [dict(zip(names, one, strict=True)) for one in writer.list_failures()]
            if failures or not target.snapshots():
                _commit(target, Change(failures=failures), job)
            renew_manifest(target)
    finally:
        held.close()
    return copied


def _commit(target: StoreWriter, change: Change, job: Job) -> None:
    target.commit(change, reason="migrated", keep=1, check=job.check_cancelled)


def _open_target(method: IndexStore, draft: Path, held: Holdings) -> StoreWriter:
    """Open what an earlier try has made, where it has committed anything, or make it."""
    try:
        if any(draft.iterdir()) and open_store(draft).snapshots():
            return open_store(draft).write()
    except IntegrityError:  # it was killed before its first commit
        pass
    return method.create(draft, held.description)


def _batches(
    parts: Sequence[tuple[Part, Facts]],
) -> Iterator[list[tuple[Part, Facts]]]:
    """Yield documents in order, so many that a batch has some thousands of passages."""
    batch: list[tuple[Part, Facts]] = []
    size = 0
    for part, facts in parts:
        batch.append((part, facts))
        size += part.entry.passages
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _prove(source: Store, draft: Path, home: Path, queries: int, job: Job) -> Comparison:
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
                told = compare_readings(old, new, home, queries=queries)
                passages, settings = new.snapshot.passages, new.description["settings"]
            finally:
                new.close()
        finally:
            old.close()
        if is_approximate(settings, passages):
            renew_recall(draft)
        progress.advance(note="equal")
    return told


def _switch(home: Path, output: Path, draft: Path) -> None:
    """Let the index lie in its new store from here, and keep the old one beside it."""
    sync_folder(draft)
    exchange_folders(draft, output)
    replace_folder(draft, home / SOURCE)


def _settle(home: Path, output: Path) -> None:
    """Put the old store where a source is kept, if a kill came between the switch and that."""
    work = working_folder(_place(home))
    target, old = work / "scratch" / _TARGET, work / "output"
    if (home / SOURCE).exists() or not target.is_file() or not old.is_dir():
        return
    method = STORES.build(read_store_file(output).get("store", "folder"))
    if json.loads(target.read_text(encoding="utf-8"))[1] == method.model_dump(mode="json"):
        replace_folder(old, home / SOURCE)


def _place(home: Path) -> Path:
    return home.with_name(f".{home.name}.migrate")


def _refuse_loss(home: Path, method: IndexStore, settings: Mapping[str, Any]) -> None:
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


def _kept(home: Path) -> DataError:
    return DataError(
        "an earlier migration's source is still kept",
        code="rag.source-kept",
        where=str(home / SOURCE),
        expected="one source at a time",
        next=f"stillroom rag migrate {home} --drop-source, once you are sure of the new store",
    )
