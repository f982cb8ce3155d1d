"""Description: what shaped an index, and the file index.json that says what it holds now.

``index.json`` follows from the newest snapshot and holds nothing that depends on the clock or on
how the index came about: of the same documents and settings it has the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from stillroom.errors import IntegrityError
from stillroom.jobs import atomic_write
from stillroom.rag.analyzer import Analyzer
from stillroom.rag.store.schema import FORMAT
from stillroom.rag.store.snapshots import Snapshot

__all__ = ["INDEX", "Description", "open_analyzer", "write_index_file"]

INDEX = "index.json"


@dataclass(frozen=True, slots=True)
class Description:
    """What shaped an index; ``settings`` are the recipe's, ``preparation`` a digest.

    ``preparation`` covers all that shapes passages and vectors, so that two indexes with the same
    one may share them.
    """

    preparation: str
    settings: Mapping[str, Any]
    embedder: Mapping[str, Any]
    analyzer: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "preparation": self.preparation,
            "settings": dict(self.settings),
            "embedder": dict(self.embedder),
            "analyzer": dict(self.analyzer),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` wrote."""
        return cls(data["preparation"], data["settings"], data["embedder"], data["analyzer"])


def write_index_file(folder: Path, description: Description, snapshot: Snapshot) -> None:
    """Write index.json of a snapshot."""
    told = {
        "format": FORMAT,
        "digest": snapshot.digest,
        "counts": snapshot.counts,
        **description.to_json(),
    }
    with atomic_write(folder / INDEX) as file:
        json.dump(told, file, ensure_ascii=False, indent=1)


def open_analyzer(description: Description, where: Path | str) -> Analyzer:
    """Return the text analysis that made an index.

    Raises:
        IntegrityError: If the installed one gives other terms.
    """
    told = description.analyzer
    analyzer = Analyzer(told["stemming"])
    if analyzer.fingerprint != told["fingerprint"]:
        raise IntegrityError(
            "the installed text analysis differs from the one that made the index",
            code="rag.analyzer-mismatch",
            where=str(where),
            expected=f"analyzer {told['fingerprint'][:16]}",
            next="build the index again with --overwrite (it keeps its vectors), or install "
            "the versions named in its artifact.json",
        )
    return analyzer
