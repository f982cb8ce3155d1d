"""Evidence of the last answers, kept in memory until their clients fetch it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillroom.provenance.evidence import seal_evidence
from stillroom.provenance.signing import find_configured_key

if TYPE_CHECKING:
    from stillroom.provenance.signing import SigningKey

__all__ = ["MAX_KEPT_ANSWERS", "AnswerEvidence", "EvidenceStore"]

MAX_KEPT_ANSWERS = 256
"""Number of answers whose evidence is kept; of whom most is kept, the oldest goes first."""


@dataclass(frozen=True, slots=True)
class AnswerEvidence:
    """What an answer function yields after the Answer: the predicate of its evidence."""

    predicate: Mapping[str, Any]


class EvidenceStore:
    """Evidence by reply and choice; each client sees that of its own answers."""

    def __init__(self, signer: SigningKey | None = None) -> None:
        """Keep nothing yet.

        Args:
            signer: Who signs; by default the key that the environment names, if any.

        Raises:
            DataError: If that key cannot be read.
        """
        self._signer = signer or find_configured_key()
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, int], tuple[object, Mapping[str, Any]]] = {}

    def keep(self, reply: str, choice: int, client: object, evidence: AnswerEvidence) -> None:
        """Keep the evidence of one text of a reply."""
        with self._lock:
            self._kept[reply, choice] = client, evidence.predicate
            if len(self._kept) > MAX_KEPT_ANSWERS:  # no client pushes another's answers out
                ((most, _),) = Counter(owner for owner, _ in self._kept.values()).most_common(1)
                del self._kept[next(key for key, (one, _) in self._kept.items() if one == most)]

    def seal(self, reply: str, choice: int, client: object) -> dict[str, Any] | None:
        """Return the envelope of an answer's evidence, signed if there is a key; None if unknown.

        ``choice`` is the number of the reply's text, from 0. Another client than the one who
        received the answer gets None.
        """
        with self._lock:
            owner, predicate = self._kept.get((reply, choice), (None, None))
        if predicate is None or owner != client:
            return None
        return seal_evidence(predicate, self._signer)
