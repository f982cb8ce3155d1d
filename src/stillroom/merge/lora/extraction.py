"""LoRA extraction from fine-tuned checkpoints by truncated SVD of the difference; task vectors.

What mergekit-extract-lora does. Source: truncated SVD of each difference, the best approximation of
its rank (Eckart and Young 1936); task vectors as in arXiv:2212.04089. The exact routine is LAPACK's
gesdd through numpy, in float64; the randomized one is torch.svd_lowrank (Halko et al.,
arXiv:0909.4061), with two power iterations. Changed tensors that are not matrices of linear layers
(embeddings, the head, norms) are saved whole; no change is lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stillroom.errors import DataError, RecipeError
from stillroom.jobs.files import refuse_existing
from stillroom.merge.interfaces import Array
from stillroom.merge.lora.combination import LayerError, choose_rank
from stillroom.merge.lora.peft_format import LoraFactors, save_adapter
from stillroom.merge.tensors.storage import (
    PendingTensor,
    array_to_bytes,
    iter_row_ranges,
    read_rows,
)
from stillroom.merge.tensors.structure import (
    HEAD,
    choose_difference_dtype,
    compute_difference,
    compute_difference_norm,
    is_linear,
    pair_tensors,
    read_difference_rows,
)
from stillroom.provenance import trace_sources

if TYPE_CHECKING:
    from stillroom.checkpoints import Checkpoint
    from stillroom.provenance import Parent
    from stillroom.records import Origin

__all__ = ["ExtractionReport", "SvdRoutine", "extract_lora", "extract_task_vector"]

SvdRoutine = Literal["exact", "randomized"]
DEFAULT_RANK = 32
_INPUT_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
_OVERSAMPLING, _ITERATIONS = 8, 2
_ACROSS = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})


@dataclass(frozen=True, slots=True)
class ExtractionReport:
    """Result of an extraction: error by layer, and the remaining tensors.

    ``whole`` tensors are saved unreduced; ``unchanged`` ones equal the base's.
    """

    folder: Path
    kind: str
    layers: tuple[LayerError, ...] = ()
    whole: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    routine: str = ""
    norms: dict[str, float] = field(default_factory=dict)

    @property
    def relative(self) -> float:
        """Norm of the missing part relative to that of the task vector."""
        total = math.fsum(norm**2 for norm in self.norms.values())
        missing = math.fsum(layer.error**2 for layer in self.layers)
        return math.sqrt(missing / total) if total > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return JSON-serializable values."""
        return {
            "as": self.kind,
            "out": str(self.folder),
            "routine": self.routine,
            "relative_error": self.relative,
            "layers": [layer.to_json() for layer in self.layers],
            "whole": list(self.whole),
            "unchanged": list(self.unchanged),
            "norms": self.norms,
        }

    def __str__(self) -> str:
        lines = [f"{self.kind} of {len(self.norms)} changed tensors in {self.folder}"]
        if self.layers:
            lines.append(f"{'tensor':<52} {'rank':>9} {'error':>10} {'relative':>9}")
        lines += [
            f"{layer.name:<52} {f'{layer.rank}/{layer.full_rank}':>9} "
            f"{layer.error:>10.4g} {layer.relative:>9.4f}"
            for layer in self.layers
        ]
        lines += [f"carried whole: {name}" for name in self.whole]
        lines.append(f"unchanged: {len(self.unchanged)} tensors")
        if self.layers:
            lines.append(f"relative error of the whole: {self.relative:.4f} (SVD: {self.routine})")
        return "\n".join(lines)


