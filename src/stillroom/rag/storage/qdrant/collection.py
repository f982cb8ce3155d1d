"""Qdrant collection of passage vectors, and its search with exact scores.

A snapshot's contents are few of the collection's only where somebody may see few documents, or a
filter leaves few: then their keys are the payload filter. Else points that the view does not see
are dropped and more are asked for. Either way no point is found whose passage has no place.
"""

from __future__ import annotations

import atexit
import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import IntegrityError, MissingExtraError, ResourceError
from stillroom.rag.search_engines.dense import (
    DenseEngine,
    MeasuredRecall,
    calibrate_oversampling,
    is_selective,
)
from stillroom.rag.storage.snapshots import PASSAGE_BITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.rag.storage.filters import SqlCondition
    from stillroom.rag.storage.snapshots import PassageRows
    from stillroom.recipes import Secret

__all__ = [
    "QdrantCollection",
    "QdrantVectors",
    "digest_vector",
]


_UPSERT_BATCH = 512


_SCROLL_BATCH = 1_024


_clients: dict[str, Any] = {}


_clients_lock = threading.Lock()


def _close_clients() -> None:
    """Close what is open before the interpreter takes away what closing needs."""
    for client in _clients.values():
        client.close()
    _clients.clear()


def digest_vector(row: NDArray[Any]) -> str:
    """Return what a point's payload says of its vector."""
    return hashlib.sha256(np.asarray(row, dtype="<f4").tobytes()).hexdigest()[:32]


