"""Qdrant collection of passage vectors, and its search with exact scores.

If access rules or filters leave few contents of the collection, their keys become a payload filter.
Otherwise points outside the view are dropped and the limit is increased. In both cases only points
of passages in the view are returned.
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

__all__ = ["QdrantCollection", "QdrantVectors", "digest_vector"]


_UPSERT_BATCH = 512
_SCROLL_BATCH = 1_024
_clients: dict[str, Any] = {}
_clients_lock = threading.Lock()


def _close_clients() -> None:
    """Close the clients before the interpreter unloads modules that closing needs."""
    for client in _clients.values():
        client.close()
    _clients.clear()


def digest_vector(row: NDArray[Any]) -> str:
    """Return the digest of a vector for the payload of its point."""
    return hashlib.sha256(np.asarray(row, dtype="<f4").tobytes()).hexdigest()[:32]


class QdrantCollection:
    """A Qdrant collection; ``where`` names it in errors."""

    def __init__(self, address: Secret, key: Secret | None, collection: str, folder: Path) -> None:
        """Refer to a collection; no client is opened yet.

        Args:
            address: URL of a server, a path for the client's local mode, or ``:memory:``.
            key: API key of the server.
            collection: Name of the collection.
            folder: Folder of the index, for errors.
        """
        self.address, self.key, self.collection = address, key, collection
        self.where = folder / f"qdrant:{collection}"

    def create(self, dimensions: int, *, m: int, ef_construction: int) -> None:
        """Create the collection.

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
                            id=(content << PASSAGE_BITS) + row,
                            vector=rows[row].tolist(),
                            payload={"content": content, "digest": digest_vector(rows[row])},
                        )
                        for row in range(start, min(start + _UPSERT_BATCH, len(rows)))
                    ],
                    wait=True,
                )

    def remove(self, contents: Sequence[int]) -> None:
        """Remove the points of some contents."""
        with self._errors() as (client, models):
            for start in range(0, len(contents), _UPSERT_BATCH):
                match = models.MatchAny(any=list(contents[start : start + _UPSERT_BATCH]))
                self._delete(client, models, models.FieldCondition(key="content", match=match))

    def remove_after(self, content: int) -> None:
        """Remove the points of contents with greater keys, left by an uncommitted change."""
        with self._errors() as (client, models):
            above = models.FieldCondition(key="content", range=models.Range(gt=content))
            self._delete(client, models, above)

    def count(self) -> int:
        """Return the number of points."""
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
        vectors = {int(row.id): row.vector for row in rows}
        missing = [key for key in keys if key not in vectors]
        if missing:
            raise self.damaged(f"{len(missing)} vectors are missing")
        return np.array([vectors[key] for key in keys], dtype=np.float32)

    def scroll(self) -> Iterator[tuple[int, int, str, NDArray[np.float32]]]:
        """Yield id, content, digest and vector of every point."""
        offset = None
        while True:
            with self._errors() as (client, _):
                rows, offset = client.scroll(
                    self.collection, limit=_SCROLL_BATCH, offset=offset, with_vectors=True
                )
            for row in rows:
                payload = row.payload or {}
                vector = np.array(row.vector, dtype=np.float32)
                yield int(row.id), int(payload["content"]), str(payload["digest"]), vector
            if offset is None:
                return

    def search(
        self,
        query: NDArray[np.float32],
        limit: int,
        *,
        contents: Sequence[int] | None,
        ef: int | None,
    ) -> tuple[list[int], NDArray[np.float32], list[float]]:
        """Return keys, vectors and products of the nearest points, best first.

        Args:
            query: Query vector, (D,).
            limit: Number of points.
            contents: Contents to search; None for all.
            ef: Candidates that HNSW keeps during search; None compares every point.
        """
        with self._errors() as (client, models):
            query_filter = None
            if contents is not None:
                match = models.MatchAny(any=list(contents))
                query_filter = models.Filter(
                    must=[models.FieldCondition(key="content", match=match)]
                )
            parameters = models.SearchParams(exact=ef is None, hnsw_ef=ef)
            rows = client.query_points(
                self.collection,
                query=query.tolist(),
                query_filter=query_filter,
                limit=limit,
                with_vectors=True,
                with_payload=False,
                search_params=parameters if self._is_server() else None,  # local mode is exact
            ).points
        matrix = np.array([row.vector for row in rows], dtype=np.float32)
        matrix = matrix.reshape(len(rows), -1) if rows else np.zeros((0, len(query)), np.float32)
        return [int(row.id) for row in rows], matrix, [float(row.score) for row in rows]

    def damaged(self, reason: str) -> IntegrityError:
        """Return an error for a damaged index."""
        return IntegrityError(
            f"the index is damaged: {reason}",
            code="rag.index-damaged",
            where=str(self.where),
            expected="the data that were written",
            next="stillroom rag verify INDEX, restore a backup, or build the index again",
        )

    def _delete(self, client: Any, models: Any, condition: Any) -> None:
        selector = models.FilterSelector(filter=models.Filter(must=[condition]))
        client.delete(self.collection, points_selector=selector, wait=True)

    def _is_server(self) -> bool:
        return self.address.reveal().startswith(("http://", "https://"))

    @contextmanager
    def _errors(self) -> Iterator[tuple[Any, Any]]:
        """Yield client and models; translate errors of the client in the body.

        Raises:
            MissingExtraError: If the client is not installed.
            ResourceError: If the server does not answer.
        """
        try:
            from qdrant_client import models
            from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
        except ImportError as error:
            raise MissingExtraError.of(
                "qdrant-client", extra="qdrant", purpose="an index in Qdrant"
            ) from error
        try:
            yield self._client(), models
        except UnexpectedResponse as error:
            if error.status_code == 404:
                raise self.damaged(f"the server has no collection {self.collection}") from error
            raise self._unreachable(f"it answers {error.status_code}") from error
        except (ResponseHandlingException, OSError, RuntimeError) as error:
            raise self._unreachable(str(error).split("\n", 1)[0]) from error
        except ValueError as error:  # the local mode's error for a missing collection
            raise self.damaged(str(error).split("\n", 1)[0]) from error

    def _client(self) -> Any:
        """Return the process's client of the address, since local mode allows only one."""
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
            f"Qdrant does not answer: {reason}",
            code="rag.store-unreachable",
            where=str(self.where),
            expected=f"a server at {self.address.reference}",
            next="check that it runs and that its address is a URL, as http://127.0.0.1:6333",
        )


