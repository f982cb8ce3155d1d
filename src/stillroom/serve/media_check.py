"""Forensic check of uploaded media: ``POST /v1/forensics/check`` and its child process.

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

from fastapi import FastAPI, Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from stillroom.serve import openapi
from stillroom.serve.access import RequestLimits
from stillroom.serve.errors import ApiError, client_disconnected
from stillroom.serve.jobs.processes import run_worker
from stillroom.serve.jobs.sandbox import is_sandbox_available
from stillroom.serve.middleware.concurrency import FairQueue, run_while_connected

__all__ = [
    "MediaCheckService",
    "UploadedFile",
    "add_media_check_route",
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
        """Configure the checks.

        Args:
            detectors: Folders of trained face detectors.
            official: Official C2PA trust lists, as PEM.
            trust: Certificate authorities that the operator trusts, as PEM.
        """
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
        self, folder: Path, files: Sequence[UploadedFile], *, prevalence: float, pulse: bool
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
            "pulse": pulse,
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


_CHUNK_BYTES = 1 << 20


_FORM_FIELDS = frozenset({"prevalence", "pulse"})


_BODY_SCHEMA = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {
                        "type": "array",
                        "minItems": 1,
                        "items": {"type": "string", "format": "binary"},
                    },
                    "prevalence": {
                        "type": "number",
                        "exclusiveMinimum": 0,
                        "exclusiveMaximum": 1,
                        "default": 0.5,
                    },
                    "pulse": {"type": "boolean", "default": False},
                },
                "additionalProperties": False,
            }
        }
    },
}


def add_media_check_route(
    app: FastAPI, media_check: MediaCheckService, limits: RequestLimits
) -> None:
    """Add the media check route to an app."""
    line = FairQueue(limits, 1, most_waiting=limits.checks)

    @app.post(
        "/v1/forensics/check",
        openapi_extra={"requestBody": _BODY_SCHEMA},
        responses={200: {"model": openapi.MediaCheckResult}},
    )
    async def check(request: Request) -> dict[str, Any]:
        """Check media: content credentials, and the results of the server's detectors."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data":
            raise ApiError(
                415, "files are sent as multipart/form-data", code="unsupported_media_type"
            )
        with line.place():  # before the files are read, so that waiting uploads are bounded
            async with media_check.folder() as folder:
                files, prevalence, pulse = await _read_form(request, folder, media_check, limits)
                async with line.turn(request):
                    running = media_check.look(folder, files, prevalence=prevalence, pulse=pulse)
                    findings = await run_while_connected(request, running)
        return {"object": "forensics.check", **findings}


async def _read_form(
    request: Request, folder: Path, media_check: MediaCheckService, limits: RequestLimits
) -> tuple[list[UploadedFile], float, bool]:
    """Write a form's files to a folder; return them, the prevalence, and the pulse flag."""
    try:
        async with request.form(max_files=limits.uploads, max_fields=8, max_part_size=4096) as form:
            return await _write_files(form, folder, media_check), *_read_settings(form)
    except ClientDisconnect:
        raise client_disconnected() from None
    except HTTPException as error:
        raise ApiError(
            400, f"the form cannot be read: {error.detail}", code="invalid_form"
        ) from error


async def _write_files(
    form: FormData, folder: Path, media_check: MediaCheckService
) -> list[UploadedFile]:
    files: list[UploadedFile] = []
    for key, value in form.multi_items():
        if not isinstance(value, UploadFile):
            if key not in _FORM_FIELDS:
                raise ApiError(
                    400,
                    f"{key[:40]!r} is not served here",
                    code="unknown_parameter",
                    param=key[:40],
                )
            continue
        if key != "file":
            raise ApiError(
                400,
                "the form field of a file is not 'file'",
                code="unknown_parameter",
                param=key[:40],
            )
        sent = media_check.place(folder, len(files), value.filename or "")
        with sent.path.open("wb") as out:
            while piece := await value.read(_CHUNK_BYTES):
                out.write(piece)
        files.append(sent)
    if not files:
        raise ApiError(400, "the form has no file", code="invalid_input", param="file")
    return files


def _read_settings(form: FormData) -> tuple[float, bool]:
    try:
        prevalence = float(str(form.get("prevalence", "0.5")))
    except ValueError:
        prevalence = 0.0
    if not 0 < prevalence < 1:
        raise ApiError(
            400, "prevalence lies between 0 and 1", code="invalid_request", param="prevalence"
        )
    pulse = str(form.get("pulse", "false")).lower()
    if pulse not in {"true", "false"}:
        raise ApiError(400, "pulse is true or false", code="invalid_request", param="pulse")
    return prevalence, pulse == "true"
