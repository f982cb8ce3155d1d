"""Cache of one open index per user, with access control.

For servers. Who asks becomes a condition of the store's own query (``rag.access``), once for each
asker, and never a filter of what was found. What an asker is not allowed to see is not loaded for
them, counts in no statistic of theirs and has no row.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from stillroom.provenance import find_output
from stillroom.rag.embedding.cache import QueryEmbedder
from stillroom.rag.index.searcher import Index
from stillroom.rag.index.view import AccessContext, build_access_condition
from stillroom.rag.storage.snapshots import IndexConfig, open_store

if TYPE_CHECKING:
    from stillroom.models import Embedder

__all__ = ["PerUserIndexCache"]

_MAX_OPEN_INDEXES = 64


class PerUserIndexCache:
    """An index's readers; use ``seen_by`` for each question, and ``close``."""

    def __init__(self, path: Path | str, *, default: AccessContext | None = None) -> None:
        """Open an index.

        Args:
            path: The artifact's folder or its output.
            default: Who asks where nobody is named.

        Raises:
            DataError: If the path is no index, or the default does not fit the index's rule.
            IntegrityError: If a file is missing, half-written or changed.
        """
        self.folder = find_output(Path(path), "index")
        opened = open_store(self.folder).read(None, verify=True)
        try:
            description = IndexConfig.from_json(opened.description)
        finally:
            opened.close()
        self.rule = str(description.settings.get("access", "open"))
        self.default = default
        if default is not None:
            build_access_condition(self.rule, default, self.folder)
        self._vectors = QueryEmbedder(description, self.folder, None)
        self._lock = threading.Lock()
        self._indexes: OrderedDict[AccessContext | None, Index] = OrderedDict()

    def __enter__(self) -> Self:
        """Return the audience itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close all that is open."""
        self.close()

    @property
    def embedder(self) -> Embedder:
        """The embedder that made the vectors, opened when first needed, one for all."""
        return self._vectors.embedder

    def seen_by(self, access: AccessContext | None) -> Index:
        """Return the index as it is now and as one asker sees it; not to be closed.

        Args:
            access: Who asks; None for the default.

        Raises:
            DataError: If the index has tenants and nobody is named, or has none and somebody is.
        """
        asker = access or self.default
        with self._lock:
            index = self._indexes.pop(asker, None)
            if index is None:
                index = Index.open(
                    self.folder, access=asker, embedder=self._vectors.embedder, verify=False
                )
            self._indexes[asker] = index = index.newest()
            if len(self._indexes) > _MAX_OPEN_INDEXES:
                self._indexes.popitem(last=False)  # closed once the last answer from it is given
            return index

    def close(self) -> None:
        """Close all that is open."""
        with self._lock:
            for index in self._indexes.values():
                index.close()
            self._indexes.clear()
