"""Store protocol: what an index needs from a folder or a database server.

A store holds documents and passages snapshot by snapshot. A change becomes visible at one commit
point: whoever reads a snapshot sees all of it and nothing else until they ask for a newer one, and
what a snapshot needs stays while anybody reads it. There is one writer at a time. Who may see what
and what a filter leaves is a condition that the store itself applies, in the query that reads.

Equal contents have equal digests in every store, and equal scores: ``SnapshotReader`` gives rows in
order of path and position, occurrences of terms and vectors, and the formulas stand above it.

``stillroom.testing.check_store`` holds a store to all of this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from stillroom.provenance import ARTIFACT_FILE, read_artifact
from stillroom.rag.storage.snapshots import INDEX_FILE, DocumentTable, PassageRows, Snapshot
from stillroom.rag.types import DocumentMetadata, StagedDocument

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.models import Embedder
    from stillroom.provenance import FileEntry
    from stillroom.rag.search_engines.dense import MeasuredRecall
    from stillroom.rag.search_engines.keyword import KeywordEngine
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


"""The name under which a store keeps the recall of approximate search."""


class StoredDocument(NamedTuple):
    """What a store's newest snapshot says of a document: its key, its bytes' digest, its facts."""

    key: int
    digest: str
    facts: DocumentMetadata


@dataclass(frozen=True, slots=True)
class StoreSize:
    """How much a store takes: bytes, and pieces (segments or batches) that a search looks through.

    ``is_remote`` where the bytes are a server's.
    """

    bytes: int
    pieces: int
    is_remote: bool = False


class DenseSearch(Protocol):
    """Finds places by the dot product of their vectors with a query's."""

    def search(
        self,
        vector: NDArray[Any],
        k: int,
        *,
        mask: NDArray[Any] | None,
        condition: SqlCondition,
        is_near: bool = False,
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the best ``k`` places and their scores, best first.

        Args:
            vector: The query's, (D,) float32.
            k: How many; 1 or more.
            mask: Which places may be found, (P,) bool; None for all of the population.
            condition: What the documents of these places meet, for a store that searches by it.
            is_near: Whether about the best are enough, of which many are found; scores are exact.
        """

    def calibrate(self, queries: NDArray[Any], *, k: int, least: float) -> MeasuredRecall:
        """Measure what search that ``is_near`` finds of the best ``k``, and search so from here.

        Args:
            queries: Vectors of questions, (Q, D).
            k: At which depth.
            least: The mean recall to reach; where nothing does, all search is exact.
        """


class ReusableContent(Protocol):
    """What the newest snapshot holds already, to be taken over."""

    @property
    def description(self) -> Mapping[str, Any]:
        """What shaped the index."""

    def take(self, path: str, digest: str) -> StagedDocument | None:
        """Return the document of that path and digest, if there is one."""

    def find_same(self, digest: str) -> Sequence[StagedDocument]:
        """Return the documents of the same bytes, in order of path."""

    def list_parts(self) -> Sequence[tuple[StagedDocument, DocumentMetadata]]:
        """Return every document with its facts, in order of path."""

    def vector_of(self, embedded: bytes) -> tuple[NDArray[Any], bool] | None:
        """Return the vector made of a text, by its digest, and whether the text was cut."""

    def close(self) -> None:
        """Let the snapshot go."""


class SnapshotReader(Protocol):
    """A snapshot that stays while it is open; read by any number of threads.

    A *place* is where a passage lies as the store counts, from 0 up to ``size``; a *row* is its
    number in a view. ``where`` names the store in errors, and never holds a secret.
    """

    @property
    def snapshot(self) -> Snapshot:
        """Which one it is."""

    @property
    def where(self) -> Path:
        """What errors name."""

    @property
    def description(self) -> Mapping[str, Any]:
        """What shaped the index."""

    @property
    def dialect(self) -> SqlDialect:
        """How the store's conditions are written."""

    @property
    def size(self) -> int:
        """How many places there are, those that no document needs included."""

    def is_newest(self) -> bool:
        """Return whether no newer snapshot was committed."""

    def follow(self) -> Self:
        """Return the newest snapshot, opened beside this one."""

    def load(self, condition: SqlCondition, within: DocumentTable | None = None) -> DocumentTable:
        """Return the documents that meet a condition, in order of path.

        Args:
            condition: On ``d``, a document.
            within: The population's table, whose places the others' are.
        """

    def list_fields(self, condition: SqlCondition) -> Sequence[tuple[str, str]]:
        """Return name and kind of every field of documents that meet a condition."""

    def list_values(self, name: str, keys: Sequence[int]) -> Sequence[tuple[int, str | float]]:
        """Return the values that documents have of a field, each with its document's key.

        Args:
            name: The field; one that no document has gives nothing.
            keys: Of documents of this snapshot.
        """

    def list_deleted(self, newer: Self) -> list[int] | None:
        """Return the documents that ended since, if that is all that happened; else None."""

    def recall(self, name: str) -> Any:
        """Return what was measured under a name, or None."""

    def open_keywords(self, everyone: PassageRows, population: SqlCondition) -> KeywordEngine:
        """Return what searches the words of a population."""

    def open_dense(self, everyone: PassageRows, population: SqlCondition) -> DenseSearch:
        """Return what searches the vectors of a population."""

    def vectors_at(self, places: NDArray[Any]) -> NDArray[Any]:
        """Return vectors, (N, D) float32."""

    def passage(self, content: int, position: int) -> bytes:
        """Return a passage as JSON, by its content's key and its place from 0."""

    def locate_passage(self, passage_id: str) -> tuple[int, int] | None:
        """Return the content's key and the position of a passage, or None."""

    def document(self, content: int) -> bytes:
        """Return a parsed document as JSON."""

    def locate_document(self, document_id: str) -> int | None:
        """Return the key of a document's content, or None."""

    def close(self) -> None:
        """Let the snapshot go."""


class IndexWriter(Protocol):
    """Changes an index from one snapshot to the next; the only one that does meanwhile."""

    @property
    def folder(self) -> Path:
        """Where the artifact's own files lie."""

    @property
    def description(self) -> Mapping[str, Any]:
        """What shaped the index."""

    def __enter__(self) -> Self:
        """Return the writer itself."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the writer."""

    def list_documents(self) -> dict[str, StoredDocument]:
        """Return what the newest snapshot says of every document, by path, in order."""

    def list_keys(self) -> dict[str, int]:
        """Return the key of every document of the newest snapshot, by path, in order."""

    def list_failures(self) -> list[tuple[str, str, str]]:
        """Return path, code and reason of every file that could not be used, in order."""

    def snapshots(self) -> list[Snapshot]:
        """Return the snapshots that can be opened, oldest first."""

    def find_snapshot(self, wanted: int | str | None = None) -> Snapshot:
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

        Args:
            change: What to do; an empty one still makes a snapshot.
            reason: What the snapshot's line in the log says.
            keep: How many snapshots stay, the new one included; 1 or more.
            check: Called where the change can still be given up; raises to stop.

        Raises:
            ResourceError: If there is no room, or the store cannot be reached.
        """

    def compact(self, *, check: Callable[[], None] = lambda: None) -> Snapshot:
        """Lay out anew what is searched, and let go of all that no reader needs but the newest."""

    def recall(self, name: str) -> Any:
        """Return what was measured under a name, or None."""

    def remember(self, name: str, value: Any) -> None:
        """Keep something that was measured, as JSON; no part of what the index holds."""

    def list_files(self, home: Path) -> list[FileEntry]:
        """Return the entries of the files below ``home`` that belong to the store."""

    def close(self) -> None:
        """Give the lock back."""


class IndexStorage(Protocol):
    """One index, where it lies."""

    def read(self, wanted: int | str | None = None, *, verify: bool) -> SnapshotReader:
        """Open a snapshot, by default the newest.

        Args:
            wanted: Its number, or the beginning of its digest.
            verify: Hold what is opened against its digests.

        Raises:
            DataError: If there is no such snapshot, or none any more.
            IntegrityError: If something is missing or is not what was written.
            ResourceError: If the store cannot be reached.
        """

    def hold(self) -> ReusableContent:
        """Open the newest snapshot for taking over what it holds."""

    def write(self) -> IndexWriter:
        """Open for writing, and clear up after a writer that was killed.

        Raises:
            ResourceError: If another writer is at work, or the store cannot be reached.
        """

    def snapshots(self) -> list[Snapshot]:
        """Return the snapshots that can be opened, oldest first."""

    def check(self) -> list[IntegrityIssue]:
        """Return everything that does not agree; none means sound."""

    def repair(self, found: Sequence[IntegrityIssue], embedder: Embedder | None) -> None:
        """Make again what is derived and damaged.

        Args:
            found: What ``check`` found.
            embedder: What makes vectors; by default the one that the index names.

        Raises:
            ResourceError: If another writer is at work, or the store cannot be reached.
        """

    def measure(self) -> StoreSize:
        """Return how much the store takes."""

    def discard(self) -> None:
        """Remove what the store keeps outside its folder; nothing, where it keeps nothing there."""


@dataclass(frozen=True, slots=True)
class IntegrityIssue:
    """One thing that is not as it should be; ``segment`` is the number of the one concerned."""

    path: str
    what: str
    is_derived: bool
    segment: int = 0

    def __str__(self) -> str:
        """Return one line for a person."""
        return f"{self.path}: {self.what}"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"path": self.path, "what": self.what, "is_derived": self.is_derived}


def check_manifest(folder: Path, latest: Snapshot) -> Iterator[IntegrityIssue]:
    """Yield where index.json and artifact.json do not agree with the newest snapshot."""
    try:
        told = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        if told["digest"] != latest.digest:
            yield IntegrityIssue(INDEX_FILE, "speaks of another snapshot than the newest", True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield IntegrityIssue(INDEX_FILE, f"cannot be read: {error}", True)
    if (folder.parent / ARTIFACT_FILE).is_file():
        found = read_artifact(folder.parent).details.get("snapshot")
        if found != latest.number:
            yield IntegrityIssue(
                ARTIFACT_FILE, f"speaks of snapshot {found}, not {latest.number}", True
            )


@dataclass(frozen=True, slots=True)
class IndexUpdate:
    """What one commit does.

    ``puts`` are new or changed documents; ``moves`` are documents whose bytes another document
    (by its key) had, whose rows they take over; ``facts`` changes by key what is said of documents;
    ``removes`` are keys. A put or a move replaces the document of the same path. ``failures`` are
    all files that could not be used; None leaves them as they were.
    """

    puts: Sequence[tuple[StagedDocument, DocumentMetadata]] = ()
    moves: Sequence[tuple[StagedDocument, DocumentMetadata, int]] = ()
    facts: Mapping[int, DocumentMetadata] = field(default_factory=dict)
    removes: Sequence[int] = ()
    failures: Sequence[Mapping[str, str]] | None = None

    @property
    def parts(self) -> list[StagedDocument]:
        """The documents of the puts, then those of the moves."""
        return [part for part, _ in self.puts] + [part for part, _, _ in self.moves]
