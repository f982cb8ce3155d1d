"""Experts' matrices that mergekit merges as one tensor, as transformers 5 holds them.

All experts of a layer are one tensor there, the gate's and the up projection's rows joined: an
angle, a norm or a density is of them all together. The result keeps the parents' names, which old
and new versions of transformers load.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from stillroom.merge.plan import PlannedTensor

__all__ = ["FusedExperts", "called_by_mergekit", "fuses_experts", "group_experts", "tell_experts"]

_FUSED = frozenset({"mixtral", "qwen2_moe", "qwen3_moe"})
"""The kinds of models of which that was seen."""
_EXPERT = re.compile(r"(.*\.)?(?:block_sparse_moe|mlp)\.experts\.(\d+)\.(\w+)\.weight")
_PLACES = {
    **dict.fromkeys(("w1", "gate_proj"), ("gate_up_proj", 0)),
    **dict.fromkeys(("w3", "up_proj"), ("gate_up_proj", 1)),
    **dict.fromkeys(("w2", "down_proj"), ("down_proj", 0)),
}


def fuses_experts(config: Mapping[str, Any]) -> bool:
    """Return whether mergekit merges the experts of such a model as one tensor."""
    return config.get("model_type") in _FUSED


def called_by_mergekit(name: str) -> str:
    """Return the name that mergekit has for a tensor, or for the one that it is a part of."""
    found = _EXPERT.fullmatch(name)
    if found and found[3] in _PLACES:
        return f"{found[1] or ''}mlp.experts.{_PLACES[found[3]][0]}"
    return name.replace(".block_sparse_moe.", ".mlp.")


def tell_experts(config: Mapping[str, Any], names: Iterable[str], method: str) -> str:
    """Return in what mergekit's arithmetic may give other experts than mergekit; else nothing."""
    if not any(_EXPERT.fullmatch(name) for name in names):
        return ""
    if not fuses_experts(config):
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
        if found and found[3] in _PLACES and tensor.is_merged and len(tensor.shape) == 2:
            called = called_by_mergekit(tensor.name)
            group = groups.setdefault(called, FusedExperts(called))
            group.members[int(found[2]), _PLACES[found[3]][1]] = tensor
    return {
        member.name: group
        for group in groups.values()
        if group.is_whole
        for member in group.members.values()
    }
