"""mergekit's ways to name a model, as our references: paths, hub names, revisions, adapters.

A name that stands for a folder, from here or from the file's place, is that folder; one that looks
like a path is one; any other is a name on the hub.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from stillroom.errors import Problem
from stillroom.recipes.reading import Path, Tree, dotted
from stillroom.registry.listing import suggest

__all__ = ["Model", "ModelReader"]

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_REVISION = re.compile(r"[\w./-]+")
_KEYS = ("model", "lora", "override_architecture")


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint, and an adapter over it where there is one."""

    checkpoint: str
    adapter: str = ""

    def to_entry(self) -> dict[str, Any]:
        """Return the start of an entry of our ``models``."""
        made = {"checkpoint": self.checkpoint}
        return made | {"adapter": self.adapter} if self.adapter else made


@dataclass(frozen=True)
class ModelReader:
    """Reads references of one document.

    ``names`` are the other documents', which become ``step:NAME``; ``nest`` takes a configuration
    that stands in a model's place and returns the name it gets.
    """

    tree: Tree
    problems: list[Problem]
    names: frozenset[str]
    folder: FilePath | None
    nest: Callable[[Path], str]

    def read(self, path: Path, value: Any) -> Model | None:
        """Return the model named at a path; None, with a problem, where none is."""
        if isinstance(value, str):
            return self._read_text(path, value)
        if isinstance(value, dict) and "merge_method" in value:
            return Model(f"step:{self.nest(path)}")
        if not isinstance(value, dict) or "model" not in value:
            self._refuse(path, f"cannot be {value!r:.60}", "a model: a path or a name on the hub")
            return None
        for key in value:
            if key == "override_architecture" and value[key] is not None:
                self._refuse((*path, key), "is not supported", "the architecture of config.json")
            elif key not in _KEYS:
                self._refuse((*path, key), "is unknown", f"one of: {', '.join(_KEYS)}", key)
        model = self._read_part((*path, "model"), value["model"])
        lora = value.get("lora")
        adapter = self._read_part((*path, "lora"), lora) if lora is not None else ""
        return None if model is None or adapter is None else Model(model, adapter)

    def _read_text(self, path: Path, text: str) -> Model | None:
        if self._is_folder(text):
            return Model(self._resolve(text))
        name, plus, lora = text.partition("+")
        model = self._read_part(path, name)
        adapter = self._read_part(path, lora) if plus else ""
        return None if model is None or adapter is None else Model(model, adapter)

    def _read_part(self, path: Path, value: Any) -> str | None:
        """Return the reference that a name, or a mapping of path and revision, stands for."""
        revision: Any = None
        if isinstance(value, dict):
            for key in value.keys() - {"path", "revision"}:
                self._refuse((*path, key), "is unknown", "path or revision", key)
            value, revision = value.get("path"), value.get("revision")
        if isinstance(value, str) and value and not self._is_folder(value) and revision is None:
            value, at, revision = value.partition("@")
            revision = revision if at else None
        if not isinstance(value, str) or not value:
            self._refuse(path, f"cannot be {value!r:.60}", "a path or a name on the hub")
            return None
        if value in self.names:
            return f"step:{value}"
        if self._is_folder(value) or not _HUB.fullmatch(value):
            if revision is not None:
                self._refuse(path, "has a revision, and is a path", "a revision of a hub's name")
                return None
            return self._resolve(value)
        if revision is None:
            return f"hub:{value}"
        if not isinstance(revision, str | int) or not _REVISION.fullmatch(str(revision)):
            self._refuse(path, f"has no revision {revision!r:.60}", "the name of a revision")
            return None
        return f"hub:{value}@{revision}"

    def _is_folder(self, text: str) -> bool:
        return text not in self.names and any(
            (start / FilePath(text).expanduser()).exists() for start in self._starts
        )

    @property
    def _starts(self) -> list[FilePath]:
        here = FilePath.cwd()
        return [here, *([self.folder.absolute()] if self.folder else [])]

    def _resolve(self, text: str) -> str:
        """Return an absolute path: from here where it exists, as mergekit takes it."""
        path = FilePath(text).expanduser()
        found = [start / path for start in self._starts if (start / path).exists()]
        return os.path.normpath(found[0] if found else self._starts[-1] / path)

    def _refuse(self, path: Path, what: str, expected: str, word: str = "") -> None:
        known = expected.removeprefix("one of: ").replace(" or ", ", ").split(", ")
        self.problems.append(
            Problem(
                f"{dotted(path)} {what}",
                "merge.mergekit-key" if word else "merge.mergekit-value",
                self.tree.place_of_key(path) if word else self.tree.place_of_value(path),
                expected,
                (suggest(word, known) or "remove it") if word else "correct it",
            )
        )
