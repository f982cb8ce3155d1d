"""Whether what a flow takes is there, asked before the first step instead of hours later."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from stillroom.errors import DataError, Problem

__all__ = ["check_inputs", "find_inputs"]

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+\Z")


def check_inputs(inputs: Mapping[str, str]) -> None:
    """Refuse inputs that are paths and lead nowhere.

    Raises:
        DataError: With every input that is missing.
    """
    missing = [
        Problem(
            f"{value} does not exist",
            "data.missing",
            f"inputs.{name}",
            "a file or folder, or a reference as hub:ORG/NAME",
            _suggest(value),
        )
        for name, value in inputs.items()
        if not _SCHEME.match(value) and not Path(value).exists()
    ]
    if missing:
        raise DataError(missing)


def find_inputs(inputs: Mapping[str, str]) -> None:
    """Find what ``hub:`` inputs mean, so that a missing one ends a run before its first step.

    Raises:
        CheckpointError: If one is found nowhere.
    """
    from stillroom.models import resolve_checkpoint

    for value in inputs.values():
        if value.startswith("hub:"):
            resolve_checkpoint(value)


def _suggest(value: str) -> str:
    near = os.path.relpath(value)
    if _HUB_NAME.match(near) and not near.startswith("."):
        return f"check the path, or write hub:{near}"
    return "check the path; relative paths start at the folder of the recipe, or at this one"
