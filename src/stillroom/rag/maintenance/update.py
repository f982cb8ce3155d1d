"""Maintenance of an index: incremental updates, deletion, compaction, check and repair.

Files are compared by digest. A new or changed file is parsed and chunked, and only passages with
texts new to the index are embedded; a file moved to another path is renamed; a removed one is
deleted. Nothing is deleted because of a failed listing: if a folder cannot be listed completely,
nothing changes, and for an unreadable file the indexed version is kept.

The work is journaled beside the index and can be resumed; the index changes once, at the end.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, IntegrityError
from stillroom.jobs import Job
from stillroom.provenance import ARTIFACT_FILE, find_output, read_artifact
from stillroom.rag.embedding.passages import open_encoders
from stillroom.rag.index.ann_recall import measure_recall_if_due
from stillroom.rag.index_settings import IndexSettings
from stillroom.rag.ingestion.pipeline import (
    DocumentFile,
    FailedDocument,
    IngestPipeline,
    build_documents_parent,
    build_index_config,
    check_failures,
    digest_files,
    discover_documents,
    read_document_metadata,
)
from stillroom.rag.ingestion.preparation import fit_chunker, open_context_writer
from stillroom.rag.storage.folder.writer import DEFAULT_KEPT_SNAPSHOTS
from stillroom.rag.storage.protocol import (
    IndexStorage,
    IndexUpdate,
    IndexWriter,
    IntegrityIssue,
    StoredDocument,
)
from stillroom.rag.storage.snapshots import Snapshot, open_store, update_manifest
from stillroom.rag.types import DocumentMetadata, RenamedDocument, StagedDocument, can_rename
from stillroom.recipes import parse_recipe
from stillroom.text.parser_process import ParserProcess

if TYPE_CHECKING:
    from stillroom.jobs import Reporter
    from stillroom.models import Embedder

__all__ = [
    "CompactionResult",
    "UpdateResult",
    "check_index",
    "compact_index",
    "delete_documents",
    "list_snapshots",
    "locate_index",
    "repair_index",
    "update_index",
]


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """Counts of documents by kind of change, and the cost of an update.

    Documents with changed metadata only (fields, tenant or labels) have a count of their own.
    """

    added: int = 0
    changed: int = 0
    renamed: int = 0
    deleted: int = 0
    told: int = 0
    unchanged: int = 0
    failed: int = 0
    parsed: int = 0
    embedded: int = 0
    snapshot: int = 0
    digest: str = ""

    def __str__(self) -> str:
        """Return the counts as readable text."""
        return (
            f"{self.added} added, {self.changed} changed, {self.renamed} renamed, "
            f"{self.deleted} deleted, {self.unchanged} unchanged, {self.failed} failed; "
            f"{self.parsed} documents parsed, {self.embedded} texts embedded"
        )

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return asdict(self)


@dataclass(slots=True)
class _UpdatePlan:
    """Planned changes by kind."""

    puts: list[tuple[StagedDocument, DocumentMetadata]] = field(default_factory=list)
    moves: list[tuple[StagedDocument, DocumentMetadata, int]] = field(default_factory=list)
    metadata_changes: dict[int, DocumentMetadata] = field(default_factory=dict)
    ingests: list[DocumentFile] = field(default_factory=list)
    removes: list[int] = field(default_factory=list)
    failures: list[FailedDocument] = field(default_factory=list)
    unchanged: int = 0


def update_index(
    index: Path,
    folder: Path | None = None,
    *,
    embedder: Embedder | None = None,
    reporter: Reporter | None = None,
) -> UpdateResult:
    """Update an index from the current contents of its folder of documents.

    Args:
        index: The artifact's folder, or the folder of a step of a run.
        folder: The documents; defaults to the folder that the index was built from.
        embedder: Computes vectors; defaults to the one of the index, opened only if needed.
        reporter: Displays progress.

    Raises:
        DataError: If the folder is missing, empty or cannot be listed completely, or too many files
            fail; the index is then unchanged.
        ResourceError: If another process writes the index.
        IntegrityError: If the index was prepared by another version, or another embedder is given.
    """
    home, output = locate_index(index)
    recipe = _read_recipe(home, folder)
    store = open_store(output)
    with store.write() as writer:
        text = f"{writer.description['preparation']}\n{recipe.documents}\n"
        job = _start_job(home, text, reporter)
        try:
            with job.interruptible():
                done = _UpdateRun(recipe, store, writer, job, embedder).run()
        finally:
            job.close()
        shutil.rmtree(job.work)
    return done


def locate_index(index: Path) -> tuple[Path, Path]:
    """Return an index's artifact folder and the folder of its catalog.

    Raises:
        DataError: If there is no artifact: the sources of the index are then unknown.
    """
    output = find_output(index, "index")
    home = output.parent
    if not (home / ARTIFACT_FILE).is_file():
        read_artifact(index)
    return home, output


def _read_recipe(home: Path, folder: Path | None) -> IndexSettings:
    text = (home / "recipe.yaml").read_text(encoding="utf-8")
    recipe = parse_recipe(text, str(home / "recipe.yaml"), folder=home)
    if not isinstance(recipe, IndexSettings):
        raise DataError(
            f"{home} was not made by a recipe of kind rag.index",
            code="data.wrong-kind",
            where=str(home),
            expected="an index that 'stillroom rag index' built",
            next=f"stillroom show {home}",
        )
    return recipe if folder is None else recipe.model_copy(update={"documents": str(folder)})


def _start_job(home: Path, text: str, reporter: Reporter | None) -> Job:
    """Resume an interrupted update, or start one."""
    folder = home.with_name(f".{home.name}.update")
    try:
        return Job.start(folder, text, resume=True, reporter=reporter)
    except DataError as error:
        if error.problems[0].code != "data.other-recipe":
            raise
        return Job.start(folder, text, overwrite=True, reporter=reporter)


class _UpdateRun:
    """One update from listing to commit."""

    def __init__(
        self,
        recipe: IndexSettings,
        store: IndexStorage,
        writer: IndexWriter,
        job: Job,
        embedder: Embedder | None,
    ) -> None:
        self.recipe, self.output, self.writer, self.job = recipe, writer.folder, writer, job
        self.embedder = embedder
        self.reusable = store.hold()
        self.metadata: dict[str, DocumentMetadata] = {}
        self.embedded = self.parsed = 0
        self.recall: dict[str, Any] | None = None

    def run(self) -> UpdateResult:
        """Run the update and return its result."""
        try:
            root, scan = discover_documents(self.recipe.documents)
            _check_listing(root)
            files, unread = digest_files(root, scan, self.job)
            self.metadata = read_document_metadata(
                self.recipe, [file.path for file in files], self.job
            )
            plan, before = self._plan(files, unread)
            self._ingest(root, plan)
            unchanged = plan.unchanged + len(plan.metadata_changes)
            total = unchanged + len(plan.puts) + len(plan.moves) + len(plan.failures)
            check_failures(plan.failures, total, self.recipe.max_failed, str(root))
            done = self._commit(plan, before)
        finally:
            self.reusable.close()
        update_manifest(
            self.writer,
            parents=[build_documents_parent(root, files)],
            details={
                "parsed": self.parsed,
                "embedded": self.embedded,
                "reused": done.unchanged + done.renamed + done.told,
                "hidden": scan.hidden,
                **({"approximate": self.recall} if self.recall else {}),
                "updated": {name: n for name, n in done.to_json().items() if name != "digest"},
            },
        )
        return done

    def _plan(
        self, files: Sequence[DocumentFile], unread: Sequence[FailedDocument]
    ) -> tuple[_UpdatePlan, dict[str, StoredDocument]]:
        """Plan the changes by comparing digests."""
        before = self.writer.list_documents()
        known = {file.path: file.digest for file in files}
        unreadable = {failure.path for failure in unread if failure.code == "rag.unreadable"}
        plan = _UpdatePlan(failures=list(unread))
        removed_paths: dict[str, list[str]] = {}
        for path, (key, digest, _) in before.items():
            if path not in known and path not in unreadable:
                plan.removes.append(key)
                removed_paths.setdefault(digest, []).append(path)
        for item in files:
            stored = before.get(item.path)
            if stored is not None and stored[1] == item.digest:
                self._compare_metadata(item.path, stored[0], stored[2], plan)
            elif not self._take_over(item, removed_paths, before, plan):
                plan.ingests.append(item)
        return plan, before

    def _compare_metadata(
        self, path: str, key: int, before: DocumentMetadata, plan: _UpdatePlan
    ) -> None:
        now = self._get_metadata(path)
        if now == before:
            plan.unchanged += 1
        else:
            plan.metadata_changes[key] = now

    def _get_metadata(self, path: str) -> DocumentMetadata:
        return self.metadata.get(path, DocumentMetadata())

    def _take_over(
        self,
        item: DocumentFile,
        removed_paths: dict[str, list[str]],
        before: dict[str, StoredDocument],
        plan: _UpdatePlan,
    ) -> bool:
        """Rename or copy a document with the same bytes, if it would be parsed identically."""
        for part in self.reusable.find_same(item.digest):
            if not can_rename(part, item.path):
                continue
            old = part.entry.path
            key = before[old][0]
            facts = self._get_metadata(item.path)
            if item.path not in before and old in removed_paths.get(item.digest, ()):
                removed_paths[item.digest].remove(old)
                plan.removes.remove(key)
                plan.moves.append((RenamedDocument(part, item.path), facts, key))
            else:
                plan.puts.append((RenamedDocument(part, item.path), facts))
            return True
        return False

    def _ingest(self, root: Path, plan: _UpdatePlan) -> None:
        """Parse, chunk and embed new documents; unusable ones become failures."""
        if not plan.ingests:
            return
        embedder, recipe = self._prepare()
        contexts, encoders = (
            open_context_writer(recipe, self.job),
            open_encoders(recipe.sparse, recipe.late_interaction, embedder),
        )
        config = build_index_config(recipe, embedder, contexts, encoders)
        self._check_preparation(config.preparation)
        with (
            ParserProcess() as worker,
            contexts or nullcontext(),
            self.job.phase("index", len(plan.ingests), "documents") as progress,
        ):
            ingester = IngestPipeline(
                recipe, root, embedder, worker, self.job, self.reusable, contexts, encoders
            )
            for item in plan.ingests:
                self.job.check_cancelled()
                part = ingester.recall(item.path, item.digest)
                part = part or ingester.ingest(item.file, item.path, item.digest)
                if isinstance(part, FailedDocument):
                    plan.failures.append(part)
                    self.job.say(f"left out: {part.path}: {part.reason}  [{part.code}]")
                else:
                    plan.puts.append((part, self._get_metadata(item.path)))
                progress.advance(note=item.path)
        self.parsed, self.embedded = ingester.parsed, ingester.embedded

    def _prepare(self) -> tuple[Embedder, IndexSettings]:
        """Open the embedder of the index, and fit the chunker to it as the build did."""
        settings = self.writer.description["embedder"]
        if self.embedder is None:
            from stillroom.models import open_embedder

            self.embedder = open_embedder(str(settings["reference"]))
        if self.embedder.fingerprint != settings["fingerprint"]:
            raise IntegrityError(
                f"the index was built with embedder {settings['fingerprint']} "
                f"({settings['reference']}), but {self.embedder.fingerprint} is given",
                code="rag.embedder-mismatch",
                where=str(self.output),
                expected="the embedder that computed the vectors; others are not comparable",
                next="restore that embedder, or build the index again with the new one",
            )
        return self.embedder, fit_chunker(self.recipe, self.embedder, lambda line: None)

    def _check_preparation(self, preparation: str) -> None:
        if preparation != self.writer.description["preparation"]:
            raise IntegrityError(
                "the index was prepared with other settings or by another version, so that new "
                "documents would be processed differently from old ones",
                code="rag.other-preparation",
                where=str(self.output),
                expected="the recipe.yaml and the version that built it",
                next="build the index again with --overwrite: vectors of equal texts are reused",
            )

    def _commit(self, plan: _UpdatePlan, before: dict[str, StoredDocument]) -> UpdateResult:
        """Commit the plan if it changes anything."""
        failed = {failure.path for failure in plan.failures if failure.code != "rag.unreadable"}
        # If the new bytes of a file cannot be used, the indexed version is outdated.
        removes = [*plan.removes, *(key for path, (key, *_) in before.items() if path in failed)]
        failures = sorted(plan.failures, key=lambda failure: failure.path)
        failure_rows = [(failure.path, failure.code, failure.reason) for failure in failures]
        known = self.writer.list_failures()
        changed = sum(part.entry.path in before for part, _ in plan.puts)
        done = UpdateResult(
            added=len(plan.puts) - changed,
            changed=changed,
            renamed=len(plan.moves),
            deleted=len(removes),
            told=len(plan.metadata_changes),
            unchanged=plan.unchanged,
            failed=len(failures),
            parsed=self.parsed,
            embedded=self.embedded,
        )
        if plan.puts or plan.moves or plan.metadata_changes or removes or failure_rows != known:
            change = IndexUpdate(
                sorted(plan.puts, key=lambda put: put[0].entry.path),
                plan.moves,
                plan.metadata_changes,
                removes,
                [failure.to_json() for failure in failures],
            )
            reason = f"updated: {_describe(done)}"
            self.writer.commit(
                change, reason=reason, keep=DEFAULT_KEPT_SNAPSHOTS, check=self.job.check_cancelled
            )
            self.recall = measure_recall_if_due(self.writer, self.embedder)
        latest = self.writer.find_snapshot()
        return replace(done, snapshot=latest.number, digest=latest.digest)


def _check_listing(root: Path) -> None:
    """Reject an incomplete listing: missing files would be deleted.

    Raises:
        DataError: If a folder below the root cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise DataError(
            f"the folder of documents cannot be listed completely: {error.strerror or error}",
            code="rag.partial-listing",
            where=str(error.filename or root),
            expected="readable folders; nothing is deleted after an incomplete listing",
            next="check permissions and mounts, then update again",
        ) from error

    for _ in os.walk(root, onerror=refuse):
        pass


