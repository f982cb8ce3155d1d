"""A mixture of experts from dense models that share a base, with gates made from prompts.

Source: Komatsuzaki et al. 2022, sparse upcycling, arXiv:2212.05055, with several models' MLPs
instead of copies of one, and a gate row for each that points where its prompts lie. Attention,
norms and embeddings are the base's. A gate row is the mean input of that layer's MLP over the
tokens of the positive prompts, less that of the negative ones, at length 1: what the gate will
see, not, as mergekit takes it, what enters the layer. Routing weights add up to 1, so experts that
are all alike give the dense model back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.checkpoints.numbers import narrow
from stillroom.errors import CheckpointError, Problem, RecipeError, ShapeError
from stillroom.merge.copying import read_blocks, write_blocks
from stillroom.merge.method import Array

if TYPE_CHECKING:
    import torch

__all__ = ["Expert", "GateMode", "Mixture", "build_moe"]

GateMode = Literal["hidden", "last", "cheap_embed", "random"]
_MLP = re.compile(r"(model\.layers\.(\d+)\.)mlp\.((?:gate|up|down)_proj)\.weight")
_SHARED_WIDTH = 8
_ALIKE = 0.99


@dataclass(frozen=True, slots=True)
class Expert:
    """A dense model, and prompts that it should answer, or should not."""

    checkpoint: Checkpoint
    positive: Sequence[str] = ()
    negative: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Mixture:
    """What was built.

    Attributes:
        fingerprint: Of the written checkpoint.
        layout: ``mixtral``, ``qwen2_moe`` or ``qwen3_moe``.
        experts: How many.
        gate: How the gates were made.
        alike: Layers in which two gate rows are nearly the same, so that the gate cannot tell
            these experts apart.
    """

    fingerprint: str
    layout: str
    experts: int
    gate: str
    alike: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Layout:
    architecture: str
    gate: str
    experts: str
    parts: Mapping[str, str]
    settings: Mapping[str, Any]
    count: str = "num_experts"


_PARTS = {part: part for part in ("gate_proj", "up_proj", "down_proj")}
_QWEN = {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
_LAYOUTS = {
    "mixtral": _Layout(
        "MixtralForCausalLM",
        "block_sparse_moe.gate.weight",
        "block_sparse_moe.experts.{}.{}.weight",
        {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
        {},
        "num_local_experts",
    ),
    "qwen2_moe": _Layout(
        "Qwen2MoeForCausalLM",
        "mlp.gate.weight",
        "mlp.experts.{}.{}.weight",
        _PARTS,
        {**_QWEN, "shared_expert_intermediate_size": _SHARED_WIDTH},
    ),
    "qwen3_moe": _Layout(
        "Qwen3MoeForCausalLM", "mlp.gate.weight", "mlp.experts.{}.{}.weight", _PARTS, _QWEN
    ),
}
_OF_DENSE = {
    "llama": "mixtral",
    "mistral": "mixtral",
    "qwen2": "qwen2_moe",
    "qwen3": "qwen3_moe",
}
_DROPPED = ("attention_bias", "mlp_bias", "pretraining_tp", "auto_map")


def build_moe(
    base: Checkpoint,
    experts: Sequence[Expert],
    folder: Path,
    *,
    gate: GateMode = "hidden",
    experts_per_token: int = 2,
    seed: int = 0,
    shard_size: int = 5_000_000_000,
) -> Mixture:
    """Write a mixture of experts; every tensor is streamed.

    Args:
        base: Gives all but the MLPs, and is run on the prompts.
        experts: At least two, of the base's shape.
        folder: Where the result is written, atomically.
        gate: From the mean (``hidden``) or last (``last``) token of prompts, from their embeddings
            without running the model (``cheap_embed``), or at random.
        experts_per_token: How many experts a token is sent to.
        seed: For random gates.
        shard_size: Most bytes of weights in one file.

    Raises:
        CheckpointError: If the base's architecture has no such mixture.
        ShapeError: If an expert's MLP is not the base's shape.
        RecipeError: If there are too few experts, or gates lack prompts.
        ResourceError: If the disk is full.
    """
    name = _check(base, experts, gate, experts_per_token)
    layout = _LAYOUTS[name]
    layers = sorted({int(found[2]) for each in base.names() if (found := _MLP.fullmatch(each))})
    gates = _make_gates(base, experts, layers, gate, seed)
    plan = dict(_plan(base, experts, layout, name))
    with CheckpointWriter(
        folder,
        config=_config(base, experts, layout, name, experts_per_token),
        shard_size=shard_size,
        plan={target: shape for target, (shape, _) in plan.items()},
    ) as writer:
        for target, (shape, source) in plan.items():
            writer.begin(target, shape)
            if isinstance(source, int):
                write_blocks(writer, target, [narrow(gates[source], shape[0])])
            elif source is None:
                write_blocks(writer, target, [narrow(np.zeros(shape[1], np.float32), shape[0])])
            else:
                write_blocks(writer, target, read_blocks(*source))
        writer.copy_tokenizer(base.folder)
    alike = tuple(layer for layer, rows in gates.items() if _most_alike(rows) > _ALIKE)
    return Mixture(writer.fingerprint, name, len(experts), gate, alike)


_Shape = tuple[str, tuple[int, ...]]
_Source = tuple[Checkpoint, str] | int | None
"""A tensor of a checkpoint, the gate of a layer, or zeros."""


def _plan(
    base: Checkpoint, experts: Sequence[Expert], layout: _Layout, name: str
) -> Iterator[tuple[str, tuple[_Shape, _Source]]]:
    """Yield every tensor of the result with its type, shape and source."""
    for tensor in base.names():
        entry, found = base.entry(tensor), _MLP.fullmatch(tensor)
        if not found:
            yield tensor, ((entry.dtype, entry.shape), (base, tensor))
            continue
        start, layer, part = found[1], int(found[2]), found[3]
        for number, expert in enumerate(experts):
            theirs = expert.checkpoint.entry(tensor)
            target = start + layout.experts.format(number, layout.parts[part])
            yield target, ((theirs.dtype, theirs.shape), (expert.checkpoint, tensor))
        if part == "gate_proj":
            width = entry.shape[1]
            yield start + layout.gate, ((entry.dtype, (len(experts), width)), layer)
            if name == "qwen2_moe":  # its layout has an expert for all tokens: one that is silent
                yield f"{start}mlp.shared_expert_gate.weight", ((entry.dtype, (1, width)), None)
                for each in layout.parts:
                    shape = (width, _SHARED_WIDTH)
                    shape = shape if each == "down_proj" else shape[::-1]
                    yield f"{start}mlp.shared_expert.{each}.weight", ((entry.dtype, shape), None)


def _config(
    base: Checkpoint, experts: Sequence[Expert], layout: _Layout, name: str, per_token: int
) -> dict[str, Any]:
    kept = {key: value for key, value in base.config.items() if key not in _DROPPED}
    made = kept | dict(layout.settings) | {"architectures": [layout.architecture]}
    if name != "mixtral":
        made["moe_intermediate_size"] = base.config["intermediate_size"]
    return made | {
        "model_type": name,
        layout.count: len(experts),
        "num_experts_per_tok": per_token,
    }


def _check(base: Checkpoint, experts: Sequence[Expert], gate: str, per_token: int) -> str:
    """Return the layout's name; refuse what cannot be built."""
    kind = str(base.config.get("model_type"))
    biased = [name for name in base.names() if re.search(r"\.(mlp|self_attn)\..*\.bias$", name)]
    if kind not in _OF_DENSE or (biased and _OF_DENSE[kind] == "mixtral"):
        what = f"{kind} models" if kind not in _OF_DENSE else f"{kind} models with biases"
        raise CheckpointError(
            f"there is no mixture of experts for {what}",
            code="merge.moe",
            where=str(base.folder),
            expected=f"a base of one of: {', '.join(_OF_DENSE)}",
            next="choose another base",
        )
    if len(experts) < 2 or not 1 <= per_token <= len(experts):
        raise RecipeError(
            f"{len(experts)} experts, {per_token} a token",
            code="merge.moe-experts",
            where="experts",
            expected="at least two experts, and at most all of them a token",
            next="add experts, or lower experts_per_token",
        )
    if gate != "random" and not all(expert.positive for expert in experts):
        raise RecipeError(
            f"gates from prompts ({gate}) need positive prompts for every expert",
            code="merge.moe-experts",
            where="experts",
            expected="a few prompts that this expert should answer",
            next="add them, or choose gate 'random'",
        )
    _check_shapes(base, experts)
    return _OF_DENSE[kind]


