"""The plan of a merge: what becomes of every tensor, before any is read.

Works on names, shapes and configs alone; every tensor of every source is merged, copied, or a
reason to refuse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from stillroom.checkpoints.header import DTYPE_SIZES
from stillroom.errors import CheckpointError, Problem, ShapeError
from stillroom.merge.recipe import MergeRecipe

if TYPE_CHECKING:
    from stillroom.merge.sources import Source

__all__ = [
    "BLOCK_ELEMENTS",
    "MergePlan",
    "PlannedTensor",
    "Rules",
    "plan_merge",
    "plan_sources",
    "rules_of",
]

BLOCK_ELEMENTS = 1 << 18
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_MOST_SHOWN = 8
_FLOATS = ("F64", "F32", "BF16", "F16", "F8_E4M3", "F8_E5M2")
_SHORT_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_MUST_AGREE = (
    "model_type",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
)


@dataclass(frozen=True, slots=True)
class Rules:
    """Which tensors are merged, and how the result is stored."""

    dtype: str | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    rest: Literal["refuse", "copy"] = "refuse"

    def merges(self, name: str) -> bool:
        """Return whether the patterns say that a tensor is merged."""
        return any(fnmatchcase(name, pattern) for pattern in self.include) and not any(
            fnmatchcase(name, pattern) for pattern in self.exclude
        )


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """What becomes of one tensor.

    ``stored`` is its storage type in the result. ``homes`` say under which name each source (the
    base first, where there is one) has it; a copied tensor has one home, ``owner`` its source.
    """

    name: str
    stored: str
    shape: tuple[int, ...]
    homes: tuple[str, ...]
    owner: int = -1

    @property
    def is_merged(self) -> bool:
        """Whether it is merged; otherwise it is copied from ``owner``."""
        return self.owner < 0

    @property
    def size_bytes(self) -> int:
        """How many bytes it takes in the result."""
        return math.prod(self.shape) * DTYPE_SIZES[self.stored]


@dataclass(frozen=True, slots=True)
class MergePlan:
    """Every tensor of the result in order of name, and what the merge costs."""

    method: str
    sources: tuple[str, ...]
    tensors: tuple[PlannedTensor, ...]
    tied: tuple[str, ...]
    is_tied: bool
    read_bytes: int
    passes: int

    @property
    def written_bytes(self) -> int:
        """The bytes of the result's tensors."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def memory_bytes(self) -> int:
        """The most memory that blocks take: inputs as stored and as computed, and temporaries."""
        widest = max(
            (max(BLOCK_ELEMENTS, math.prod(tensor.shape[1:])) for tensor in self.tensors), default=0
        )
        return widest * 8 * (4 * len(self.sources) + 6)

    def count(self, *, merged: bool) -> int:
        """Return how many tensors are merged, or copied."""
        return sum(tensor.is_merged == merged for tensor in self.tensors)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "method": self.method,
            "sources": list(self.sources),
            "merged": self.count(merged=True),
            "copied": [tensor.name for tensor in self.tensors if not tensor.is_merged],
            "tied": list(self.tied),
            "read_bytes": self.read_bytes,
            "written_bytes": self.written_bytes,
            "memory_bytes": self.memory_bytes,
            "passes": self.passes,
        }

    def __str__(self) -> str:
        """Return the plan as the lines a user reads."""
        copied = [tensor.name for tensor in self.tensors if not tensor.is_merged]
        lines = [
            f"{self.method} of {', '.join(self.sources)}",
            f"  merges {self.count(merged=True)} tensors, copies {len(copied)}",
            f"  reads {self.read_bytes / 1e6:.1f} MB, up to {self.passes} times; "
            f"writes {self.written_bytes / 1e6:.1f} MB",
            f"  holds about {self.memory_bytes / 1e6:.0f} MB of blocks in memory",
        ]
        lines += [f"  copies {name}" for name in copied]
        lines += [f"  leaves out {name}: it is tied to {_EMBEDDING}" for name in self.tied]
        return "\n".join(lines)


def plan_merge(recipe: MergeRecipe) -> MergePlan:
    """Return the plan of a recipe, having read headers only.

    Raises:
        CheckpointError: If a source is missing or broken, or the sources do not belong together.
        ShapeError: If a tensor's shapes differ.
    """
    from stillroom.merge.sources import open_sources

    base, parents = open_sources(recipe)
    return plan_sources(recipe.method.method_name(), base, parents, rules_of(recipe))


def rules_of(recipe: MergeRecipe) -> Rules:
    """Return the rules that a recipe sets."""
    return Rules(recipe.out.dtype, recipe.include, recipe.exclude, recipe.rest)


