"""artifact.json, the manifest of a job: kind, files, environment, and the links of its lineage.

A link (``Parent``, by ``make_parent``) holds the digest of an input; ``lineage`` walks them. A
folder with this file is finished; one without is not. The artifact's digest covers the output files
only (paths and bytes), so that the same work on the same machine gives the same digest at any time.
Its claim (manifest digest) covers what the file states, and its parents' claims: a hash chain, in
which an edit of an earlier artifact.json shows in every later one. Its record digest covers the
whole file, with what the claim leaves out.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, get_args

from stillroom.errors import DataError, IntegrityError
from stillroom.objects import exists, find_address, is_address, join_address, mirror_folder
from stillroom.provenance.digests import digest_file, digest_json, load_json, walk_folder
from stillroom.records.origin import Link, Origin, combine_origins

__all__ = [
    "ARTIFACT_FILE",
    "Artifact",
    "ArtifactKind",
    "FileEntry",
    "Parent",
    "describe_host",
    "describe_machine_differences",
    "digest_claim",
    "digest_record",
    "find_artifact",
    "find_output",
    "get_working_folder",
    "list_files",
    "list_installed_versions",
    "locate_manifest",
    "make_parent",
    "read_artifact",
    "refuse_unfinished",
    "trace_sources",
]

ARTIFACT_FILE = "artifact.json"
ArtifactKind = Literal["records", "dataset", "checkpoint", "index", "media", "report"]
_FORMAT = 1
_MAX_DEPTH = 100
_FINISH_IT = "wait for it, or finish it by the command that started it, with --resume"
_MAX_PATH_LENGTH = 4096  # Linux's PATH_MAX
_MAX_SIZE = 1 << 63
_UNCLAIMED = frozenset({"claim", "record", "created", "host", "timed_files"})
_PACKAGES = ("stillroom", "torch", "transformers", "safetensors", "numpy", "xllamacpp")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One output file: path relative to the artifact's folder, size in bytes, digest.

    The path of an output that is itself a file is ``.``. The digest is a SHA-256 in hex, or, for a
    large file that changes often, ``blake3:`` and hex.
    """

    path: str
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Parent:
    """An input of the artifact.

    ``role`` is its role (``teacher``, ``records``, ``documents``); ``path`` is relative to the
    artifact's folder if both are in one run, else absolute; ``digest`` is the parent artifact's
    digest, a checkpoint's fingerprint, or a file's SHA-256; ``claim`` is the parent artifact's.
    """

    role: str
    path: str
    digest: str
    kind: str = ""
    claim: str = ""


