"""Model references, tokenizer settings and mixtures of experts in mergekit configurations.

A reference that exists as a folder, relative to the working directory or the file, is that folder;
one that looks like a path is a path; any other is a name on the hub. mergekit writes no padding
rows unless configured to, and adds tokens that are named but missing.

Source: the behavior of mergekit-moe 0.1.5. Gates are computed as it does (``arithmetic:
mergekit``); its ``hidden`` uses the last token. ``noise_scale`` and DeepSeek's layout are rejected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from stillroom.errors import Problem
from stillroom.merge.mergekit.parameters import DTYPES, ParameterValues, read_scalar
from stillroom.merge.mergekit.yaml_reader import ImportDiagnostics
from stillroom.merge.settings import RANDOM_GATE_MODES
from stillroom.recipes.yaml_text import KeyPath, YamlTree, format_path
from stillroom.registry.catalog import suggest

__all__ = [
    "ImportedMerge",
    "MergedModel",
    "MergedPart",
    "ModelReference",
    "ModelReferenceReader",
    "MoeReader",
    "TokenizerReader",
    "is_moe_config",
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


_MOE_KEYS = (
    "base_model",
    "experts",
    "gate_mode",
    "dtype",
    "experts_per_token",
    "shared_experts",
    "architecture",
)

_EXPERT_KEYS = ("source_model", "positive_prompts", "negative_prompts", "residual_scale")

_GATES = {
    "hidden": "last",
    "hidden_last": "last",
    "hidden_avg": "hidden",
    "cheap_embed": "cheap_embed",
    "random": "random",
    "uniform_random": "uniform",
}

_ARCHITECTURES = ("mixtral", "qwen", "qwen moe", "qwen3", "qwen3 moe")


def is_moe_config(data: object) -> bool:
    """Return whether a document is a configuration of mergekit-moe."""
    return isinstance(data, Mapping) and "experts" in data and "merge_method" not in data


@dataclass(frozen=True)
class MoeReader:
    """Reads the configuration of a mixture of experts."""

    report: ImportDiagnostics
    reader: ModelReferenceReader
    path: KeyPath
    data: Mapping[str, Any]

    def convert(self) -> dict[str, Any]:
        """Return the recipe; report unsupported settings."""
        self.report.check_keys(self.path, self.data, _MOE_KEYS)
        gate = self._one_of("gate_mode", tuple(_GATES), "hidden")
        gate_mode = _GATES.get(str(gate), "last")
        experts = self._read_experts("experts", gate_mode)
        shared = self._read_experts("shared_experts", gate_mode)
        if len(shared) > 1:
            self._refuse("shared_experts", "has several entries", "at most one")
        recipe: dict[str, Any] = {"version": 1, "kind": "merge.moe", "gate_mode": gate_mode}
        recipe["experts_per_token"] = count = self.data.get("experts_per_token", 2)
        if type(count) is not int or count < 1:
            self._refuse("experts_per_token", f"cannot be {count!r:.40}", "a number from 1")
        architecture = self._read_architecture(has_shared=bool(shared))
        recipe |= {"architecture": architecture} if architecture else {}
        base = self._read_base()
        recipe |= {"base_model": base.checkpoint} if base else {}
        recipe |= {"experts": experts, "arithmetic": "mergekit"}
        recipe |= {"shared_expert": shared[0]} if shared else {}
        dtype = self._one_of("dtype", DTYPES, None)
        return recipe | ({"out": {"dtype": dtype}} if dtype else {})

    def _read_base(self) -> ModelReference | None:
        value = self.data.get("base_model")
        if value is None:
            self._refuse(
                "base_model", "is missing", "the model that gives all tensors except the MLPs"
            )
            return None
        base = self.reader.read(self._at("base_model"), value)
        if base is not None and base.adapter:
            self._refuse("base_model", "has an adapter", "a base without one: merge it first")
        return base

    def _read_experts(self, key: str, gate: str) -> list[dict[str, Any]]:
        listed = self.data.get(key)
        if listed is None and key != "experts":
            return []
        if not isinstance(listed, list) or not listed:
            self._refuse(key, f"cannot be {listed!r:.40}", "a non-empty list")
            return []
        return [
            entry
            for number, expert in enumerate(listed)
            if (entry := self._read_expert(self._at(key, number), expert, gate))
        ]

    def _read_expert(self, path: KeyPath, data: Any, gate: str) -> dict[str, Any]:
        if not isinstance(data, dict) or "source_model" not in data:
            self.report.refuse(
                path, "is not an expert", "{source_model: NAME, positive_prompts: [...]}"
            )
            return {}
        if data.get("noise_scale"):
            self.report.refuse(
                (*path, "noise_scale"), "is not supported", "an expert without noise"
            )
        known_data = {key: value for key, value in data.items() if key != "noise_scale"}
        self.report.check_keys(path, known_data, _EXPERT_KEYS)
        model = self.reader.read((*path, "source_model"), data["source_model"])
        entry = model.to_entry() if model else {}
        for key in ("positive_prompts", "negative_prompts"):
            prompts = self._read_prompts((*path, key), data.get(key))
            if prompts and gate in RANDOM_GATE_MODES:
                self.report.warn((*path, key), "are not read, because gates are random")
            elif prompts:
                entry[key] = prompts
        if gate not in RANDOM_GATE_MODES and not data.get("positive_prompts"):
            self.report.refuse(
                path, "has no positive_prompts", "some prompts, or gate_mode: random"
            )
        scale = data.get("residual_scale")
        if scale is not None and (isinstance(scale, bool) or not isinstance(scale, int | float)):
            self.report.refuse((*path, "residual_scale"), f"cannot be {scale!r:.40}", "a number")
        elif scale is not None:
            entry["residual_scale"] = float(scale)
        return entry

    def _read_prompts(self, path: KeyPath, value: Any) -> list[str]:
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            self.report.refuse(path, f"cannot be {value!r:.40}", "a list of strings")
            return []
        return value

    def _read_architecture(self, *, has_shared: bool) -> str:
        value = self.data.get("architecture")
        if value is None:
            return ""
        prefix = str(value).lower()
        fitting = [name for name in _ARCHITECTURES if name.startswith(prefix)] if prefix else []
        if not fitting:
            self._refuse(
                "architecture",
                f"cannot be {value!r:.40}",
                "mixtral, qwen or qwen3",
                suggest(prefix, _ARCHITECTURES),
            )
            return ""
        if fitting[0] == "mixtral":
            if has_shared:
                self._refuse("shared_experts", "is not supported by mixtral", "none, or qwen")
            return "mixtral"
        return "qwen2_moe" if has_shared and not fitting[0].startswith("qwen3") else "qwen3_moe"

    def _one_of(self, key: str, known: tuple[str, ...], default: str | None) -> Any:
        value = self.data.get(key, default)
        if value is not None and value not in known:
            self._refuse(
                key,
                f"cannot be {value!r:.40}",
                f"one of: {', '.join(known)}",
                suggest(str(value), known),
            )
            return default
        return value

    def _refuse(self, key: str, problem: str, expected: str, remedy: str = "") -> None:
        self.report.refuse(self._at(key), problem, expected, remedy)

    def _at(self, *keys: str | int) -> KeyPath:
        return (*self.path, *keys)


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
