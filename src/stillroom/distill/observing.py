"""Running a model's body and keeping what happens inside: hidden states, queries, keys, values.

Projections are read by hooks on ``q_proj``, ``k_proj`` and ``v_proj``, or on the fused layer of a
family whose order is known; attention's own queries and keys where they are handed to the attention
function. A family that has neither is refused by the name of its module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from stillroom.distill.head import body_of
from stillroom.errors import CheckpointError
from stillroom.models.attention import AttentionCall, watch_attention
from stillroom.train.lora import plain_model

__all__ = ["Observed", "Wanted", "count_layers", "observe", "state_width"]

_PARTS = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which layers are looked at, counted from 1; hidden state 0 is the embeddings."""

    states: frozenset[int] = frozenset()
    attention: frozenset[int] = frozenset()
    projections: frozenset[int] = frozenset()


@dataclass(slots=True)
class Observed:
    """What happened in one run of a body, by layer, counted from 1.

    Args:
        last: The states that the head gets, (B, T, H).
        states: Hidden states, (B, T, H).
        attention: Calls of the attention function.
        projections: Queries, keys and values, (B, T, width) each.
    """

    last: Tensor
    states: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, AttentionCall] = field(default_factory=dict)
    projections: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)


def observe(model: nn.Module, input_ids: Tensor, wanted: Wanted) -> Observed:
    """Run the body of a causal model once; a graph is kept where the caller's context keeps one.

    Args:
        model: A Hugging Face causal model, low-rank layers included.
        input_ids: (B, T).
        wanted: What to keep.

    Raises:
        CheckpointError: If the model's attention is of a layout that is not known.
    """
    body = body_of(model)
    with ExitStack() as stack:
        calls: Mapping[int, AttentionCall] = {}
        parts: dict[int, dict[str, Tensor]] = {}
        if wanted.attention:
            calls = stack.enter_context(watch_attention(body))
        if wanted.projections:
            stack.enter_context(_hooks(body, wanted.projections, parts))
        found = body(input_ids=input_ids, use_cache=False, output_hidden_states=bool(wanted.states))
    for layer in wanted.attention:
        if layer - 1 not in calls:
            raise _unknown_layout(body, layer)
    for layer in wanted.projections:
        if set(parts.get(layer, ())) != set(_PARTS):
            raise _unknown_layout(body, layer)
    return Observed(
        found.last_hidden_state,
        {layer: found.hidden_states[layer] for layer in wanted.states},
        {layer: calls[layer - 1] for layer in wanted.attention},
        {
            layer: cast("Any", tuple(parts[layer][name] for name in _PARTS))
            for layer in wanted.projections
        },
    )


def count_layers(model: nn.Module) -> int:
    """Return how many layers a causal model has."""
    return int(_text_config(model).num_hidden_layers)


def state_width(model: nn.Module) -> int:
    """Return how wide a causal model's hidden states are."""
    return int(_text_config(model).hidden_size)


@contextmanager
def _hooks(
    body: nn.Module, layers: frozenset[int], parts: dict[int, dict[str, Tensor]]
) -> Iterator[None]:
    """Within the body, put each wanted layer's projections into ``parts``."""
    with ExitStack() as stack:
        for name, module in body.named_modules():
            number = getattr(module, "layer_idx", None)
            if number is None or int(number) + 1 not in layers or "attn" not in _words(name):
                continue
            into = parts.setdefault(int(number) + 1, {})
            for child, read in _readers(module, _text_config(body)).items():
                hook = module.get_submodule(child).register_forward_hook(_keep(read, into))
                stack.callback(hook.remove)
        yield


def _words(name: str) -> str:
    """Return the last part of a module's name, with ``attention`` written as ``attn``."""
    return name.rsplit(".", 1)[-1].lower().replace("attention", "attn")


Read = Callable[[Tensor], dict[str, Tensor]]


def _readers(attention: nn.Module, config: Any) -> dict[str, Read]:
    """Return which children of an attention module give which projections."""
    if all(hasattr(attention, part) for part in _PARTS):
        return {part: _reads(part) for part in _PARTS}
    kind = str(getattr(config, "model_type", ""))
    if kind == "gpt2" and hasattr(attention, "c_attn"):
        width = int(config.hidden_size)
        return {"c_attn": _splits(width, width, width)}
    if kind == "phi3" and hasattr(attention, "qkv_proj"):
        heads = int(config.num_attention_heads)
        size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        keys = int(config.num_key_value_heads) * size
        return {"qkv_proj": _splits(heads * size, keys, keys)}
    return {}


def _reads(part: str) -> Read:
    return lambda output: {part: output}


def _splits(*widths: int) -> Read:
    return lambda output: dict(zip(_PARTS, torch.split(output, list(widths), -1), strict=True))


def _keep(read: Read, into: dict[str, Tensor]) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        into.update(read(output))

    return hook


def _text_config(model: nn.Module) -> Any:
    config = cast("Any", plain_model(model)).config
    return config.get_text_config()


def _unknown_layout(body: nn.Module, layer: int) -> CheckpointError:
    named = [
        f"{name} ({type(module).__name__})"
        for name, module in body.named_modules()
        if "attn" in _words(name) and f".{layer - 1}." in f".{name}"
    ]
    return CheckpointError(
        f"attention of layer {layer} of {type(body).__name__} is of a layout that is not known"
        + (f": {named[0]}" if named else ""),
        code="distill.attention-layout",
        where="features",
        expected="q_proj, k_proj and v_proj, or the fused layer of GPT-2 or Phi-3, and an "
        "attention function of the library's table",
        next="use the feature hidden_state, which needs none of them",
    )