def extract_lora(
    finetuned: Checkpoint,
    base: Checkpoint,
    folder: Path,
    *,
    rank: int | None = None,
    error: float | None = None,
    routine: SvdRoutine = "exact",
    seed: int = 0,
    overwrite: bool = False,
) -> ExtractionReport:
    """Write the difference of two checkpoints as a LoRA adapter that peft loads.

    Args:
        finetuned: The fine-tuned checkpoint.
        base: The checkpoint it was trained from.
        folder: Output folder, written atomically.
        rank: Maximum rank per tensor; default 32, or as needed for ``error``.
        error: Maximum relative error (Frobenius) per tensor; the rank then differs by tensor.
        routine: ``exact`` or ``randomized``; the latter needs a rank.
        seed: Random seed of the randomized routine.
        overwrite: Replace an existing ``folder``.

    Raises:
        RecipeError: If rank, error and routine are incompatible.
        CheckpointError: If the checkpoints do not match.
        ShapeError: If shapes differ.
        DataError: If nothing changed, or ``folder`` exists.
    """
    if rank is None and error is None:
        rank = DEFAULT_RANK
    _check_settings(rank, error, routine)
    pairs = pair_tensors(finetuned, base)
    is_across = str(base.config.get("model_type")) in _ACROSS
    parts = _ExtractedTensors()
    for name, home in pairs:
        shape = finetuned.shape(name)
        norm = compute_difference_norm(finetuned, base, name, home)
        if not norm:
            parts.unchanged.append(name)
        elif is_linear(name, shape):
            delta = compute_difference(finetuned, base, name, home)
            factors, layer = _factor(
                name, delta.T if is_across else delta, rank, error, routine, seed
            )
            parts.factors[name] = factors
            parts.layers.append(layer)
        else:
            parts.whole.append(name)
        if norm:
            parts.norms[name] = norm
    _refuse_nothing(parts.norms, finetuned, base)
    listed = (tuple(parts.layers), tuple(parts.whole), tuple(parts.unchanged))
    result = ExtractionReport(folder, "lora", *listed, routine, parts.norms)
    _save_lora(
        result,
        parts,
        finetuned,
        base,
        is_across=is_across,
        settings={"as": "lora", "rank": rank, "error": error},
        seed=seed,
        overwrite=overwrite,
    )
    return result


def extract_task_vector(
    finetuned: Checkpoint,
    base: Checkpoint,
    folder: Path,
    *,
    overwrite: bool = False,
) -> ExtractionReport:
    """Write the difference of two checkpoints by tensor, in float32 (float64 for float64 tensors).

    The folder is a checkpoint with the model type ``task_vector``, so that it cannot be loaded as a
    model. Unchanged tensors are skipped and counted.

    Raises:
        CheckpointError: If the checkpoints do not match.
        ShapeError: If shapes differ.
        DataError: If nothing changed, or ``folder`` exists.
    """
    from stillroom.checkpoints import CheckpointWriter

    holds = ("README.md", "artifact.json", "config.json", "model*.safetensors*")
    refuse_existing(folder, holds, overwrite=overwrite)
    pairs = pair_tensors(finetuned, base)
    norms = {name: compute_difference_norm(finetuned, base, name, home) for name, home in pairs}
    changed = {name: norm for name, norm in norms.items() if norm > 0}
    _refuse_nothing(changed, finetuned, base)
    homes = dict(pairs)
    plan = {
        name: (choose_difference_dtype(finetuned, base, name), finetuned.shape(name))
        for name in changed
    }
    parents, origin = _trace(finetuned, base, folder)
    config = {
        "model_type": "task_vector",
        "base_fingerprint": base.fingerprint,
        "finetuned_fingerprint": finetuned.fingerprint,
    }
    with CheckpointWriter(folder, config=config, plan=plan) as writer:
        for name in sorted(changed):
            kind, shape = plan[name]
            writer.begin(name, (kind, shape))
            for start, stop in iter_row_ranges(shape):
                data = read_difference_rows(finetuned, base, name, homes[name], start, stop)
                view = array_to_bytes(data)
                writer.place_rows(name, start, view)
                writer.note_rows(view)
            writer.end(name)
        unchanged = tuple(name for name, norm in norms.items() if not norm)
        writer.write_card(
            "Task vector",
            f"{finetuned.folder.name} (`{finetuned.fingerprint}`) minus {base.folder.name} "
            f"(`{base.fingerprint}`), extracted by Stillroom. "
            f"{len(changed)} tensors changed, {len(unchanged)} did not.",
            license=origin.license,
            base_models=[base.folder.name],
            tags=["task-vector"],
        )
        writer.state_artifact(parents, origin, {"as": "task_vector", "norms": changed})
    return ExtractionReport(folder, "task_vector", unchanged=unchanged, norms=changed)


@dataclass
class _ExtractedTensors:
    """Tensors collected during an extraction."""

    factors: dict[str, LoraFactors] = field(default_factory=dict)
    layers: list[LayerError] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    norms: dict[str, float] = field(default_factory=dict)


