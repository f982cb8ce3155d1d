"""Optional dependencies (extras) that are installed, from the metadata of the package.

Extras are read from the installed metadata, so that new ones are found automatically; ``PURPOSES``
describes each for users (a contract test compares the two). Imports none of them.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from typing import Any

from stillroom.errors import MissingExtraError

__all__ = [
    "PURPOSES",
    "Extra",
    "find_extra",
    "find_missing_extra",
    "list_extras",
    "require_extras",
]

PURPOSES: Mapping[str, str] = {
    "console": "the console in a browser",
    "detectors": "detectors of forgeries with pretrained weights",
    "documents": "pdf, docx, pptx, xlsx, epub and OpenDocument",
    "evaluate": "trec_eval's measures of retrieval",
    "forensics": "pictures, faces, clips, content credentials",
    "gguf": "reading and writing GGUF checkpoints",
    "grammar": "JSON Schemas held by the transformers backend",
    "graph": "communities in graphs over documents (Leiden)",
    "heic": "pictures as telephones write them (HEIC)",
    "influence": "influence of training records on a student's answers",
    "keras": "published MesoNet weights",
    "large-reader": "the large reader and embedder of English, in 8-bit integers",
    "llamacpp": "the embedded engine, llama.cpp",
    "models": "local models: loading, training, merging and serving checkpoints",
    "onnx": "detectors as ONNX files",
    "openai": "endpoints as teachers, writers and embedders",
    "otel": "traces and counters",
    "postgres": "an index in PostgreSQL",
    "ocr": "scanned pages, offline",
    "ray": "jobs on a cluster",
    "s3": "documents, records and checkpoints in S3",
    "search": "searches of merges",
    "serve": "the server",
    "sign": "signatures of runs, checkpoints and answers",
    "trace": "verbatim traces of answers in documents and records",
    "train": "several processes, LoRA",
    "verify": "equality of formulas",
}
_MODULES: Mapping[str, str] = {
    "PIL": "forensics",
    "accelerate": "train",
    "av": "forensics",
    "bergson": "influence",
    "c2pa": "forensics",
    "cryptography": "sign",
    "cv2": "forensics",
    "fastapi": "serve",
    "peft": "train",
    "prometheus_client": "serve",
    "ray": "ray",
    "starlette": "serve",
    "torch": "models",
    "transformers": "models",
    "uvicorn": "serve",
}
_NOT_FOR_USERS = {"all", "dev", "docs", "release"}
_NAME = re.compile(r"[A-Za-z0-9._-]+")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w.-]+)['\"]")


@dataclass(frozen=True, slots=True)
class Extra:
    """One extra: its purpose, and its installed (with versions) and missing packages."""

    name: str
    purpose: str
    installed: Mapping[str, str]
    missing: tuple[str, ...]


def find_extra(module: str) -> str:
    """Return the extra that provides a module imported by parts of Stillroom; or empty."""
    return _MODULES.get(module.partition(".")[0], "")


def find_missing_extra(error: BaseException, purpose: str = "this") -> MissingExtraError | None:
    """Return the error that names the extra of a module that is not installed; or None."""
    name = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
    extra = find_extra(name)
    return MissingExtraError.of(name, extra, purpose) if extra else None


def require_extras(extras: Iterable[str], run: Callable[..., Any], purpose: str) -> None:
    """Refuse work whose packages are not installed.

    Args:
        extras: Extras that the work always needs.
        run: Function that does the work. Without torch, what it imports first is imported here;
            with torch that would take seconds.
        purpose: The work, as the subject of the error.

    Raises:
        MissingExtraError: For the first missing module.
    """
    for extra in extras:
        for module in (name for name, brings in _MODULES.items() if brings == extra):
            if find_spec(module) is None:
                raise MissingExtraError.of(module, extra, purpose)
    if find_spec("torch") is not None or not inspect.isfunction(run):
        return
    (function,) = ast.parse(textwrap.dedent(inspect.getsource(run))).body
    try:
        for part in getattr(function, "body", ()):
            names = [name.name for name in part.names] if isinstance(part, ast.Import) else []
            for name in [part.module or ""] if isinstance(part, ast.ImportFrom) else names:
                importlib.import_module(name)
    except ModuleNotFoundError as error:
        if missing := find_missing_extra(error, purpose):
            raise missing from error
        raise


def list_extras() -> list[Extra]:
    """Return every user-facing extra, sorted; empty without installed metadata."""
    try:
        declared = requires("stillroom") or []
    except PackageNotFoundError:
        return []
    packages: dict[str, list[str]] = {}
    for line in declared:
        name, extra = _NAME.match(line), _EXTRA.search(line)
        if name and extra and name[0] != "stillroom" and extra[1] not in _NOT_FOR_USERS:
            packages.setdefault(extra[1], []).append(name[0])
    return [_read_extra(name, packages[name]) for name in sorted(packages)]


def _read_extra(name: str, packages: list[str]) -> Extra:
    installed: dict[str, str] = {}
    for package in packages:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            continue
    missing = tuple(package for package in packages if package not in installed)
    return Extra(name, PURPOSES.get(name, ""), installed, missing)
