"""Shelf: what of a folder has been opened to answer; the one asked longest ago is closed.

A run answers from its documents, a checkpoint by itself; both are opened as mounts are. Each has an
API of its own (``create_app`` over one ``Served``), so that limits and slots are those of one
model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.types import ASGIApp

from stillroom.errors import DataError
from stillroom.flow.opening import find_step
from stillroom.serve.app import create_app
from stillroom.serve.keeping import Keeper
from stillroom.serve.limits import Limits
from stillroom.serve.mounts import Mount, open_mount
from stillroom.serve.served import Served
from stillroom.serve.views.found import find_inside, name_of, read_found
from stillroom.serve.views.sources import has_tenants

if TYPE_CHECKING:
    from stillroom.rag.access import Access

__all__ = ["Opened", "Shelf"]


@dataclass(frozen=True, slots=True)
class Opened:
    """What is open under a name: what answers, and its API."""

    app: ASGIApp
    served: Served


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
        self.root, self.access = root, access
        self.limits = limits or Limits()
        self._references = references or set
        self._open = Keeper[str, Opened](kept, "models")

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
    def use(self, name: str) -> Iterator[Opened]:
        """Hold what a name stands for open until the body ends; raises as ``open`` does."""
        if not name.startswith("hub:"):  # "a", "./a" and a link to it are one
            name = name_of(self.root, find_inside(self.root, name)) or name
        with self._open.use(name, partial(self._serve, name)) as opened:
            yield opened

    def close(self) -> None:
        """Close all that is open."""
        self._open.close()

    @contextmanager
    def _serve(self, name: str) -> Iterator[Opened]:
        if name.startswith("hub:"):
            mount, access = self._find_reference(name), None
        else:
            mount, access = self._find(name)
        with open_mount(mount, access=access) as served:
            yield Opened(create_app(served, limits=self.limits), served)

    def _find_reference(self, name: str) -> Mount:
        if name not in self._references():
            raise DataError(
                f"{name!r:.200} made nothing that lies in this folder",
                code="data.missing",
                expected="a checkpoint of the folder, or one that something in it names",
                next="open the list of models",
            )
        return Mount(name, name)

    def _find(self, name: str) -> tuple[Mount, Access | None]:
        """Return what a name is mounted as, and who asks it."""
        found, folder = read_found(self.root, name), find_inside(self.root, name)
        if not found.is_run and found.kind != "checkpoint":
            raise DataError(
                f"{name!r:.200} is {found.kind}, which does not answer",
                code="data.wrong-kind",
                expected="a run or a checkpoint",
                next="open the list of models",
            )
        is_guarded = found.is_run and has_tenants(find_step(folder, "index"))
        return Mount(folder.resolve().name, str(folder)), self.access if is_guarded else None
