"""Proof of a run: its folders with their signers, what was replayed, inputs, and open ends.

Every digest and signature is computed again for each call: every file is read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from stillroom.errors import DataError, count_noun
from stillroom.flow.papers.model_card import PACKAGED_LICENSE, PACKAGED_READERS
from stillroom.provenance import (
    Artifact,
    IntegrityReport,
    read_artifact,
    resolve_parent,
    verify_signed,
)
from stillroom.provenance.signing import Trust
from stillroom.provenance.sources import has_passages, has_path, is_reference, iter_documents
from stillroom.provenance.summaries import ReplaySummary, find_replay, read_replays
from stillroom.serve.views.folder import read_kind, resolve_name, to_name
from stillroom.serve.views.lineage import has_tenant_sources
from stillroom.serve.workspace import make_path_redactor

__all__ = ["ProofFolder", "ProofInput", "ProofReplay", "RunProof", "examine_proof"]

_MAX_DOCUMENTS = 200
_PACKAGED = {
    **dict.fromkeys(PACKAGED_READERS, PACKAGED_LICENSE),
    **dict.fromkeys(("builtin:overlap", "builtin:static"), "Apache-2.0"),  # the package's own code
}
_NO_FAULT = frozenset({"unsigned", "other-signer"})
_WORST_FIRST = ("changed", "invalid", "other-signer", "unsigned", "unknown-signer", "trusted")


@dataclass(frozen=True, slots=True)
class ProofReplay:
    """What the newest counted summary states of one folder's job.

    ``open`` is why the job was not replayed; ``verifier`` is ``trusted`` or ``signer``; ``power``
    says which forgeries the draw over all jobs finds.
    """

    segments: int
    replayed: int
    differences: tuple[str, ...]
    open: str
    verifier: str
    key: str
    time: str
    power: str


@dataclass(frozen=True, slots=True)
class ProofFolder:
    """One job's folder: digests, signature and replay.

    ``signature`` is ``trusted``, ``other-signer``, ``unknown-signer`` (nobody is trusted here),
    ``unsigned`` or ``invalid``; ``differences`` are sentences about what is not as recorded.
    """

    name: str
    kind: str
    recipe: str
    digest: str
    claim: str
    signature: str
    key: str
    differences: tuple[str, ...]
    replay: ProofReplay | None

    @property
    def state(self) -> str:
        """The signature's state, or ``changed`` where something else differs."""
        is_silent = self.signature != "invalid"
        return "changed" if self.differences and is_silent else self.signature


@dataclass(frozen=True, slots=True)
class ProofInput:
    """An input of one folder that no job of the run made; without a digest it is an open end."""

    of: str
    role: str
    name: str
    digest: str
    origin: str
    license: str


@dataclass(frozen=True, slots=True)
class RunProof:
    """Result of verifying a run.

    ``state`` is the worst state of its folders; ``verdict`` says it in a sentence,
    ``replayed`` what was recomputed. ``is_whole`` is false if more inputs exist than are listed,
    ``is_guarded`` is true if documents of tenants are not listed.
    """

    name: str
    state: str
    verdict: str
    replayed: str
    folders: tuple[ProofFolder, ...]
    inputs: tuple[ProofInput, ...]
    open_ends: tuple[str, ...]
    is_whole: bool
    is_guarded: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"object": "proof", **asdict(self)}


def examine_proof(root: Path, name: str, trust: Trust | None = None) -> RunProof:
    """Verify an artifact of the folder with all of its parents there.

    Raises:
        DataError: If there is no such artifact.
    """
    begun, trust = time.perf_counter(), trust or Trust()
    folder = Path(os.path.normpath(resolve_name(root, name).absolute()))
    report = verify_signed(folder, trust)
    places = {Path(os.path.normpath(folder / shown)): shown for shown in report.signatures}
    artifacts = {place: artifact for place in places if (artifact := _read(place)) is not None}
    hide = _make_redactor(root, artifacts)
    summaries = read_replays(list(places), trust)
    differences = _group_findings(folder, report, list(places))
    folders = []
    for place, shown in places.items():
        artifact, check = artifacts.get(place), report.signatures[shown]
        folders.append(
            ProofFolder(
                name=to_name(root, place) or f"…/{place.name}",
                kind=read_kind(place),
                recipe=artifact.recipe_digest if artifact else "",
                digest=artifact.digest if artifact else "",
                claim=artifact.claim if artifact else "",
                signature=check.state,
                key=check.key_id,
                differences=tuple(hide(differences[place])),
                replay=_find_replay(place, summaries),
            )
        )
    is_guarded = has_tenant_sources(folder)
    rows = list(islice(_list_inputs(root, artifacts, is_guarded), _MAX_DOCUMENTS + 1))
    state = min((one.state for one in folders), key=_WORST_FIRST.index, default="changed")
    return RunProof(
        to_name(root, folder),
        state,
        _describe_state(state, folders, bool(trust)),
        _describe_replay(folders, summaries),
        tuple(folders),
        tuple(ProofInput(**hide(asdict(row))) for row in rows[:_MAX_DOCUMENTS]),
        tuple(hide((*report.open_ends, *report.uncovered)[:_MAX_DOCUMENTS])),
        len(rows) <= _MAX_DOCUMENTS,
        is_guarded,
        round(time.perf_counter() - begun, 3),
    )


def _read(folder: Path) -> Artifact | None:
    try:
        return read_artifact(folder)
    except (DataError, RecursionError):
        return None


