"""Tuned: the retriever that judged queries chose for an index, kept with it and used by default.

It is no part of what the index holds: two indexes that hold the same have one digest, whoever was
asked how to search them. A retriever that a question names is always the one that is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.provenance import find_output
from stillroom.rag.method import DEFAULT_RETRIEVER, RETRIEVERS, Retriever
from stillroom.rag.store.manifest import renew_manifest
from stillroom.rag.storing import open_store

if TYPE_CHECKING:
    from stillroom.rag.store.protocol import Reading

__all__ = ["read_retriever", "write_retriever"]

_NAME = "retriever"


def write_retriever(index: Path, way: str, settings: Mapping[str, Any]) -> None:
    """Let an index be searched by a retriever where nobody names one; readers that open it next.

    Args:
        index: The artifact's folder or its output.
        way: The retriever as a line, for people.
        settings: Its name and settings.

    Raises:
        ResourceError: If another process writes the index.
    """
    with open_store(find_output(index, "index")).write() as writer:
        writer.remember(_NAME, {"way": way, "settings": dict(settings)})
        renew_manifest(writer, details={"retriever": way})


def read_retriever(opened: Reading) -> Retriever:
    """Return the retriever that an index is searched by where nobody names one.

    Raises:
        RecipeError: If it names a method or setting that is not known any more.
    """
    told = opened.recall(_NAME)
    return RETRIEVERS.build(told["settings"] if told else DEFAULT_RETRIEVER)
