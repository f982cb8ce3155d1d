"""Where an index lies: the seam of stores, and the file that says which of them holds one.

An index is always a folder with an artifact.json. What it holds lies in the folder itself, or, for
other stores, elsewhere; ``store.json`` then says where, without any secret.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from stillroom.errors import DataError
from stillroom.jobs import atomic_write
from stillroom.registry import Method, Seam

if TYPE_CHECKING:
    from stillroom.rag.store.protocol import Store, StoreWriter

__all__ = [
    "STORES",
    "STORE_FILE",
    "IndexStore",
    "open_store",
    "read_store_file",
    "write_store_file",
]

STORE_FILE = "store.json"


_EXTRAS = {
    "sparse": "term weights of learned sparse search (sparse)",
    "tokens": "token vectors of late interaction (tokens)",
}


class IndexStore(Method, ABC):
    """A kind of store, with its settings.

    ``keeps_extras`` where it holds what else a recipe may ask for: term weights, token vectors.
    """

    keeps_extras: ClassVar[bool] = False

    def list_lacking(self, settings: Mapping[str, Any]) -> list[str]:
        """Return what an index of some settings is searched by and this store cannot hold.

        Args:
            settings: A recipe's, or those of an index's description.
        """
        if self.keeps_extras:
            return []
        return [what for name, what in _EXTRAS.items() if settings.get(name)]

    @abstractmethod
    def create(self, folder: Path, description: Mapping[str, Any]) -> StoreWriter:
        """Make an empty index for a folder that nobody else knows of yet.

        Args:
            folder: Of the artifact's own files; what an earlier try left is replaced.
            description: Settings, embedder and analyzer; part of the digest of every snapshot.

        Raises:
            MissingExtraError: If a package is not installed.
            ResourceError: If the store cannot be reached.
        """

    @abstractmethod
    def open(self, folder: Path, told: Mapping[str, Any]) -> Store:
        """Return the index of a folder.

        Args:
            folder: Of the artifact's own files.
            told: What ``store.json`` says beside the method; empty where there is no such file.

        Raises:
            MissingExtraError: If a package is not installed.
        """


STORES: Seam[IndexStore] = Seam("stillroom.rag.stores", IndexStore)


def open_store(folder: Path) -> Store:
    """Return the store of the index whose own files lie in ``folder``.

    Raises:
        DataError: If store.json cannot be read.
        RecipeError: If it names a store that is not known.
    """
    told = read_store_file(folder)
    method = STORES.build(told.pop("store", "folder"))
    return method.open(folder, told)


def read_store_file(folder: Path) -> dict[str, Any]:
    """Return what store.json says, the method under ``store``; nothing where there is no such file.

    Raises:
        DataError: If it is no JSON object of that kind.
    """
    path = folder / STORE_FILE
    if not path.is_file():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(told, dict) or "store" not in told:
            raise ValueError("it names no store")
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {error}",
            code="data.damaged",
            where=str(path),
            expected="the file that the index was made with",
            next=f"stillroom verify {folder.parent}",
        ) from error
    return told


def write_store_file(folder: Path, method: IndexStore, told: Mapping[str, Any]) -> None:
    """Say which store holds the index of a folder.

    Args:
        folder: Of the artifact's own files.
        method: The store; its secrets are written as the names of variables.
        told: What it needs beside its settings to find the index again.
    """
    with atomic_write(folder / STORE_FILE) as file:
        json.dump({"store": method.model_dump(mode="json"), **told}, file, indent=1)
