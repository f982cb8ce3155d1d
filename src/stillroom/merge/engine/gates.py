"""Router gates of a mixture of experts (MoE) from positive and negative prompts (gate_mode).

A gate row is the mean input of the layer's MLP over the tokens of the positive prompts, minus that
of the negative ones, normalized; with ``last``, which mergekit calls ``hidden``, that of the last
token instead of the mean. ``compute_mergekit_gates`` computes them as mergekit 0.1.5 does:
from the layer's input, in bfloat16, over padded batches including the padding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import RecipeError
from stillroom.merge.interfaces import Array
from stillroom.merge.settings import RANDOM_GATE_MODES, GateMode

if TYPE_CHECKING:
    import torch

    from stillroom.checkpoints import Checkpoint
    from stillroom.merge.planning.inputs import GatePrompts

__all__ = ["compute_gates", "compute_mergekit_gates", "find_similar_gates", "max_cosine"]

_GATE = re.compile(r"model\.layers\.(\d+)\.(?:block_sparse_moe|mlp)\.gate\.weight")
_SIMILAR_COSINE = 0.99
_LEAST_LENGTH = 1e-8


def compute_gates(
    base: Checkpoint, prompts: Sequence[GatePrompts], layers: int, gate: GateMode, seed: int
) -> Array:
    """Return the gates of every layer, (layers, experts, width) float32.

    Args:
        base: Model to run on the prompts, in float32 on the CPU.
        prompts: One per expert.
        layers: Number of layers.
        gate: Gate mode; random ones need no prompts.
        seed: Random seed of random gates.

    Raises:
        RecipeError: If a prompt has no tokens.
        CheckpointError: If the base cannot be loaded.
    """
    shape = (layers, len(prompts), int(base.config["hidden_size"]))
    if gate in RANDOM_GATE_MODES:
        return _draw_gates(shape, gate, seed)
    from stillroom.models.local.causal_lm import load_causal_lm

    model, tokenizer = load_causal_lm(base.folder, dtype="float32", device="cpu")
    layer_inputs = _LayerInputs(model, tokenizer, layers, gate)
    rows = [
        layer_inputs.mean(expert.positive)
        - (layer_inputs.mean(expert.negative) if expert.negative else 0)
        for expert in prompts
    ]
    return _normalize(np.stack(rows, axis=1))


def find_similar_gates(mixture: Checkpoint) -> Iterator[int]:
    """Yield the layers of a written mixture with two nearly equal gate rows."""
    from stillroom.merge.tensors.storage import read_rows

    gates = [(int(match[1]), name) for name in mixture.names() if (match := _GATE.fullmatch(name))]
    for layer, name in sorted(gates):
        if max_cosine(read_rows(mixture, name, dtype=np.float64)) > _SIMILAR_COSINE:
            yield layer


def max_cosine(rows: Array) -> float:
    """Return the largest cosine between two rows, (experts, width)."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units = rows / np.where(lengths > 0, lengths, 1)
    gram = units @ units.T
    return float(gram[~np.eye(len(rows), dtype=bool)].max(initial=-1))


def _draw_gates(shape: tuple[int, int, int], gate: GateMode, seed: int) -> Array:
    gates = np.empty(shape, np.float32)
    for layer in range(
        shape[0]
    ):  # seeded by layer, so that a gate does not depend on the number of layers
        rng = np.random.Generator(np.random.Philox(key=[seed % 2**64, layer]))
        if gate == "random":
            gates[layer] = _normalize(rng.standard_normal(shape[1:]))
        else:
            gates[layer] = rng.uniform(-1, 1, shape[1:]) / math.sqrt(shape[2])
    return gates


