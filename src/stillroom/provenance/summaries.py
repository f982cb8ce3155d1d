"""Verification summaries of replays, as a run's folders hold them in ``claims.jsonl``.

A verifier who replayed a run may append a SLSA verification summary (VSA) v1 in a DSSE envelope.
``claims.jsonl`` is outside the signature of a folder, so anyone can append to it: a summary counts
only if a trusted key or the folder's own signer signed it, and if its subject is the artifact.json
that stands there now. Source: https://slsa.dev/verification_summary/v1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stillroom.errors import IntegrityError
from stillroom.provenance.artifact import ARTIFACT_FILE
from stillroom.provenance.digests import digest_file
from stillroom.provenance.signing import Trust, find_signer, open_envelope, read_claims
from stillroom.provenance.signing.dsse import decode_base64

__all__ = ["SUMMARY_TYPE", "ReplaySummary", "ReplayedJob", "find_replay", "read_replays"]

SUMMARY_TYPE = "https://slsa.dev/verification_summary/v1"
ReplayVerifier = Literal["trusted", "signer", "unknown"]


@dataclass(frozen=True, slots=True)
class ReplayedJob:
    """What a summary states of one job: segments committed and recomputed, and what differed.

    ``open`` is why the job was not replayed; empty if it was.
    """

    segments: int
    replayed: int
    differences: tuple[str, ...]
    open: str = ""


@dataclass(frozen=True, slots=True)
class ReplaySummary:
    """A verification summary of a replay, and who signed it.

    ``verifier`` is ``signer`` (by the folder's own signer, trusted or not: its maker's own word),
    ``trusted`` (by another key, which the reader trusts) or ``unknown`` (by a key that is not at
    hand: nothing in it counts, and ``jobs`` is empty). ``jobs`` are by the SHA-256 of their
    artifact.json; ``power`` says which forgeries the draw finds.
    """

    verifier: ReplayVerifier
    key_id: str
    time: str = ""
    has_passed: bool = False
    power: str = ""
    jobs: Mapping[str, ReplayedJob] = field(default_factory=dict)


def read_replays(folders: Sequence[Path], trust: Trust) -> list[ReplaySummary]:
    """Return the summaries in the claims of folders, oldest first in each; no bytes are replayed.

    A folder that is not signed, or whose claims cannot be read, has none.
    """
    found: list[ReplaySummary] = []
    for folder in folders:
        found += [one for one in _read_folder(folder, trust) if one not in found]
    return found


def find_replay(
    folder: Path, summaries: Sequence[ReplaySummary]
) -> tuple[ReplaySummary, ReplayedJob] | None:
    """Return the newest summary of a folder as it is now, with what it states of it.

    A summary by a trusted key comes before the signer's own.
    """
    path = folder / ARTIFACT_FILE
    digest = digest_file(path) if summaries and path.is_file() else ""
    stated = [(one, one.jobs[digest]) for one in summaries if digest in one.jobs]
    stated.sort(key=lambda pair: (pair[0].verifier == "trusted", pair[0].time))
    return stated[-1] if stated else None


def _read_folder(folder: Path, trust: Trust) -> Iterator[ReplaySummary]:
    try:
        envelopes = read_claims(folder)
    except IntegrityError:
        return  # verification names what is wrong with them
    signer = find_signer(folder, trust) if envelopes else None
    if signer is None:
        return
    for envelope in envelopes:
        if _peek_type(envelope) != SUMMARY_TYPE:
            continue
        try:
            opened = open_envelope(envelope, [*trust.keys, signer], str(folder))
        except IntegrityError:
            signatures = envelope.get("signatures")
            first = signatures[0] if isinstance(signatures, list) and signatures else {}
            yield ReplaySummary("unknown", str(_mapping(first).get("keyid", "")))
            continue
        verifier: ReplayVerifier = "signer" if opened.key_id == signer.key_id else "trusted"
        yield _read_summary(json.loads(opened.payload), verifier, opened.key_id)


def _read_summary(
    statement: Mapping[str, Any], verifier: ReplayVerifier, key_id: str
) -> ReplaySummary:
    """Return a signed statement's content; a job that it does not describe is left out."""
    predicate = _mapping(statement.get("predicate"))
    replay = _mapping(predicate.get("stillroom_replay"))
    stated = {str(row.get("job")): row for row in _mappings(replay.get("jobs"))}
    jobs = {}
    for subject in _mappings(statement.get("subject")):
        row = stated.get(str(subject.get("name")).removesuffix(f"/{ARTIFACT_FILE}"))
        digest = _mapping(subject.get("digest")).get("sha256")
        if row is not None and isinstance(digest, str):
            jobs[digest] = _read_job(row)
    return ReplaySummary(
        verifier,
        key_id,
        str(predicate.get("timeVerified", "")),
        predicate.get("verificationResult") == "PASSED",
        str(replay.get("power", "")),
        jobs,
    )


def _read_job(row: Mapping[str, Any]) -> ReplayedJob:
    segments, replayed, wrong = (row.get(key) for key in ("segments", "replayed", "differences"))
    differences = tuple(
        f"{one.get('name', '')} {one.get('what', '')}".strip() for one in _mappings(wrong)
    )
    return ReplayedJob(
        segments if isinstance(segments, int) else 0,
        len(replayed) if isinstance(replayed, list) else 0,
        differences,
        str(row.get("open", "")),
    )


def _peek_type(envelope: Any) -> str:
    """Return the predicate type that an envelope claims, before its signature is verified."""
    try:
        return str(json.loads(decode_base64(envelope["payload"]))["predicateType"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [_mapping(one) for one in value] if isinstance(value, list) else []
