"""FolderStore: the store that is the index's own folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.rag.store.checking import Damage, check_folder
from stillroom.rag.store.ledger import Ledger
from stillroom.rag.store.opening import OpenSnapshot, open_snapshot
from stillroom.rag.store.protocol import StoreSize
from stillroom.rag.store.recalled import Held
from stillroom.rag.store.snapshots import Snapshot
from stillroom.rag.store.writer import Writer

if TYPE_CHECKING:
    from stillroom.models import Embedder

__all__ = ["FolderStore"]


@dataclass(frozen=True, slots=True)
class FolderStore:
    """The index whose own files lie in ``folder``; see ``stillroom.rag.store.protocol.Store``."""

    folder: Path

    def read(self, wanted: int | str | None = None, *, verify: bool) -> OpenSnapshot:
        """Open a snapshot, by default the newest.

        Raises:
            DataError: If there is no such snapshot, or none any more.
            IntegrityError: If a file is missing, half-written or changed.
        """
        return open_snapshot(self.folder, wanted, verify=verify)

    def hold(self) -> Held:
        """Open the newest snapshot for taking over what it holds."""
        return Held(open_snapshot(self.folder, verify=False))

    def write(self) -> Writer:
        """Open for writing, and clear up after a writer that was killed.

        Raises:
            ResourceError: If another process writes it, or the disk cannot be written.
            IntegrityError: If it is damaged.
        """
        return Writer.open(self.folder)

    def snapshots(self) -> list[Snapshot]:
        """Return the snapshots that can be opened, oldest first."""
        ledger = Ledger(self.folder)
        try:
            return ledger.snapshots()
        finally:
            ledger.close()

    def check(self) -> list[Damage]:
        """Return everything that does not agree; none means sound."""
        return check_folder(self.folder)

    def repair(self, found: Sequence[Damage], embedder: Embedder | None) -> None:
        """Make again what is derived and damaged.

        Raises:
            ResourceError: If another process writes the index.
        """
        from stillroom.rag.repairing import repair_folder

        repair_folder(self.folder, found, embedder)

    def measure(self) -> StoreSize:
        """Return how much the folder takes."""
        taken = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        ledger = Ledger(self.folder)
        try:
            pieces = int(ledger.query("SELECT count(*) FROM segments")[0][0])
        finally:
            ledger.close()
        return StoreSize(taken, pieces)

    def discard(self) -> None:
        """Remove what lies outside the folder: nothing."""