def plan_sources(
    method: str, base: Source | None, parents: Sequence[Source], rules: Rules
) -> MergePlan:
    """Return the plan for opened sources.

    Raises:
        CheckpointError: If the sources do not belong together.
        ShapeError: If a tensor's shapes differ.
    """
    sources = [*([base] if base else []), *parents]
    _check_configs(sources)
    all_tied = all(source.checkpoint.is_tied for source in sources)
    names = sorted({name for source in sources for name in source.checkpoint.names()})
    tied = tuple(name for name in names if name == _HEAD and all_tied and _EMBEDDING in names)
    problems: list[Problem] = []
    shapes: list[Problem] = []
    planned = []
    for name in names:
        if name not in tied:
            found = _plan_tensor(name, sources, rules, problems, shapes)
            planned += [found] if found else []
    for kind, listed in ((ShapeError, shapes), (CheckpointError, problems)):
        if listed:
            raise kind(_shorten(listed))
    read = sum(
        _entry_bytes(source, home)
        for tensor in planned
        if tensor.is_merged
        for source, home in zip(sources, tensor.homes, strict=True)
    )
    return MergePlan(
        method,
        tuple(source.name for source in sources),
        tuple(planned),
        tied,
        all_tied,
        read,
        4 if method == "ties" else 2 if method in {"slerp", "model_stock"} else 1,
    )


def _plan_tensor(
    name: str,
    sources: Sequence[Source],
    rules: Rules,
    problems: list[Problem],
    shapes: list[Problem],
) -> PlannedTensor | None:
    homes = [_home(source, name) for source in sources]
    having = [index for index, home in enumerate(homes) if home]
    lacking = [source.name for source, home in zip(sources, homes, strict=True) if not home]
    entries = [sources[index].checkpoint.entry(homes[index]) for index in having]
    if lacking and rules.rest == "refuse" and rules.merges(name):
        problems.append(
            Problem(
                f"tensor '{name}' is missing in {', '.join(lacking)}",
                "merge.missing-tensor",
                name,
                "the same tensors in every model",
                "merge models of one architecture, or set 'rest' to 'copy'",
            )
        )
        return None
    if lacking or not rules.merges(name):
        return _copied(name, homes, having[0], entries[0], rules)
    if len({entry.shape for entry in entries}) > 1:
        listed = ", ".join(
            f"{source.name} {entry.shape}" for source, entry in zip(sources, entries, strict=True)
        )
        shapes.append(
            Problem(
                f"tensor '{name}' has different shapes: {listed}",
                "merge.shape",
                name,
                "one shape in every model",
                "merge models of one architecture and vocabulary, or exclude this tensor",
            )
        )
        return None
    if any(entry.dtype not in _FLOATS for entry in entries) or 0 in entries[0].shape:
        return _copied(name, homes, having[0], entries[0], rules)
    stored = _SHORT_NAMES[rules.dtype] if rules.dtype else _widest([e.dtype for e in entries])
    return PlannedTensor(name, stored, entries[0].shape, tuple(homes))


def _copied(name: str, homes: Sequence[str], owner: int, entry: Any, rules: Rules) -> PlannedTensor:
    stored = entry.dtype
    if rules.dtype and stored in _FLOATS:
        stored = _SHORT_NAMES[rules.dtype]
    return PlannedTensor(name, stored, entry.shape, (homes[owner],), owner)


def _home(source: Source, name: str) -> str:
    """Return under which name a source has a tensor; a tied output embedding is the input one."""
    tied = name == _HEAD and source.checkpoint.is_tied and _EMBEDDING in source.checkpoint
    if tied:
        return _EMBEDDING
    return name if name in source.checkpoint else ""


def _widest(dtypes: Sequence[str]) -> str:
    kinds = set(dtypes)
    if len(kinds) == 1:
        return dtypes[0]
    return "F64" if "F64" in kinds else "F32"


def _entry_bytes(source: Source, home: str) -> int:
    return source.checkpoint.entry(home).size_bytes


def _check_configs(sources: Sequence[Source]) -> None:
    problems = []
    for key in (*_MUST_AGREE, "rope"):
        values = {source.name: _setting(source.checkpoint.config, key) for source in sources}
        if len({repr(value) for value in values.values() if value is not None}) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in values.items())
            problems.append(
                Problem(
                    f"the models disagree about {key}: {listed}",
                    "merge.config",
                    "config.json",
                    "models of one family, fine-tuned from one base",
                    "merge models that share their architecture",
                )
            )
    digests = {source.name: source.checkpoint.vocabulary_digest for source in sources}
    if len({digest for digest in digests.values() if digest}) > 1:
        problems.append(
            Problem(
                f"the models number their tokens differently: {', '.join(digests)}",
                "merge.tokenizer",
                "tokenizer.json",
                "one vocabulary, so that row n of every embedding is the same token",
                "merge models that share their tokenizer",
            )
        )
    if problems:
        raise CheckpointError(_shorten(problems))


def _setting(config: Mapping[str, Any], key: str) -> Any:
    if key != "rope":
        value = config.get(key)
        return float(value) if isinstance(value, int | float) else value
    rope = config.get("rope_parameters")
    theta = rope.get("rope_theta") if isinstance(rope, Mapping) else None
    theta = config.get("rope_theta") if theta is None else theta
    return float(theta) if isinstance(theta, int | float) else None


def _shorten(problems: list[Problem]) -> list[Problem]:
    """Return the first problems, and one that counts the others."""
    left = len(problems) - _MOST_SHOWN
    if left <= 0:
        return problems
    return [*problems[:_MOST_SHOWN], Problem(f"and {left} tensors more", problems[0].code)]
