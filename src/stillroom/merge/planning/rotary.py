"""Rotary position embeddings (RoPE) of a config, in one spelling, so that two can be compared.

Transformers wrote ``rope_theta`` and ``rope_scaling`` before version 5, and writes
``rope_parameters`` since, for layers of several kinds one of each kind. Only keys that its
``modeling_rope_utils`` and models read for a type of scaling are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

__all__ = ["read_rotary_settings"]

_GLOBAL, _LOCAL = "full_attention", "sliding_attention"
_EARLIER_NAMES = {"su": "longrope", "mrope": "default"}
_UNSCALED = ("rope_theta", "partial_rotary_factor", "mrope_section")
_ORIGINAL = "original_max_position_embeddings"
_READ_KEYS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "proportional": ("factor",),
    "dynamic": ("factor", "alpha", "max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL),
    "yarn": (
        *("factor", "beta_fast", "beta_slow", "truncate", "attention_factor", _ORIGINAL),
        *("mscale_all_dim", "llama_4_scaling_beta"),
    ),
    "longrope": (
        *("short_factor", "long_factor", "attention_factor", _ORIGINAL),
        *("short_mscale", "long_mscale"),
    ),
}
"""Keys that each type of scaling reads besides those without scaling; of other types, all count."""


def read_rotary_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides the rotary frequencies of a config, by the words of an error.

    What is left out has the value that it means, where every architecture means the same;
    otherwise it is missing here, too.
    """
    text = config.get("text_config")
    if isinstance(text, Mapping):
        config = {**config, **text}
    found = {}
    for kind, rope in _list_kinds(config).items():
        suffix = "" if kind == _GLOBAL else f" of {kind}"
        for key, value in _complete(rope, config).items():
            name = key if key in _UNSCALED else f"rope scaling {key}"
            found[f"{name}{suffix}"] = _normalize(value)
    return {name: value for name, value in found.items() if value is not None}


def _list_kinds(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the parameters of each kind of layers; those of all layers are of the global ones."""
    scaling, newer = (
        dict(part) if isinstance(part := config.get(key), Mapping) else {}
        for key in ("rope_scaling", "rope_parameters")
    )
    rope = scaling or newer
    if any(isinstance(value, Mapping) for value in rope.values()):
        kinds = {key: dict(value) for key, value in rope.items() if isinstance(value, Mapping)}
    else:
        names = ("rope_theta", "global_rope_theta", "rotary_emb_base")
        found = (config[name] for name in names if name in config)
        kinds = {_GLOBAL: {"rope_theta": next(found, newer.get("rope_theta")), **rope}}
        local = config.get("rope_local_base_freq", config.get("local_rope_theta"))
        if local is not None:
            kinds[_LOCAL] = {"rope_theta": local}
    for one in kinds.values():
        one.setdefault("rope_theta", config.get("rope_theta"))
        share = config.get("partial_rotary_factor", config.get("rotary_pct"))
        one.setdefault("partial_rotary_factor", share)
    return kinds


def _complete(rope: dict[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of some layers with the defaults of their type of scaling."""
    rope = {key: value for key, value in rope.items() if value is not None}
    old = rope.pop("type", None)
    kind = str(rope.pop("rope_type", None) or old or "default")
    kind = _EARLIER_NAMES.get(kind, kind)
    if kind == "linear" and rope.get("factor") == 1:
        kind = "default"
    longest = config.get("max_position_embeddings")
    if kind == "dynamic":
        rope["max_position_embeddings"] = longest
    elif _ORIGINAL in _READ_KEYS.get(kind, ()):
        rope[_ORIGINAL] = original = config.get(_ORIGINAL) or rope.get(_ORIGINAL) or longest
        if kind != "llama3" and original and _are_numbers(longest, original):
            rope.setdefault("factor", cast("float", longest) / original)
    if kind == "yarn":
        defaults = {"beta_fast": 32, "beta_slow": 1, "truncate": True, "mscale_all_dim": 0}
        rope = {**defaults, "attention_factor": _yarn_attention(rope), **rope}
    elif kind == "longrope":
        rope.setdefault("attention_factor", _longrope_attention(rope))
    read = _READ_KEYS.get(kind, tuple(rope))
    return {"type": kind, **{key: rope[key] for key in (*_UNSCALED, *read) if key in rope}}


def _yarn_attention(rope: Mapping[str, Any]) -> float | None:
    """Return the scale of attention that YaRN (Peng et al. 2023, arXiv:2309.00071) derives."""
    keys = ("factor", "mscale", "mscale_all_dim")
    factor, mscale, all_dims = (cast("Any", rope.get(key)) for key in keys)
    if not _are_numbers(factor, mscale or 0, all_dims or 0):
        return None

    def scale(by: float) -> float:
        return 0.1 * by * math.log(factor) + 1 if factor > 1 else 1.0

    return scale(mscale) / scale(all_dims) if mscale and all_dims else scale(1)


def _longrope_attention(rope: Mapping[str, Any]) -> float | None:
    """Return the scale of attention that LongRoPE (Ding et al. 2024, arXiv:2402.13753) derives."""
    factor, original = (cast("Any", rope.get(key)) for key in ("factor", _ORIGINAL))
    if not _are_numbers(factor, original) or original <= 1:
        return None
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) and abs(value) < 1e15 for value in values)


def _normalize(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_normalize(item) for item in value)
    if not isinstance(value, bool) and _are_numbers(value):
        return float(f"{value:.9g}")
    return value
