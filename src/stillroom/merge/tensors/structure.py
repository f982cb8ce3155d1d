"""Tensor names and their structure: layers, embeddings, experts, and pairs of two checkpoints.

There is no list of model families: a layer is a number between dots in a tensor's name, and a stack
consists of the names with the same prefix. Config keys that count layers are found by their value.

In mergekit, all experts of a layer are one tensor, with the rows of gate and up projection joined:
angles, norms and densities refer to all of them together. The result keeps the parents' names,
which old and new versions of transformers load.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.checkpoints.layers import count_layers
from stillroom.checkpoints.safetensors_format import FLOATS
from stillroom.errors import CheckpointError, Problem, ShapeError
from stillroom.merge.interfaces import Array
from stillroom.merge.tensors.storage import iter_row_ranges, read_rows

if TYPE_CHECKING:
    import torch

    from stillroom.checkpoints import Checkpoint
    from stillroom.merge.planning.plan import PlannedTensor

__all__ = [
    "EMBEDDING",
    "HEAD",
    "FusedExperts",
    "LayerStack",
    "check_floats",
    "choose_difference_dtype",
    "compute_difference",
    "compute_difference_norm",
    "describe_expert_differences",
    "find_main_stack",
    "find_stacks",
    "group_experts",
    "has_fused_experts",
    "is_embedding",
    "is_linear",
    "locate_tensor",
    "pair_tensors",
    "read_difference_rows",
    "split_layer_name",
    "to_mergekit_name",
]

_LAYER = re.compile(r"^(?P<prefix>(?:.*?\.)?)(?P<layer>\d+)\.(?P<rest>.+)$")
_EMBEDDINGS = ("embed", "wte", "word_embeddings", "tok_embeddings", "shared.weight")


@dataclass(frozen=True, slots=True)
class LayerStack:
    """A stack of layers: the name prefix before the layer numbers, and their count."""

    prefix: str
    count: int


def split_layer_name(name: str) -> tuple[str, int, str] | None:
    """Split a tensor's name into prefix, layer number and suffix."""
    match = _LAYER.match(name)
    return (match["prefix"], int(match["layer"]), match["rest"]) if match else None


def find_stacks(names: Iterable[str]) -> dict[str, LayerStack]:
    """Return every stack of layers by its prefix."""
    counts: dict[str, int] = {}
    for name in names:
        parts = split_layer_name(name)
        if parts:
            counts[parts[0]] = max(counts.get(parts[0], 0), parts[1] + 1)
    return {prefix: LayerStack(prefix, count) for prefix, count in counts.items()}


def find_main_stack(names: Iterable[str], config: Mapping[str, Any]) -> LayerStack | None:
    """Return the only stack with the config's number of layers; None if ambiguous."""
    count = count_layers(config)
    stacks = [stack for stack in find_stacks(names).values() if stack.count == count]
    return stacks[0] if len(stacks) == 1 else None


def is_embedding(name: str) -> bool:
    """Return whether a tensor embeds tokens or positions, by its name."""
    return any(part in name for part in _EMBEDDINGS) and "lm_head" not in name


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_NOT_LINEAR = ("embed", "wte", "wpe", "lm_head", "embed_out", "norm", "ln_", "score", "classifier")


def pair_tensors(finetuned: Checkpoint, base: Checkpoint) -> list[tuple[str, str]]:
    """Return every tensor with its name in the base; names and shapes must match."""
    names = {name for name in finetuned.names() if not _is_tied_head(finetuned, name)}
    known = {name for name in base.names() if not _is_tied_head(base, name)}
    homes = {name: name for name in names & known}
    unmatched = (names | known) - set(homes)
    if base.is_tied and HEAD in names and EMBEDDING in known:
        homes[HEAD] = EMBEDDING
        unmatched.discard(HEAD)
    problems = [
        Problem(
            f"tensor '{name:.120}' is missing in "
            f"{(base if name in names else finetuned).folder.name}",
            "merge.missing-tensor",
            name,
            "the same tensors in both",
            "give the base that it was fine-tuned from",
        )
        for name in sorted(unmatched)
    ]
    if problems:
        raise CheckpointError(problems)
    wrong = [
        Problem(
            f"tensor '{name:.120}' is {finetuned.shape(name)}, but {base.shape(home)} in the base",
            "merge.shape",
            name,
            "one shape in both",
            "give the base that it was fine-tuned from; resize its embeddings first if they grew",
        )
        for name, home in sorted(homes.items())
        if finetuned.shape(name) != base.shape(home)
    ]
    if wrong:
        raise ShapeError(wrong)
    return sorted(homes.items())


