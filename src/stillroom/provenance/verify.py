"""Verification (integrity check) of files, claims and parents by digest, and of signatures.

An artifact.json may be untrusted: its paths must stay in its folder, links are not followed, and
only regular files are opened. Parents outside the neighborhood (absolute paths) are compared by
their own recorded digest, without reading their files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from stillroom.errors import DataError
from stillroom.provenance.artifact import (
    ARTIFACT_FILE,
    Artifact,
    FileEntry,
    Parent,
    digest_claim,
    digest_record,
    locate_manifest,
    read_artifact,
)
from stillroom.provenance.digests import digest_file, digest_like, parse_json, walk_folder
from stillroom.provenance.signing import (
    CLAIMS_FILE,
    SIGNATURE_FILE,
    SignatureCheck,
    Trust,
    check_signature,
)
from stillroom.provenance.signing.artifacts import LOCK_FILE, WRITER_FILE
from stillroom.provenance.signing.model_signing import UNSIGNED_PATHS
from stillroom.provenance.sources import has_path, is_reference, resolve_parent

__all__ = [
    "IntegrityMismatch",
    "IntegrityReport",
    "list_run_folders",
    "verify_artifact",
    "verify_signed",
]

MismatchKind = Literal[
    "changed", "missing", "extra", "link", "unsafe", "broken", "unsigned", "other-signer"
]
_LOCKS = {LOCK_FILE, WRITER_FILE}
Layer = Literal["output", "claim", "parent", "chain", "signature"]


@dataclass(frozen=True, slots=True)
class IntegrityMismatch:
    """One difference between the recorded and the actual state.

    ``path`` is relative to the verified folder; ``what`` completes a sentence that starts with it.
    ``layer`` is what differs: the output's bytes, the claim (what artifact.json states), a parent,
    the chain (a parent states other things than when it was used) or the signature.
    """

    path: str
    what: str
    kind: MismatchKind
    layer: Layer = "output"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class IntegrityReport:
    """The differences of an artifact and its parents, and the signature of each of their folders.

    ``open_ends`` are inputs that lie outside what was verified, or that no digest covers;
    ``uncovered`` are sentences about what lies within and neither a digest nor a signature covers.
    """

    findings: tuple[IntegrityMismatch, ...]
    signatures: Mapping[str, SignatureCheck]
    open_ends: tuple[str, ...]
    uncovered: tuple[str, ...] = ()


def verify_artifact(path: Path, *, parents: bool = True) -> list[IntegrityMismatch]:
    """Return every difference between an artifact's record and its files; empty if valid.

    Args:
        path: The artifact's folder; for a run's folder all steps are verified.
        parents: Also verify the parents next to or within the folder, recursively.

    Raises:
        DataError: If the folder has no artifact.json.
    """
    return list(verify_signed(path, parents=parents).findings)


def verify_signed(
    path: Path, trust: Trust | None = None, *, parents: bool = True
) -> IntegrityReport:
    """Verify an artifact's files, claims, parents and signatures.

    Args:
        path: The artifact's folder or file; of a run's folder all steps. Of a folder from
            elsewhere with a signature, only that is verified.
        trust: The keys and authorities that must have signed each folder; by default a folder may
            be unsigned, and a signature must only be valid.
        parents: Also verify the parents next to or within the folder, recursively.

    Raises:
        DataError: If the folder has neither an artifact.json nor a signature.
    """
    root = Path(os.path.realpath(path))  # links lead to what is verified, but not within it
    record = locate_manifest(path)
    if not record.exists() and not (path / SIGNATURE_FILE).exists():
        read_artifact(path, is_judged=True)  # raises the specific error
    if record.exists() and os.path.realpath(record) != os.path.realpath(locate_manifest(root)):
        root = Path(os.path.realpath(path.parent)) / path.name  # the link's own, beside it
    verifier = _ArtifactVerifier(root, trust or Trust(), follow=parents)
    is_artifact = locate_manifest(root).exists()
    found = verifier.folder(root) if is_artifact else verifier.signature(root)
    findings = tuple(dict.fromkeys(found))  # a run's signature covers its steps' files, too
    uncovered = (*verifier.uncovered, *verifier.list_uncovered())
    return IntegrityReport(findings, verifier.signatures, tuple(verifier.open_ends), uncovered)


def list_run_folders(path: Path) -> list[Path]:
    """Return an artifact's folder after those of its steps, in the order in which to sign them.

    A folder from elsewhere has no steps.

    Raises:
        DataError: If it is no folder, or its artifact.json, or a step's, cannot be read.
    """
    if path.is_file() and locate_manifest(path).is_file():
        raise DataError(
            f"{path} is a file",
            code="data.not-an-artifact",
            expected="a folder, since a signature covers the files of a folder",
            next="move the file with its artifact.json into a folder of their own, and sign that",
        )
    if path.is_dir() and not locate_manifest(path).exists():
        return [path]
    artifact = read_artifact(path, is_judged=True)
    steps = [
        resolve_parent(path, parent)
        for parent in artifact.parents
        if has_path(parent) and not is_reference(parent.path)
    ]
    inside = [step for step in steps if path.absolute() in step.parents]
    return [*(folder for step in inside for folder in list_run_folders(step)), path]


class _ArtifactVerifier:
    def __init__(self, root: Path, trust: Trust, *, follow: bool) -> None:
        self.root, self.trust, self.follow = root, trust, follow
        self.seen: set[Path] = set()
        self.signatures: dict[str, SignatureCheck] = {}
        self.open_ends: list[str] = []
        self.uncovered: list[str] = []
        self.covered: set[Path] = set()

    def folder(self, folder: Path) -> Iterator[IntegrityMismatch]:
        """Yield the differences of one artifact's folder, then of its parents."""
        self.seen.add(folder)
        record = locate_manifest(folder)
        if not _is_regular(record):
            yield self.find(record, "is not a regular file", "link")
            return
        try:
            artifact = read_artifact(folder, is_judged=True)
            manifest = parse_json(record.read_bytes())
        except (DataError, RecursionError, OSError, ValueError) as error:
            first = str(error).split("\n", 1)[0]
            yield self.find(record, f"cannot be read: {first}", "broken")
            return
        if manifest.get("digest") != artifact.digest:
            yield self.find(record, "does not have the digest that its files give", "changed")
        yield from self.claim(record, manifest, artifact)
        entries = (*artifact.files, *artifact.timed_files)
        self.covered |= {
            record,
            *(folder / entry.path for entry in entries if _is_safe(entry.path)),
        }
        yield from self.read(folder, self.recipe(folder, artifact, entries))
        yield from self.files(folder, entries)
        yield from self.read(folder, self.extras(folder, entries))
        yield from self.read(folder, self.signature(folder))
        signed = self.signatures.get(self.show(folder), SignatureCheck("unsigned")).files
        if not manifest.get("record") and ARTIFACT_FILE not in signed:
            what = "has no digest that covers its time, host and timed files"
            self.uncovered.append(f"{self.show(record)} {what}")
        if self.follow:
            for parent in artifact.parents:
                try:
                    yield from self.read(folder, self.parent(folder, parent))
                except ValueError as error:
                    what = f"names a parent that cannot be looked up: {error}"[:200]
                    yield self.find(record, what, "broken")

    def read(
        self, path: Path, findings: Iterator[IntegrityMismatch]
    ) -> Iterator[IntegrityMismatch]:
        """Yield findings up to a file or folder that may not be read, which is one, too."""
        try:
            yield from findings
        except OSError as error:
            path = Path(os.fsdecode(error.filename)) if error.filename else path
            yield self.find(path, f"cannot be read: {error.strerror or error}", "broken")

    def claim(
        self, record: Path, manifest: Mapping[str, Any], artifact: Artifact
    ) -> Iterator[IntegrityMismatch]:
        """Yield whether what artifact.json states is what it stated when it was written."""
        if "claim" not in manifest:
            what = "covers its outputs alone, not what it states of them: it has no claim digest"
            yield self.find(record, what, "missing", "claim")
        elif manifest["claim"] != digest_claim(manifest):
            what = "states other things than when it was written: its claim digest differs"
            yield self.find(record, what, "changed", "claim")
        elif unknown := sorted(manifest.keys() - artifact.to_json().keys()):
            what = f"holds what no chain covers: {', '.join(unknown)!r:.80}"
            yield self.find(record, what, "extra", "claim")
        elif manifest.get("record", "") not in ("", digest_record(manifest)):
            what = "states another time, host or timed files than when it was written: its record"
            yield self.find(record, f"{what} digest differs", "changed", "claim")

    def signature(self, folder: Path) -> Iterator[IntegrityMismatch]:
        """Yield what is wrong with a folder's signature."""
        check = check_signature(folder, self.trust)
        self.signatures[self.show(folder)] = check
        self.covered |= {folder / name for name in check.files}
        if check.state != "unsigned":
            self.covered |= {folder / SIGNATURE_FILE, folder / CLAIMS_FILE}
        self.uncovered += [f"{self.show(folder / name)} {what}" for name, what in check.beside]
        for name, what in check.differences:
            yield self.find(folder / name, what, "changed", "signature")
        if self.trust and check.state == "unsigned":
            yield self.find(folder, "is not signed", "unsigned", "signature")
        elif check.state == "other-signer":
            what = f"is valid, but signed by another signer: key {check.key_id}"
            yield self.find(folder, what, "other-signer", "signature")

    def recipe(
        self, folder: Path, artifact: Artifact, entries: tuple[FileEntry, ...]
    ) -> Iterator[IntegrityMismatch]:
        path = folder / "recipe.yaml"
        self.covered.add(path)
        if any(entry.path == path.name for entry in entries):
            return
        if not artifact.recipe_digest:
            if os.path.lexists(path):
                what = "is covered by no digest: artifact.json does not state the recipe's"
                yield self.find(path, what, "extra", "claim")
            return
        if not path.exists():
            yield self.find(path, "is missing", "missing")
        elif not _is_regular(path):
            yield self.find(path, "is not a regular file", "link")
        elif digest_file(path) != artifact.recipe_digest:
            yield self.find(path, "has changed", "changed")

    def files(self, folder: Path, entries: tuple[FileEntry, ...]) -> Iterator[IntegrityMismatch]:
        seen: set[str] = set()
        for entry in entries:
            if not _is_safe(entry.path):
                yield self.find(
                    locate_manifest(folder),
                    f"names the path {str(entry.path)!r:.80}, which leaves its folder",
                    "unsafe",
                )
                continue
            path = folder / entry.path
            if entry.path in seen:
                yield self.find(path, "is listed twice", "broken")
                continue
            seen.add(entry.path)
            yield from self.read(path, self.file(folder, path, entry))

    def file(self, folder: Path, path: Path, entry: FileEntry) -> Iterator[IntegrityMismatch]:
        if _crosses_link(folder, path):
            yield self.find(path, "is reached through a symbolic link", "link")
        elif not path.exists():
            yield self.find(path, "is missing", "missing")
        elif not _is_regular(path):
            yield self.find(path, "is not a regular file", "link")
        elif (size := path.stat().st_size) != entry.size_bytes:
            yield self.find(path, f"has changed: {size} bytes, not {entry.size_bytes}", "changed")
        elif digest_like(path, str(entry.digest)) != entry.digest:
            yield self.find(path, "has changed: the size is as recorded, the digest not", "changed")

    def extras(self, folder: Path, entries: tuple[FileEntry, ...]) -> Iterator[IntegrityMismatch]:
        listed = {entry.path for entry in entries if _is_safe(entry.path)}
        output = folder / "output"
        if output.is_symlink():
            yield self.find(output, "is a symbolic link", "link")
            return
        for path in walk_folder(output) if output.exists() else ():
            if path.relative_to(folder).as_posix() in listed:
                continue
            if path.is_symlink():
                yield self.find(path, "is a symbolic link that nothing lists", "link")
            else:
                yield self.find(path, "is not listed in artifact.json", "extra")

    def parent(self, folder: Path, parent: Parent) -> Iterator[IntegrityMismatch]:
        """Yield the differences of a parent: in full for a neighbor, else by its digest."""
        if not has_path(parent):
            yield self.find(locate_manifest(folder), "names a parent without a path", "broken")
            return
        named = f"{self.show(folder)}: {parent.role} {parent.path}"
        if is_reference(parent.path):
            if not parent.digest:
                self.open_ends.append(f"{named} is named without a digest")
            return
        path = resolve_parent(folder, parent)
        if Path(parent.path).is_absolute():
            yield from self.distant(path, parent)
        elif not path.is_relative_to(folder.parent) or path in {folder, folder.parent}:
            yield self.find(
                locate_manifest(folder),
                f"names the parent {parent.path!r:.80}, which is not next to its folder",
                "unsafe",
            )
            return
        elif _crosses_link(folder.parent, path):
            yield self.find(path, f"({parent.role}) is reached through a symbolic link", "link")
            return
        elif not path.exists():
            if path.is_relative_to(self.root):
                yield self.find(path, f"({parent.role}) is missing", "missing", "parent")
            else:  # a step of a run that was published, or moved, alone
                self.open_ends.append(f"{named} is not here and was not compared")
            return
        else:
            yield from self.neighbor(path, parent)
        self.open_ends += [f"{named} {what}" for what in _list_open(path, parent)]

    def neighbor(self, path: Path, parent: Parent) -> Iterator[IntegrityMismatch]:
        """Yield the differences of a parent that is here."""
        yield from self.distant(path, parent)
        if path in self.seen:
            return
        if locate_manifest(path).exists():
            yield from self.folder(path)
        elif parent.claim:
            what = f"({parent.role}) is no longer a finished job: its artifact.json is missing"
            yield self.find(path, what, "missing", "parent")

    def distant(self, path: Path, parent: Parent) -> Iterator[IntegrityMismatch]:
        """Yield whether a parent has changed, according to its own artifact.json."""
        what = f"({parent.role}) is not what it was when {self.root.name} was made from it"
        if _has_manifest(path, parent):
            try:
                artifact = read_artifact(path, is_judged=True)
            except (DataError, RecursionError):
                return  # reported when the folder itself is verified
            if parent.digest and artifact.digest != parent.digest:
                yield self.find(path, what, "changed", "parent")
            elif parent.claim and artifact.claim != parent.claim:
                what = f"({parent.role}) states other things than when {self.root.name} was made"
                yield self.find(path, what, "changed", "chain")
        elif _is_regular(path) and len(parent.digest) == 64 and digest_file(path) != parent.digest:
            yield self.find(path, what, "changed", "parent")

    def list_uncovered(self) -> Iterator[str]:
        """Yield a sentence about each file of the folders that nothing that was verified covers."""
        folders = self.seen or {self.root}
        for top in sorted(one for one in folders if not folders & {*one.parents}):
            try:
                yield from dict.fromkeys(self.find_uncovered(top))
            except NotADirectoryError:  # a file, which is all that there is
                continue
            except OSError as error:
                place = Path(os.fsdecode(error.filename)) if error.filename else top
                yield f"{self.show(place)} cannot be read: {error.strerror or error}"

    def find_uncovered(self, top: Path) -> Iterator[str]:
        for path in walk_folder(top):
            first = path.relative_to(top).parts[0]
            if first in UNSIGNED_PATHS:  # a folder of version control may hold thousands
                yield f"{self.show(top / first)} has no digest or signature"
            elif path not in self.covered and not _is_lock(path):
                yield f"{self.show(path)} has no digest or signature"

    def find(
        self, path: Path, message: str, kind: MismatchKind, layer: Layer = "output"
    ) -> IntegrityMismatch:
        return IntegrityMismatch(self.show(path), message, kind, layer)

    def show(self, path: Path) -> str:
        """Return a path as findings name it: relative to the verified folder if it is near."""
        is_near = path.is_relative_to(self.root.parent)
        top = self.root if self.root.is_dir() else self.root.parent
        shown = os.path.relpath(path, top) if is_near else str(path)
        return PurePosixPath(shown).as_posix()