class QdrantCollection:
    """One collection; ``where`` names it in errors."""

    def __init__(self, address: Secret, key: Secret | None, collection: str, folder: Path) -> None:
        """Stand for a collection; nothing is opened yet.

        Args:
            address: A server's URL, a path for the client's own local mode, or ``:memory:``.
            key: Of the server.
            collection: Its name.
            folder: Of the index, for errors.
        """
        self.address, self.key, self.collection = address, key, collection
        self.where = folder / f"qdrant:{collection}"

    def create(self, dimensions: int, *, m: int, ef_construction: int) -> None:
        """Make the collection.

        Raises:
            ResourceError: If the server cannot be reached.
        """
        with self._errors() as (client, models):
            client.create_collection(
                self.collection,
                vectors_config=models.VectorParams(size=dimensions, distance=models.Distance.DOT),
                hnsw_config=models.HnswConfigDiff(m=m, ef_construct=ef_construction),
            )
            if self._is_server():
                client.create_payload_index(
                    self.collection, "content", models.PayloadSchemaType.INTEGER
                )

    def drop(self) -> None:
        """Remove the collection."""
        with self._errors() as (client, _):
            client.delete_collection(self.collection)

    def put(self, content: int, vectors: NDArray[Any]) -> None:
        """Write the vectors of a content's passages, (N, D)."""
        rows = np.asarray(vectors, dtype=np.float32)
        with self._errors() as (client, models):
            for start in range(0, len(rows), _UPSERT_BATCH):
                client.upsert(
                    self.collection,
                    [
                        models.PointStruct(
                            id=(content << PASSAGE_BITS) + at,
                            vector=rows[at].tolist(),
                            payload={"content": content, "digest": digest_vector(rows[at])},
                        )
                        for at in range(start, min(start + _UPSERT_BATCH, len(rows)))
                    ],
                    wait=True,
                )

    def remove(self, contents: Sequence[int]) -> None:
        """Remove the points of some contents."""
        with self._errors() as (client, models):
            for start in range(0, len(contents), _UPSERT_BATCH):
                some = models.MatchAny(any=list(contents[start : start + _UPSERT_BATCH]))
                self._delete(client, models, models.FieldCondition(key="content", match=some))

    def remove_after(self, content: int) -> None:
        """Remove the points of contents with greater keys: those of a change that never was."""
        with self._errors() as (client, models):
            above = models.FieldCondition(key="content", range=models.Range(gt=content))
            self._delete(client, models, above)

    def count(self) -> int:
        """Return how many points there are."""
        with self._errors() as (client, _):
            return int(client.count(self.collection, exact=True).count)

    def fetch(self, keys: Sequence[int]) -> NDArray[np.float32]:
        """Return the vectors of passages by their keys, (N, D), in that order.

        Raises:
            IntegrityError: If one is missing.
        """
        with self._errors() as (client, _):
            rows = client.retrieve(
                self.collection, list(keys), with_vectors=True, with_payload=False
            )
        found = {int(row.id): row.vector for row in rows}
        missing = [key for key in keys if key not in found]
        if missing:
            raise self.damaged(f"{len(missing)} vectors are missing")
        return np.array([found[key] for key in keys], dtype=np.float32)

    def scroll(self) -> Iterator[tuple[int, int, str, NDArray[np.float32]]]:
        """Yield every point: its id, content, digest and vector."""
        offset = None
        while True:
            with self._errors() as (client, _):
                rows, offset = client.scroll(
                    self.collection, limit=_SCROLL_BATCH, offset=offset, with_vectors=True
                )
            for row in rows:
                told = row.payload or {}
                vector = np.array(row.vector, dtype=np.float32)
                yield int(row.id), int(told["content"]), str(told["digest"]), vector
            if offset is None:
                return

    def search(
        self,
        query: NDArray[np.float32],
        many: int,
        *,
        contents: Sequence[int] | None,
        ef: int | None,
    ) -> tuple[list[int], NDArray[np.float32], list[float]]:
        """Return keys, vectors and products of the nearest points, best first.

        Args:
            query: The vector, (D,).
            many: How many.
            contents: Only points of these; None for all.
            ef: How widely HNSW looks; None compares every point.
        """
        with self._errors() as (client, models):
            wanted = None
            if contents is not None:
                some = models.MatchAny(any=list(contents))
                wanted = models.Filter(must=[models.FieldCondition(key="content", match=some)])
            how = models.SearchParams(exact=ef is None, hnsw_ef=ef)
            rows = client.query_points(
                self.collection,
                query=query.tolist(),
                query_filter=wanted,
                limit=many,
                with_vectors=True,
                with_payload=False,
                search_params=how if self._is_server() else None,  # local mode is exact
            ).points
        matrix = np.array([row.vector for row in rows], dtype=np.float32)
        matrix = matrix.reshape(len(rows), -1) if rows else np.zeros((0, len(query)), np.float32)
        return [int(row.id) for row in rows], matrix, [float(row.score) for row in rows]

    def damaged(self, reason: str) -> IntegrityError:
        """Return the error that says what is not what was written."""
        return IntegrityError(
            f"the index is damaged: {reason}",
            code="rag.index-damaged",
            where=str(self.where),
            expected="what was written",
            next="stillroom rag verify INDEX, restore a backup, or build the index again",
        )

    def _delete(self, client: Any, models: Any, condition: Any) -> None:
        chosen = models.FilterSelector(filter=models.Filter(must=[condition]))
        client.delete(self.collection, points_selector=chosen, wait=True)

    def _is_server(self) -> bool:
        return self.address.reveal().startswith(("http://", "https://"))

    @contextmanager
    def _errors(self) -> Iterator[tuple[Any, Any]]:
        """Yield client and models; the client's errors within the body are raised as ours.

        Raises:
            MissingExtraError: If the client is not installed.
            ResourceError: If the server does not answer.
        """
        try:
            from qdrant_client import models
            from qdrant_client.http.exceptions import (
                ResponseHandlingException,
                UnexpectedResponse,
            )
        except ImportError as error:
            raise MissingExtraError.of(
                "qdrant-client", extra="qdrant", purpose="an index in Qdrant"
            ) from error
        try:
            yield self._client(), models
        except UnexpectedResponse as error:
            if error.status_code == 404:
                raise self.damaged(f"the server holds no collection {self.collection}") from error
            raise self._unreachable(f"it answers {error.status_code}") from error
        except (ResponseHandlingException, OSError, RuntimeError) as error:
            raise self._unreachable(str(error).split("\n", 1)[0]) from error
        except ValueError as error:  # how the local mode says that a collection is not there
            raise self.damaged(str(error).split("\n", 1)[0]) from error

    def _client(self) -> Any:
        """Return the client of the address; one in a process, since local mode takes no second."""
        from qdrant_client import QdrantClient

        address = self.address.reveal()
        with _clients_lock:
            if not _clients:
                atexit.register(_close_clients)
            if address not in _clients:
                if self._is_server():
                    key = self.key.reveal() if self.key else None
                    _clients[address] = QdrantClient(url=address, api_key=key, timeout=60)
                elif address == ":memory:":
                    _clients[address] = QdrantClient(address)
                else:
                    _clients[address] = QdrantClient(path=address)
            return _clients[address]

    def _unreachable(self, reason: str) -> ResourceError:
        return ResourceError(
            f"Qdrant does not answer, or gives up: {reason}",
            code="rag.store-unreachable",
            where=str(self.where),
            expected=f"a server at {self.address.reference}",
            next="check that it runs and that its address is a URL, as http://127.0.0.1:6333",
        )


_SLACK = 16


_SELECTIVE_FACTOR = 4


"""Contents are named one by one where they are fewer than one in so many."""


Matches = tuple["NDArray[np.int64]", "NDArray[np.float32]"]


