"""Writing LoRA adapters as peft reads them: every scale is 1, ranks differ by pattern."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.checkpoints.card import write_card
from stillroom.merge.adapter_config import PREFIX
from stillroom.merge.method import Array
from stillroom.merge.reading import ToWrite, new_folder, write_json, write_tensors

__all__ = ["Factors", "save_adapter"]

_LINEAR = ("lora_A.weight", "lora_B.weight")
_EMBEDDING = ("lora_embedding_A", "lora_embedding_B")


@dataclass(frozen=True, slots=True)
class Factors:
    """One tensor's change in an adapter to be written: B (out, r) and A (r, in), their scale 1."""

    left: Array
    right: Array
    is_embedding: bool = False


def save_adapter(
    folder: Path,
    factors: Mapping[str, Factors],
    *,
    biases: Mapping[str, Array] | None = None,
    whole: Mapping[str, ToWrite] | None = None,
    carried: Mapping[str, ToWrite] | None = None,
    base_name: str = "",
    config: Mapping[str, Any] | None = None,
    title: str,
    body: str,
    license: str = "",
    overwrite: bool = False,
) -> None:
    """Write a folder that peft loads, whole or not at all.

    Args:
        folder: Where to write.
        factors: What is added, by the base's names of tensors (``….weight``).
        biases: What is added to biases of the same modules, by name (``….bias``).
        whole: Tensors of modules that are replaced whole (``modules_to_save``).
        carried: Tensors of the wrapped layers themselves that replace the base's.
        base_name: The base, for ``base_model_name_or_path``.
        config: More of adapter_config.json.
        title: Of the card.
        body: Of the card, Markdown.
        license: Of the result.
        overwrite: Replace what lies at ``folder``.

    Raises:
        DataError: If ``folder`` exists.
        ResourceError: If the disk is full.
    """
    tensors: dict[str, ToWrite] = {}
    for name, parts in factors.items():
        module = f"{PREFIX}{name.removesuffix('.weight')}"
        a, b = _EMBEDDING if parts.is_embedding else _LINEAR
        tensors[f"{module}.{a}"] = ToWrite.of("F32", parts.right)
        tensors[f"{module}.{b}"] = ToWrite.of("F32", parts.left)
        if biases and not parts.is_embedding:
            added = biases.get(f"{name.removesuffix('.weight')}.bias", np.zeros(len(parts.left)))
            tensors[f"{module}.lora_B.bias"] = ToWrite.of("F32", added)
    for name, values in (whole or {}).items():
        tensors[f"{PREFIX}{name}"] = values
    for name, values in (carried or {}).items():
        module, _, tensor = name.rpartition(".")
        tensors[f"{PREFIX}{module}.base_layer.{tensor}"] = values
    with new_folder(folder, overwrite=overwrite) as work:
        write_tensors(work / "adapter_model.safetensors", tensors)
        write_json(
            work / "adapter_config.json",
            _describe(factors, bool(biases), sorted(whole or {}), base_name) | dict(config or {}),
        )
        write_card(
            work,
            title,
            body,
            license=license,
            base_models=[base_name] if base_name else [],
            relation="adapter" if base_name else "",
            tags=["lora", "peft"],
            fields={"library_name": "peft"},
        )


def _describe(
    factors: Mapping[str, Factors], has_biases: bool, whole: list[str], base_name: str
) -> dict[str, Any]:
    """Return adapter_config.json: alpha equals the rank everywhere, so that every scale is 1."""
    ranks = {name.removesuffix(".weight"): len(parts.right) for name, parts in factors.items()}
    most = max(ranks.values(), default=1)
    others = {module: rank for module, rank in ranks.items() if rank != most}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base_name or None,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in whole}) or None,
        "lora_bias": has_biases,
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": False,
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "task_type": "CAUSAL_LM",
    }