def _describe(done: UpdateResult) -> str:
    counts = [(n, name) for name, n in done.to_json().items() if name in _COUNT_NAMES and n]
    return ", ".join(f"{n} {name}" for n, name in counts) or "failures alone"


_COUNT_NAMES = ("added", "changed", "renamed", "deleted", "told")


@dataclass(frozen=True, slots=True)
class CompactionResult:
    """Disk usage before and after compaction; ``held`` snapshots are still open by readers."""

    bytes_before: int
    bytes_after: int
    segments_before: int
    segments_after: int
    held: int
    snapshot: int


def delete_documents(index: Path, paths: Sequence[str]) -> Snapshot:
    """Delete documents; searches exclude them after the next refresh or opening.

    Args:
        index: The artifact's folder or its output.
        paths: Paths in the index, folders ending in a slash, or patterns with *. An empty list
            deletes nothing.

    Returns:
        The newest snapshot.

    Raises:
        DataError: If a path matches no document; nothing is then deleted.
        ResourceError: If another process writes the index.
    """
    output = find_output(index, "index")
    with open_store(output).write() as writer:
        known = writer.list_keys()
        keys: set[int] = set()
        for pattern in paths:
            matching = {key for path, key in known.items() if _match_paths(path, pattern)}
            if not matching:
                raise _make_unknown_error(output, pattern, list(known))
            keys |= matching
        if keys:
            change = IndexUpdate(removes=sorted(keys))
            writer.commit(change, reason=f"deleted: {len(keys)}", keep=DEFAULT_KEPT_SNAPSHOTS)
            update_manifest(writer)
        return writer.find_snapshot()