_SLACK = 16
_SELECTIVE_FACTOR = 4
"""A payload filter is used if the view has less than this fraction (1/n) of all points."""
Matches = tuple["NDArray[np.int64]", "NDArray[np.float32]"]


class QdrantVectors:
    """Vectors of one population; see ``stillroom.rag.storage.protocol.DenseSearch``."""

    def __init__(
        self, points: QdrantCollection, everyone: PassageRows, oversampling: int | None
    ) -> None:
        """Create a view; nothing is fetched yet.

        Args:
            points: Collection of the vectors.
            everyone: Passages of the population.
            oversampling: Oversampling of approximate search; None for exact search.
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
        """Return the best ``k`` positions and their scores, best first."""
        query = np.asarray(vector, dtype=np.float32)
        visible = self._everyone.mask if mask is None else np.asarray(mask, dtype=bool)
        allowed = int(np.count_nonzero(visible))
        if not allowed:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        if is_near and self._oversampling is not None:
            matches = self._search_near(query, k, visible, allowed, self._oversampling)
            if matches is not None:
                return matches
        return self._search_exact(query, k, visible, allowed)

    def calibrate(self, queries: NDArray[Any], *, k: int, least: float) -> MeasuredRecall:
        """Measure recall of HNSW search, and use the smallest sufficient oversampling."""
        visible = self._everyone.mask
        allowed = len(self._everyone)
        measured = calibrate_oversampling(
            queries,
            lambda query: self._search_exact(query, k, visible, allowed)[1],
            lambda query, oversampling: self._search_near(query, k, visible, allowed, oversampling),
            k=k,
            least=least,
        )
        self._oversampling = measured.oversampling
        return measured

    def vectors_at(self, positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return vectors by positions in the population, (N, D)."""
        order = np.argsort(self._starts, kind="stable")
        documents = order[np.searchsorted(self._starts[order], positions, side="right") - 1]
        keys = (self._contents[documents] << PASSAGE_BITS) + positions - self._starts[documents]
        return self._points.fetch([int(key) for key in keys])

    def _search_exact(
        self, query: NDArray[np.float32], k: int, visible: NDArray[np.bool_], allowed: int
    ) -> Matches:
        depth, limit = min(k, allowed), k + _SLACK
        contents = self._name_contents(visible, allowed)
        while True:
            keys, matrix, products = self._points.search(query, limit, contents=contents, ef=None)
            positions, scores = self._score(query, keys, matrix, visible)
            if len(keys) < limit:
                return positions[:k], scores[:k]
            norms = float(np.linalg.norm(query)) * self._longest(matrix)
            least = products[-1] + norms * len(query) * 2.0**-22
            if len(positions) >= depth and least < scores[depth - 1]:
                return positions[:k], scores[:k]
            limit *= 4

    def _search_near(
        self,
        query: NDArray[np.float32],
        k: int,
        visible: NDArray[np.bool_],
        allowed: int,
        oversampling: int,
    ) -> Matches | None:
        """Return approximately the best rows, or None where exact search is preferable."""
        depth = k * oversampling
        if is_selective(allowed, self._count(), depth):
            return None
        contents = self._name_contents(visible, allowed)
        keys, matrix, _ = self._points.search(query, depth, contents=contents, ef=depth)
        positions, scores = self._score(query, keys, matrix, visible)
        return (positions[:k], scores[:k]) if len(positions) >= min(k, allowed) else None

    def _longest(self, matrix: NDArray[np.float32]) -> float:
        """Return a bound of the norms, which are about 1 for embedding models."""
        return 2.0 * max(1.0, float(np.linalg.norm(matrix, axis=1).max(initial=0.0)))

    def _count(self) -> int:
        if self._total is None:
            self._total = self._points.count()
        return self._total

    def _name_contents(self, visible: NDArray[np.bool_], allowed: int) -> list[int] | None:
        if allowed * _SELECTIVE_FACTOR > self._count():
            return None
        is_visible = visible[self._starts]
        return [int(key) for key in self._contents[is_visible]]

    def _score(
        self,
        query: NDArray[np.float32],
        keys: list[int],
        matrix: NDArray[np.float32],
        visible: NDArray[np.bool_],
    ) -> Matches:
        """Return the positions of visible keys and their exact scores, best first."""
        passages = np.array(keys, dtype=np.int64)
        contents, offsets = passages >> PASSAGE_BITS, passages & ((1 << PASSAGE_BITS) - 1)
        documents = np.searchsorted(self._contents, contents)
        documents[documents == len(self._contents)] = 0
        known = (self._contents[documents] == contents) & (offsets < self._counts[documents])
        positions = np.where(known, self._starts[documents] + offsets, 0)
        known &= visible[positions]
        scores = DenseEngine([matrix]).score(query, np.arange(len(keys)))[known]
        positions = positions[known]
        order = np.lexsort((positions, -scores))
        return positions[order], scores[order]