def _make_redactor(root: Path, artifacts: Mapping[Path, Artifact]) -> Callable[[Any], Any]:
    """Return a function that shows paths inside by their names, others by their last part."""
    names = {str(root): ""}
    for artifact in artifacts.values():
        for parent in artifact.parents:
            if has_path(parent) and Path(parent.path).is_absolute():
                names.setdefault(parent.path, f"…/{Path(parent.path).name}")
    inside = {path: name for path, name in names.items() if not name or not to_name(root, path)}
    return make_path_redactor(inside)


def _group_findings(
    folder: Path, report: IntegrityReport, places: Sequence[Path]
) -> dict[Path, tuple[str, ...]]:
    """Return sentences about what differs, by the folder that signed it or in which it lies."""
    grouped: dict[Path, list[str]] = {
        place: [f"signature: {name} {what}" for name, what in check.differences]
        for place, check in zip(places, report.signatures.values(), strict=True)
    }
    deepest = sorted(places, key=lambda place: len(place.parts), reverse=True)
    for finding in report.findings:
        if finding.kind in _NO_FAULT or finding.layer == "signature":
            continue
        path = Path(os.path.normpath(folder / finding.path))
        owner = next((place for place in deepest if path.is_relative_to(place)), folder)
        shown = path.relative_to(owner).as_posix() if path.is_relative_to(owner) else finding.path
        what = f"{finding.layer}: {shown if shown != '.' else 'the folder'} {finding.what}"
        grouped[owner].append(what)
    return {place: tuple(rows) for place, rows in grouped.items()}


def _find_replay(place: Path, summaries: Sequence[ReplaySummary]) -> ProofReplay | None:
    found = find_replay(place, summaries)
    if found is None:
        return None
    summary, job = found
    return ProofReplay(
        job.segments,
        job.replayed,
        job.differences,
        job.open,
        summary.verifier,
        summary.key_id,
        summary.time,
        summary.power,
    )


def _list_inputs(
    root: Path, artifacts: Mapping[Path, Artifact], is_guarded: bool
) -> Iterator[ProofInput]:
    """Yield inputs that are no verified folders: references, files, and an index's documents."""
    for folder, artifact in artifacts.items():
        of = to_name(root, folder) or f"…/{folder.name}"
        for parent in artifact.parents:
            if not has_path(parent):
                continue
            if is_reference(parent.path) or resolve_parent(folder, parent) not in artifacts:
                # of documents an index states the origin
                origin = artifact.origin if parent.role == "documents" else {}
                kind, license = (str(origin.get(key) or "unknown") for key in ("kind", "license"))
                if parent.path in _PACKAGED:
                    kind, license = "packaged with Stillroom", _PACKAGED[parent.path]
                yield ProofInput(of, parent.role, parent.path, parent.digest, kind, license)
    for folder in artifacts:
        if is_guarded or not has_passages(folder):
            continue
        of = to_name(root, folder) or f"…/{folder.name}"
        try:
            for row in iter_documents(folder):
                origin = row.get("origin") or {}
                yield ProofInput(
                    of,
                    "document",
                    str(row.get("path", "")),
                    str(row.get("digest", "")),
                    str(origin.get("kind", "unknown")),
                    str(origin.get("license") or "unknown"),
                )
        except (DataError, AttributeError):
            continue  # damaged: verification names the file


def _describe_state(state: str, folders: Sequence[ProofFolder], has_trust: bool) -> str:
    """Return in a sentence what the signatures prove."""
    total = f"{len(folders)} folder{'' if len(folders) == 1 else 's'}"
    count = sum(folder.state == state for folder in folders)
    some = "" if count == len(folders) else f" in {count} of {total}"
    sentences = {
        "trusted": "Every folder is as it was signed, by a signer whom this server trusts.",
        "unknown-signer": "Every digest matches, and every signature is valid, but this server was "
        "given no signer to trust (--signer).",
        "unsigned": f"Every digest matches, but{some or ' here'} nothing is signed: accidents "
        "would show, not who made this.",
        "other-signer": f"Every signature is valid, but{some} it is of a signer whom this server "
        "does not trust.",
        "invalid": "What is here is not what was signed: see what differs below.",
        "changed": "What is here is not what was recorded: see what differs below.",
    }
    return sentences[state]


def _describe_replay(folders: Sequence[ProofFolder], summaries: Sequence[ReplaySummary]) -> str:
    """Return in a sentence what was recomputed, and by whom."""
    done = [folder.replay for folder in folders if folder.replay is not None]
    unknown = sum(one.verifier == "unknown" for one in summaries)
    if not done:
        return (
            f"No replay counts: {unknown} of its summaries is signed by an unknown key."
            if unknown
            else "Nothing was replayed, or no verification summary was stored."
        )
    closed = [one for one in done if not one.open]
    drawn, total = sum(one.replayed for one in closed), sum(one.segments for one in closed)
    wrong = sum(len(one.differences) for one in done)
    by_trusted = all(one.verifier == "trusted" for one in done)
    who = "a verifier whom this server trusts" if by_trusted else "the signer itself"
    result = f"{wrong} differed" if wrong else "all gave the same bytes"
    skipped = len(folders) - len(closed)
    rest = (
        f" {skipped} of {count_noun(len(folders), 'folder')} {'was' if skipped == 1 else 'were'} "
        f"not replayed."
        if skipped
        else ""
    )
    start = f"{drawn:,} of {total:,} segments were recomputed. "
    power = " ".join(dict.fromkeys(one.power.removeprefix(start) for one in done if one.power))
    return (
        f"{drawn:,} of {total:,} segments were replayed by {who}: {result}.{rest} {power}".strip()
    )
