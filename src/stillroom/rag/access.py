"""Access: who asks, which documents they may see, and a line of every query.

An index made with ``access: tenants`` denies: a document is seen only by an Access of its tenant
that holds one of its labels. A document without tenant or without labels is seen by nobody; the
label ``public`` is held by everybody of the tenant. The rule is part of the statement that loads
what an opened index shows, so that there is no second way to its passages, counts and statistics.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stillroom.errors import DataError, ResourceError
from stillroom.provenance import digest_text
from stillroom.rag.filters import Condition

__all__ = ["AUDIT", "Access", "Audit", "admit"]

AUDIT = "audit.jsonl"
_PUBLIC = "public"
_MOST_PRINCIPALS = 1_000


@dataclass(frozen=True)
class Access:
    """Who asks: a tenant, and the principals (users, groups) that labels may name."""

    tenant: str
    principals: frozenset[str] = frozenset()

    def __init__(self, tenant: str, principals: Iterable[str] = ()) -> None:
        """Ask as one of a tenant.

        Args:
            tenant: Its name; not empty.
            principals: What the asker is or belongs to, as labels have it.

        Raises:
            DataError: If the tenant has no name, or the principals are too many.
        """
        names = frozenset(principals)
        if not tenant or len(names) > _MOST_PRINCIPALS:
            raise DataError(
                f"nobody asks as tenant {tenant!r:.40} with {len(names)} principals",
                code="rag.bad-access",
                expected=f"a tenant's name, and at most {_MOST_PRINCIPALS} principals",
                next="give --tenant, and --principal for each user or group",
            )
        object.__setattr__(self, "tenant", tenant)
        object.__setattr__(self, "principals", names)

    def condition(self) -> Condition:
        """Return what a document must meet to be seen."""
        names = [(f"label{at}", label) for at, label in enumerate(sorted(self.principals))]
        names.append(("label_public", _PUBLIC))
        marks = ", ".join(f":{name}" for name, _ in names)
        return Condition(
            "d.tenant = :tenant AND d.key IN "  # noqa: S608
            f"(SELECT document FROM labels WHERE label IN ({marks}))",
            (("tenant", self.tenant), *names),
        )


def admit(rule: str, access: Access | None, where: Path) -> Condition:
    """Return what documents must meet for an asker, by an index's rule; deny where it is unclear.

    Args:
        rule: ``open`` or ``tenants``, as the index was made.
        access: Who asks.
        where: The index, for errors.

    Raises:
        DataError: If the index has tenants and nobody is named, or has none and somebody is.
    """
    if rule == "open" and access is None:
        return Condition()
    if access is None:
        raise DataError(
            "the index has tenants, and nobody is named who asks",
            code="rag.access-needed",
            where=str(where),
            expected="an Access: a tenant and its principals",
            next="Index.open(path, access=Access(tenant, principals)), or --tenant NAME",
        )
    if rule == "open":
        raise DataError(
            "the index has no tenants: everybody who may open it sees all of it",
            code="rag.no-tenants",
            where=str(where),
            expected="an index made with access: tenants",
            next="leave the tenant out, or build the index with access=tenants metadata=FILE",
        )
    return access.condition()


class Audit:
    """A line for every query, appended to a file beside the index; no text of it unless asked."""

    def __init__(self, home: Path, access: Access | None, *, with_text: bool = False) -> None:
        """Write to ``audit.jsonl`` in ``home``."""
        self.path, self.access, self.with_text = home / AUDIT, access, with_text

    def note(self, kind: str, text: str, snapshot: int, digest: str, ids: Sequence[str]) -> None:
        """Append one line.

        Args:
            kind: ``query``, ``read``, or ``cached`` for an answer that was kept.
            text: What was asked; its digest is kept.
            snapshot: The number of the snapshot that was asked.
            digest: And its digest.
            ids: Of the passages that were given, or of the document.

        Raises:
            ResourceError: If it cannot be written: what cannot be noted is not given.
        """
        line: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "kind": kind,
            "tenant": self.access.tenant if self.access else "",
            "principals": sorted(self.access.principals) if self.access else [],
            "snapshot": snapshot,
            "index": digest,
            "query": digest_text(text),
            **({"text": text} if self.with_text else {}),
            "given": list(ids),
        }
        data = json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                os.write(descriptor, data)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise ResourceError(
                f"the query cannot be noted, so it is not answered: {error.strerror or error}",
                code="rag.audit",
                where=str(self.path),
                expected="a file that can be appended to",
                next="free disk space or check permissions, and ask again",
            ) from error
