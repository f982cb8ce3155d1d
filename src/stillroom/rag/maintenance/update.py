"""Incremental index update by file digest (added, changed, moved, deleted); compaction and repair.

Files are compared by digest. A new or changed file is parsed and chunked, and only passages with
texts new to the index are embedded; a file moved to another path is renamed; a removed one is
deleted. Nothing is deleted because of a failed listing: if a folder cannot be listed completely,
nothing changes, and for an unreadable file the indexed version is kept.

The work is journaled beside the index and can be resumed; the index changes once, at the end.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError, IntegrityError, RecipeError, count_noun
from stillroom.jobs import Job
from stillroom.provenance import ARTIFACT_FILE, find_output, read_artifact
from stillroom.rag.embedding.passages import open_encoders
from stillroom.rag.embedding.query_embedder import open_index_embedder
from stillroom.rag.index.ann_recall import measure_recall_if_due
from stillroom.rag.index_settings import IndexSettings
from stillroom.rag.ingestion.contextual_retrieval import open_context_writer
from stillroom.rag.ingestion.discovery import (
    MOST_READ_IN_VAIN,
    check_failures,
    digest_files,
    discover_documents,
    find_entity_lists,
    has_nothing_to_read,
    may_use_entities,
    read_document_metadata,
)
from stillroom.rag.ingestion.pipeline import (
    IngestPipeline,
    build_documents_parent,
    build_index_config,
    build_metadata_parents,
)
from stillroom.rag.ingestion.preparation import DocumentFile, FailedDocument, fit_chunker
from stillroom.rag.storage.folder.writer import DEFAULT_KEPT_SNAPSHOTS
from stillroom.rag.storage.protocol import (
    IndexUpdate,
    IndexWriter,
    IntegrityIssue,
    ReusableContent,
    StoredDocument,
)
from stillroom.rag.storage.snapshots import Snapshot, open_store, update_manifest
from stillroom.rag.types import DocumentMetadata, RenamedDocument, StagedDocument, can_rename
from stillroom.recipes import parse_recipe
from stillroom.text.parser_process import ParserProcess

if TYPE_CHECKING:
    from stillroom.jobs import Reporter
    from stillroom.models import Embedder
    from stillroom.recipes import Recipe
    from stillroom.text.reader import FolderScan

__all__ = [
    "CompactionResult",
    "UpdateResult",
    "check_index",
    "compact_index",
    "delete_documents",
    "list_snapshots",
    "locate_index",
    "read_stored_recipe",
    "repair_index",
    "start_or_resume",
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
    with_new_metadata: int = 0
    unchanged: int = 0
    failed: int = 0
    parsed: int = 0
    embedded: int = 0
    snapshot: int = 0
    digest: str = ""

    def __str__(self) -> str:
        return (
            f"{self.added} added, {self.changed} changed, {self.renamed} renamed, "
            f"{self.deleted} deleted, {self.with_new_metadata} with new metadata, "
            f"{self.unchanged} unchanged, {self.failed} failed; "
            f"{count_noun(self.parsed, 'document')} parsed, {count_noun(self.embedded, 'text')} "
            f"embedded"
        )

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return asdict(self)


def update_index(
    index: Path,
    folder: Path | None = None,
    *,
    max_failed: float | None = None,
    embedder: Embedder | None = None,
    reporter: Reporter | None = None,
) -> UpdateResult:
    """Update an index from the current contents of its folder of documents.

    ``index`` is the artifact's folder, or that of a step of a run. By default the folder that it
    was built from is read, its own embedder is opened, if needed, and ``max_failed`` is that of its
    recipe.

    Raises:
        DataError: If the folder is missing, empty or cannot be listed completely, or too many files
            fail; the index is then unchanged.
        ResourceError: If another process writes the index.
        IntegrityError: If the index was prepared by another version, or another embedder is given.
        RecipeError: If the recipe of the index is of a version with other settings.
    """
    home, output = locate_index(index)
    recipe = _read_recipe(home, folder)
    if max_failed is not None:
        recipe = recipe.model_copy(update={"max_failed": max_failed})
    store = open_store(output)
    with store.write() as writer:
        text = f"{writer.description['preparation']}\n{recipe.documents}\n"
        job = start_or_resume(home.with_name(f".{home.name}.update"), text, reporter=reporter)
        with closing(job), job.interruptible(), closing(store.hold()) as reusable:
            done = _Update(recipe, writer, reusable, job, embedder).run()
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


def read_stored_recipe(home: Path, *, folder: Path | None = None) -> Recipe:
    """Return the recipe that an index was built with; arguments as of ``parse_recipe``.

    Raises:
        RecipeError: If another version wrote it; the file itself is signed and stays as it is.
    """
    source = home / "recipe.yaml"
    try:
        return parse_recipe(source.read_text(encoding="utf-8"), str(source), folder=folder)
    except RecipeError as error:
        copy = f"stillroom rag rebuild {home} --recipe NEW, where NEW is a mended copy of {source}"
        raise RecipeError([replace(problem, next=copy) for problem in error.problems]) from error


def _read_recipe(home: Path, folder: Path | None) -> IndexSettings:
    recipe = read_stored_recipe(home, folder=home)
    if not isinstance(recipe, IndexSettings):
        raise DataError(
            f"{home} was not made by a recipe of kind rag.index",
            code="data.wrong-kind",
            where=str(home),
            expected="an index that 'stillroom rag index' built",
            next=f"stillroom show {home}",
        )
    return recipe if folder is None else recipe.model_copy(update={"documents": str(folder)})


def start_or_resume(
    folder: Path, text: str, *, seed: int = 0, reporter: Reporter | None = None
) -> Job:
    """Resume an interrupted job of maintenance, or start it; one with another text is discarded."""
    try:
        return Job.start(folder, text, seed=seed, resume=True, reporter=reporter)
    except DataError as error:
        if error.problems[0].code != "data.other-recipe":
            raise
        return Job.start(folder, text, seed=seed, overwrite=True, reporter=reporter)


@dataclass(slots=True)
class _Update:
    """One update: what it works on, and the planned changes by kind."""

    recipe: IndexSettings
    writer: IndexWriter
    reusable: ReusableContent
    job: Job
    embedder: Embedder | None
    metadata: Mapping[str, DocumentMetadata] = field(default_factory=dict)
    before: Mapping[str, StoredDocument] = field(default_factory=dict)
    puts: list[tuple[StagedDocument, DocumentMetadata]] = field(default_factory=list)
    moves: list[tuple[StagedDocument, DocumentMetadata, int]] = field(default_factory=list)
    metadata_changes: dict[int, DocumentMetadata] = field(default_factory=dict)
    ingests: list[DocumentFile] = field(default_factory=list)
    removes: list[int] = field(default_factory=list)
    failures: list[FailedDocument] = field(default_factory=list)
    unchanged: int = 0
    total: int = 0

    def run(self) -> UpdateResult:
        """List the documents, ingest new ones, commit the changes, and update the manifest."""
        root, scan = discover_documents(self.recipe.documents)
        _check_listing(root, scan)
        files, unread = digest_files(root, scan, self.job)
        paths = [file.path for file in files]
        self.metadata = read_document_metadata(self.recipe, paths, self.job)
        parents = [
            build_documents_parent(root, files),
            *build_metadata_parents(self.recipe, self.writer.folder.parent),
        ]
        self.before = self.writer.list_documents()
        self._plan_changes(files, unread)
        planned = self.metadata_changes, self.puts, self.moves, self.failures, self.ingests
        self.total = self.unchanged + sum(map(len, planned))
        parsed, embedded = self._ingest(root) if self.ingests else (0, 0)
        self._check_failures(root)
        self._warn_of_entities(files)
        # If the new bytes of a file cannot be used, the indexed version is outdated.
        failed = {failure.path for failure in self.failures if failure.code != "rag.unreadable"}
        self.removes += [key for path, (key, *_) in self.before.items() if path in failed]
        changed = sum(part.entry.path in self.before for part, _ in self.puts)
        done = UpdateResult(
            added=len(self.puts) - changed,
            changed=changed,
            renamed=len(self.moves),
            deleted=len(self.removes),
            with_new_metadata=len(self.metadata_changes),
            unchanged=self.unchanged,
            failed=len(self.failures),
            parsed=parsed,
            embedded=embedded,
        )
        recall = self._commit(f"updated: {_describe(done)}")
        latest = self.writer.find_snapshot()
        done = replace(done, snapshot=latest.number, digest=latest.digest)
        update_manifest(
            self.writer,
            parents=parents,
            details={
                "parsed": parsed,
                "embedded": embedded,
                "reused": done.unchanged + done.renamed + done.with_new_metadata,
                "hidden": scan.hidden,
                **({"approximate": recall} if recall else {}),
                "updated": {name: n for name, n in done.to_json().items() if name != "digest"},
            },
        )
        return done

    def _check_failures(self, root: Path, remaining: int = 0) -> None:
        """Raise an error if too many documents failed; ``remaining`` were not read yet."""
        check_failures(
            self.failures,
            self.total,
            self.recipe.max_failed,
            str(root),
            indexed=self.before,
            remaining=remaining,
            repeat="update without them: stillroom rag update INDEX max_failed={share}",
        )

    def _plan_changes(
        self, files: Sequence[DocumentFile], unread: Sequence[FailedDocument]
    ) -> None:
        """Plan by digests which files to skip, overwrite or add (DuplicatePolicy)."""
        self.failures += unread
        known = {file.path for file in files}
        known |= {failure.path for failure in unread}  # ``run`` removes those that are outdated
        removed_paths: dict[str, list[str]] = {}
        for path, (key, digest, _) in self.before.items():
            if path not in known:
                self.removes.append(key)
                removed_paths.setdefault(digest, []).append(path)
        for item in files:
            facts = self._metadata_of(item.path)
            stored = self.before.get(item.path)
            if stored is None or stored[1] != item.digest:
                if not self._take_over(item, facts, removed_paths):
                    self.ingests.append(item)
            elif facts == stored[2]:
                self.unchanged += 1
            else:
                self.metadata_changes[stored[0]] = facts

    def _warn_of_entities(self, files: Sequence[DocumentFile]) -> None:
        """Warn of unchanged documents that were read with entities which other files now change.

        They keep their text, since the id of a document covers its own bytes alone.
        """
        before = [DocumentFile(Path(path), path, row.digest) for path, row in self.before.items()]
        failed = {failure.path for failure in self.failures}  # the digests of these are not stored
        read = [file for file in files if file.path not in failed]
        changed = find_entity_lists(before).items() ^ find_entity_lists(read).items()
        same = {(file.path, file.digest) for file in before}
        users = changed and [
            file for file in read if (file.path, file.digest) in same and may_use_entities(file)
        ]
        if users:
            documents = count_noun(len(users), "unchanged document")
            self.job.warn(
                f"{min(changed)[0]} has changed, which may declare entities: {documents} may use "
                "them and stay as they were read; to read them again: stillroom rag index FOLDER "
                "--out INDEX --overwrite"
            )

    def _metadata_of(self, path: str) -> DocumentMetadata:
        return self.metadata.get(path, DocumentMetadata())

    def _take_over(
        self, item: DocumentFile, facts: DocumentMetadata, removed_paths: Mapping[str, list[str]]
    ) -> bool:
        """Rename or copy a document with the same bytes, if it would be parsed identically."""
        same = self.reusable.find_same(item.digest)
        part = next((part for part in same if can_rename(part, item.path)), None)
        if part is None:
            return False
        old = part.entry.path
        if item.path not in self.before and old in removed_paths.get(item.digest, ()):
            key = self.before[old][0]
            removed_paths[item.digest].remove(old)
            self.removes.remove(key)
            self.moves.append((RenamedDocument(part, item.path), facts, key))
        else:
            self.puts.append((RenamedDocument(part, item.path), facts))
        return True

    def _ingest(self, root: Path) -> tuple[int, int]:
        """Parse, chunk and embed new documents; return how many, and the texts embedded.

        Unusable documents become failures.
        """
        writer, job = self.writer, self.job
        embedder = open_index_embedder(writer.description["embedder"], writer.folder, self.embedder)
        self.embedder = embedder
        recipe = fit_chunker(self.recipe, embedder, lambda line: None)
        contexts = open_context_writer(recipe, job)
        encoders = open_encoders(recipe.sparse, recipe.late_interaction, embedder)
        config = build_index_config(recipe, embedder, contexts, encoders)
        if config.preparation != writer.description["preparation"]:
            raise IntegrityError(
                "the index was prepared with other settings or by another version, so that new "
                "documents would be processed differently from old ones",
                code="rag.other-preparation",
                where=str(writer.folder),
                expected="the recipe.yaml and the version that built it",
                next="build the index again with --overwrite: vectors of equal texts are reused",
            )
        with (
            ParserProcess() as worker,
            contexts or nullcontext(),
        ):
            ingester = IngestPipeline(
                recipe, root, embedder, worker, job, self.reusable, contexts, encoders
            )
            self._ingest_with(ingester, root)
        return ingester.parsed, ingester.embedded

    def _ingest_with(self, ingester: IngestPipeline, root: Path) -> None:
        job = self.job
        lost = sum(not has_nothing_to_read(part, self.before) for part in self.failures)
        known = {item.path: ingester.recall(item.path, item.digest) for item in self.ingests}
        unknown = [item for item in self.ingests if known[item.path] is None]
        with ingester.phase(len(self.ingests), unknown) as progress:
            for number, item in enumerate(self.ingests, start=1):
                job.check_cancelled()
                part = known[item.path] or ingester.ingest(item)
                if isinstance(part, FailedDocument):
                    self.failures.append(part)
                    job.warn(f"left out: {part.path}: {part.reason}  [{part.code}]")
                    lost += not has_nothing_to_read(part, self.before)
                    remaining = len(self.ingests) - number
                    if lost > self.recipe.max_failed * self.total and remaining > MOST_READ_IN_VAIN:
                        self._check_failures(root, remaining)
                else:
                    self.puts.append((part, self._metadata_of(item.path)))
                weight = item.size if known[item.path] is None else 0
                progress.advance(note=item.path, weight=weight)

    def _commit(self, reason: str) -> dict[str, Any] | None:
        """Commit the plan if it changes anything; return the recall if it was measured."""
        writer, check = self.writer, self.job.check_cancelled
        failures = sorted(self.failures, key=lambda failure: failure.path)
        failure_rows = [(failure.path, failure.code, failure.reason) for failure in failures]
        changes = self.puts or self.moves or self.metadata_changes or self.removes
        if not changes and failure_rows == writer.list_failures():
            return None
        change = IndexUpdate(
            sorted(self.puts, key=lambda put: put[0].entry.path),
            self.moves,
            self.metadata_changes,
            self.removes,
            [failure.to_json() for failure in failures],
        )
        writer.commit(change, reason=reason, keep=DEFAULT_KEPT_SNAPSHOTS, check=check)
        return measure_recall_if_due(writer, self.embedder)


def _check_listing(root: Path, scan: FolderScan) -> None:
    """Reject an incomplete listing: missing files would be deleted.

    Raises:
        DataError: If a folder below the root cannot be read.
    """
    for refused in scan.refused:
        if refused.code == "document.unreadable":
            raise DataError(
                f"the folder of documents cannot be listed completely: {refused.reason}",
                code="rag.partial-listing",
                where=str(root / refused.path),
                expected="readable folders; nothing is deleted after an incomplete listing",
                next="check permissions and mounts, then update again",
            )


def _describe(done: UpdateResult) -> str:
    counts = [(n, name) for name, n in done.to_json().items() if name in _COUNT_NAMES and n]
    return ", ".join(f"{n} {name.replace('_', ' ')}" for n, name in counts) or "failures alone"


_COUNT_NAMES = ("added", "changed", "renamed", "deleted", "with_new_metadata")


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
    """Delete documents, which no search finds after its next refresh; return the newest snapshot.

    ``paths`` are paths in the index, folders ending in a slash, or patterns with *; none delete
    nothing.

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

    Raises:
        IntegrityError: If the index is unfinished or damaged.
    """
    return open_store(find_output(index, "index")).snapshots()


def check_index(index: Path) -> list[IntegrityIssue]:
    """Return all inconsistencies of an index; an empty list means intact.

    Raises:
        DataError: If there is no such index.
        IntegrityError: If it is unfinished, or cannot be read at all.
    """
    return open_store(find_output(index, "index")).check()


def _match_paths(path: str, pattern: str) -> bool:
    if pattern.endswith("/"):
        return path.startswith(pattern)
    literal = pattern.replace("[", "[[]")  # only * and ? are special, as in filters
    return path == pattern or ("*" in pattern and fnmatchcase(path, literal))


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

    The embedder recomputes damaged vectors; by default that of the index.

    Raises:
        ResourceError: If another process writes the index.
        IntegrityError: If the catalog cannot be read, or the embedder differs.
    """
    store = open_store(find_output(index, "index"))
    issues = store.check()
    if issues:
        store.repair(issues, embedder)
    return issues
