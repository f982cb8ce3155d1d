"""Contract checks of every method of every registry.

Lists, schemas and recipes rely on this contract. Methods of some families must also satisfy
mathematical identities.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stillroom.distill.interfaces import (
    DistillationObjective,
    FeatureLoss,
    HiddenStateLoss,
    RelationLoss,
)
from stillroom.distill.types import AttentionHeads
from stillroom.merge.interfaces import Array, BlockContext, MergeMethod, merge_arrays
from stillroom.records import Document
from stillroom.registry import Method, Registry
from stillroom.text.interfaces import Chunker

if TYPE_CHECKING:
    import torch

    from stillroom.distill.losses.targets import TopKTargets

__all__ = [
    "check_chunker",
    "check_feature",
    "check_merge_method",
    "check_method",
    "check_objective",
]

_STATUSES = ("stable", "experimental")


def check_method(registry: str, name: str) -> None:
    """Check a method's contract: summary, source, defaults, round trip, family identities.

    Args:
        registry: The registry's dotted name, such as ``stillroom.merge.methods``.
        name: The method's name.

    Raises:
        AssertionError: With the contract that is broken.
        RecipeError: If there is no such method.
    """
    method = _find_registry(registry).get(name)
    _check_contract(method)
    if not any(info.is_required() for info in method.model_fields.values()):
        _check_round_trip(method)
        _check_family(method())


def _find_registry(group: str) -> Registry[Method]:
    """Return the registry of a folder: in the room's ``interfaces``, or in another module."""
    room, beside = ".".join(group.split(".")[:2]), group.rpartition(".")[0]
    names = [f"{room}.interfaces"]
    names += [f"{beside}.{module.name}" for module in pkgutil.iter_modules(_path_of(beside))]
    for name in names:
        for member in vars(importlib.import_module(name)).values():
            if isinstance(member, Registry) and member.group == group:
                return member
    raise AssertionError(f"{room}.interfaces holds no Registry for {group}")


def _path_of(package: str) -> Iterable[str]:
    return importlib.import_module(package).__path__


def _check_family(method: Method) -> None:
    if isinstance(method, MergeMethod):
        check_merge_method(method)
    elif isinstance(method, DistillationObjective):
        check_objective(method)
    elif isinstance(method, FeatureLoss):
        check_feature(method)
    elif isinstance(method, Chunker):
        check_chunker(method)


def _check_contract(method: type[Method]) -> None:
    path = Path(inspect.getfile(method))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    _check_docstring(method, ast.get_docstring(tree) or "")
    _check_file(method, path)
    for name, info in method.model_fields.items():
        _require(bool(info.description), f"{method.__name__}.{name} has no description")
    _require(method.status in _STATUSES, f"status is {method.status!r}, not one of {_STATUSES}")
    _require(isinstance(method.paper, str), "paper is not text")


def _check_docstring(method: type[Method], text: str) -> None:
    summary = text.split("\n", 1)[0]
    _require(bool(summary), f"the module of {method.__name__} has no summary line")
    _require(len(summary) <= 100, f"the summary is {len(summary)} characters long")
    _require(summary.endswith("."), f"the summary {summary!r} does not end in a full stop")
    named = "Source:" in text or not method.paper
    _require(named, f"the module of {method.__name__} does not say what it takes from its paper")


def _check_file(method: type[Method], path: Path) -> None:
    public = [
        name
        for name, member in vars(inspect.getmodule(method)).items()
        if inspect.isclass(member)
        and issubclass(member, Method)
        and member.__module__ == method.__module__
        and not name.startswith("_")
    ]
    _require(public == [method.__name__], f"{path.name} holds the methods {public}")
    class_name = "".join(part.capitalize() for part in path.stem.split("_"))
    _require(
        method.__name__.lower() == class_name.lower(),
        f"{path.name} holds {method.__name__}, not {class_name}",
    )


def _check_round_trip(method: type[Method]) -> None:
    built = method()
    dumped = built.model_dump(mode="json")
    _require(dumped.pop("name") == method.method_name(), "the dump does not name the method")
    again = method.model_validate(dumped)
    _require(again == built, f"{method.__name__} does not survive a round trip through JSON")
    schema = method.model_json_schema()
    _require(schema.get("additionalProperties") is False, "unknown settings are not refused")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)


_TEXT = (
    "# Bees\n\nA colony keeps the nest at 35 °C. It does so all year, even in winter.\n\n"
    "```\ncode = kept(whole)\n```\n\n## Honey\n\n| kind | sugar |\n|---|---|\n| acacia | 71 % |\n\n"
    "蜂蜜は甘い。とても甘い。 " + "A long run of words follows here, one after the other. " * 30
)


