"""Mixture-of-experts plans (mergekit-moe): experts from the MLPs of models that share a base.

Source: Komatsuzaki et al. 2022, sparse upcycling, arXiv:2212.05055, with several models' MLPs
instead of copies of one, and gate rows from prompts (``engine.gates``). Attention, norms and
embeddings are the base's. Routing weights add up to 1, so that equal experts reproduce the dense
model. Every tensor is streamed; only gates are held in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from stillroom.checkpoints import Checkpoint
from stillroom.errors import CheckpointError, Problem, RecipeError, ShapeError
from stillroom.merge.interfaces import METHODS
from stillroom.merge.planning.inputs import MergeSource, ResolvedSettings
from stillroom.merge.planning.plan import (
    SAFETENSORS_DTYPES,
    Computation,
    GatePlan,
    GateRows,
    MergePlan,
    PlannedTensor,
    SourceTensor,
    Zeros,
    find_widest_dtype,
)
from stillroom.merge.planning.planner import list_source_notes
from stillroom.merge.settings import RANDOM_GATE_MODES, MoeArchitecture

if TYPE_CHECKING:
    from stillroom.merge.jobs.moe import MoeRecipe

__all__ = ["plan_moe"]

_MLP = re.compile(r"(model\.layers\.(\d+)\.)mlp\.((?:gate|up|down)_proj)\.weight")
_QUERY = re.compile(r"(model\.layers\.\d+\.self_attn\.[qkv]_proj\.)weight")
_BIAS = re.compile(r"\.(mlp|self_attn)\..*\.bias$")
_SILENT_WIDTH = 8


@dataclass(frozen=True, slots=True)
class _Layout:
    architecture: str
    gate: str
    experts: str
    parts: Mapping[str, str]
    settings: Mapping[str, Any]
    dense: tuple[str, ...]
    count: str = "num_experts"


_PARTS = {part: part for part in ("gate_proj", "up_proj", "down_proj")}
_QWEN = {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}

_LAYOUTS: Mapping[str, _Layout] = {
    "mixtral": _Layout(
        "MixtralForCausalLM",
        "block_sparse_moe.gate.weight",
        "block_sparse_moe.experts.{}.{}.weight",
        {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
        {},
        ("llama", "mistral"),
        "num_local_experts",
    ),
    "qwen2_moe": _Layout(
        "Qwen2MoeForCausalLM",
        "mlp.gate.weight",
        "mlp.experts.{}.{}.weight",
        _PARTS,
        _QWEN,
        ("qwen2", "llama", "mistral"),
    ),
    "qwen3_moe": _Layout(
        "Qwen3MoeForCausalLM",
        "mlp.gate.weight",
        "mlp.experts.{}.{}.weight",
        _PARTS,
        _QWEN,
        ("qwen3",),
    ),
}

_DEFAULT_LAYOUTS = {
    "llama": "mixtral",
    "mistral": "mixtral",
    "qwen2": "qwen2_moe",
    "qwen3": "qwen3_moe",
}

_DROPPED = ("attention_bias", "mlp_bias", "pretraining_tp", "auto_map")


def plan_moe(recipe: MoeRecipe, base: MergeSource, parents: Sequence[MergeSource]) -> MergePlan:
    """Return the plan of a mixture: the tensors of the base, all experts, and the gates.

    Raises:
        CheckpointError: If the base's architecture has no such mixture.
        ShapeError: If an expert's MLP does not have the base's shape.
        RecipeError: If there are too few experts.
    """
    shared = len(parents) - 1 if recipe.shared_expert is not None else None
    name = _choose_layout(base.checkpoint, recipe.architecture, shared)
    mixture = _MoePlanner(base, parents, recipe, name, shared)
    mixture.check()
    tensors = tuple(sorted(mixture.tensors(), key=lambda tensor: tensor.name))
    sources = [base, *parents]
    read = [
        sources[home.source].checkpoint.entry(home.name).size_bytes
        for tensor in tensors
        for home in tensor.inputs
    ]
    is_random = recipe.gate_mode in RANDOM_GATE_MODES
    return MergePlan(
        "moe",
        tuple(source.name for source in sources),
        tensors,
        (),
        mixture.config(),
        sum(read),
        1,
        notes=(*list_source_notes(sources), *mixture.notes()),
        held_bytes=0 if is_random else 4 * base.checkpoint.parameters,
        gates=mixture.gates(),
    )


@dataclass(frozen=True)
class _MoePlanner:
    """Maps the parents' tensors to those of the mixture."""

    base: MergeSource
    parents: Sequence[MergeSource]
    recipe: MoeRecipe
    name: str
    shared: int | None

    @property
    def layout(self) -> _Layout:
        return _LAYOUTS[self.name]

    @cached_property
    def experts(self) -> list[int]:
        """Source indices of the parents that the gate routes to."""
        return [index + 1 for index in range(len(self.parents)) if index != self.shared]

    @cached_property
    def layers(self) -> int:
        layers = [
            int(match[2])
            for name in self.base.checkpoint.names()
            if (match := _MLP.fullmatch(name))
        ]
        return max(layers, default=-1) + 1

    def check(self) -> None:
        """Raise an error for invalid settings or shapes."""
        count, per_token = len(self.experts), self.recipe.experts_per_token
        problems = []
        if count < 2 or not 1 <= per_token <= count:
            problems.append(
                Problem(
                    f"{count} experts, {per_token} per token",
                    "merge.moe-experts",
                    "experts",
                    "at least two experts, and at most all of them per token",
                    "add experts, or lower experts_per_token",
                )
            )
        mode = self.recipe.gate_mode
        is_random = mode in RANDOM_GATE_MODES
        for index, parent in enumerate(self.parents):
            prompts = parent.prompts
            if bool(prompts.positive) is not is_random and not (is_random and prompts.negative):
                continue
            key = "shared_expert" if index == self.shared else f"experts.{index}"
            problems.append(
                Problem(
                    f"the gate mode {mode} {'has no' if is_random else 'needs'} prompts, unlike "
                    f"'{parent.name}'",
                    "merge.moe-experts",
                    f"{key}.positive_prompts",
                    "no prompts" if is_random else "some prompts that this expert should answer",
                    "omit them" if is_random else "add them, or set gate_mode to random",
                )
            )
        if problems:
            raise RecipeError(problems)
        self.check_shapes()

    def check_shapes(self) -> None:
        base = self.base.checkpoint
        problems = [
            Problem(
                f"'{name}' of {parent.name} does not fit",
                "merge.moe-shape",
                name,
                f"the base's shape, {base.shape(name)}",
                "choose experts that were fine-tuned from the base",
            )
            for parent in self.parents
            for name in base.names()
            if _MLP.fullmatch(name)
            and (name not in parent.checkpoint or parent.checkpoint.shape(name) != base.shape(name))
        ]
        if problems:
            raise ShapeError(problems[:8])

    def tensors(self) -> Iterator[PlannedTensor]:
        """Yield every tensor of the result."""
        base = self.base.checkpoint
        for name in base.names():
            match = _MLP.fullmatch(name)
            if match:
                yield from self._place_experts(name, match[1], match[3])
                if match[3] == "gate_proj":
                    yield from self._place_gates(name, match[1], int(match[2]))
                continue
            yield self._copy(name, 0, name)
            query = _QUERY.fullmatch(name)
            if query and self.name == "qwen2_moe" and f"{query[1]}bias" not in base:
                yield self._zeros(f"{query[1]}bias", name, base.shape(name)[:1])

    def config(self) -> dict[str, Any]:
        """Return config.json of the result."""
        config = self.base.checkpoint.config
        mixture_config = {key: value for key, value in config.items() if key not in _DROPPED}
        mixture_config |= dict(self.layout.settings) | {"architectures": [self.layout.architecture]}
        mixture_config |= {"model_type": self.name, self.layout.count: len(self.experts)}
        mixture_config["num_experts_per_tok"] = self.recipe.experts_per_token
        width = config.get("intermediate_size")
        if self.name != "mixtral":
            mixture_config["moe_intermediate_size"] = width
        if self.name == "qwen2_moe":
            is_silent = self.shared is None
            mixture_config["shared_expert_intermediate_size"] = (
                _SILENT_WIDTH if is_silent else width
            )
        return mixture_config

    def notes(self) -> Iterator[str]:
        """Yield the notes of the plan."""
        names = [self.parents[source - 1].name for source in self.experts]
        per_token = self.recipe.experts_per_token
        yield f"{self.name}: {len(names)} experts, {per_token} a token: {', '.join(names)}"
        if self.shared is not None:
            yield f"every token also goes to {self.parents[self.shared].name}"
        elif self.name == "qwen2_moe":
            yield "the layout has an expert for all tokens: it is written silent, all zeros"
        mode = self.recipe.gate_mode
        how = "drawn by the seed" if mode in RANDOM_GATE_MODES else f"prompts, {mode}"
        yield f"gates of {self.layers} layers from {how}; all else from {self.base.name}"

    def _place_experts(self, name: str, start: str, part: str) -> Iterator[PlannedTensor]:
        for number, source in enumerate(self.experts):
            target = start + self.layout.experts.format(number, self.layout.parts[part])
            yield self._copy(target, source, name, part)
        if self.name != "qwen2_moe":
            return
        target = f"{start}mlp.shared_expert.{part}.weight"
        if self.shared is not None:
            yield self._copy(target, self.shared + 1, name, part)
            return
        width = self.base.checkpoint.shape(name)[part != "down_proj"]
        shape = (width, _SILENT_WIDTH) if part == "down_proj" else (_SILENT_WIDTH, width)
        yield self._zeros(target, name, shape)

    def _place_gates(self, name: str, start: str, layer: int) -> Iterator[PlannedTensor]:
        stored = self._stored(name)
        width = self.base.checkpoint.shape(name)[1]
        count = len(self.experts)

        yield _computed_tensor(
            start + self.layout.gate, stored, (count, width), GateRows(layer, 0, count)
        )
        if self.name != "qwen2_moe":
            return
        target = f"{start}mlp.shared_expert_gate.weight"
        if self.shared is None:
            yield self._zeros(target, name, (1, width))
        else:
            shared_row = GateRows(layer, count, count + 1)
            yield _computed_tensor(target, stored, (1, width), shared_row)

    def gates(self) -> GatePlan:
        """Return how the gates are computed: a row for every expert, then the shared one."""
        order = [index - 1 for index in self.experts]
        order += [self.shared] if self.shared is not None else []
        return GatePlan(
            self.recipe.gate_mode,
            tuple(self.parents[index].prompts for index in order),
            self.layers,
            self.recipe.arithmetic == "mergekit",
        )

    def _copy(self, target: str, source: int, name: str, part: str = "") -> PlannedTensor:
        """Return a copied tensor at its new name, scaled if the model's settings say so."""
        checkpoint = self.parents[source - 1].checkpoint if source else self.base.checkpoint
        scale = self.parents[source - 1].settings.get("residual_scale", 1.0) if source else 1.0
        settings = None
        if part == "down_proj" and scale != 1:
            passthrough = METHODS.build({"name": "passthrough", "scale": scale})
            settings = ResolvedSettings(passthrough, (1.0,), ({},))
        return PlannedTensor(
            target,
            self._stored(name) if part else self._requested_dtype() or checkpoint.entry(name).dtype,
            checkpoint.shape(name),
            None,
            (SourceTensor(source, name),),
            settings=settings,
            is_placed=True,
        )

    def _zeros(self, target: str, name: str, shape: tuple[int, ...]) -> PlannedTensor:
        return _computed_tensor(target, self._stored(name), shape, Zeros())

    def _stored(self, name: str) -> str:
        """Return the common storage type of an expert tensor, which is fused in memory."""
        if self._requested_dtype():
            return self._requested_dtype()
        if self.recipe.arithmetic == "mergekit":
            return self.base.checkpoint.entry(name).dtype
        checkpoints = [source.checkpoint for source in (self.base, *self.parents)]
        held = [checkpoint.entry(name).dtype for checkpoint in checkpoints if name in checkpoint]
        return find_widest_dtype(held)

    def _requested_dtype(self) -> str:
        return SAFETENSORS_DTYPES.get(self.recipe.out.dtype or "", "")


