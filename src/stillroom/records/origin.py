"""Origin (provenance) of data: human or synthetic, chain of steps that made it, and license.

Parents are ids, models are fingerprints.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from stillroom.errors import DataError

__all__ = [
    "Link",
    "Origin",
    "OriginCheck",
    "OriginKind",
    "check_origin",
    "combine_origins",
    "find_license_warnings",
    "make_content_id",
    "use_origin_check",
]

OriginKind = Literal["human", "synthetic", "unknown"]
_KINDS = ("human", "synthetic", "unknown")


@dataclass(frozen=True, slots=True)
class Link:
    """One step of production: the method, its model, and its inputs.

    ``method`` is a dotted name such as ``synth.generators.grounded_qa``; ``model`` is a
    checkpoint's fingerprint or an endpoint's name, empty without a model; ``parents`` are ids;
    ``prompt`` is the digest of the prompt templates, empty if unknown.
    """

    method: str
    model: str = ""
    parents: tuple[str, ...] = ()
    prompt: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; ``prompt`` only where it is known."""
        fields = {"prompt": self.prompt} if self.prompt else {}
        return {"method": self.method, "model": self.model, "parents": list(self.parents), **fields}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Link:
        """Build from the result of ``to_json``."""
        return cls(
            str(data["method"]),
            str(data.get("model", "")),
            tuple(data.get("parents", ())),
            str(data.get("prompt") or ""),
        )


_CANONICAL = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Origin:
    """Human, synthetic or unknown origin, with the chain of steps and the license.

    ``chain`` is ordered oldest first. ``license`` is an SPDX id, or empty if unknown.
    """

    kind: OriginKind = "unknown"
    chain: tuple[Link, ...] = ()
    license: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "kind": self.kind,
            "chain": [link.to_json() for link in self.chain],
            "license": self.license,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Origin:
        """Build from the result of ``to_json``.

        Raises:
            DataError: If the kind is not one of the three.
        """
        kind = data.get("kind", "unknown")
        if kind not in _KINDS:
            raise DataError(
                f"origin kind {kind!r} is not known",
                code="data.origin",
                expected="one of: human, synthetic, unknown",
                next="set origin.kind to 'unknown' if it is unknown",
            )
        chain = tuple(Link.from_json(link) for link in data.get("chain", ()))
        return cls(cast("OriginKind", kind), chain, str(data.get("license", "")))

    def then(self, link: Link, *, kind: OriginKind | None = None) -> Origin:
        """Return this origin with one more link, and another kind if given."""
        return Origin(kind or self.kind, (*self.chain, link), self.license)


def combine_origins(origins: Iterable[Origin]) -> Origin:
    """Combine the origins of several parts into one.

    Synthetic wins over unknown, unknown over human. Differing licenses are joined with ``AND``,
    as in SPDX, each once.
    """
    kinds: set[OriginKind] = set()
    licenses: dict[str, None] = {}
    for origin in origins:
        kinds.add(origin.kind)
        licenses |= dict.fromkeys(_split_terms(origin.license))
    kind: OriginKind = (
        "human" if kinds == {"human"} else "synthetic" if "synthetic" in kinds else "unknown"
    )
    if len(licenses) > 1:  # AND binds closer than OR
        licenses = {f"({term})" if " OR " in term else term: None for term in licenses}
    return Origin(kind, (), " AND ".join(sorted(licenses)))


def _split_terms(license: str) -> list[str]:
    """Split a license at ``AND``; one with a choice stays whole."""
    if " OR " in license:
        is_wrapped = license.startswith("(") and license.endswith(")") and license.count("(") == 1
        return [license[1:-1] if is_wrapped else license]
    return [term for term in license.split(" AND ") if term]


def find_license_warnings(licenses: Sequence[tuple[str, str]], subject: str, act: str) -> list[str]:
    """Return warnings about unknown or conflicting licenses of the inputs.

    For instance "the models" for ``subject`` and "this merge" for ``act``.
    """
    known = {license for _, license in licenses if license}
    warnings = []
    if len(known) > 1:
        joined = combine_origins(Origin(license=license) for license in known).license
        warnings.append(
            f"{subject} have different licenses ({', '.join(sorted(known))}); the card will "
            f"say '{joined}': check that they allow {act}"
        )
    unsaid = [name for name, license in licenses if not license]
    if unsaid and known:
        warnings.append(f"nobody says the license of {', '.join(unsaid)}")
    return warnings


def make_content_id(prefix: str, *parts: object) -> str:
    """Return ``prefix-`` and 20 hex digits of the SHA-256 of the parts as canonical JSON."""
    text = _CANONICAL.encode(parts)
    return f"{prefix}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:20]}"


OriginCheck = Callable[[Path, Origin], tuple[Origin, tuple[str, ...]]]
"""Maps a file and its known origin to the checked origin, and notices about it."""

_ORIGIN_CHECK: ContextVar[OriginCheck | None] = ContextVar("examiner", default=None)


@contextmanager
def use_origin_check(examiner: OriginCheck) -> Iterator[None]:
    """Check the origin of every file read within the context."""
    token = _ORIGIN_CHECK.set(examiner)
    try:
        yield
    finally:
        _ORIGIN_CHECK.reset(token)


def check_origin(path: Path, origin: Origin) -> tuple[Origin, tuple[str, ...]]:
    """Return a file's origin after the registered check, and notices about it."""
    examiner = _ORIGIN_CHECK.get()
    return examiner(path, origin) if examiner is not None else (origin, ())