def _is_tied_head(checkpoint: Checkpoint, name: str) -> bool:
    return name == HEAD and checkpoint.is_tied and EMBEDDING in checkpoint


def is_linear(name: str, shape: Sequence[int]) -> bool:
    """Return whether a tensor is the weight of a linear layer, by name and shape."""
    last = name.removesuffix(".weight").rpartition(".")[2].lower()
    return (
        len(shape) == 2
        and name.endswith(".weight")
        and not any(part in last for part in _NOT_LINEAR)
        and min(shape) > 1
    )


def compute_difference(finetuned: Checkpoint, base: Checkpoint, name: str, home: str) -> Array:
    """Return the whole difference of a tensor, fine-tuned minus base, in float64."""
    delta = read_rows(finetuned, name, dtype=np.float64)
    delta -= read_rows(base, home, dtype=np.float64)
    return delta


def compute_difference_norm(finetuned: Checkpoint, base: Checkpoint, name: str, home: str) -> float:
    """Return the norm of a tensor's difference, read in blocks."""
    if not check_floats(finetuned, base, name, home):
        return 0.0
    squares = []
    for start, stop in iter_row_ranges(finetuned.shape(name)):
        block = read_difference_rows(finetuned, base, name, home, start, stop).astype(np.float64)
        squares.append(float(np.sum(block * block)))
    norm = math.sqrt(math.fsum(squares))
    if not math.isfinite(norm):
        raise CheckpointError(
            f"tensor '{name:.120}' has values that are not finite",
            code="merge.not-finite",
            where=name,
            expected="finite numbers in both checkpoints",
            next="take a checkpoint from before training diverged",
        )
    return norm


def read_difference_rows(
    finetuned: Checkpoint, base: Checkpoint, name: str, home: str, start: int, stop: int
) -> Array:
    """Return rows of fine-tuned minus base in float32, or float64 if one is stored so."""
    dtype = np.float64 if choose_difference_dtype(finetuned, base, name) == "F64" else np.float32
    block = read_rows(finetuned, name, start, stop, dtype=np.float64)
    block -= read_rows(base, home, start, stop, dtype=np.float64)
    return block.astype(dtype, copy=False)


def choose_difference_dtype(finetuned: Checkpoint, base: Checkpoint, name: str) -> str:
    """Return the storage type of a difference: F32, or F64 if one is stored so."""
    kinds = {finetuned.entry(name).dtype, *({base.entry(name).dtype} if name in base else ())}
    return "F64" if "F64" in kinds else "F32"


def check_floats(finetuned: Checkpoint, base: Checkpoint, name: str, home: str) -> bool:
    """Return whether both tensors are floats; others must be equal."""
    entry, base_entry = finetuned.entry(name), base.entry(home)
    if entry.dtype in FLOATS and base_entry.dtype in FLOATS:
        return True
    if entry.dtype == base_entry.dtype and finetuned.read(name, 0, entry.rows) == base.read(
        home, 0, base_entry.rows
    ):
        return False
    raise CheckpointError(
        f"tensor '{name:.120}' is {entry.dtype}, {base_entry.dtype} in the base, and differs",
        code="merge.not-floats",
        where=name,
        expected="floating-point tensors where values differ",
        next="extract from checkpoints that are not quantized",
    )


_FUSED = frozenset({"mixtral", "qwen2_moe", "qwen3_moe"})
"""Model types for which this was observed."""

_EXPERT = re.compile(r"(.*\.)?(?:block_sparse_moe|mlp)\.experts\.(\d+)\.(\w+)\.weight")

_FUSED_POSITIONS = {
    **dict.fromkeys(("w1", "gate_proj"), ("gate_up_proj", 0)),
    **dict.fromkeys(("w3", "up_proj"), ("gate_up_proj", 1)),
    **dict.fromkeys(("w2", "down_proj"), ("down_proj", 0)),
}


