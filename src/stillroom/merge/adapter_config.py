"""What an adapter's config and the names of its tensors say: which tensor changes, and how.

Every setting of peft is either honored, without effect on what a trained adapter means, or refused
by its name; so is every tensor.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stillroom.checkpoints.header import FLOATS, TensorEntry
from stillroom.errors import CheckpointError, Problem

__all__ = ["PREFIX", "Change", "check_config", "read_changes", "read_config"]

PREFIX = "base_model.model."
_MAX_CONFIG = 10_000_000
_MAX_PATTERN = 300
_PARTS = {
    ".lora_A.weight": "right",
    ".lora_B.weight": "left",
    ".lora_embedding_A": "right",
    ".lora_embedding_B": "left",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_B.bias": "bias",
}
_HONORED = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("fan_in_fan_out", "lora_bias", "use_dora", "modules_to_save", "base_model_name_or_path"),
    *("bias", "init_lora_weights"),
}
_HARMLESS = {  # how it was trained, or where it is put; the tensors say the rest
    *("auto_mapping", "peft_version", "revision", "task_type", "inference_mode", "lora_dropout"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("megatron_core", "qalora_group_size", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "runtime_config"),
}
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one tensor: keys of the adapter's file, empty where it has no such part.

    ``left`` and ``right`` are B and A; their product, times ``scale``, is added. ``bias`` is added,
    times ``scale``. ``magnitude`` holds DoRA's lengths. ``replaced`` stands in for the base's own.
    """

    left: str = ""
    right: str = ""
    bias: str = ""
    magnitude: str = ""
    replaced: str = ""
    scale: float = 1.0
    is_embedding: bool = False


def read_config(path: Path) -> dict[str, Any]:
    """Return an adapter's config.

    Raises:
        CheckpointError: If it is missing or cannot be read.
    """
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise ValueError(f"it is larger than {_MAX_CONFIG} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise TypeError("it is not a mapping")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _broken(path, f"cannot be read: {error!s:.120}") from error
    return config


def check_config(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse every setting that would make the tensors mean something else than is done here.

    Raises:
        CheckpointError: One problem a setting.
    """
    found = []
    if config.get("peft_type") != "LORA":
        found.append(("peft_type", config.get("peft_type"), "LORA"))
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        found.append(("init_lora_weights", start, "an adapter whose base was left as it was"))
    if config.get("bias") not in (None, "none", "all", "lora_only"):
        found.append(("bias", config["bias"], "none, all or lora_only"))
    found += [
        (key, value, "this setting left out, or null")
        for key, value in sorted(config.items())
        if key not in _HONORED | _HARMLESS and value not in (None, False, [], {}, "")
    ]
    if found:
        raise CheckpointError(
            [
                Problem(
                    f"the adapter has {key} {value!r:.80}, which cannot be honored",
                    "merge.adapter-unsupported",
                    str(folder / "adapter_config.json"),
                    expected,
                    "merge it into its base with peft (merge_and_unload), and use that checkpoint",
                )
                for key, value, expected in found
            ]
        )


def read_changes(
    config: Mapping[str, Any], entries: Mapping[str, TensorEntry], folder: Path
) -> dict[str, Change]:
    """Return what becomes of each tensor of the base, by the base's names.

    Raises:
        CheckpointError: If a tensor is not known, has no partner, or has not the shape that the
            config says.
    """
    changes: dict[str, Change] = {}
    for key, entry in sorted(entries.items()):
        if entry.dtype not in FLOATS:
            raise _broken(folder, f"stores '{key:.120}' as {entry.dtype}, not as floats")
        name, part = _place(key, folder)
        known = changes.get(name, Change())
        more: dict[str, Any] = {part: key}
        if ".lora_embedding_" in key:
            more["is_embedding"] = True
        changes[name] = replace(known, **more)
    return {
        name: _finish(name, change, config, entries, folder) for name, change in changes.items()
    }


def _place(key: str, folder: Path) -> tuple[str, str]:
    """Return which tensor of the base a key belongs to, and as what part."""
    if not key.startswith(PREFIX):
        raise _unknown(key, folder)
    name = key.removeprefix(PREFIX)
    for suffix, part in _PARTS.items():
        if name.endswith(suffix):
            tensor = "bias" if part == "bias" else "weight"
            return f"{name.removesuffix(suffix)}.{tensor}", part
    if ".lora_" in name or ".token_adapter." in name or "." not in name:
        raise _unknown(key, folder)
    module, _, tensor = name.rpartition(".")
    return f"{module.removesuffix('.base_layer').removesuffix('.modules_to_save')}.{tensor}", (
        "replaced"
    )


def _finish(
    name: str,
    change: Change,
    config: Mapping[str, Any],
    entries: Mapping[str, TensorEntry],
    folder: Path,
) -> Change:
    """Check that the parts belong together, and add the scale."""
    if bool(change.left) != bool(change.right) or (change.magnitude and not change.left):
        raise _broken(folder, f"holds one matrix of two for '{name:.120}'")
    if not change.left and not change.bias:
        return change
    module = name.rpartition(".")[0]
    rank = _number(_by_pattern(config, "rank_pattern", module, config.get("r")), "r", folder)
    alpha = _number(
        _by_pattern(config, "alpha_pattern", module, config.get("lora_alpha")), "lora_alpha", folder
    )
    if change.left:
        left, right = entries[change.left], entries[change.right]
        if len(left.shape) != 2 or len(right.shape) != 2:
            raise _unknown(change.left, folder)
        if left.shape[1] != right.shape[0] or right.shape[0] != rank:
            raise _broken(
                folder,
                f"has matrices of {left.shape} and {right.shape} for '{name:.120}', and its config "
                f"says rank {rank:g}",
            )
        if change.magnitude and math.prod(entries[change.magnitude].shape) != left.shape[0]:
            raise _broken(folder, f"has not one length a row for '{name:.120}'")
    if rank < 1:
        raise _broken(folder, f"has rank {rank:g} for '{name:.120}'")
    divisor = math.sqrt(rank) if config.get("use_rslora") else rank
    return replace(change, scale=alpha / divisor)


def _by_pattern(config: Mapping[str, Any], setting: str, module: str, default: Any) -> Any:
    """Return a setting of one module: of the first pattern that its name ends with, or the default.

    The patterns are regular expressions, as in peft.
    """
    patterns = config.get(setting) or {}
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        if module == pattern or module.endswith(f".{pattern}"):
            return value
        if len(pattern) > _MAX_PATTERN or re.fullmatch(r"[\w.]*", pattern):
            continue
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error:
            continue
    return default


def _number(value: Any, what: str, folder: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _broken(folder, f"has {what} {value!r:.80}")
    return float(value)


def _unknown(key: str, folder: Path) -> CheckpointError:
    return CheckpointError(
        f"the adapter holds '{key:.160}', which cannot be honored",
        code="merge.adapter-unsupported",
        where=str(folder / "adapter_model.safetensors"),
        expected="LoRA of linear layers and embeddings, and whole tensors, as peft names them",
        next="merge it into its base with peft (merge_and_unload), and use that checkpoint",
    )


def _broken(where: Path, what: str) -> CheckpointError:
    return CheckpointError(
        f"the adapter {what}",
        code="merge.adapter-broken",
        where=str(where),
        expected="adapter_config.json and adapter_model.safetensors as peft wrote them",
        next="download or write the adapter again",
    )
