"""Check of uploaded media: content credentials, and the results of the server's detectors.

Files are written part by part to a temporary folder, which is gone when the reply is sent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from fastapi import Request
from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from stillroom.serve.access import RequestLimits
from stillroom.serve.errors import ApiError, client_disconnected
from stillroom.serve.media_check import MediaCheckService, UploadedFile
from stillroom.serve.middleware.concurrency import FairQueue, run_while_connected
from stillroom.serve.routing import RouteTable, ServerContext, StrictModel

__all__ = ["MediaCheckResult", "add_routes"]

_CHUNK_BYTES = 1 << 20

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
                },
                "additionalProperties": False,
            }
        }
    },
}


class MediaCheckResult(StrictModel):
    """Findings on media."""

    object: Literal["forensics.check"]
    files: list[dict[str, Any]]
    limits: list[str]


def add_routes(table: RouteTable, server: ServerContext) -> None:
    """Add the route, if the server checks media."""
    if (media_check := server.media_check) is None:
        return
    limits = server.limits
    queue = FairQueue(limits, 1, most_waiting=limits.checks)

    @table.add(
        "POST",
        "/v1/forensics/check",
        "forensics",
        is_upload=True,
        openapi_extra={"requestBody": _BODY_SCHEMA},
        reply=MediaCheckResult,
    )
    async def check(request: Request) -> dict[str, Any]:
        """Check media: content credentials, and the results of the server's detectors."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data":
            raise ApiError(
                415, "files are sent as multipart/form-data", code="unsupported_media_type"
            )
        async with (  # before the files are read, so that waiting uploads are bounded
            queue.place(request) as place,
            media_check.folder() as folder,
        ):
            files, prevalence = await _read_form(request, folder, media_check, limits)
            place.is_reading = False
            async with queue.turn(request):
                running = media_check.look(folder, files, prevalence=prevalence)
                findings = await run_while_connected(request, running)
        return {"object": "forensics.check", **findings}


async def _read_form(
    request: Request, folder: Path, media_check: MediaCheckService, limits: RequestLimits
) -> tuple[list[UploadedFile], float]:
    """Write a form's files to a folder; return them and the prevalence."""
    try:
        async with request.form(max_files=limits.uploads, max_fields=8, max_part_size=4096) as form:
            return await _write_files(form, folder, media_check), _read_prevalence(form)
    except ClientDisconnect:
        raise client_disconnected() from None
    except (HTTPException, FormParserError) as error:  # the second by older versions of starlette
        reason = error.detail if isinstance(error, HTTPException) else error
        raise ApiError(400, f"the form cannot be read: {reason}", code="invalid_form") from error


async def _write_files(
    form: FormData, folder: Path, media_check: MediaCheckService
) -> list[UploadedFile]:
    files: list[UploadedFile] = []
    for key, value in form.multi_items():
        if not isinstance(value, UploadFile):
            if key == "file":
                raise ApiError(
                    400, "a part 'file' has no file name", code="invalid_input", param="file"
                )
            if key != "prevalence":
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


def _read_prevalence(form: FormData) -> float:
    try:
        prevalence = float(str(form.get("prevalence", "0.5")))
    except ValueError:
        prevalence = 0.0
    if not 0 < prevalence < 1:
        raise ApiError(
            400, "prevalence lies between 0 and 1", code="invalid_request", param="prevalence"
        )
    return prevalence
