"""The digest of a snapshot: of what it holds, whatever made it so.

Every document has a mark: the digest of its path, of what its bytes became and of its facts. Marks
fall into buckets by their path's digest; a snapshot's digest covers the settings and the digests of
the buckets. A change therefore recomputes the buckets that it touches, not all of the index, and
the same documents and settings have the same digest whether they came at once or one by one.

Neither the clock, nor the number of the snapshot, nor the layout of segments is part of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from stillroom.provenance import digest_json
from stillroom.rag.store.parts import Facts

__all__ = ["bucket_of", "digest_bucket", "digest_snapshot", "mark_document"]

_BUCKET_DIGITS = 3


def bucket_of(path: str) -> int:
    """Return the bucket of a path, 0 to 4095."""
    digest = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()
    return int(digest[:_BUCKET_DIGITS], 16)


def mark_document(path: str, content: str, facts: Facts) -> str:
    """Return the mark of a document at a path: of its content's mark and its facts."""
    return digest_json([path, content, facts.tenant, sorted(facts.labels), dict(facts.fields)])


def digest_bucket(marks: Sequence[str]) -> str:
    """Return the digest of a bucket's marks, given in order of path; empty where there are none."""
    return digest_json(list(marks)) if marks else ""


def digest_snapshot(description: Mapping[str, Any], buckets: Mapping[int, str]) -> str:
    """Return the digest of a snapshot from its settings and its buckets' digests."""
    return digest_json([description, sorted(item for item in buckets.items() if item[1])])
