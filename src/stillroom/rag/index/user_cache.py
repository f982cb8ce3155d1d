"""Cache of one open index per user, for servers; ``rag.index.view`` says what a user sees."""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Self

from stillroom.provenance import find_output
from stillroom.rag.embedding.query_embedder import QueryEmbedder
from stillroom.rag.index.searcher import Index
from stillroom.rag.index.view import AccessContext, build_access_condition
from stillroom.rag.storage.snapshots import IndexConfig, open_store

if TYPE_CHECKING:
    from stillroom.models import Embedder

__all__ = ["PerUserIndexCache"]

_MAX_OPEN_INDEXES = 64


class PerUserIndexCache:
    """Open indexes by user; call ``seen_by`` for each question, and ``close``."""

    def __init__(self, path: Path | str, *, default: AccessContext | None = None) -> None:
        """Open an index.

        Raises:
            DataError: If the path is no index, or the default does not fit the index's access rule.
            IntegrityError: If a file is missing, incomplete or changed.
        """
        self.folder = find_output(Path(path), "index")
        with closing(open_store(self.folder).read(None, verify=True)) as opened:
            description = IndexConfig.from_json(opened.description)
        self.rule = str(description.settings.get("access", "open"))
        self.default = default
        if default is not None:
            build_access_condition(self.rule, default, self.folder)
        self._vectors = QueryEmbedder(description, self.folder, None)
        self._lock = threading.Lock()
        self._indexes: OrderedDict[AccessContext | None, Index] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def embedder(self) -> Embedder:
        """The embedder that made the vectors, opened when first needed, shared by all users."""
        return self._vectors.embedder

    def seen_by(self, access: AccessContext | None) -> Index:
        """Return the newest index that a user may see; the caller must not close it.

        Raises:
            DataError: If an index with tenants has no access context, or one without tenants has
                one.
        """
        context = access or self.default
        with self._lock:
            index = self._indexes.pop(context, None)
            if index is None:
                index = Index.open(
                    self.folder, access=context, embedder=self._vectors.embedder, verify=False
                )
            self._indexes[context] = index = index.newest()
            if len(self._indexes) > _MAX_OPEN_INDEXES:
                self._indexes.popitem(last=False)  # closed by the last reference to it
            return index

    def close(self) -> None:
        """Close all open indexes."""
        with self._lock:
            for index in self._indexes.values():
                index.close()
            self._indexes.clear()
