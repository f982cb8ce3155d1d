"""Model references and tokenizer settings in mergekit configurations.

A reference that exists as a folder, relative to the working directory or the file, is that folder;
one that looks like a path is a path; any other is a name on the hub. mergekit writes no padding
rows unless configured to, and adds tokens that are named but missing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from stillroom.errors import Problem
from stillroom.merge.mergekit.parameters import ParameterValues, read_scalar
from stillroom.merge.mergekit.yaml_reader import ImportDiagnostics
from stillroom.recipes.yaml_text import KeyPath, YamlTree, format_path
from stillroom.registry.catalog import suggest

__all__ = [
    "ImportedMerge",
    "MergedModel",
    "MergedPart",
    "ModelReference",
    "ModelReferenceReader",
    "TokenizerReader",
]

_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_REVISION = re.compile(r"[\w./-]+")
_KEYS = ("model", "lora", "override_architecture")


@dataclass(frozen=True)
class ImportedMerge:
    """One merge of a mergekit file.

    Attributes:
        name: Its name; other merges of the file refer to its result as ``step:NAME``.
        recipe: Settings of a recipe of kind ``merge.weights`` or ``merge.moe``.
        position: Position in the file.
        warnings: Keys without effect.
    """

    name: str
    recipe: dict[str, Any]
    position: str
    warnings: tuple[str, ...] = ()

    @property
    def needs(self) -> list[str]:
        """Names of the merges it depends on."""
        text = [str(self.recipe.get("base_model"))]
        shared = [self.recipe["shared_expert"]] if self.recipe.get("shared_expert") else []
        for entry in (*self.recipe.get("models", ()), *self.recipe.get("experts", ()), *shared):
            text += [str(entry.get("model")), str(entry.get("adapter"))]
        steps = [name for name in text if name.startswith("step:")]
        return list(dict.fromkeys(step.removeprefix("step:") for step in steps))


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A checkpoint, and an optional adapter over it."""

    checkpoint: str
    adapter: str = ""

    def to_entry(self) -> dict[str, Any]:
        """Return the start of an entry of the recipe's ``models``."""
        entry = {"model": self.checkpoint}
        return entry | {"adapter": self.adapter} if self.adapter else entry


@dataclass(frozen=True)
class ModelReferenceReader:
    """Reads model references of one document.

    ``names`` are those of the other documents, which become ``step:NAME``; ``nest`` converts a
    configuration in place of a model and returns its generated name.
    """

    tree: YamlTree
    problems: list[Problem]
    names: frozenset[str]
    folder: FilePath | None
    nest: Callable[[KeyPath], str]

    def read(self, path: KeyPath, value: Any) -> ModelReference | None:
        """Return the model at a path; None, with a problem, if it is invalid."""
        if isinstance(value, str):
            return self._read_text(path, value)
        if isinstance(value, dict) and "merge_method" in value:
            return ModelReference(f"step:{self.nest(path)}")
        if not isinstance(value, dict) or "model" not in value:
            self._refuse(
                path,
                f"cannot be {value!r:.60}",
                "a model: a path or a name on the Hugging Face hub",
            )
            return None
        self._check_keys(path, value, _KEYS)
        if value.get("override_architecture") is not None:
            self._refuse(
                (*path, "override_architecture"),
                "is not supported",
                "the architecture of config.json",
            )
        model = self._read_part((*path, "model"), value["model"])
        lora = value.get("lora")
        adapter = self._read_part((*path, "lora"), lora) if lora is not None else ""
        return None if model is None or adapter is None else ModelReference(model, adapter)

    def _read_text(self, path: KeyPath, text: str) -> ModelReference | None:
        if self._is_folder(text):
            return ModelReference(self._resolve(text))
        name, plus, lora = text.partition("+")
        model = self._read_part(path, name)
        adapter = self._read_part(path, lora) if plus else ""
        return None if model is None or adapter is None else ModelReference(model, adapter)

    def _read_part(self, path: KeyPath, value: Any) -> str | None:
        """Return the reference for a name, or for a mapping of path and revision."""
        revision: Any = None
        if isinstance(value, dict):
            self._check_keys(path, value, ("path", "revision"))
            value, revision = value.get("path"), value.get("revision")
        if isinstance(value, str) and value and not self._is_folder(value) and revision is None:
            value, separator, revision = value.partition("@")
            revision = revision if separator else None
        if not isinstance(value, str) or not value:
            self._refuse(path, f"cannot be {value!r:.60}", "a path or a name on the hub")
            return None
        if value in self.names:
            return f"step:{value}"
        if self._is_folder(value) or not _HUB.fullmatch(value):
            if revision is not None:
                self._refuse(path, "is a path with a revision", "a revision of a name on the hub")
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
        """Return an absolute path; existing paths relative to the working directory come first."""
        path = FilePath(text).expanduser()
        existing = [start / path for start in self._starts if (start / path).exists()]
        return os.path.normpath(existing[0] if existing else self._starts[-1] / path)

    def _check_keys(self, path: KeyPath, data: Mapping[str, Any], known: Sequence[str]) -> None:
        for key in data:
            if key in known:
                continue
            self.problems.append(
                Problem(
                    f"{format_path((*path, key))} is unknown",
                    "merge.mergekit-key",
                    self.tree.place_of_key((*path, key)),
                    f"one of: {', '.join(known)}",
                    suggest(key, known) or "remove it",
                )
            )

    def _refuse(self, path: KeyPath, problem: str, expected: str) -> None:
        self.problems.append(
            Problem(
                f"{format_path(path)} {problem}",
                "merge.mergekit-value",
                self.tree.place_of_value(path),
                expected,
                "correct it",
            )
        )