def has_fused_experts(config: Mapping[str, Any]) -> bool:
    """Return whether mergekit merges the experts of a model as one tensor."""
    return config.get("model_type") in _FUSED


def to_mergekit_name(name: str) -> str:
    """Return mergekit's name of a tensor, or of the fused tensor that contains it."""
    match = _EXPERT.fullmatch(name)
    if match and match[3] in _FUSED_POSITIONS:
        return f"{match[1] or ''}mlp.experts.{_FUSED_POSITIONS[match[3]][0]}"
    return name.replace(".block_sparse_moe.", ".mlp.")


def describe_expert_differences(
    config: Mapping[str, Any], names: Iterable[str], method: str
) -> str:
    """Return a note if experts may be merged differently than in mergekit, else ""."""
    if not any(_EXPERT.fullmatch(name) for name in names):
        return ""
    if not has_fused_experts(config):
        kind = config.get("model_type")
        return f"the experts of {kind} are merged one by one, and by mergekit perhaps as one tensor"
    if method.startswith(("dare", "della")):
        return f"mergekit draws {method}'s random numbers for experts in an order of its own"
    return ""


@dataclass
class FusedExperts:
    """Matrices of a layer's experts merged as one tensor: by expert and position in it."""

    name: str
    members: dict[tuple[int, int], PlannedTensor] = field(default_factory=dict)
    merged: torch.Tensor | None = None

    @property
    def first(self) -> PlannedTensor:
        """One member; all have the same shape, sources and settings."""
        return next(iter(self.members.values()))

    @property
    def last(self) -> str:
        """Name of the member written last."""
        return max(member.name for member in self.members.values())

    @property
    def is_whole(self) -> bool:
        """Whether all experts are present and alike."""
        experts = {expert for expert, _ in self.members}
        positions = {position for _, position in self.members}
        alike = {
            (
                member.shape,
                member.dtype,
                member.base is None,
                tuple(home.source for home in member.parents),
            )
            for member in self.members.values()
        }
        is_full = len(self.members) == len(experts) * len(positions)
        expected_count = 2 if self.name.endswith("gate_up_proj") else 1
        return is_full and len(alike) == 1 and positions == set(range(expected_count))

    def join(self, read: Callable[[PlannedTensor], torch.Tensor]) -> torch.Tensor:
        """Return the fused tensor, (experts, rows, columns), read member by member."""
        import torch

        experts = sorted({expert for expert, _ in self.members})
        positions = sorted({position for _, position in self.members})
        return torch.stack(
            [
                torch.cat([read(self.members[expert, position]) for position in positions])
                for expert in experts
            ]
        )

    def part(self, name: str) -> torch.Tensor:
        """Return a member's part of the merged tensor."""
        if self.merged is None:
            raise ValueError(f"{self.name} is not merged yet")
        experts = sorted({expert for expert, _ in self.members})
        expert, position = next(key for key, member in self.members.items() if member.name == name)
        rows = self.first.shape[0]
        return self.merged[experts.index(expert), position * rows : (position + 1) * rows]


def group_experts(tensors: Iterable[PlannedTensor]) -> dict[str, FusedExperts]:
    """Return the fused tensor of each expert matrix, by the matrix's name."""
    groups: dict[str, FusedExperts] = {}
    for tensor in tensors:
        match = _EXPERT.fullmatch(tensor.name)
        if match and match[3] in _FUSED_POSITIONS and tensor.is_merged and len(tensor.shape) == 2:
            fused_name = to_mergekit_name(tensor.name)
            group = groups.setdefault(fused_name, FusedExperts(fused_name))
            group.members[int(match[2]), _FUSED_POSITIONS[match[3]][1]] = tensor
    return {
        member.name: group
        for group in groups.values()
        if group.is_whole
        for member in group.members.values()
    }


_LAYER_NUMBER = re.compile(r"\.(\d+)\.")


def locate_tensor(name: str) -> tuple[str, str]:
    """Return a tensor's layer and module type; outside the layers both are its own name."""
    module = name.removesuffix(".weight").removesuffix(".bias")
    last = module.rpartition(".")[2]
    match = _LAYER_NUMBER.search(name)
    if not match:
        return last, last
    return f"layer {int(match[1])}", last + (" bias" if name.endswith(".bias") else "")
