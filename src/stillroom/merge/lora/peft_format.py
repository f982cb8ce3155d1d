"""PEFT's adapter format: configuration, tensor names, and writing.

Every setting and tensor is either supported, irrelevant for a trained adapter, or rejected by name.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.checkpoints.card import write_card
from stillroom.checkpoints.config_file import read_config
from stillroom.checkpoints.safetensors_format import FLOATS, TensorEntry
from stillroom.errors import CheckpointError, Problem
from stillroom.evaluate.regex_search import time_search
from stillroom.jobs.job import write_artifact
from stillroom.merge.interfaces import Array
from stillroom.merge.tensors.storage import PendingTensor, atomic_folder, write_json, write_tensors

if TYPE_CHECKING:
    from stillroom.provenance import Parent
    from stillroom.records import Origin

__all__ = [
    "LoraFactors",
    "LoraTensorChange",
    "check_adapter_config",
    "read_adapter_config",
    "read_tensor_changes",
    "save_adapter",
]

_FILES = ("README.md", "artifact.json", "adapter_config.json", "adapter_model.safetensors")
_PEFT_PREFIX = "base_model.model."
_MAX_PATTERN = 300
_SEARCH_S = 10.0

_PARTS = {
    ".lora_A.weight": "right",
    ".lora_B.weight": "left",
    ".lora_embedding_A": "right",
    ".lora_embedding_B": "left",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_B.bias": "bias",
}

_SUPPORTED = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"),
    *("fan_in_fan_out", "lora_bias", "use_dora", "modules_to_save", "base_model_name_or_path"),
    *("bias", "init_lora_weights"),
}

_IGNORED = {  # training and placement; the tensors carry the information
    *("auto_mapping", "peft_version", "revision", "task_type", "inference_mode", "lora_dropout"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("megatron_core", "qalora_group_size", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "runtime_config"),
}

_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class LoraTensorChange:
    """Parts of one tensor's change: keys in the adapter's file, empty if absent.

    Attributes:
        left: B; its product with A, times ``scale``, is added.
        right: A.
        bias: Added to a bias, times ``scale``.
        magnitude: Magnitudes of DoRA.
        replaced: Replacement of the base's tensor.
        scale: Multiplier of product and bias.
        is_embedding: Whether the tensor is an embedding.
    """

    left: str = ""
    right: str = ""
    bias: str = ""
    magnitude: str = ""
    replaced: str = ""
    scale: float = 1.0
    is_embedding: bool = False


def read_adapter_config(path: Path) -> dict[str, Any]:
    """Return an adapter's config.

    Raises:
        CheckpointError: If it is missing or cannot be read.
    """
    if not path.exists() and (path.parent / "config.json").is_file():
        raise CheckpointError(
            "this folder holds a whole model, not an adapter",
            code="merge.adapter-broken",
            where=str(path.parent),
            expected="adapter_config.json and adapter_model.safetensors as written by peft",
            next="merge models with 'stillroom merge run', or make an adapter of a fine-tuned one "
            "with 'stillroom merge extract'",
        )
    try:
        config: dict[str, Any] = read_config(path)
    except (OSError, ValueError) as error:
        raise _broken_config_error(path, f"cannot be read: {error!s:.120}") from error
    return config


def check_adapter_config(config: Mapping[str, Any], folder: Path) -> None:
    """Raise an error for every setting whose effect on the tensors is not supported.

    Raises:
        CheckpointError: One problem per setting.
    """
    unsupported = []
    if config.get("peft_type") != "LORA":
        unsupported.append(("peft_type", config.get("peft_type"), "LORA"))
    start = config.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        unsupported.append(("init_lora_weights", start, "an adapter whose base was not modified"))
    if config.get("bias") not in (None, "none", "all", "lora_only"):
        unsupported.append(("bias", config["bias"], "none, all or lora_only"))
    unsupported += [
        (key, value, "this setting omitted, or null")
        for key, value in sorted(config.items())
        if key not in _SUPPORTED | _IGNORED and value not in (None, False, [], {}, "")
    ]
    if unsupported:
        raise CheckpointError(
            [
                Problem(
                    f"the adapter has {key} {value!r:.80}, which is not supported",
                    "merge.adapter-unsupported",
                    str(folder / "adapter_config.json"),
                    expected,
                    "merge it into its base with peft (merge_and_unload), and use that checkpoint",
                )
                for key, value, expected in unsupported
            ]
        )


def read_tensor_changes(
    config: Mapping[str, Any], entries: Mapping[str, TensorEntry], folder: Path
) -> dict[str, LoraTensorChange]:
    """Return the changes to the base's tensors by name.

    Raises:
        CheckpointError: If a tensor is unknown, lacks its second matrix, or its shape contradicts
            the config.
    """
    changes: dict[str, LoraTensorChange] = {}
    for key, entry in sorted(entries.items()):
        if entry.dtype not in FLOATS:
            raise _broken_config_error(
                folder, f"stores '{key:.120}' as {entry.dtype}, not as floats"
            )
        name, part = _place(key, folder)
        known = changes.get(name, LoraTensorChange())
        more: dict[str, Any] = {part: key}
        if ".lora_embedding_" in key:
            more["is_embedding"] = True
        changes[name] = replace(known, **more)
    ranks = _ModuleSetting(config, "rank_pattern", "r", folder)
    alphas = _ModuleSetting(config, "alpha_pattern", "lora_alpha", folder)
    return {
        name: _finish(name, change, config, ranks, alphas, entries, folder)
        for name, change in changes.items()
    }


def _place(key: str, folder: Path) -> tuple[str, str]:
    """Return the base tensor that a key belongs to, and its part."""
    if not key.startswith(_PEFT_PREFIX):
        raise _unknown(key, folder)
    name = key.removeprefix(_PEFT_PREFIX)
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
    change: LoraTensorChange,
    config: Mapping[str, Any],
    ranks: _ModuleSetting,
    alphas: _ModuleSetting,
    entries: Mapping[str, TensorEntry],
    folder: Path,
) -> LoraTensorChange:
    """Validate the parts of a change, and add the scale."""
    if bool(change.left) != bool(change.right) or (change.magnitude and not change.left):
        raise _broken_config_error(folder, f"has only one of two matrices for '{name:.120}'")
    if not change.left and not change.bias:
        return change
    module = name.rpartition(".")[0]
    rank, alpha = ranks.find(module), alphas.find(module)
    if change.left:
        left, right = entries[change.left], entries[change.right]
        for key in (change.left, change.right):
            if len(entries[key].shape) != 2:
                raise _unknown(key, folder)
        if left.shape[1] != right.shape[0] or right.shape[0] != rank:
            raise _broken_config_error(
                folder,
                f"has matrices of {left.shape} and {right.shape} for '{name:.120}', but rank "
                f"{rank:g} in its config",
            )
        if change.magnitude and math.prod(entries[change.magnitude].shape) != left.shape[0]:
            raise _broken_config_error(
                folder, f"does not have one magnitude per row for '{name:.120}'"
            )
    if rank < 1:
        raise _broken_config_error(folder, f"has rank {rank:g} for '{name:.120}'")
    divisor = math.sqrt(rank) if config.get("use_rslora") else rank
    return replace(change, scale=alpha / divisor)


class _ModuleSetting:
    """A number of each module: from the first pattern matching its name, or the default.

    Patterns are names or regular expressions, as in peft. A stranger's may not end: all searches
    together have a limit of processor time.
    """

    def __init__(self, config: Mapping[str, Any], setting: str, default: str, folder: Path) -> None:
        patterns = config.get(setting)
        patterns = patterns if isinstance(patterns, dict) else {}
        self._places = {pattern: place for place, pattern in enumerate(patterns)}
        self._expressions = [
            (place, pattern)
            for pattern, place in self._places.items()
            if len(pattern) <= _MAX_PATTERN and not re.fullmatch(r"[\w.]*", pattern)
        ]
        self._values = [*patterns.values(), config.get(default)]
        self._setting, self._default, self._folder = setting, default, folder
        self._seconds = 0.0

    def find(self, module: str) -> float:
        """Return the number of a module."""
        parts = module.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts)))
        named = min((self._places[end] for end in ends if end in self._places), default=-1)
        for place, pattern in self._expressions:
            if 0 <= named < place:
                break
            if self._matches(pattern, module):
                return self._number(self._values[place])
        return self._number(self._values[named])  # the last is the default

    def _matches(self, pattern: str, module: str) -> bool:
        try:
            found, seconds = time_search(rf"(.*\.)?({pattern})", module, whole=True)
        except re.error:
            return False
        self._seconds += seconds
        if found is None or self._seconds > _SEARCH_S:
            problem = f"has a {self._setting} whose search does not end: {pattern!r:.80}"
            raise _broken_config_error(self._folder, problem)
        return found

    def _number(self, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) <= sys.float_info.max:  # NaN is not, either
            raise _broken_config_error(self._folder, f"has {self._default} {value!r:.80}")
        return float(value)


def _unknown(key: str, folder: Path) -> CheckpointError:
    return CheckpointError(
        f"the adapter contains '{key:.160}', which is not supported",
        code="merge.adapter-unsupported",
        where=str(folder / "adapter_model.safetensors"),
        expected="LoRA of linear layers and embeddings, and whole tensors, with peft's names",
        next="merge it into its base with peft (merge_and_unload), and use that checkpoint",
    )


def _broken_config_error(where: Path, problem: str) -> CheckpointError:
    return CheckpointError(
        f"the adapter {problem}",
        code="merge.adapter-broken",
        where=str(where),
        expected="adapter_config.json and adapter_model.safetensors as written by peft",
        next="download or write the adapter again",
    )


_LINEAR = ("lora_A.weight", "lora_B.weight")
_EMBEDDING = ("lora_embedding_A", "lora_embedding_B")


@dataclass(frozen=True, slots=True)
class LoraFactors:
    """A tensor's change in an adapter to be written: B (out, r) and A (r, in), scale 1."""

    left: Array
    right: Array
    is_embedding: bool = False