def _check_shapes(base: Checkpoint, experts: Sequence[Expert]) -> None:
    problems = [
        Problem(
            f"'{name}' of {expert.checkpoint.folder.name} does not fit",
            "merge.moe-shape",
            name,
            f"the base's shape, {base.shape(name)}",
            "choose experts that were fine-tuned from the base",
        )
        for expert in experts
        for name in base.names()
        if _MLP.fullmatch(name)
        and (name not in expert.checkpoint or expert.checkpoint.shape(name) != base.shape(name))
    ]
    if problems:
        raise ShapeError(problems[:8])


def _make_gates(
    base: Checkpoint, experts: Sequence[Expert], layers: Sequence[int], gate: str, seed: int
) -> dict[int, Array]:
    """Return the gate of every layer, (experts, width) float32, rows of length 1."""
    if gate == "random":
        rng = np.random.Generator(np.random.Philox(seed))
        shape = (len(experts), int(base.config["hidden_size"]))
        drawn = {layer: rng.standard_normal(shape) for layer in layers}
        return {layer: _normalize(rows) for layer, rows in drawn.items()}
    from stillroom.models.causal import load_causal_lm

    model, tokenizer = load_causal_lm(base.folder, dtype="float32", device="cpu")
    seen = _Seen(model, tokenizer, layers, gate)
    rows = [
        seen.mean(expert.positive) - (seen.mean(expert.negative) if expert.negative else 0)
        for expert in experts
    ]
    return {layer: _normalize(np.stack([r[at] for r in rows])) for at, layer in enumerate(layers)}


