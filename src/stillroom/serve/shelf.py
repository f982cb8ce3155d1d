"""Shelf: what of a folder has been opened to answer; the one asked longest ago is closed.

A run answers from its documents, a checkpoint by itself. Each has an API of its own (``create_app``
over one ``Served``), so that limits and slots are those of one model.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from stillroom.errors import DataError, ResourceError
from stillroom.flow.opening import find_step
from stillroom.models import open_text_model
from stillroom.serve.limits import Limits
from stillroom.serve.served import Served, open_run
from stillroom.serve.views.found import find_inside, read_found
from stillroom.serve.views.sources import has_tenants

if TYPE_CHECKING:
    from stillroom.rag.access import Access

__all__ = ["Shelf"]


@dataclass
class _Opened:
    app: ASGIApp
    served: Served
    closing: ExitStack
    users: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Shelf:
    """Opens runs and checkpoints of a folder by name, at most ``kept`` at once."""

    def __init__(
        self,
        root: Path,
        access: Access | None = None,
        *,
        limits: Limits | None = None,
        kept: int = 3,
        references: Callable[[], set[str]] | None = None,
    ) -> None:
        """Stand over a folder.

        Args:
            root: The folder.
            access: Who asks, of indexes with tenants.
            limits: Of each that is opened.
            kept: How many stay open.
            references: Gives the ``hub:`` references that may be opened beside the folder's own.
        """
        self.root, self.access, self.kept = root, access, kept
        self.limits = limits or Limits()
        self._references = references or set
        self._opened: OrderedDict[str, _Opened] = OrderedDict()
        self._lock = threading.Lock()
        self._opening: dict[str, threading.Lock] = {}

    def open(self, name: str) -> Served:
        """Open what a name stands for, unless it is open; blocks while a model is read.

        Raises:
            DataError: If it is neither a run nor a checkpoint, or lies outside.
            CheckpointError: If its model cannot be read.
            ResourceError: If all that is open is in use.
        """
        with self.use(name) as opened:
            return opened.served

    @contextmanager
    def use(self, name: str) -> Iterator[_Opened]:
        """Hold what a name stands for open until the body ends."""
        with self._lock:
            guard = self._opening.setdefault(name, threading.Lock())
        with guard:
            with self._lock:
                opened = self._opened.get(name)
                if opened is not None:
                    self._opened.move_to_end(name)
                    opened.users += 1
            if opened is None:
                self._make_room()
                opened = self._open(name)
                with self._lock:
                    opened.users += 1
                    self._opened[name] = opened
        try:
            yield opened
        finally:
            with self._lock:
                opened.users -= 1

    def close(self) -> None:
        """Close all that is open."""
        with self._lock:
            for opened in self._opened.values():
                opened.closing.close()
            self._opened.clear()

    def _make_room(self) -> None:
        with self._lock:
            while len(self._opened) >= self.kept:
                idle = next((key for key, one in self._opened.items() if not one.users), None)
                if idle is None:
                    raise ResourceError(
                        f"{self.kept} models are open and all of them are answering",
                        code="resource.busy",
                        expected="one that is idle, to be closed",
                        next="wait for an answer, or stop one",
                    )
                self._opened.pop(idle).closing.close()

    def _open(self, name: str) -> _Opened:
        from stillroom.serve.app import create_app

        closing = ExitStack()
        try:
            served = closing.enter_context(self._serve(name))
            return _Opened(create_app(served, limits=self.limits), served, closing)
        except BaseException:
            closing.close()
            raise

    @contextmanager
    def _serve(self, name: str) -> Iterator[Served]:
        if name.startswith("hub:"):
            if name not in self._references():
                raise DataError(
                    f"{name!r:.200} made nothing that lies in this folder",
                    code="data.missing",
                    expected="a checkpoint of the folder, or one that something in it names",
                    next="open the list of models",
                )
            with _bare(name, name) as served:
                yield served
            return
        found = read_found(self.root, name)
        folder = find_inside(self.root, name)
        if found.is_run:
            access = self.access if has_tenants(find_step(folder, "index")) else None
            with open_run(folder, access=access) as served:
                yield served
            return
        if found.kind != "checkpoint":
            raise DataError(
                f"{name!r:.200} is {found.kind}, which does not answer",
                code="data.wrong-kind",
                expected="a run or a checkpoint",
                next="open the list of models",
            )
        with _bare(folder.name, str(folder)) as served:
            yield served


@contextmanager
def _bare(name: str, reference: str) -> Iterator[Served]:
    """Open a model that answers by itself."""
    model = open_text_model(reference)
    try:
        yield Served(name, model)
    finally:
        model.close()
