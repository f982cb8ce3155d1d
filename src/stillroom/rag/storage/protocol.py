"""Store protocol: the interface of an index to a folder or a database server.

A store keeps documents and passages snapshot by snapshot. A change becomes visible at one commit
point: readers of a snapshot see exactly its content until they open a newer one, and its data are
kept while anybody reads it. There is one writer at a time. Access rules and filters are conditions
that the store itself applies, in the query that reads.

Equal contents have equal digests and equal scores in every store: ``SnapshotReader`` returns rows
in order of path and position, occurrences of terms, and vectors; scores are computed by common
code.

``stillroom.testing.check_store`` checks that a store follows this protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from stillroom.provenance import ARTIFACT_FILE, read_artifact
from stillroom.provenance.digests import load_json
from stillroom.rag.storage.snapshots import INDEX_FILE, DocumentTable, PassageRows, Snapshot
from stillroom.rag.types import AuxiliaryVectors, DocumentMetadata, StagedDocument

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import Embedder
    from stillroom.provenance import FileEntry
    from stillroom.rag.search_engines.dense import MeasuredRecall
    from stillroom.rag.search_engines.keyword import KeywordEngine
    from stillroom.rag.search_engines.late_interaction import TokenEngine
    from stillroom.rag.search_engines.sparse import SparseEngine
    from stillroom.rag.storage.filters import SqlCondition, SqlDialect

__all__ = [
    "MEASURED_RECALL",
    "DenseSearch",
    "IndexStorage",
    "IndexUpdate",
    "IndexWriter",
    "IntegrityIssue",
    "ReusableContent",
    "SnapshotReader",
    "StoreSize",
    "StoredDocument",
    "check_manifest",
]


MEASURED_RECALL = "approximate"
"""Name under which a store keeps the recall of approximate search."""


class StoredDocument(NamedTuple):
    """Document of the newest snapshot: its key, the digest of its bytes, and its metadata."""

    key: int
    digest: str
    facts: DocumentMetadata


@dataclass(frozen=True, slots=True)
class StoreSize:
    """Size of a store: bytes, and pieces (segments or batches) that each search reads.

    ``is_remote`` is True if the bytes are on a server.
    """

    bytes: int
    pieces: int
    is_remote: bool = False


class DenseSearch(Protocol):
    """Search by the dot product of vectors with a query vector."""

    def search(
        self,
        vector: NDArray[Any],
        k: int,
        *,
        mask: NDArray[Any] | None,
        condition: SqlCondition,
        is_near: bool = False,
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the best ``k`` positions and their scores, best first.

        Args:
            vector: Query vector, (D,) float32.
            k: Number of results, 1 or more.
            mask: Mask of the positions to search, (P,) bool; None for all of the population.
            condition: SQL condition of the same documents, for stores that search by it.
            is_near: Use approximate search; scores are exact.
        """

    def calibrate(self, queries: NDArray[Any], *, k: int, least: float) -> MeasuredRecall:
        """Measure recall of approximate search, and use the smallest sufficient oversampling.

        Args:
            queries: Query vectors, (Q, D).
            k: Depth of the comparison.
            least: Required mean recall; if no oversampling reaches it, all search is exact.
        """


class ReusableContent(Protocol):
    """Content of the newest snapshot that a new index or an update can reuse."""

    @property
    def description(self) -> Mapping[str, Any]:
        """Description of the index."""

    def take(self, path: str, digest: str) -> StagedDocument | None:
        """Return the document of a path and digest, or None."""

    def find_same(self, digest: str) -> Sequence[StagedDocument]:
        """Return the documents with the same bytes, in order of path."""

    def list_parts(self) -> Sequence[tuple[StagedDocument, DocumentMetadata]]:
        """Return every document with its metadata, in order of path."""

    def vector_of(self, embedded: bytes) -> tuple[NDArray[Any], bool] | None:
        """Return the vector of a text, by its digest, and whether the text was truncated."""

    def extras_of_text(self, embedded: bytes) -> AuxiliaryVectors | None:
        """Return the auxiliary vectors of a text, by its digest; None without any."""

    def close(self) -> None:
        """Release the snapshot."""