def _normalize(rows: Array) -> Array:
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    normalized: Array = (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return normalized


class _LayerInputs:
    """Inputs of every layer's MLP for a prompt."""

    def __init__(self, model: Any, tokenizer: Any, layers: int, gate: GateMode) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.layers, self.gate = layers, gate

    def mean(self, prompts: Sequence[str]) -> Array:
        """Return the mean input of each layer over prompts, (layers, width) float64."""
        total: Array = np.mean([self.see(prompt) for prompt in prompts], axis=0)
        return total

    def see(self, prompt: str) -> Array:
        """Return the reduced input of each layer for one prompt, (layers, width)."""
        import torch

        from stillroom.train.precision import limit_threads

        ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"]
        if not ids.numel():
            raise RecipeError(
                "a prompt has no tokens",
                code="merge.moe-experts",
                where="experts",
                expected="prompts with text",
                next="remove the empty prompt",
            )
        # One thread: the last bits depend on their number, and another process may resume the run.
        with limit_threads(1), torch.inference_mode():
            if self.gate == "cheap_embed":
                embedding = self._reduce(self.model.get_input_embeddings()(ids))
                return np.repeat(embedding[None], self.layers, axis=0)
            caught: dict[int, Array] = {}
            hooks = [self._catch(layer, caught) for layer in range(self.layers)]
            try:
                self.model(input_ids=ids, use_cache=False)
            finally:
                for hook in hooks:
                    hook.remove()
        return np.stack([caught[layer] for layer in range(self.layers)])

    def _catch(self, layer: int, caught: dict[int, Array]) -> Any:
        def keep(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            caught[layer] = self._reduce(inputs[0])

        module = self.model.get_submodule(f"model.layers.{layer}.mlp")
        return module.register_forward_pre_hook(keep)

    def _reduce(self, states: torch.Tensor) -> Array:
        """Reduce a prompt's (1, T, D) states to one vector."""
        states = states[0].double()
        reduced: Array = (states[-1] if self.gate == "last" else states.mean(0)).numpy()
        return reduced


def compute_mergekit_gates(
    base: Checkpoint, prompts: Sequence[GatePrompts], layers: int, gate: GateMode, seed: int
) -> Array:
    """Return the gates of mergekit 0.1.5, (layers, experts, width) float32.

    Its ``hidden`` and ``hidden_last`` correspond to ``last``, its ``hidden_avg`` to ``hidden``.

    Raises:
        CheckpointError: If the base cannot be loaded.
    """
    import torch

    shape = (layers, len(prompts), int(base.config["hidden_size"]))
    rng = torch.Generator().manual_seed(seed)
    if gate == "random":
        random_gates: Array = torch.randn(shape, generator=rng).numpy()
        return random_gates
    if gate == "uniform":
        bound = math.sqrt(1.0 / shape[2])
        random_gates = (torch.rand(shape, generator=rng) * 2 * bound - bound).numpy()
        return random_gates
    from stillroom.models.local.causal_lm import load_causal_lm
    from stillroom.train.precision import limit_threads

    with limit_threads(1), torch.inference_mode():
        model, tokenizer = load_causal_lm(base.folder, dtype="bfloat16", device="cpu")
        tokenizer.padding_side = "left"
        tokenizer.pad_token = tokenizer.bos_token or tokenizer.eos_token
        see = (
            _reduce_embeddings(base, layers)
            if gate == "cheap_embed"
            else _reduce_hidden_states(model, gate)
        )
        rows = [_compute_mergekit_row(expert, tokenizer, see) for expert in prompts]
        gates: Array = torch.stack(rows, dim=1).float().numpy()
    return gates


_BatchReducer = Callable[[Any], "torch.Tensor"]


def _compute_mergekit_row(prompts: GatePrompts, tokenizer: Any, see: _BatchReducer) -> torch.Tensor:
    """Return one expert's row of every layer, (layers, width)."""

    def encode(texts: Sequence[str]) -> Any:
        start = tokenizer.bos_token or ""
        prefixed = [start + text for text in texts]
        return tokenizer(prefixed, return_tensors="pt", padding=True, add_special_tokens=False)

    row = see(encode(prompts.positive))
    if prompts.negative:
        row = row - see(encode(prompts.negative))
    unit: torch.Tensor = row / row.norm(p=2, dim=-1, keepdim=True).clamp(min=_LEAST_LENGTH)
    return unit


def _reduce_hidden_states(model: Any, gate: GateMode) -> _BatchReducer:
    """Return a function for the mean layer inputs of a batch, (layers, width)."""
    import torch

    def see(batch: Any) -> torch.Tensor:
        hidden_states = model(**batch, output_hidden_states=True, return_dict=True).hidden_states
        states = torch.stack(hidden_states[:-1])  # (L, B, T, D)
        is_last = gate == "last"
        states = states[:, :, -1, :] if is_last else states.sum(dim=2) / states.shape[2]
        mean: torch.Tensor = states.sum(dim=1) / states.shape[1]
        return mean

    return see


def _reduce_embeddings(base: Checkpoint, layers: int) -> _BatchReducer:
    """Return a function for the normalized sum of a batch's embeddings, repeated by layer."""
    table = base.tensor("model.embed_tokens.weight")

    def see(batch: Any) -> torch.Tensor:
        rows = table[batch["input_ids"]].float() * batch["attention_mask"].unsqueeze(-1)
        total = rows.sum(dim=1).sum(dim=0, keepdim=True)
        unit = total / total.norm(dim=-1, keepdim=True).clamp(min=_LEAST_LENGTH)
        repeated: torch.Tensor = unit.repeat(layers, 1)
        return repeated

    return see