def _list_open(path: Path, parent: Parent) -> Iterator[str]:
    """Yield what was not compared of a parent at a path, as predicates."""
    is_outside = Path(parent.path).is_absolute()
    if _has_manifest(path, parent):
        if not (parent.digest and parent.claim):
            yield "is named without its digest or its claim"
        if is_outside:
            yield "lies outside: what it states was compared, its files and parents were not"
    elif not path.is_file():
        where = "lies outside" if is_outside else "is a folder of no job"
        yield f"{where} and was not compared"
    elif len(parent.digest) != 64:
        yield "is named without a digest of its bytes"


def _has_manifest(path: Path, parent: Parent) -> bool:
    """Return whether a parent is a folder that was read as the artifact that it is."""
    return bool(parent.kind) and path.is_dir() and locate_manifest(path).is_file()


def _is_safe(path: object) -> bool:
    """Return whether an entry's path stays below its folder on every platform."""
    if not isinstance(path, str) or not path or "\0" in path or "\\" in path:
        return False
    pure = PurePosixPath(path)
    return not pure.is_absolute() and ".." not in pure.parts and pure.as_posix() == path


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _is_lock(path: Path) -> bool:
    """Return whether a file is a lock, which is empty and says nothing."""
    return path.name in _LOCKS and _is_regular(path) and not path.stat().st_size


def _crosses_link(top: Path, path: Path) -> bool:
    """Return whether the path, or a folder between it and ``top``, is a symbolic link."""
    while path != top:
        if path.is_symlink():
            return True
        path = path.parent
    return False