@dataclass(frozen=True, slots=True)
class Artifact:
    """The result of one job, or of a command that writes a file or a folder.

    ``timed_files`` are files whose bytes depend on the clock: verified like ``files``, but excluded
    from the artifact's digest. ``is_flat`` tells that the paths start at the output itself, as
    other programs load it, and not at a job's folder with ``output/`` in it.
    """

    kind: ArtifactKind
    files: tuple[FileEntry, ...]
    parents: tuple[Parent, ...] = ()
    timed_files: tuple[FileEntry, ...] = ()
    recipe_digest: str = ""
    seed: int = 0
    origin: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    host: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""
    is_flat: bool = False

    @property
    def digest(self) -> str:
        """Digest of the output: every path with its file's digest; of a file, its own."""
        if [entry.path for entry in self.files] == ["."]:
            return self.files[0].digest
        return digest_json([[entry.path, entry.digest] for entry in self.files])

    @property
    def claim(self) -> str:
        """Digest of what artifact.json states, but for what depends on the clock and the host."""
        return digest_claim(self._to_manifest())

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        stated = {"claim": self.claim, **self._to_manifest()}
        return {**stated, "record": digest_record(stated)}

    def _to_manifest(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "kind": self.kind,
            "digest": self.digest,
            "created": self.created,
            "recipe_digest": self.recipe_digest,
            "seed": self.seed,
            "origin": dict(self.origin),
            "files": [[entry.path, entry.size_bytes, entry.digest] for entry in self.files],
            "timed_files": [
                [entry.path, entry.size_bytes, entry.digest] for entry in self.timed_files
            ],
            "parents": [asdict(parent) for parent in self.parents],
            "details": dict(self.details),
            "versions": dict(self.versions),
            "host": dict(self.host),
            **({"is_flat": True} if self.is_flat else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Artifact:
        """Build from the result of ``to_json``."""
        return cls(
            kind=data["kind"],
            files=tuple(FileEntry(*entry) for entry in data["files"]),
            parents=tuple(
                Parent(
                    _to_text(p["role"]),
                    p["path"],  # judged by who uses it
                    _to_text(p["digest"]),
                    _to_text(p.get("kind")),
                    _to_text(p.get("claim")),
                )
                for p in data["parents"]
            ),
            timed_files=tuple(FileEntry(*entry) for entry in data.get("timed_files", ())),
            recipe_digest=_to_text(data.get("recipe_digest")),
            seed=data.get("seed", 0),
            origin=data.get("origin", {}),
            details=data.get("details", {}),
            versions=data.get("versions", {}),
            host=data.get("host", {}),
            created=data.get("created", ""),
            is_flat=data.get("is_flat") is True,
        )


def _to_text(value: object) -> str:
    """Return what a foreign artifact.json holds in the place of a text."""
    return "" if value is None else str(value)


def digest_claim(manifest: Mapping[str, Any]) -> str:
    """Return the claim of the JSON values of an artifact.json.

    The files in ``timed_files``, ``created`` and ``host`` are left out, so that equal work makes
    equal claims; a signature covers them, too.
    """
    stated = {name: value for name, value in manifest.items() if name not in _UNCLAIMED}
    return digest_json(json.loads(json.dumps(stated)))


def digest_record(manifest: Mapping[str, Any]) -> str:
    """Return the digest of the JSON values of an artifact.json: of all but this digest."""
    stated = {name: value for name, value in manifest.items() if name != "record"}
    return digest_json(json.loads(json.dumps(stated)))


def list_files(
    folder: Path, below: str = "output", but: Collection[str] = ()
) -> tuple[FileEntry, ...]:
    """Digest every regular file of ``folder/below``, sorted by path; links are refused.

    ``but`` are files and folders at the top of ``folder`` to leave out.

    Raises:
        IntegrityError: If a symbolic link lies among the files.
    """
    entries = []
    for path in sorted(walk_folder(folder / below)) if (folder / below).exists() else ():
        relative = path.relative_to(folder).as_posix()
        if relative.partition("/")[0] in but:
            continue
        if path.is_symlink():
            raise IntegrityError(
                f"{relative} is a symbolic link",
                code="integrity.link",
                where=str(folder),
                expected="regular files only",
                next="replace the link by the file it points to",
            )
        if path.is_file():
            entries.append(FileEntry(relative, path.stat().st_size, digest_file(path)))
    return tuple(entries)


def locate_manifest(path: Path) -> Path:
    """Return where the artifact.json of a file or a folder is, whether or not there is one.

    It is in the folder, or beside the output as ``NAME.artifact.json``: that of a file, and of a
    folder all of whose files other programs take for data.
    """
    inside = path / ARTIFACT_FILE
    if inside.is_file():
        return inside
    # A link is named like what it leads to, or has a name and an artifact.json of its own.
    named = [
        place for place in (path, Path(os.path.realpath(path))) if place.name not in ("", "..")
    ]
    beside = [place.with_name(f"{place.name}.{ARTIFACT_FILE}") for place in named]
    found = next((place for place in beside if place.is_file()), None)
    return found or (beside[0] if beside and path.is_file() else inside)


def read_artifact(folder: Path, *, is_judged: bool = False) -> Artifact:
    """Read the artifact.json of a folder, or of a file; see ``locate_manifest``.

    ``is_judged`` leaves odd values of files and parents to the caller, who names each of them.

    Raises:
        DataError: If there is none, or the file is not an artifact of Stillroom.
    """
    path = locate_manifest(folder)
    if not folder.exists():
        refuse_unfinished(folder)
        raise DataError(
            f"{folder} does not exist",
            code="data.missing",
            expected="the folder of a finished job",
            next="check the path",
        )
    if not path.is_file():
        raise _make_no_artifact_error(folder)
    try:
        data = load_json(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise TypeError("it is not an object")
        if data.get("format") != _FORMAT or data.get("kind") not in get_args(ArtifactKind):
            raise ValueError(f"format {data.get('format')!r}, kind {data.get('kind')!r}")
        artifact = Artifact.from_json(data)
        # Code expects objects everywhere; values of other types are refused here.
        parts = (artifact.origin, artifact.details, artifact.versions, artifact.host)
        if not all(isinstance(part, Mapping) for part in parts):
            raise TypeError("origin, details, versions or host is not an object")
        if not is_judged:
            _check_values(artifact)
        return artifact
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read as an artifact: {error}",
            code="data.not-an-artifact",
            expected=f"format {_FORMAT} and one of: {', '.join(get_args(ArtifactKind))}",
            next=f"stillroom verify {folder}",
        ) from error


def _make_no_artifact_error(folder: Path) -> DataError:
    quoted = shlex.quote(str(folder))
    what = f"{folder} holds no artifact.json"
    advice = "give another path; of a folder of documents, first run: stillroom rag index "
    advice += f"{quoted} --out index"
    if (folder / "recipe.yaml").is_file():
        what, advice = f"{folder} is unfinished: it holds no artifact.json", _FINISH_IT
    elif not folder.is_dir():
        what = f"{folder} is a file"
        advice = f"give a folder; evidence of an answer is checked by: stillroom verify {quoted}"
    return DataError(
        what, code="data.not-an-artifact", expected="the folder of a finished job", next=advice
    )


def _check_values(artifact: Artifact) -> None:
    """Refuse values that code which takes their types for granted could not use.

    Raises:
        TypeError: If one has another type.
        ValueError: If one is out of bounds.
    """
    if _is_deeper([artifact.origin, artifact.details, artifact.host], _MAX_DEPTH):
        raise ValueError("it is nested too deeply")
    if not isinstance(artifact.created, str) or type(artifact.seed) is not int:
        raise TypeError("created is not a text, or seed not an integer")
    for entry in (*artifact.files, *artifact.timed_files):
        if not isinstance(entry.path, str) or not isinstance(entry.digest, str):
            raise TypeError("the path or the digest of a file is not a text")
        if type(entry.size_bytes) is not int or not 0 <= entry.size_bytes < _MAX_SIZE:
            raise ValueError(f"{entry.path!r:.80} has no size in bytes")
    for parent in artifact.parents:
        if "\0" in str(parent.path) or len(str(parent.path)) > _MAX_PATH_LENGTH:
            raise ValueError(f"{parent.path!r:.80} is no path")


def _is_deeper(value: object, levels: int) -> bool:
    """Return whether JSON is nested in more levels, counted without recursion."""
    level = [value]
    for _ in range(levels):
        level = [
            item
            for outer in level
            if isinstance(outer, (Mapping, list))
            for item in (outer.values() if isinstance(outer, Mapping) else outer)
        ]
    return bool(level)


def get_working_folder(out: Path) -> Path:
    """Return the working folder of a job until ``out`` is finished."""
    return out.with_name(f".{out.name}.partial")


def refuse_unfinished(out: Path) -> None:
    """Raise an error if a job has begun ``out`` and not finished it (``data.unfinished``)."""
    if out.name and os.path.isdir(get_working_folder(out)):  # noqa: PTH112  # false for odd names
        raise DataError(
            f"{out} is unfinished: its work is in {get_working_folder(out)}",
            code="data.unfinished",
            expected="the folder of a finished job",
            next=_FINISH_IT,
        )


def find_artifact(reference: str) -> Artifact | None:
    """Return the artifact of the job folder that a reference names, local or in a store.

    Returns:
        None if the reference is not a job folder: data from elsewhere, ``hub:...``.

    Raises:
        DataError: If there is a manifest that cannot be read, or the store does not answer.
    """
    if not is_address(reference):
        folder = Path(reference)
        return read_artifact(folder) if locate_manifest(folder).is_file() else None
    manifest = join_address(reference, ARTIFACT_FILE)
    return read_artifact(mirror_folder(manifest).parent) if exists(manifest) else None


def find_output(path: Path, *kinds: ArtifactKind) -> Path:
    """Return the folder with an artifact's own files: ``path/output``, or ``path`` itself.

    A folder without artifact.json is data from elsewhere and returned unchanged; so is one that
    other programs load as it is, such as an adapter, whose files lie next to artifact.json.

    Raises:
        DataError: If the path is missing or unfinished, or the artifact is not of one of the kinds.
    """
    if not path.exists():
        refuse_unfinished(path)
        raise DataError(
            f"{path} does not exist",
            code="data.missing",
            expected=f"the folder of {' or '.join(kinds)}" if kinds else "a file or a folder",
            next="check the path; in a recipe, relative paths start at its folder",
        )
    if not (path / ARTIFACT_FILE).is_file():
        return path
    artifact = read_artifact(path)
    if artifact.kind == "dataset":  # in the format of another program
        return path
    if kinds and artifact.kind not in kinds:
        raise DataError(
            f"{path} holds {artifact.kind}",
            code="data.wrong-kind",
            expected=" or ".join(kinds),
            next=f"stillroom show {path}",
        )
    return path if artifact.is_flat else path / "output"


def make_parent(role: str, path: Path, near: Path, *, fingerprint: str = "") -> Parent:
    """Return the Parent entry for an artifact or a plain file or folder.

    ``near`` is the child's final folder: siblings get relative paths, so that a run can be moved.
    With ``fingerprint`` it is a checkpoint with that one, and ``path`` may be an artifact's output.
    """
    path, near = path.absolute(), near.absolute()
    if path.name == "output" and (path.parent / ARTIFACT_FILE).is_file():
        path = path.parent
    shown = f"../{path.name}" if path.parent == near.parent else str(path)
    shown = find_address(path) or shown  # the source of a mirror
    if path.is_dir() and locate_manifest(path).is_file():
        artifact = read_artifact(path)
        return Parent(role, shown, artifact.digest, artifact.kind, artifact.claim)
    if fingerprint:
        return Parent(role, find_address(path) or str(path), fingerprint, "checkpoint")
    return Parent(role, shown, digest_file(path) if path.is_file() else "", "")


def trace_sources(
    method: str, sources: Sequence[tuple[str, Path, str, str]], near: Path
) -> tuple[list[Parent], Origin]:
    """Return the parents and the origin of what a method makes of its sources.

    Args:
        method: Dotted name of the method.
        sources: Role, path, fingerprint and license of each; the last two only of checkpoints.
        near: The result's final path.
    """
    parents, origins = [], []
    for role, path, fingerprint, license in sources:
        parents.append(make_parent(role, path, near, fingerprint=fingerprint))
        artifact = find_artifact(str(path.parent if path.name == "output" else path))
        origin = Origin.from_json(artifact.origin) if artifact else Origin()
        origins += [origin, replace(origin, license=license)]
    named = tuple(fingerprint for _, _, fingerprint, _ in sources)
    digests = tuple(name or one.digest for name, one in zip(named, parents, strict=True))
    return parents, combine_origins(origins).then(Link(method, parents=digests))


def list_installed_versions() -> dict[str, str]:
    """Return the versions of packages whose numerics may affect an artifact."""
    found = ((package, _find_version(package)) for package in _PACKAGES)
    return {package: text for package, text in found if text}


@lru_cache
def _find_version(package: str) -> str:
    """Return the version of a package, empty without it; cached, since each takes 10 ms."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def describe_host() -> dict[str, Any]:
    """Return the host's properties that may affect an artifact.

    Platform, Python, cores, the processor's widest vector instructions, and the number of threads
    that the environment sets (OMP_NUM_THREADS; empty if it sets none).
    """
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count() or 1,
        "instructions": _find_instructions(),
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
    }


@lru_cache(maxsize=1)
def _find_instructions() -> str:
    """Return the architecture with the widest vector instructions, as ``x86_64 avx512``."""
    flags: set[str] = set()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("flags", "Features")):
                flags = set(line.partition(":")[2].split())
                break
    known = {"amx_bf16": "amx", "avx512f": "avx512", "avx2": "avx2", "sve": "sve", "asimd": "neon"}
    widest = next((name for flag, name in known.items() if flag in flags), "")
    return f"{platform.machine()} {widest}".strip()


_NUMERIC = ("torch", "numpy", "transformers", "xllamacpp", "stillroom")


def describe_machine_differences(artifact: Artifact) -> list[str]:
    """Return how this machine differs in kind from the one that made an artifact.

    Compared are the processor's instruction set, threads, and the versions of the packages whose
    numerics may matter. What an artifact of an earlier version does not say is not compared.
    """
    here = {**describe_host(), "versions": list_installed_versions()}
    differences = []
    for key, label in (("instructions", "instruction set"), ("threads", "threads")):
        old = artifact.host.get(key)
        if old is not None and old != here.get(key):
            found = here.get(key) or "the default"
            differences.append(f"{label}: made with {old or 'the default'}, replayed with {found}")
    for package in _NUMERIC:
        old, found = artifact.versions.get(package), here["versions"].get(package)
        if old != found:
            differences.append(f"{package}: made with {old}, replayed with {found}")
    return differences