def _save_lora(
    result: ExtractionReport,
    parts: _ExtractedTensors,
    finetuned: Checkpoint,
    base: Checkpoint,
    *,
    is_across: bool,
    settings: dict[str, Any],
    seed: int,
    overwrite: bool,
) -> None:
    parents, origin = _trace(finetuned, base, result.folder)
    modules = {name.rpartition(".")[0] for name in parts.factors}
    read = {name: _as_stored(finetuned, name) for name in parts.whole}
    carried = {name: read.pop(name) for name in parts.whole if name.rpartition(".")[0] in modules}
    embedding = next((name for name in read if name.endswith(_INPUT_EMBEDDINGS)), "")
    kinds = map(str, base.config.get("architectures") or ())
    has_head = any(kind.endswith(("ForCausalLM", "LMHeadModel")) for kind in kinds)
    if embedding and HEAD not in base and HEAD not in read and has_head:
        read[HEAD] = read[embedding]  # the head is tied, and peft unties replaced embeddings
    table = ["| tensor | rank | relative error |", "|---|---|---|"]
    table += [f"| {layer.name} | {layer.rank} | {layer.relative:.4f} |" for layer in parts.layers]
    body = [
        f"{finetuned.folder.name} (`{finetuned.fingerprint}`) minus {base.folder.name} "
        f"(`{base.fingerprint}`), extracted by Stillroom with the {result.routine} SVD.",
        "",
        f"Relative error of the whole: {result.relative:.4f}. Carried whole: "
        f"{', '.join(parts.whole) or 'nothing'}. Unchanged: {len(parts.unchanged)} tensors.",
        "",
        *table,
    ]
    save_adapter(
        result.folder,
        parts.factors,
        replaced_tensors=read,
        carried=carried,
        base_name=str(base.folder),
        config={"fan_in_fan_out": is_across, "bias": "lora_only" if carried else "none"},
        title="Extracted adapter",
        body="\n".join(body),
        parents=parents,
        origin=origin,
        details=settings | {"routine": result.routine, "relative_error": result.relative},
        seed=seed,
        overwrite=overwrite,
    )


def _as_stored(finetuned: Checkpoint, name: str) -> PendingTensor:
    entry = finetuned.entry(name)
    dtype = np.float64 if entry.dtype == "F64" else np.float32
    return PendingTensor(entry.dtype, entry.shape, lambda: read_rows(finetuned, name, dtype=dtype))


def _factor(
    name: str, delta: Array, rank: int | None, error: float | None, routine: SvdRoutine, seed: int
) -> tuple[LoraFactors, LayerError]:
    """Return the factors of one difference, (out, in), and their error."""
    energy = None if error is None else 1 - error**2
    size = float(np.linalg.norm(delta))
    if routine == "exact":
        u, values, v = np.linalg.svd(delta, full_matrices=False)
        rank_kept = choose_rank(values, rank=rank, energy=energy)
        missing = float(np.linalg.norm(values[rank_kept:]))
    else:
        u, values, v = _sketch(delta, rank or DEFAULT_RANK, seed)
        rank_kept = min(rank or DEFAULT_RANK, len(values))
    roots = np.sqrt(values[:rank_kept])
    left, right = u[:, :rank_kept] * roots, roots[:, None] * v[:rank_kept]
    if routine == "randomized":
        missing = float(np.linalg.norm(delta - left @ right))
    layer = LayerError(name, min(delta.shape), rank_kept, missing, size)
    return LoraFactors(left, right), layer


def _sketch(delta: Array, rank: int, seed: int) -> tuple[Array, Array, Array]:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        u, values, v = torch.svd_lowrank(
            torch.from_numpy(np.ascontiguousarray(delta)),
            q=min(rank + _OVERSAMPLING, *delta.shape),
            niter=_ITERATIONS,
        )
    return u.numpy(), values.numpy(), v.numpy().T


def _check_settings(rank: int | None, error: float | None, routine: SvdRoutine) -> None:
    wrong = ""
    if rank is not None and rank < 1:
        wrong = f"the rank {rank} is below 1"
    elif error is not None and not 0 <= error < 1:
        wrong = f"the error {error} is not in [0, 1)"
    elif routine == "randomized" and (rank is None or error is not None):
        wrong = "the randomized routine needs a rank and does not support an error bound"
    if wrong:
        raise RecipeError(
            wrong,
            code="merge.extract-settings",
            expected="a rank from 1, an error in [0, 1), the exact routine for an error",
            next="give --rank 32, or --error 0.1",
        )


def _refuse_nothing(norms: dict[str, float], finetuned: Checkpoint, base: Checkpoint) -> None:
    if not norms:
        raise DataError(
            f"{finetuned.folder.name} and {base.folder.name} have the same weights",
            code="merge.nothing-changed",
            where=str(finetuned.folder),
            expected="a checkpoint that training changed",
            next="check which folder is the fine-tuned one",
        )


def _trace(finetuned: Checkpoint, base: Checkpoint, near: Path) -> tuple[list[Parent], Origin]:
    named = (("finetuned", finetuned), ("base", base))
    sources = [(role, one.folder, one.fingerprint, one.license) for role, one in named]
    return trace_sources("merge.lora.extraction", sources, near)
