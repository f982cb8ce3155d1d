"""Tensor names and their structure: layers, embeddings, experts, and pairs of two checkpoints.

No list of model families: a layer is a number between dots in a tensor's name, and a stack is what
shares the words before that number. Config keys that count layers are found by their value.

All experts of a layer are one tensor there, the gate's and the up projection's rows joined: an
angle, a norm or a density is of them all together. The result keeps the parents' names, which old
and new versions of transformers load.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

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
    "count_layers",
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
    "restack_config",
    "split_layer_name",
    "to_mergekit_name",
]


_LAYER = re.compile(r"^(?P<prefix>(?:.*?\.)?)(?P<layer>\d+)\.(?P<rest>.+)$")


_EMBEDDINGS = ("embed", "wte", "word_embeddings", "tok_embeddings", "shared.weight")


_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


_PARTS = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True, slots=True)
class LayerStack:
    """Layers that follow each other: the words before their numbers, and how many there are."""

    prefix: str
    count: int


def split_layer_name(name: str) -> tuple[str, int, str] | None:
    """Return what stands before a tensor's layer number, the number, and what stands after."""
    found = _LAYER.match(name)
    return (found["prefix"], int(found["layer"]), found["rest"]) if found else None


def find_stacks(names: Iterable[str]) -> dict[str, LayerStack]:
    """Return every stack of layers by its prefix."""
    counts: dict[str, int] = {}
    for name in names:
        parts = split_layer_name(name)
        if parts:
            counts[parts[0]] = max(counts.get(parts[0], 0), parts[1] + 1)
    return {prefix: LayerStack(prefix, count) for prefix, count in counts.items()}


def find_main_stack(names: Iterable[str], config: Mapping[str, Any]) -> LayerStack | None:
    """Return the one stack with as many layers as the config says; None if it is not clear."""
    wanted = count_layers(config)
    found = [stack for stack in find_stacks(names).values() if stack.count == wanted]
    return found[0] if len(found) == 1 else None


def count_layers(config: Mapping[str, Any]) -> int | None:
    """Return how many layers the (language) model has, as its config says."""
    for part in (config, *(config.get(key) or {} for key in _PARTS)):
        for key in _COUNTS:
            if isinstance(part, Mapping) and isinstance(part.get(key), int):
                return int(part[key])
    return None


def is_embedding(name: str) -> bool:
    """Return whether a tensor stands before the layers: it embeds tokens or positions."""
    return any(word in name for word in _EMBEDDINGS) and "lm_head" not in name


