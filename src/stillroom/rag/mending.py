"""Mending: the term weights and token vectors of a damaged segment, from what is whole of it.

Taken from the old files where these are what was written, else made again by the models that the
index names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import IntegrityError
from stillroom.rag.encoders import Encoders, open_encoders
from stillroom.rag.engines.sparse_engine import WEIGHTS
from stillroom.rag.engines.token_vectors import TOKENS
from stillroom.rag.prefixes import passage_texts
from stillroom.rag.recipe import SparseSettings, TokenSettings
from stillroom.rag.store.extras import Extras, open_extras
from stillroom.rag.store.ledger import Ledger
from stillroom.rag.store.segments import check_file, segment_folder
from stillroom.records import Passage

if TYPE_CHECKING:
    from stillroom.models import Embedder

__all__ = ["MendedExtras"]

_NAMES = {WEIGHTS, TOKENS}


class MendedExtras:
    """Gives the extras of documents of damaged segments."""

    def __init__(
        self,
        folder: Path,
        ledger: Ledger,
        settings: Mapping[str, Any],
        open_embedder: Callable[[], Embedder],
    ) -> None:
        """Mend the index in ``folder``.

        Args:
            folder: The index's.
            ledger: Of the same folder.
            settings: What shaped the index.
            open_embedder: Gives the embedder that made its vectors.
        """
        self._folder, self._ledger, self._settings = folder, ledger, settings
        self._open_embedder = open_embedder
        self._whole: dict[int, Extras | None] = {}
        self._encoders: Encoders | None = None

    def of(self, segment: int, start: int, lines: Sequence[bytes]) -> Extras:
        """Return the extras of a document.

        Args:
            segment: Where it lay.
            start: Its first row there.
            lines: Its passages as JSON.

        Raises:
            IntegrityError: If the models are others than those that made them.
        """
        whole = self._open_whole(segment)
        if whole is not None:
            return whole.span(start, start + len(lines))
        settings = self._settings
        with_headings = settings["with_headings"] and settings.get("pooling") != "late"
        passages = [Passage.from_json(json.loads(line)) for line in lines]
        texts = passage_texts(passages, self._open_embedder(), with_headings=with_headings)
        return self._open_encoders().encode(texts, lambda: None)

    def _open_whole(self, number: int) -> Extras | None:
        """Return a segment's extras where all of their files are what was written."""
        if number not in self._whole:
            files = self._ledger.query("SELECT files FROM segments WHERE number = ?", (number,))
            place = segment_folder(self._folder, number)
            told = {name: one for name, one in json.loads(files[0][0]).items() if name in _NAMES}
            try:
                for name, (size, digest) in told.items():
                    check_file(place / name, (int(size), str(digest)), verify=True)
                self._whole[number] = open_extras(place, told)
            except IntegrityError:
                self._whole[number] = None
        return self._whole[number]

    def _open_encoders(self) -> Encoders:
        if self._encoders is None:
            told = self._settings
            own = {
                name: {key: one for key, one in told[name].items() if key != "fingerprint"}
                for name in ("sparse", "tokens")
                if told.get(name)
            }
            sparse = SparseSettings(**own["sparse"]) if "sparse" in own else None
            tokens = TokenSettings(**own["tokens"]) if "tokens" in own else None
            encoders = open_encoders(sparse, tokens, self._open_embedder())
            if encoders is None or encoders.settings != {name: told[name] for name in own}:
                raise IntegrityError(
                    "the models of sparse or tokens are not those that made the index",
                    code="rag.embedder-mismatch",
                    where=str(self._folder),
                    expected="the models that the index names",
                    next="restore them, or build the index again with the new ones",
                )
            self._encoders = encoders
        return self._encoders