def compact_index(index: Path) -> CompactionResult:
    """Merge all segments into one and delete data needed only by older snapshots.

    Data still held by a reader is deleted at the next change after it ends.

    Args:
        index: The artifact's folder or its output.

    Raises:
        ResourceError: If another process writes the index, or the disk is full.
    """
    output = find_output(index, "index")
    store = open_store(output)
    with store.write() as writer:
        before = store.measure()
        snapshot = writer.compact()
        update_manifest(writer)
        after = store.measure()
        return CompactionResult(
            before.bytes,
            after.bytes,
            before.pieces,
            after.pieces,
            len(writer.snapshots()) - 1,
            snapshot.number,
        )


def list_snapshots(index: Path) -> list[Snapshot]:
    """Return the snapshots of an index that can be opened, oldest first.

    Args:
        index: The artifact's folder or its output.

    Raises:
        IntegrityError: If the index is unfinished or damaged.
    """
    return open_store(find_output(index, "index")).snapshots()


def check_index(index: Path) -> list[IntegrityIssue]:
    """Return all inconsistencies of an index; an empty list means intact.

    Args:
        index: The artifact's folder or its output.

    Raises:
        DataError: If there is no such index.
        IntegrityError: If it is unfinished, or cannot be read at all.
    """
    return open_store(find_output(index, "index")).check()


def _match_paths(path: str, pattern: str) -> bool:
    if pattern.endswith("/"):
        return path.startswith(pattern)
    return path == pattern or ("*" in pattern and fnmatchcase(path, pattern))


def _make_unknown_error(output: Path, pattern: str, paths: Sequence[str]) -> DataError:
    shown = ", ".join(paths[:3])
    return DataError(
        f"the index has no document at {pattern!r:.120}",
        code="rag.no-such-path",
        where=str(output),
        expected=f"a path as the index has it ({shown}, ...), a folder/ or a pattern",
        next="stillroom rag search INDEX shows paths",
    )


def repair_index(index: Path, *, embedder: Embedder | None = None) -> list[IntegrityIssue]:
    """Recompute damaged derived data of an index; return the issues found before.

    Args:
        index: The artifact's folder or its output.
        embedder: Recomputes damaged vectors; defaults to the one of the index.

    Raises:
        ResourceError: If another process writes the index.
        IntegrityError: If the catalog cannot be read, or the embedder differs.
    """
    store = open_store(find_output(index, "index"))
    issues = store.check()
    if issues:
        store.repair(issues, embedder)
    return issues