class _Seen:
    """What the MLP of every layer sees of a prompt."""

    def __init__(self, model: Any, tokenizer: Any, layers: Sequence[int], gate: str) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.layers, self.gate = layers, gate

    def mean(self, prompts: Sequence[str]) -> Array:
        """Return the mean over prompts of what each layer sees, (layers, width) float64."""
        total: Array = np.mean([self.see(prompt) for prompt in prompts], axis=0)
        return total

    def see(self, prompt: str) -> Array:
        """Return what each layer sees of one prompt, (layers, width)."""
        import torch

        ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"]
        if not ids.numel():
            raise RecipeError(
                "a prompt has no tokens",
                code="merge.moe-experts",
                where="experts",
                expected="prompts with text",
                next="remove the empty prompt",
            )
        with torch.inference_mode():
            if self.gate == "cheap_embed":
                found = self._reduce(self.model.get_input_embeddings()(ids))
                return np.repeat(found[None], len(self.layers), axis=0)
            caught: dict[int, Array] = {}
            hooks = [self._catch(layer, caught) for layer in self.layers]
            try:
                self.model(input_ids=ids, use_cache=False)
            finally:
                for hook in hooks:
                    hook.remove()
        return np.stack([caught[layer] for layer in self.layers])

    def _catch(self, layer: int, caught: dict[int, Array]) -> Any:
        def keep(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            caught[layer] = self._reduce(inputs[0])

        module = self.model.get_submodule(f"model.layers.{layer}.mlp")
        return module.register_forward_pre_hook(keep)

    def _reduce(self, states: torch.Tensor) -> Array:
        """Return one vector of a prompt's (1, T, D) states."""
        states = states[0].double()
        reduced: Array = (states[-1] if self.gate == "last" else states.mean(0)).numpy()
        return reduced


def _normalize(rows: Array) -> Array:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    made: Array = (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return made


def _most_alike(rows: Array) -> float:
    """Return the largest cosine between two rows of length 1."""
    gram = rows @ rows.T
    return float(gram[~np.eye(len(rows), dtype=bool)].max(initial=-1))
