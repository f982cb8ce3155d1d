"""Two checkpoints beside each other: which tensor belongs to which, and how they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stillroom.checkpoints.header import FLOATS
from stillroom.errors import CheckpointError, Problem, ShapeError
from stillroom.merge.method import Array
from stillroom.merge.reading import read_rows, row_steps

if TYPE_CHECKING:
    from stillroom.checkpoints import Checkpoint

__all__ = [
    "EMBEDDING",
    "HEAD",
    "are_floats",
    "difference",
    "difference_rows",
    "is_linear",
    "norm_of_difference",
    "pair_tensors",
    "wide_kind",
]

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


def difference(finetuned: Checkpoint, base: Checkpoint, name: str, home: str) -> Array:
    """Return a whole tensor of fine-tuned minus base, float64."""
    delta = read_rows(finetuned, name, dtype=np.float64)
    delta -= read_rows(base, home, dtype=np.float64)
    return delta


def norm_of_difference(finetuned: Checkpoint, base: Checkpoint, name: str, home: str) -> float:
    """Return the norm of the difference, read in blocks."""
    if not are_floats(finetuned, base, name, home):
        return 0.0
    squares = []
    for start, stop in row_steps(finetuned.shape(name)):
        block = difference_rows(finetuned, base, name, home, start, stop).astype(np.float64)
        squares.append(float(np.sum(block * block)))
    norm = math.sqrt(math.fsum(squares))
    if not math.isfinite(norm):
        raise _not_finite(name)
    return norm


def difference_rows(
    finetuned: Checkpoint, base: Checkpoint, name: str, home: str, start: int, stop: int
) -> Array:
    """Return rows of fine-tuned minus base, float32, or float64 where one is stored so."""
    dtype = np.float64 if wide_kind(finetuned, base, name) == "F64" else np.float32
    block = read_rows(finetuned, name, start, stop, dtype=np.float64)
    block -= read_rows(base, home, start, stop, dtype=np.float64)
    return block.astype(dtype, copy=False)


def wide_kind(finetuned: Checkpoint, base: Checkpoint, name: str) -> str:
    """Return the storage type that holds a difference: F32, or F64 where one is stored so."""
    kinds = {finetuned.entry(name).dtype, *({base.entry(name).dtype} if name in base else ())}
    return "F64" if "F64" in kinds else "F32"


def are_floats(finetuned: Checkpoint, base: Checkpoint, name: str, home: str) -> bool:
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


def _not_finite(name: str) -> CheckpointError:
    return CheckpointError(
        f"tensor '{name:.120}' holds numbers that are not finite",
        code="merge.not-finite",
        where=name,
        expected="finite numbers in both checkpoints",
        next="take a checkpoint from before training diverged",
    )
