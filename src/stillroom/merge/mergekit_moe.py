"""One configuration of mergekit-moe to a recipe whose method is ``moe``.

Source: the behavior of mergekit-moe 0.1.5. Gates are made as it makes them (``compat: mergekit``);
its ``hidden`` looks at the last token. ``noise_scale`` and DeepSeek's layout are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stillroom.merge.mergekit_models import Model, ModelReader
from stillroom.merge.mergekit_problems import Reporter
from stillroom.recipes.reading import Path
from stillroom.registry.listing import suggest

__all__ = ["MoeReader", "is_mixture"]

_KEYS = (
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
_DRAWN = ("random", "uniform")
_TYPES = ("float32", "bfloat16", "float16")
_ARCHITECTURES = ("mixtral", "qwen", "qwen moe", "qwen3", "qwen3 moe")


def is_mixture(data: object) -> bool:
    """Return whether a document is one of mergekit-moe's, not of mergekit's."""
    return isinstance(data, Mapping) and "experts" in data and "merge_method" not in data


@dataclass(frozen=True)
class MoeReader:
    """Reads the configuration of a mixture at a path."""

    report: Reporter
    reader: ModelReader
    path: Path
    data: Mapping[str, Any]

    def convert(self) -> dict[str, Any]:
        """Return our recipe; what cannot be honored joins the problems."""
        self.report.check_keys(self.path, self.data, _KEYS)
        gate = self._one_of("gate_mode", tuple(_GATES), "hidden")
        ours = _GATES.get(str(gate), "last")
        experts = self._read_experts("experts", ours)
        shared = self._read_experts("shared_experts", ours)
        if len(shared) > 1:
            self._refuse("shared_experts", "holds several", "at most one")
        method = {"name": "moe", "gate": ours, "experts_per_token": self._read_count()}
        layout = self._read_layout(has_shared=bool(shared))
        method |= {"layout": layout} if layout else {}
        method |= {"shared": len(experts)} if shared else {}
        recipe: dict[str, Any] = {"version": 1, "kind": "merge", "method": method}
        base = self._read_base()
        recipe |= {"base": base.checkpoint} if base else {}
        recipe |= {"models": [*experts, *shared[:1]], "compat": "mergekit"}
        dtype = self._one_of("dtype", _TYPES, None)
        return recipe | ({"out": {"dtype": dtype}} if dtype else {})

    def _read_base(self) -> Model | None:
        value = self.data.get("base_model")
        if value is None:
            self._refuse("base_model", "is missing", "the model that gives all but the MLPs")
            return None
        found = self.reader.read(self._at("base_model"), value)
        if found is not None and found.adapter:
            self._refuse("base_model", "has an adapter", "a base without one: merge it first")
        return found

    def _read_experts(self, key: str, gate: str) -> list[dict[str, Any]]:
        listed = self.data.get(key)
        if listed is None and key != "experts":
            return []
        if not isinstance(listed, list) or not listed:
            self._refuse(key, f"cannot be {listed!r:.40}", "a list that is not empty")
            return []
        return [
            made
            for number, expert in enumerate(listed)
            if (made := self._read_expert(self._at(key, number), expert, gate))
        ]

    def _read_expert(self, path: Path, data: Any, gate: str) -> dict[str, Any]:
        if not isinstance(data, dict) or "source_model" not in data:
            self.report.refuse(
                path, "is no expert", "{source_model: NAME, positive_prompts: [...]}"
            )
            return {}
        if data.get("noise_scale"):
            self.report.refuse(
                (*path, "noise_scale"), "cannot be honored", "an expert without noise"
            )
        kept = {key: value for key, value in data.items() if key != "noise_scale"}
        self.report.check_keys(path, kept, _EXPERT_KEYS)
        model = self.reader.read((*path, "source_model"), data["source_model"])
        made = model.to_entry() if model else {}
        for theirs, ours in (("positive_prompts", "positive"), ("negative_prompts", "negative")):
            prompts = self._read_prompts((*path, theirs), data.get(theirs))
            made |= {ours: prompts} if prompts else {}
        if gate not in _DRAWN and not data.get("positive_prompts"):
            self.report.refuse(path, "has no positive_prompts", "a few, or gate_mode: random")
        scale = data.get("residual_scale")
        if scale is not None and (isinstance(scale, bool) or not isinstance(scale, int | float)):
            self.report.refuse((*path, "residual_scale"), f"cannot be {scale!r:.40}", "a number")
        elif scale is not None:
            made["residual_scale"] = float(scale)
        return made

    def _read_prompts(self, path: Path, value: Any) -> list[str]:
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            self.report.refuse(path, f"cannot be {value!r:.40}", "a list of texts")
            return []
        return value

    def _read_count(self) -> int:
        value = self.data.get("experts_per_token", 2)
        if type(value) is not int or value < 1:
            self._refuse("experts_per_token", f"cannot be {value!r:.40}", "a number from 1")
            return 1
        return value

    def _read_layout(self, *, has_shared: bool) -> str:
        value = self.data.get("architecture")
        if value is None:
            return ""
        word = str(value).lower()
        fitting = [name for name in _ARCHITECTURES if name.startswith(word)] if word else []
        if not fitting:
            self._refuse(
                "architecture",
                f"cannot be {value!r:.40}",
                "mixtral, qwen or qwen3",
                suggest(word, _ARCHITECTURES),
            )
            return ""
        if fitting[0] == "mixtral":
            if has_shared:
                self._refuse("shared_experts", "is nothing that mixtral has", "none, or qwen")
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

    def _refuse(self, key: str, what: str, expected: str, remedy: str = "") -> None:
        self.report.refuse(self._at(key), what, expected, remedy)

    def _at(self, *keys: str | int) -> Path:
        return (*self.path, *keys)