class SnapshotReader(Protocol):
    """Reader of a snapshot, which is kept while it is open; for any number of threads.

    A *position* is the number of a passage in the store, from 0 up to ``size``; a *row* is its
    number in a view. ``where`` names the store in errors, and never contains a secret.
    """

    @property
    def snapshot(self) -> Snapshot:
        """The open snapshot."""

    @property
    def where(self) -> Path:
        """Path that identifies the store in errors."""

    @property
    def description(self) -> Mapping[str, Any]:
        """Description of the index."""

    @property
    def dialect(self) -> SqlDialect:
        """SQL dialect of the store's conditions."""

    @property
    def size(self) -> int:
        """Number of positions, including those without a document."""

    def is_newest(self) -> bool:
        """Return whether no newer snapshot was committed."""

    def follow(self) -> Self:
        """Return the newest snapshot, opened beside this one."""

    def load(self, condition: SqlCondition, within: DocumentTable | None = None) -> DocumentTable:
        """Return the documents that match a condition, in order of path.

        ``condition`` is one on ``d``, a document; ``within`` is the population's table, which
        defines the positions.
        """

    def list_fields(self, condition: SqlCondition) -> Sequence[tuple[str, str]]:
        """Return name and type of every field of documents that match a condition."""

    def list_values(self, name: str, keys: Sequence[int]) -> Sequence[tuple[int, str | float]]:
        """Return the values of a field among documents, each with its document's key.

        ``keys`` are those of documents of this snapshot; an unknown field has no values.
        """

    def list_deleted(self, newer: Self) -> list[int] | None:
        """Return the documents deleted since, or None if there were other changes."""

    def get_setting(self, name: str) -> Any:
        """Return the setting stored under a name, or None."""

    def open_keywords(self, everyone: PassageRows, population: SqlCondition) -> KeywordEngine:
        """Return a keyword search engine over a population."""

    def open_dense(self, everyone: PassageRows, population: SqlCondition) -> DenseSearch:
        """Return a vector search engine over a population."""

    def open_sparse(self, everyone: PassageRows) -> SparseEngine | None:
        """Return a search engine over the term weights; None without any."""

    def open_tokens(self, everyone: PassageRows) -> TokenEngine | None:
        """Return a search engine over the token vectors; None without any."""

    def vectors_at(self, positions: NDArray[Any]) -> NDArray[Any]:
        """Return vectors by positions, (N, D) float32."""

    def passage(self, content: int, position: int) -> bytes:
        """Return a passage as JSON, by its content's key and its position in it, from 0."""

    def locate_passage(self, passage_id: str) -> tuple[int, int] | None:
        """Return the content's key and the position of a passage, or None."""

    def document(self, content: int) -> bytes:
        """Return a parsed document as JSON."""

    def locate_document(self, document_id: str) -> int | None:
        """Return the key of a document's content, or None."""

    def close(self) -> None:
        """Release the snapshot."""


class IndexWriter(Protocol):
    """Exclusive writer of an index, which commits snapshots."""

    @property
    def folder(self) -> Path:
        """Folder of the artifact."""

    @property
    def description(self) -> Mapping[str, Any]:
        """Description of the index."""

    def __enter__(self) -> Self:
        """Return the writer itself."""

    def __exit__(self, *_: object) -> None:
        """Close the writer."""

    def list_documents(self) -> dict[str, StoredDocument]:
        """Return every document of the newest snapshot, by path, in order."""

    def list_keys(self) -> dict[str, int]:
        """Return the key of every document of the newest snapshot, by path, in order."""

    def list_failures(self) -> list[tuple[str, str, str]]:
        """Return path, code and reason of every file that failed, in order."""

    def snapshots(self) -> list[Snapshot]:
        """Return the existing snapshots, oldest first."""

    def find_snapshot(self, selector: int | str | None = None) -> Snapshot:
        """Return a snapshot by number or digest, by default the newest."""

    def commit(
        self,
        change: IndexUpdate,
        *,
        reason: str,
        keep: int,
        check: Callable[[], None] = lambda: None,
    ) -> Snapshot:
        """Publish a change as the next snapshot.

        An empty change still makes a snapshot; ``keep`` snapshots, 1 or more, stay, the new one
        included. ``check`` is called where the change can still be abandoned, and raises to stop.

        Raises:
            ResourceError: If the disk is full, or the store cannot be reached.
        """

    def compact(self) -> Snapshot:
        """Merge the searched structures, and remove older snapshots without readers."""

    def get_setting(self, name: str) -> Any:
        """Return the setting stored under a name, or None."""

    def set_setting(self, name: str, value: Any) -> None:
        """Store a setting as JSON; it is not part of the index's content."""

    def list_files(self, root: Path) -> list[FileEntry]:
        """Return the entries of the files below ``root`` that belong to the store."""

    def close(self) -> None:
        """Release the lock."""