@dataclass(frozen=True)
class TokenizerReader:
    """Reads ``tokenizer`` and ``tokenizer_source`` of a configuration."""

    report: ImportDiagnostics
    reader: ModelReferenceReader
    path: KeyPath
    data: Mapping[str, Any]
    models: tuple[ModelReference, ...]
    base: ModelReference | None

    def read(self) -> dict[str, Any]:
        """Return the recipe's setting ``tokenizer``; empty if there is none."""
        data, source = self.data.get("tokenizer"), self.data.get("tokenizer_source")
        if data is None and source is None:
            return {}
        if data is not None and source is not None:
            self.report.refuse(
                self._at("tokenizer_source"), "and tokenizer are both set", "only one of them"
            )
        if data is None:
            token_source = self._read_token_source(self._at("tokenizer_source"), source)
            return {"tokenizer": {"source": token_source, "pad_to_multiple_of": 1}}
        path = self._at("tokenizer")
        if not isinstance(data, dict):
            self.report.refuse(path, f"cannot be {data!r:.40}", "{source: union, tokens: {...}}")
            return {}
        self.report.check_keys(path, data, ("source", "tokens", "pad_to_multiple_of"))
        multiple = data.get("pad_to_multiple_of")
        if multiple is not None and (type(multiple) is not int or multiple < 1):
            self.report.refuse(
                (*path, "pad_to_multiple_of"), f"cannot be {multiple!r:.40}", "a number from 1"
            )
        settings: dict[str, Any] = {
            "source": self._read_token_source((*path, "source"), data.get("source", "union"))
        }
        tokens = data.get("tokens") or {}
        if not isinstance(tokens, dict):
            self.report.refuse((*path, "tokens"), f"cannot be {tokens!r:.40}", "settings by token")
            tokens = {}
        listed = {
            token: self._read_token((*path, "tokens", token), value)
            for token, value in tokens.items()
        }
        if listed:
            settings["tokens"] = listed
        return {"tokenizer": settings | {"pad_to_multiple_of": multiple or 1}}

    def _read_token_source(self, path: KeyPath, value: Any) -> Any:
        if value in ("union", "base"):
            return value
        return self._find_model(path, value)

    def _read_token(self, path: KeyPath, data: Any) -> dict[str, Any]:
        if data is None:
            data = {}
        if not isinstance(data, dict):
            self.report.refuse(path, f"cannot be {data!r:.40}", "{source: MODEL, force: false}")
            return {}
        self.report.check_keys(path, data, ("source", "force"))
        settings: dict[str, Any] = {"add": True}
        if data.get("source") is not None:
            settings["source"] = self._read_row((*path, "source"), data["source"])
        force = read_scalar(data.get("force", False), wants_bool=True)
        if force is None:
            self.report.refuse(
                (*path, "force"), f"cannot be {data['force']!r:.40}", "true or false"
            )
        return settings | ({"force": True} if force else {})

    def _read_row(self, path: KeyPath, value: Any) -> Any:
        kind = value.get("kind") if isinstance(value, dict) else None
        if not isinstance(value, dict) or (kind is None and "token" not in value):
            return self._find_model(path, value)
        self.report.check_keys(path, value, ("kind", "model", "token", "token_id"))
        if kind == "zero":
            return "zero"
        if kind not in (None, "model_token"):
            self.report.refuse((*path, "kind"), f"cannot be {kind!r:.40}", "zero or model_token")
        row_source = {"model": self._find_model((*path, "model"), value.get("model"))}
        row, token = value.get("token_id"), value.get("token")
        if (row is None) == (token is None):
            self.report.refuse(path, f"cannot be {value!r:.60}", "either token or token_id")
        return row_source | ({"row": row} if row is not None else {"token": token})

    def _find_model(self, path: KeyPath, value: Any) -> int | str:
        """Return the index of a model in a tokenizer setting, or base."""
        model = self.reader.read(path, value)
        if model is not None and model in self.models:
            return self.models.index(model)
        if model is not None and model == self.base:
            return "base"
        if model is not None:
            self.report.refuse(path, f"{value!r:.60} is not one of the models", "a merged model")
        return "base"

    def _at(self, key: str) -> KeyPath:
        return (*self.path, key)


@dataclass(frozen=True)
class MergedModel:
    """A merged model: its parameters, and its layers if it is part of a slice."""

    model: ModelReference
    parameters: Mapping[str, ParameterValues]
    path: KeyPath
    layers: tuple[int, int] | None = None


@dataclass(frozen=True)
class MergedPart:
    """Models merged together: all, or those of one slice or module."""

    entries: tuple[MergedModel, ...]
    parameters: Mapping[str, ParameterValues]
    path: KeyPath
    module: str = ""

    @property
    def is_sliced(self) -> bool:
        """Whether the part is a range of layers."""
        return any(entry.layers for entry in self.entries)