class QdrantVectors:
    """The vectors of one population; see ``stillroom.rag.storage.protocol.DenseSearch``."""

    def __init__(
        self, points: QdrantCollection, everyone: PassageRows, oversampling: int | None
    ) -> None:
        """Make a view; nothing is asked yet.

        Args:
            points: The collection.
            everyone: The passages of the population.
            oversampling: What was measured to suffice for search that ``is_near``.
        """
        self._points, self._everyone = points, everyone
        self._oversampling = oversampling
        table = everyone.table
        order = np.argsort(table.contents, kind="stable")
        self._contents, self._starts = table.contents[order], table.starts[order]
        self._counts = table.counts[order]
        self._total: int | None = None

    def search(
        self,
        vector: NDArray[Any],
        k: int,
        *,
        mask: NDArray[Any] | None,
        condition: SqlCondition,
        is_near: bool = False,
    ) -> Matches:
        """Return the best ``k`` places and their scores, best first."""
        query = np.asarray(vector, dtype=np.float32)
        seen = self._everyone.mask if mask is None else np.asarray(mask, dtype=bool)
        allowed = int(np.count_nonzero(seen))
        if not allowed:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        if is_near and self._oversampling is not None:
            found = self._search_near(query, k, seen, allowed, self._oversampling)
            if found is not None:
                return found
        return self._search_exact(query, k, seen, allowed)

    def calibrate(self, queries: NDArray[Any], *, k: int, least: float) -> MeasuredRecall:
        """Measure what HNSW finds of the best ``k``, and search so from here."""
        seen = self._everyone.mask
        allowed = len(self._everyone)
        measured = calibrate_oversampling(
            queries,
            lambda query: self._search_exact(query, k, seen, allowed)[1],
            lambda query, oversampling: self._search_near(query, k, seen, allowed, oversampling),
            k=k,
            least=least,
        )
        self._oversampling = measured.oversampling
        return measured

    def vectors_at(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of places of the population, (N, D)."""
        order = np.argsort(self._starts, kind="stable")
        at = order[np.searchsorted(self._starts[order], places, side="right") - 1]
        keys = (self._contents[at] << PASSAGE_BITS) + places - self._starts[at]
        return self._points.fetch([int(key) for key in keys])

    def _search_exact(
        self, query: NDArray[np.float32], k: int, seen: NDArray[np.bool_], allowed: int
    ) -> Matches:
        wanted, many = min(k, allowed), k + _SLACK
        named = self._name_contents(seen, allowed)
        while True:
            keys, matrix, products = self._points.search(query, many, contents=named, ef=None)
            places, scores = self._score(query, keys, matrix, seen)
            if len(keys) < many:
                return places[:k], scores[:k]
            norms = float(np.linalg.norm(query)) * self._longest(matrix)
            least = products[-1] + norms * len(query) * 2.0**-22
            if len(places) >= wanted and least < scores[wanted - 1]:
                return places[:k], scores[:k]
            many *= 4

    def _search_near(
        self,
        query: NDArray[np.float32],
        k: int,
        seen: NDArray[np.bool_],
        allowed: int,
        oversampling: int,
    ) -> Matches | None:
        """Return about the best, or None where exact search is surer."""
        wanted = k * oversampling
        if is_selective(allowed, self._count(), wanted):
            return None
        named = self._name_contents(seen, allowed)
        keys, matrix, _ = self._points.search(query, wanted, contents=named, ef=wanted)
        places, scores = self._score(query, keys, matrix, seen)
        return (places[:k], scores[:k]) if len(places) >= min(k, allowed) else None

    def _longest(self, matrix: NDArray[np.float32]) -> float:
        """Return a bound of the norms: embedders give vectors of length one, or about that."""
        return 2.0 * max(1.0, float(np.linalg.norm(matrix, axis=1).max(initial=0.0)))

    def _count(self) -> int:
        if self._total is None:
            self._total = self._points.count()
        return self._total

    def _name_contents(self, seen: NDArray[np.bool_], allowed: int) -> list[int] | None:
        if allowed * _SELECTIVE_FACTOR > self._count():
            return None
        shown = seen[self._starts]
        return [int(key) for key in self._contents[shown]]

    def _score(
        self,
        query: NDArray[np.float32],
        keys: list[int],
        matrix: NDArray[np.float32],
        seen: NDArray[np.bool_],
    ) -> Matches:
        """Return the places of keys that are seen, and their exact scores, best first."""
        passages = np.array(keys, dtype=np.int64)
        contents, positions = passages >> PASSAGE_BITS, passages & ((1 << PASSAGE_BITS) - 1)
        at = np.searchsorted(self._contents, contents)
        at[at == len(self._contents)] = 0
        known = (self._contents[at] == contents) & (positions < self._counts[at])
        places = np.where(known, self._starts[at] + positions, 0)
        known &= seen[places]
        scores = DenseEngine([matrix]).score(query, np.arange(len(keys)))[known]
        places = places[known]
        order = np.lexsort((places, -scores))
        return places[order], scores[order]