def check_merge_method(method: MergeMethod) -> None:
    """Check a merge of a tensor with itself: type, shape, bits, blocks and untouched inputs.

    Raises:
        AssertionError: With the identity that does not hold.
    """
    name = method.method_name()
    count = max(method.min_models, min(2, method.max_models))
    rng = np.random.default_rng(0)
    for shape in ((6, 4), (5,), (3, 2, 4), (), (0, 4)):
        for dtype in (np.float32, np.float64):
            tensor = np.asarray(rng.standard_normal(shape), dtype)
            _check_merge(method, tensor, count, f"{name} of {shape} in {np.dtype(dtype)}")


def _check_merge(method: MergeMethod, tensor: Array, count: int, message: str) -> None:
    base = tensor.copy() if method.needs_base else None
    parents = [tensor.copy() for _ in range(count)]
    for array in (*parents, *([base] if base is not None else [])):
        array.flags.writeable = False  # like memory-mapped tensors
    keys = tuple(f"parent{number}" for number in range(count))
    context = BlockContext("layer.weight", tensor.shape, keys, (1 / count,) * count, seed=3)
    merged = merge_arrays(method, base, parents, context)
    _require(merged.shape == tensor.shape, f"{message} changes the shape")
    _require(merged.dtype == tensor.dtype, f"{message} changes the type")
    same = merged.tobytes() == tensor.tobytes()
    _require(same, f"{message} with itself is not that tensor, bit for bit")
    again = merge_arrays(method, base, parents, context, rows=2)
    _require(again.tobytes() == merged.tobytes(), f"{message} depends on the size of blocks")
    same = all(parent.tobytes() == tensor.tobytes() for parent in parents)
    _require(same, f"{message} changes its inputs")


def check_objective(method: DistillationObjective) -> None:
    """Check that equal distributions have zero loss, and that the gradient is the loss's own.

    Raises:
        AssertionError: With the identity that does not hold.
    """
    import torch

    from stillroom.distill.losses.targets import DenseTargets

    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 11, generator=rng, dtype=torch.float64)
    name = method.method_name()
    for target in (DenseTargets(logits.clone()), _top_k(logits, method.temperature)):
        loss, grad = method.divergence(logits.clone(), target)
        _require(bool(loss.abs().max() < 1e-6), f"{name} of equal distributions is not 0")
        _require(bool(grad.abs().max() < 1e-6), f"{name} of equal distributions has a gradient")
    other = torch.randn(5, 11, generator=rng, dtype=torch.float64)
    loss, grad = method.divergence(logits.clone(), DenseTargets(other))
    _require(bool((loss >= -1e-9).all()), f"{name} is negative")
    if method.detaches_weights:
        return  # its gradient treats weights as constant that the loss does not
    step = 1e-6
    for entry in range(3):
        moved = logits.clone()
        moved[:, entry] += step
        raised, _ = method.divergence(moved, DenseTargets(other))
        slope = (raised - loss) / step
        _require(
            bool(torch.allclose(slope, grad[:, entry], atol=1e-4)),
            f"{name}: the gradient is not that of the loss",
        )


def check_feature(method: FeatureLoss) -> None:
    """Check that the loss is zero for equal inputs, and positive otherwise, at every position.

    Raises:
        AssertionError: With the identity that does not hold.
    """
    import torch

    rng = torch.Generator().manual_seed(0)
    rows, name = torch.tensor([1, 3, 4]), method.method_name()
    visible = torch.arange(5) <= rows[:, None]

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    if isinstance(method, HiddenStateLoss):
        left, right = draw(3, 8), draw(3, 8)
        same, other = method.compare(left, left.clone()), method.compare(left, right)
    elif isinstance(method, RelationLoss):
        single, two = (
            AttentionHeads(draw(4, 5, 8), draw(2, 5, 8), draw(2, 5, 8), 0.5) for _ in range(2)
        )
        method.check(single, two)
        same, other = (method.compare(single, side, rows, visible) for side in (single, two))
    else:
        raise AssertionError(f"{name} compares neither states nor heads")
    _require(same.shape == other.shape == (3,), f"{name} does not give one loss a position")
    _require(bool(same.abs().max() < 1e-9), f"{name} of equal sides is not 0")
    _require(bool((other > 0).all()), f"{name} does not see what differs")


def check_chunker(method: Chunker) -> None:
    """Check that passages are spans of the text that cover all of it.

    Raises:
        AssertionError: With the identity that does not hold.
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


def _top_k(logits: torch.Tensor, temperature: float) -> TopKTargets:
    import torch

    from stillroom.distill.losses.targets import TopKTargets

    logprobs = torch.log_softmax(logits / temperature, -1)
    top = logprobs.topk(4)
    tail = torch.log1p(-top.values.exp().sum(-1))
    return TopKTargets(top.indices, top.values, tail, temperature)
