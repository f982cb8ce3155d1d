"""The signature of an artifact in a line, and what was replayed of it, for ``stillroom show``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["SignatureBadge", "check_badge"]

_MAX_BYTES = 1 << 30
"""Bytes that ``show`` reads to check a signature; SHA-256 takes a second or so for them."""


@dataclass(frozen=True, slots=True)
class SignatureBadge:
    """A folder's signature, checked against no key of the reader's, and its replay.

    ``state`` is ``unsigned``, ``valid``, ``invalid`` or ``unchecked`` (``why`` says why);
    ``replayed`` and ``segments`` count over the run's jobs, as stated by the summaries that count.
    """

    path: Path
    state: str
    key: str = ""
    why: str = ""
    replayed: int = 0
    segments: int = 0
    replay_differences: int = 0
    unknown_summaries: int = 0

    def describe(self) -> str:
        """Return who signed, in a line."""
        verify = f"stillroom verify {self.path}"
        if self.state == "valid":
            return f"valid, by key {self.key[:16]} (whose? {verify} --key THEIRS.pub)"
        if self.state == "unsigned":
            return "unsigned"
        return f"{'invalid' if self.state == 'invalid' else 'not checked'}: {self.why} ({verify})"

    def describe_replay(self) -> str:
        """Return what was replayed, in a line; empty if no summary stands there."""
        if self.segments:
            wrong = self.replay_differences
            result = f"{wrong} differed" if wrong else "all the same bytes"
            return f"{self.replayed:,} of {self.segments:,} segments, {result}, says its signer"
        many = self.unknown_summaries
        return f"{many} summaries by keys that are not at hand: not counted" if many else ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields that ``show --json`` adds to artifact.json's."""
        replay = {
            "replayed": self.replayed,
            "segments": self.segments,
            "differences": self.replay_differences,
        }
        return {
            "signature": {"state": self.state, "key": self.key, "why": self.why},
            "replay": replay if self.segments else None,
        }


def check_badge(path: Path) -> SignatureBadge:
    """Check the signature of an artifact's folder, and read its verification summaries."""
    from stillroom.provenance.signing import SIGNATURE_FILE, Trust, check_signature
    from stillroom.provenance.sources import list_ancestors
    from stillroom.provenance.summaries import find_replay, read_replays

    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if (path / SIGNATURE_FILE).exists() and size > _MAX_BYTES:
        return SignatureBadge(path, "unchecked", why=f"{size / 1e9:.1f} GB would be read")
    try:
        check = check_signature(path, Trust())
        folders = [folder for folder, _ in list_ancestors(path)]
        summaries = read_replays(folders, Trust())
    except ImportError:
        return SignatureBadge(path, "unchecked", why="needs pip install 'stillroom[sign]'")
    found = (find_replay(folder, summaries) for folder in folders)
    jobs = [one[1] for one in found if one is not None and not one[1].open]
    name, what = check.differences[0] if check.differences else ("", "")
    more = f", and {len(check.differences) - 1} more" if len(check.differences) > 1 else ""
    return SignatureBadge(
        path,
        check.state if check.state in {"unsigned", "invalid"} else "valid",
        check.key_id,
        f"{name} {what}{more}" if name else "",
        sum(job.replayed for job in jobs),
        sum(job.segments for job in jobs),
        sum(len(job.differences) for job in jobs),
        sum(one.verifier == "unknown" for one in summaries),
    )