def save_adapter(
    folder: Path,
    factors: Mapping[str, LoraFactors],
    *,
    biases: Mapping[str, Array] | None = None,
    replaced_tensors: Mapping[str, PendingTensor] | None = None,
    carried: Mapping[str, PendingTensor] | None = None,
    base_name: str = "",
    config: Mapping[str, Any] | None = None,
    title: str,
    body: str,
    origin: Origin,
    parents: Sequence[Parent],
    details: Mapping[str, Any],
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write an adapter folder for peft, atomically.

    Args:
        folder: Output folder.
        factors: Low-rank changes, by tensor name of the base (``….weight``).
        biases: Additions to biases of the same modules, by name (``….bias``).
        replaced_tensors: Tensors of modules that are replaced whole (``modules_to_save``).
        carried: Tensors of the wrapped layers that replace the base's.
        base_name: The base, for ``base_model_name_or_path``.
        config: Additional entries of adapter_config.json.
        title: Title of the model card.
        body: Text of the model card, Markdown.
        origin: Origin of the result, with its license.
        parents: What it was made from, for artifact.json.
        details: Settings and measurements, for artifact.json.
        seed: The seed of the work.
        overwrite: Replace an existing ``folder``.

    Raises:
        DataError: If ``folder`` exists.
        ResourceError: If the disk is full.
    """
    tensors: dict[str, PendingTensor] = {}
    for name, parts in factors.items():
        module = f"{_PEFT_PREFIX}{name.removesuffix('.weight')}"
        a, b = _EMBEDDING if parts.is_embedding else _LINEAR
        tensors[f"{module}.{a}"] = PendingTensor.of("F32", parts.right)
        tensors[f"{module}.{b}"] = PendingTensor.of("F32", parts.left)
        if biases and not parts.is_embedding:
            added = biases.get(f"{name.removesuffix('.weight')}.bias", np.zeros(len(parts.left)))
            tensors[f"{module}.lora_B.bias"] = PendingTensor.of("F32", added)
    for name, values in (replaced_tensors or {}).items():
        tensors[f"{_PEFT_PREFIX}{name}"] = values
    for name, values in (carried or {}).items():
        module, _, tensor = name.rpartition(".")
        tensors[f"{_PEFT_PREFIX}{module}.base_layer.{tensor}"] = values
    with atomic_folder(folder, _FILES, overwrite=overwrite) as work:
        write_tensors(work / "adapter_model.safetensors", tensors)
        write_json(
            work / "adapter_config.json",
            _build_config(factors, bool(biases), sorted(replaced_tensors or {}), base_name)
            | dict(config or {}),
        )
        write_card(
            work,
            title,
            body,
            license=origin.license,
            base_models=[base_name] if base_name else [],
            relation="adapter" if base_name else "",
            tags=["lora", "peft"],
            fields={"library_name": "peft"},
        )
        write_artifact(
            work,
            "checkpoint",
            name=folder.name,
            parents=parents,
            origin=origin,
            details=details,
            seed=seed,
        )


def _build_config(
    factors: Mapping[str, LoraFactors],
    has_biases: bool,
    replaced_tensors: list[str],
    base_name: str,
) -> dict[str, Any]:
    """Return adapter_config.json; alpha equals the rank, so that every scale is 1."""
    ranks = {name.removesuffix(".weight"): len(parts.right) for name, parts in factors.items()}
    max_rank = max(ranks.values(), default=1)
    other_ranks = {module: rank for module, rank in ranks.items() if rank != max_rank}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": base_name or None,
        "r": max_rank,
        "lora_alpha": max_rank,
        "rank_pattern": other_ranks,
        "alpha_pattern": other_ranks,
        "target_modules": sorted(ranks),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in replaced_tensors}) or None,
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