class IndexStorage(Protocol):
    """Store of one index."""

    def read(self, selector: int | str | None = None, *, verify: bool) -> SnapshotReader:
        """Open a snapshot, by default the newest.

        Args:
            selector: Number of a snapshot, or the start of its digest.
            verify: Verify the digests of the opened data.

        Raises:
            DataError: If there is no such snapshot, or it was removed.
            IntegrityError: If data are missing or have changed.
            ResourceError: If the store cannot be reached.
        """

    def hold(self) -> ReusableContent:
        """Open the newest snapshot to reuse its content."""

    def write(self) -> IndexWriter:
        """Open the index for writing, and remove what an interrupted writer left.

        Raises:
            IntegrityError: If it is damaged.
            ResourceError: If another process writes it, or the store cannot be reached.
        """

    def snapshots(self) -> list[Snapshot]:
        """Return the existing snapshots, oldest first."""

    def check(self) -> list[IntegrityIssue]:
        """Return all integrity issues; an empty list means that the index is intact."""

    def repair(self, issues: Sequence[IntegrityIssue], embedder: Embedder | None) -> None:
        """Rebuild damaged derived data.

        Args:
            issues: Issues that ``check`` reported.
            embedder: Embedding model for damaged vectors, by default opened by its reference.

        Raises:
            ResourceError: If another process writes it, or the store cannot be reached.
            IntegrityError: If the index cannot be read at all, or the embedder is another one.
        """

    def measure(self) -> StoreSize:
        """Return the size of the store."""

    def discard(self) -> None:
        """Remove the store's data outside its folder, if any."""


@dataclass(frozen=True, slots=True)
class IntegrityIssue:
    """An integrity issue; ``segment`` is the number of the damaged segment, or 0."""

    path: str
    what: str
    is_derived: bool
    segment: int = 0

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"path": self.path, "what": self.what, "is_derived": self.is_derived}


def check_manifest(folder: Path, latest: Snapshot) -> Iterator[IntegrityIssue]:
    """Yield issues where index.json or artifact.json does not match the newest snapshot."""
    try:
        index_data = load_json((folder / INDEX_FILE).read_text(encoding="utf-8"))
        if index_data["digest"] != latest.digest:
            yield IntegrityIssue(INDEX_FILE, "describes another snapshot than the newest", True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield IntegrityIssue(INDEX_FILE, f"cannot be read: {error}", True)
    if (folder.parent / ARTIFACT_FILE).is_file():
        number = read_artifact(folder.parent).details.get("snapshot")
        if number != latest.number:
            yield IntegrityIssue(
                ARTIFACT_FILE, f"describes snapshot {number}, not {latest.number}", True
            )


@dataclass(frozen=True, slots=True)
class IndexUpdate:
    """Change of one commit.

    ``puts`` are new or changed documents; ``moves`` are documents with the bytes of another
    document (by its key), whose rows they take over; ``facts`` are changes of metadata by key;
    ``removes`` are keys. A put or a move replaces the document of the same path. ``failures`` are
    all files that failed; None leaves the recorded ones unchanged.
    """

    puts: Sequence[tuple[StagedDocument, DocumentMetadata]] = ()
    moves: Sequence[tuple[StagedDocument, DocumentMetadata, int]] = ()
    facts: Mapping[int, DocumentMetadata] = field(default_factory=dict)
    removes: Sequence[int] = ()
    failures: Sequence[Mapping[str, str]] | None = None

    @property
    def parts(self) -> list[StagedDocument]:
        """The documents of the puts, then of the moves."""
        return [part for part, _ in self.puts] + [part for part, _, _ in self.moves]
