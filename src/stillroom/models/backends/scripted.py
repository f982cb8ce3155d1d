"""Answers written beforehand in a JSON file, for dry runs and tests.

The file is a list of answers, given in order, or an object from a part of the prompt to the answer
(``*`` for everything else).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

from typing_extensions import override

from stillroom.errors import BackendError
from stillroom.models.method import Backend
from stillroom.models.script import ScriptedModel

__all__ = ["Scripted"]


class Scripted(Backend):
    """Answers from a JSON file."""

    paper: ClassVar[str] = ""

    @override
    def open(self, reference: str) -> ScriptedModel:
        path = Path(reference.removeprefix("scripted:"))
        try:
            script = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise _not_a_script(path, str(error)) from error
        values = list(script.values()) if isinstance(script, dict) else script
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise _not_a_script(path, "its answers are not all text")
        return ScriptedModel(script, name=path.stem, context_length=self.context_length or 8192)


def _not_a_script(path: Path, why: str) -> BackendError:
    return BackendError(
        f"{path} is not a script: {why}",
        code="backend.script",
        expected="a JSON list of answers, or an object from prompt part to answer",
        next='write {"*": "the answer"} into it',
    )
