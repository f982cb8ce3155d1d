"""POST /v1/forensics/check: files in, what is known of their origin out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from stillroom.serve import answers
from stillroom.serve.limits import Limits
from stillroom.serve.line import Line, stay
from stillroom.serve.looking import Looker, Sent
from stillroom.serve.refusals import Refusal, client_left

__all__ = ["add_forensics"]

_PIECE = 1 << 20
_FIELDS = frozenset({"prevalence", "pulse"})
_BODY = {
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


def add_forensics(app: FastAPI, looker: Looker, limits: Limits) -> None:
    """Add the route to an app."""
    line = Line(limits, 1, most_waiting=limits.checks)

    @app.post(
        "/v1/forensics/check",
        openapi_extra={"requestBody": _BODY},
        responses={200: {"model": answers.Forensics}},
    )
    async def check(request: Request) -> dict[str, Any]:
        """Say what is known of media: credentials, and what the server's detectors find."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data":
            raise Refusal(
                415, "files are sent as multipart/form-data", code="unsupported_media_type"
            )
        with line.place():  # before the files are read, so that those who wait are bounded
            async with looker.folder() as folder:
                files, prevalence, pulse = await _read(request, folder, looker, limits)
                async with line.turn(request):
                    looking = looker.look(folder, files, prevalence=prevalence, pulse=pulse)
                    found = await stay(request, looking)
        return {"object": "forensics.check", **found}


async def _read(
    request: Request, folder: Path, looker: Looker, limits: Limits
) -> tuple[list[Sent], float, bool]:
    """Write a form's files into a folder; return them, the prevalence, and whether for a pulse."""
    try:
        async with request.form(max_files=limits.uploads, max_fields=8, max_part_size=4096) as form:
            return await _write(form, folder, looker), *_settings(form)
    except ClientDisconnect:
        raise client_left() from None
    except HTTPException as error:
        raise Refusal(
            400, f"the form cannot be read: {error.detail}", code="invalid_form"
        ) from error


async def _write(form: FormData, folder: Path, looker: Looker) -> list[Sent]:
    files: list[Sent] = []
    for key, value in form.multi_items():
        if not isinstance(value, UploadFile):
            if key not in _FIELDS:
                raise Refusal(
                    400,
                    f"{key[:40]!r} is not served here",
                    code="unknown_parameter",
                    param=key[:40],
                )
            continue
        if key != "file":
            raise Refusal(
                400,
                "files are sent under the name 'file'",
                code="unknown_parameter",
                param=key[:40],
            )
        sent = looker.place(folder, len(files), value.filename or "")
        with sent.path.open("wb") as out:
            while piece := await value.read(_PIECE):
                out.write(piece)
        files.append(sent)
    if not files:
        raise Refusal(400, "no file was sent", code="invalid_input", param="file")
    return files


def _settings(form: FormData) -> tuple[float, bool]:
    try:
        prevalence = float(str(form.get("prevalence", "0.5")))
    except ValueError:
        prevalence = 0.0
    if not 0 < prevalence < 1:
        raise Refusal(
            400, "prevalence lies between 0 and 1", code="invalid_request", param="prevalence"
        )
    pulse = str(form.get("pulse", "false")).lower()
    if pulse not in {"true", "false"}:
        raise Refusal(400, "pulse is true or false", code="invalid_request", param="pulse")
    return prevalence, pulse == "true"