def _computed_tensor(
    name: str, stored: str, shape: tuple[int, ...], computed: Computation
) -> PlannedTensor:
    return PlannedTensor(name, stored, shape, None, (), is_placed=True, computed=computed)


def _choose_layout(base: Checkpoint, layout: MoeArchitecture, shared: int | None) -> str:
    """Return the layout's name; raise an error for an unsupported base."""
    kind = str(base.config.get("model_type"))
    has_bias = any(_BIAS.search(name) for name in base.names())
    name = _DEFAULT_LAYOUTS.get(kind, "") if layout == "auto" else layout
    if layout == "auto" and shared is not None and kind in _LAYOUTS["qwen2_moe"].dense:
        name = "qwen2_moe"
    fits = name in _LAYOUTS and kind in _LAYOUTS[name].dense
    if not fits or (has_bias and name == "mixtral") or (shared is not None and name != "qwen2_moe"):
        description = f"{kind} models{' with biases' if has_bias and fits else ''}"
        condition = "" if layout == "auto" else f" in the architecture {layout}"
        condition += " with a shared expert" if shared is not None else ""
        listed = "; ".join(
            f"{key} of {', '.join(candidate.dense)}" for key, candidate in _LAYOUTS.items()
        )
        raise CheckpointError(
            f"no mixture of experts is supported for {description}{condition}",
            code="merge.moe",
            where=str(base.folder),
            expected=f"{listed}; only qwen2_moe has a shared expert",
            next="choose another base or architecture",
        )
    return name
