"""Cache of one open index per user, for servers; ``rag.index.view`` says what a user sees.

An index that takes the place of an open one, as a run's that is made again, is opened in its stead.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from stillroom.errors import CheckpointError, DataError, IntegrityError, ResourceError
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

    def __init__(
        self,
        path: Path | str,
        *,
        default: AccessContext | None = None,
        locate: Callable[[], Path] | None = None,
    ) -> None:
        """Open an index.

        ``locate`` returns the index's present path, if that can change.

        Raises:
            DataError: If the path is no index, or the default does not fit the index's access rule.
            IntegrityError: If a file is missing, incomplete or changed.
        """
        self.default = default
        self._locate = locate or (lambda: Path(path))
        self._lock = threading.Lock()
        self._indexes: OrderedDict[AccessContext | None, Index] = OrderedDict()
        self.folder = find_output(Path(path), "index")
        self._identity = _identify(self.folder)
        self.rule, description = _describe(self.folder)
        self._vectors = QueryEmbedder(description, self.folder, None)
        if default is not None:
            build_access_condition(self.rule, default, self.folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def embedder(self) -> Embedder:
        """The embedder that made the vectors, opened when first needed, shared by all users."""
        return self._vectors.embedder

    @contextmanager
    def seen_by(self, access: AccessContext | None) -> Iterator[Index]:
        """Give the newest index that a user may see until the body ends; it is not to be closed.

        Raises:
            DataError: If an index with tenants has no access context, or one without tenants has
                one.
            IntegrityError: If it is damaged; ``rag.index-replaced`` in place of any failure in the
                body if it is being built again, or was: the next call opens what is there then.
        """
        with ExitStack() as guards:
            with self._lock:
                self._follow()
                guards.enter_context(_name_replacement(self.folder, self._identity))
                index = self._open_newest(access or self.default)
            yield index

    def _open_newest(self, context: AccessContext | None) -> Index:
        index = self._indexes.pop(context, None)
        if index is None:
            index = Index.open(
                self.folder, access=context, embedder=self._vectors.embedder, verify=False
            )
        self._indexes[context] = index = index.newest()
        if len(self._indexes) > _MAX_OPEN_INDEXES:
            self._indexes.popitem(last=False)  # closed by the last reference to it
        return index

    @property
    def is_present(self) -> bool:
        """Whether an index is in its place, rather than being built again."""
        with suppress(DataError, OSError):
            return _identify(find_output(self._locate(), "index")) is not None
        return False

    def _follow(self) -> None:
        """Open the index that took the place of the open one, if it can be opened.

        Raises:
            IntegrityError: If it is damaged, or has another access rule than the server started
                with.
        """
        try:
            folder = find_output(self._locate(), "index")
            identity = _identify(folder)
            if identity is None or (folder, identity) == (self.folder, self._identity):
                return
            rule, description = _describe(folder)
        except (DataError, OSError):  # unfinished: the open one may still answer
            return
        if rule != self.rule:
            reason = (
                f"its access rule was {self.rule} and is {rule}, so the server must be restarted"
            )
            raise _make_replaced_error(folder, reason)
        self.folder, self._identity = folder, identity
        self._vectors = self._vectors.replace(description, folder)
        self._indexes.clear()  # those in use are closed by the last reference to them

    def close(self) -> None:
        """Close all open indexes."""
        with self._lock:
            for index in self._indexes.values():
                index.close()
            self._indexes.clear()


def _describe(folder: Path) -> tuple[str, IndexConfig]:
    """Return the access rule of an index, and its description."""
    with closing(open_store(folder).read(None, verify=True)) as opened:
        description = IndexConfig.from_json(opened.description)
    return str(description.settings.get("access", "open")), description


def _identify(folder: Path) -> tuple[int, ...] | None:
    """Return what differs between two indexes built in one place, and not after an update."""
    try:
        output = folder.stat()
    except OSError:
        return None
    try:
        started = (folder.parent / "recipe.yaml").stat()
    except OSError:  # an index of another program has none
        return (output.st_ino,)
    return output.st_ino, started.st_ino, started.st_mtime_ns


@contextmanager
def _name_replacement(folder: Path, identity: tuple[int, ...] | None) -> Iterator[None]:
    """Say of a failure in the body that the index of an identity was replaced, if it was."""
    try:
        yield
    except (CheckpointError, DataError, IntegrityError, ResourceError, OSError) as error:
        if _identify(folder) == identity:
            raise
        raise _make_replaced_error(folder, "it is being built again, or was") from error


def _make_replaced_error(folder: Path, reason: str) -> IntegrityError:
    return IntegrityError(
        f"another index is taking the place of the one that is open: {reason}",
        code="rag.index-replaced",
        where=str(folder),
        expected="the index that was opened; 'stillroom rag update' changes one in place",
        next="ask again when it is built",
    )
