"""Configurations of mergekit-moe (mixture of experts, ``gate_mode``) to ``merge.moe`` recipes.

Source: the behavior of mergekit-moe 0.1.5. Gates are computed as it does (``arithmetic:
mergekit``); its ``hidden`` uses the last token. ``noise_scale`` and DeepSeek's layout are rejected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stillroom.merge.mergekit.parameters import DTYPES
from stillroom.merge.mergekit.references import ModelReference, ModelReferenceReader
from stillroom.merge.mergekit.yaml_reader import ImportDiagnostics
from stillroom.merge.settings import RANDOM_GATE_MODES
from stillroom.recipes.yaml_text import KeyPath
from stillroom.registry.catalog import suggest

__all__ = ["MoeReader", "is_moe_config"]

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
