"""Forensic check of uploaded media in a child process.

Files are written part by part to a temporary folder and checked in a sandboxed process with bounded
memory and time; folder and process are gone when the reply is sent. Knows nothing of HTTP.
"""

from __future__ import annotations

import re
import secrets
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.serve.errors import ApiError
from stillroom.serve.jobs.processes import is_sandbox_available, run_worker

__all__ = [
    "MediaCheckService",
    "UploadedFile",
]

_FILE_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,8}\Z")
_MEMORY_BYTES = 6 << 30
_TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """Uploaded file: its path, and the client's name for it."""

    path: Path
    name: str


class MediaCheckService:
    """Checks the files of a request; callers bound how many requests run at once."""

    def __init__(
        self,
        *,
        detectors: Sequence[Path] = (),
        official: Sequence[Path] = (),
        trust: Sequence[Path] = (),
    ) -> None:
        self.detectors = [path.absolute() for path in detectors]
        self.official = [path.absolute() for path in official]
        self.trust = [path.absolute() for path in trust]
        self._has_fence = is_sandbox_available()

    @asynccontextmanager
    async def folder(self) -> AsyncIterator[Path]:
        """Create a folder for one request's files; it is removed when the body ends."""
        with tempfile.TemporaryDirectory(prefix="stillroom-sent-") as folder:
            yield Path(folder)

    def place(self, folder: Path, number: int, name: str) -> UploadedFile:
        """Return the path for a file of a request; only the suffix of its name is used.

        The file name is random, so that it can be found in results and replaced by the client's
        name.
        """
        ending = _FILE_EXTENSION.search(name)
        shown = Path(name.replace("\\", "/")).name[:200] or f"file-{number}"
        file_name = f"{secrets.token_hex(12)}{ending[0].lower() if ending else ''}"
        return UploadedFile(folder / file_name, shown)

    async def look(
        self, folder: Path, files: Sequence[UploadedFile], *, prevalence: float
    ) -> dict[str, Any]:
        """Return the findings on files.

        Raises:
            ApiError: If the check takes too long, or its process crashes.
        """
        order = {
            "task": "media",
            "files": [[str(sent.path), sent.name] for sent in files],
            "detectors": [str(path) for path in self.detectors],
            "official": [str(path) for path in self.official],
            "trust": [str(path) for path in self.trust],
            "prevalence": prevalence,
            "memory_bytes": _MEMORY_BYTES,
            "root": str(folder),
            "job_folder": "",
            "readable": [str(path) for path in (*self.detectors, *self.official, *self.trust)],
            "ports": [],
            "hub": False,
            "sandbox": self._has_fence,
        }
        findings = await run_worker(order, folder, folder, timeout_s=_TIMEOUT_S)
        if findings["state"] != "checked":
            raise ApiError(
                422, "the files could not be checked: decoding failed", code="unreadable"
            )
        return {"files": findings["files"], "limits": findings["limits"]}
