"""Points: the vectors of passages in a collection of Qdrant, by the keys of passages."""

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
from stillroom.rag.store.schema import PASSAGE_BITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stillroom.recipes import Secret

__all__ = ["Points", "digest_vector"]

_AT_ONCE = 512
_SCROLLED = 1_024
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


class Points:
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
            for start in range(0, len(rows), _AT_ONCE):
                client.upsert(
                    self.collection,
                    [
                        models.PointStruct(
                            id=(content << PASSAGE_BITS) + at,
                            vector=rows[at].tolist(),
                            payload={"content": content, "digest": digest_vector(rows[at])},
                        )
                        for at in range(start, min(start + _AT_ONCE, len(rows)))
                    ],
                    wait=True,
                )

    def remove(self, contents: Sequence[int]) -> None:
        """Remove the points of some contents."""
        with self._errors() as (client, models):
            for start in range(0, len(contents), _AT_ONCE):
                some = models.MatchAny(any=list(contents[start : start + _AT_ONCE]))
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
                    self.collection, limit=_SCROLLED, offset=offset, with_vectors=True
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
