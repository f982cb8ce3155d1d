"""What must hold for every method of a family: the identities of its mathematics."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from stillroom.distill.method import Objective
from stillroom.distill.targets import Dense, TopKTail
from stillroom.merge.method import Block, MergeMethod, Place
from stillroom.records import Document
from stillroom.text.method import Chunker

__all__ = ["check_chunker", "check_merge_method", "check_objective"]

_TEXT = (
    "# Bees\n\nA colony keeps the nest at 35 °C. It does so all year, even in winter.\n\n"
    "```\ncode = kept(whole)\n```\n\n## Honey\n\n| kind | sugar |\n|---|---|\n| acacia | 71 % |\n\n"
    "蜂蜜は甘い。とても甘い。 " + "A long run of words follows here, one after the other. " * 30
)


class _Whole:
    """One tensor as a single block."""

    def __init__(self, block: Block) -> None:
        self.block = block

    @property
    def at(self) -> Place:
        return self.block.at

    def __iter__(self) -> Iterator[Block]:
        yield self.block


def check_merge_method(method: MergeMethod) -> None:
    """Check that merging a tensor with itself gives it back, and that inputs are not changed.

    Raises:
        AssertionError: Naming what does not hold.
    """
    rng = torch.Generator().manual_seed(0)
    base = torch.randn(6, 4, generator=rng)
    count = max(method.least_parents, min(2, method.most_parents))
    parents = tuple(base.clone() for _ in range(count))
    share = (1.0 / count,) * count
    densities = (None,) * count if method.uses_densities else ()
    keys = tuple(f"parent{number}" for number in range(count))
    at = Place("layer.weight", (6, 4), keys, share, densities, seed=3)
    blocks = _Whole(Block(base.clone() if method.needs_base else None, parents, at))
    overall = method.survey([blocks])
    at = Place(at.name, at.shape, keys, share, densities, seed=3, overall=overall)
    block = Block(blocks.block.base, parents, at)
    measured = method.measure(_Whole(block))
    merged = method.combine(block.base, parents, measured, at)
    name = method.method_name()
    _require(merged.shape == base.shape, f"{name} changes the shape")
    _require(merged.dtype == base.dtype, f"{name} changes the type")
    _require(bool(torch.equal(merged, base)), f"{name} of a tensor with itself is not that tensor")
    same = all(torch.equal(parent, base) for parent in parents)
    _require(same, f"{name} changes its inputs")


def check_objective(method: Objective) -> None:
    """Check that equal distributions cost nothing, and that the gradient is the loss's own.

    Raises:
        AssertionError: Naming what does not hold.
    """
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 11, generator=rng, dtype=torch.float64)
    name = method.method_name()
    for target in (Dense(logits.clone()), _top_k(logits, method.temperature)):
        loss, grad = method.divergence(logits.clone(), target)
        _require(bool(loss.abs().max() < 1e-6), f"{name} of equal distributions is not 0")
        _require(bool(grad.abs().max() < 1e-6), f"{name} of equal distributions has a gradient")
    other = torch.randn(5, 11, generator=rng, dtype=torch.float64)
    loss, grad = method.divergence(logits.clone(), Dense(other))
    _require(bool((loss >= -1e-9).all()), f"{name} is negative")
    step = 1e-6
    for entry in range(3):
        moved = logits.clone()
        moved[:, entry] += step
        raised, _ = method.divergence(moved, Dense(other))
        slope = (raised - loss) / step
        _require(
            bool(torch.allclose(slope, grad[:, entry], atol=1e-4)),
            f"{name}: the gradient is not that of the loss",
        )


def check_chunker(method: Chunker) -> None:
    """Check that passages are pieces of the text that cover all of it.

    Raises:
        AssertionError: Naming what does not hold.
    """
    document = Document("bees.md", "0" * 64, "text/markdown", _TEXT)
    passages = list(method.chunk(document))
    name = method.method_name()
    covered = bytearray(len(_TEXT))
    for passage in passages:
        same = _TEXT[passage.start : passage.end] == passage.text
        _require(same, f"{name}: a passage is not its span")
        _require(bool(passage.text.strip()), f"{name} gives an empty passage")
        covered[passage.start : passage.end] = b"\x01" * (passage.end - passage.start)
    missed = [char for char, seen in zip(_TEXT, covered, strict=True) if not seen and char.strip()]
    _require(not missed, f"{name} loses text")
    starts = [passage.start for passage in passages]
    _require(starts == sorted(set(starts)), f"{name}: starts do not increase")
    _require(passages == list(method.chunk(document)), f"{name} gives other passages each time")


def _top_k(logits: torch.Tensor, temperature: float) -> TopKTail:
    logprobs = torch.log_softmax(logits / temperature, -1)
    top = logprobs.topk(4)
    tail = torch.log1p(-top.values.exp().sum(-1))
    return TopKTail(top.indices, top.values, tail, temperature)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)