def restack_config(config: Mapping[str, Any], layers: Sequence[int]) -> dict[str, Any]:
    """Return a config for a model whose layer i is what was layer ``layers[i]``.

    Counts of layers are set anew, and every list with one entry a layer is put in the new order.
    """
    old = count_layers(config)

    def renew(part: Mapping[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, value in part.items():
            if key in _COUNTS and value == old:
                made[key] = len(layers)
            elif isinstance(value, list) and len(value) == old and old:
                made[key] = [value[layer] for layer in layers]
            elif key in _PARTS and isinstance(value, Mapping):
                made[key] = renew(value)
            else:
                made[key] = value
        return made

    return renew(config)


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


_NOT_LINEAR = ("embed", "wte", "wpe", "lm_head", "embed_out", "norm", "ln_", "score", "classifier")


def pair_tensors(finetuned: Checkpoint, base: Checkpoint) -> list[tuple[str, str]]:
    """Return every tensor with its name in the base; both have the same ones, of equal shapes."""
    names = {name for name in finetuned.names() if not _is_tied_head(finetuned, name)}
    known = {name for name in base.names() if not _is_tied_head(base, name)}
    homes = {name: name for name in names & known}
    lonely = (names | known) - set(homes)
    if base.is_tied and HEAD in names and EMBEDDING in known:
        homes[HEAD] = EMBEDDING
        lonely.discard(HEAD)
    problems = [
        Problem(
            f"tensor '{name:.120}' is missing in "
            f"{(base if name in names else finetuned).folder.name}",
            "merge.missing-tensor",
            name,
            "the same tensors in both",
            "give the base that it was fine-tuned from",
        )
        for name in sorted(lonely)
    ]
    if problems:
        raise CheckpointError(problems)
    wrong = [
        Problem(
            f"tensor '{name:.120}' is {finetuned.shape(name)}, and {base.shape(home)} in the base",
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
    """Return whether a tensor, by its name and shape, is the matrix of a linear layer."""
    last = name.removesuffix(".weight").rpartition(".")[2].lower()
    return (
        len(shape) == 2
        and name.endswith(".weight")
        and not any(word in last for word in _NOT_LINEAR)
        and min(shape) > 1
    )


def compute_difference(finetuned: Checkpoint, base: Checkpoint, name: str, home: str) -> Array:
    """Return a whole tensor of fine-tuned minus base, float64."""
    delta = read_rows(finetuned, name, dtype=np.float64)
    delta -= read_rows(base, home, dtype=np.float64)
    return delta


def compute_difference_norm(finetuned: Checkpoint, base: Checkpoint, name: str, home: str) -> float:
    """Return the norm of the difference, read in blocks."""
    if not check_floats(finetuned, base, name, home):
        return 0.0
    squares = []
    for start, stop in iter_row_ranges(finetuned.shape(name)):
        block = read_difference_rows(finetuned, base, name, home, start, stop).astype(np.float64)
        squares.append(float(np.sum(block * block)))
    norm = math.sqrt(math.fsum(squares))
    if not math.isfinite(norm):
        raise _non_finite_error(name)
    return norm


def read_difference_rows(
    finetuned: Checkpoint, base: Checkpoint, name: str, home: str, start: int, stop: int
) -> Array:
    """Return rows of fine-tuned minus base, float32, or float64 where one is stored so."""
    dtype = np.float64 if choose_difference_dtype(finetuned, base, name) == "F64" else np.float32
    block = read_rows(finetuned, name, start, stop, dtype=np.float64)
    block -= read_rows(base, home, start, stop, dtype=np.float64)
    return block.astype(dtype, copy=False)


def choose_difference_dtype(finetuned: Checkpoint, base: Checkpoint, name: str) -> str:
    """Return the storage type that holds a difference: F32, or F64 where one is stored so."""
    kinds = {finetuned.entry(name).dtype, *({base.entry(name).dtype} if name in base else ())}
    return "F64" if "F64" in kinds else "F32"


def check_floats(finetuned: Checkpoint, base: Checkpoint, name: str, home: str) -> bool:
    """Return whether both are floats; others must be equal."""
    one, two = finetuned.entry(name), base.entry(home)
    if one.dtype in FLOATS and two.dtype in FLOATS:
        return True
    if one.dtype == two.dtype and finetuned.read(name, 0, one.rows) == base.read(home, 0, two.rows):
        return False
    raise CheckpointError(
        f"tensor '{name:.120}' is {one.dtype} and {two.dtype} in the base, and not the same",
        code="merge.not-floats",
        where=name,
        expected="floating-point numbers where something changed",
        next="extract from checkpoints that are not quantized",
    )


def _non_finite_error(name: str) -> CheckpointError:
    return CheckpointError(
        f"tensor '{name:.120}' holds numbers that are not finite",
        code="merge.not-finite",
        where=name,
        expected="finite numbers in both checkpoints",
        next="take a checkpoint from before training diverged",
    )


_FUSED = frozenset({"mixtral", "qwen2_moe", "qwen3_moe"})


"""The kinds of models of which that was seen."""


_EXPERT = re.compile(r"(.*\.)?(?:block_sparse_moe|mlp)\.experts\.(\d+)\.(\w+)\.weight")


_FUSED_POSITIONS = {
    **dict.fromkeys(("w1", "gate_proj"), ("gate_up_proj", 0)),
    **dict.fromkeys(("w3", "up_proj"), ("gate_up_proj", 1)),
    **dict.fromkeys(("w2", "down_proj"), ("down_proj", 0)),
}


def has_fused_experts(config: Mapping[str, Any]) -> bool:
    """Return whether mergekit merges the experts of such a model as one tensor."""
    return config.get("model_type") in _FUSED


def to_mergekit_name(name: str) -> str:
    """Return the name that mergekit has for a tensor, or for the one that it is a part of."""
    found = _EXPERT.fullmatch(name)
    if found and found[3] in _FUSED_POSITIONS:
        return f"{found[1] or ''}mlp.experts.{_FUSED_POSITIONS[found[3]][0]}"
    return name.replace(".block_sparse_moe.", ".mlp.")


def describe_expert_differences(
    config: Mapping[str, Any], names: Iterable[str], method: str
) -> str:
    """Return in what mergekit's arithmetic may give other experts than mergekit; else nothing."""
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
    """The matrices of a layer's experts that are merged as one: by expert and place in it."""

    name: str
    members: dict[tuple[int, int], PlannedTensor] = field(default_factory=dict)
    merged: torch.Tensor | None = None

    @property
    def first(self) -> PlannedTensor:
        """One of them: all have the same shape, sources and settings."""
        return next(iter(self.members.values()))

    @property
    def last(self) -> str:
        """The name of the one that is written last."""
        return max(member.name for member in self.members.values())

    @property
    def is_whole(self) -> bool:
        """Whether every expert is there, and alike."""
        experts = {expert for expert, _ in self.members}
        places = {place for _, place in self.members}
        alike = {
            (
                one.shape,
                one.stored,
                one.base is None,
                tuple(home.source for home in one.parents),
            )
            for one in self.members.values()
        }
        is_full = len(self.members) == len(experts) * len(places)
        wanted = 2 if self.name.endswith("gate_up_proj") else 1
        return is_full and len(alike) == 1 and places == set(range(wanted))

    def join(self, read: Callable[[PlannedTensor], torch.Tensor]) -> torch.Tensor:
        """Return the fused tensor, (experts, rows, columns), of what is read of each member."""
        import torch

        experts = sorted({expert for expert, _ in self.members})
        places = sorted({place for _, place in self.members})
        return torch.stack(
            [torch.cat([read(self.members[one, place]) for place in places]) for one in experts]
        )

    def part(self, name: str) -> torch.Tensor:
        """Return a member's part of what was merged."""
        if self.merged is None:
            raise ValueError(f"{self.name} is not merged yet")
        experts = sorted({expert for expert, _ in self.members})
        expert, place = next(at for at, one in self.members.items() if one.name == name)
        rows = self.first.shape[0]
        return self.merged[experts.index(expert), place * rows : (place + 1) * rows]


def group_experts(tensors: Iterable[PlannedTensor]) -> dict[str, FusedExperts]:
    """Return by the name of each expert's matrix the tensor that it is merged as a part of."""
    groups: dict[str, FusedExperts] = {}
    for tensor in tensors:
        found = _EXPERT.fullmatch(tensor.name)
        if found and found[3] in _FUSED_POSITIONS and tensor.is_merged and len(tensor.shape) == 2:
            called = to_mergekit_name(tensor.name)
            group = groups.setdefault(called, FusedExperts(called))
            group.members[int(found[2]), _FUSED_POSITIONS[found[3]][1]] = tensor
    return {
        member.name: group
        for group in groups.values()
        if group.is_whole
        for member in group.members.values()
    }


_LAYER_NUMBER = re.compile(r"\.(\d+)\.")


def locate_tensor(name: str) -> tuple[str, str]:
    """Return a tensor's layer and its kind of module; outside the layers both are its own name."""
    module = name.removesuffix(".weight").removesuffix(".bias")
    last = module.rpartition(".")[2]
    found = _LAYER_NUMBER.search(name)
    if not found:
        return last, last
    return f"layer {int(found[1])}", last + (" bias" if name.endswith(".bias") else "")
