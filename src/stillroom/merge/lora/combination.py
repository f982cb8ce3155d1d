"""Merging of LoRA adapters: their weighted sum in low-rank form, by concatenation and SVD.

The factors are concatenated, and compressed by QR of both stacked factors and the SVD of the small
matrix between them. This is the best approximation of any rank (Eckart and Young 1936), at a cost
of O(d r^2) instead of O(d^3). A and B are never averaged separately, which would add products of
one adapter's A and another's B. Differs from peft's ``add_weighted_adapter``: weights and scales
are applied once, to the product; biases, patterns and whole tensors are kept; and changes that
cannot be expressed as an adapter are rejected by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.errors import CheckpointError, RecipeError
from stillroom.merge.interfaces import Array
from stillroom.merge.lora.peft_format import LoraFactors, save_adapter
from stillroom.merge.tensors.storage import PendingTensor, read_rows
from stillroom.provenance import trace_sources

if TYPE_CHECKING:
    from stillroom.checkpoints import Checkpoint
    from stillroom.merge.lora.adapter import Adapter

__all__ = ["AdapterMergeReport", "LayerError", "choose_rank", "compress_product", "merge_adapters"]


@dataclass(frozen=True, slots=True)
class LayerError:
    """Error of compressing one tensor's product: ranks before and after, and Frobenius norms.

    ``error`` is the norm of the truncated part, ``norm`` that of the full product; ``norm`` is 0 if
    nothing was truncated and so nothing measured.
    """

    name: str
    full_rank: int
    rank: int
    error: float
    norm: float

    @property
    def relative(self) -> float:
        """Truncated norm relative to the full norm."""
        return self.error / self.norm if self.norm > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return JSON-serializable values."""
        return {
            "name": self.name,
            "full_rank": self.full_rank,
            "rank": self.rank,
            "error": self.error,
            "relative": self.relative,
        }


@dataclass(frozen=True, slots=True)
class AdapterMergeReport:
    """Result of merging adapters: folder, error by layer, replaced tensors, notes."""

    folder: Path
    layers: tuple[LayerError, ...]
    replaced: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def relative(self) -> float:
        """Truncated norm over all layers, relative to the full norm."""
        cut = math.fsum(layer.error**2 for layer in self.layers)
        total = math.fsum(layer.norm**2 for layer in self.layers)
        return math.sqrt(cut / total) if total > 0 else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return JSON-serializable values."""
        return {
            "layers": [layer.to_json() for layer in self.layers],
            "replaced": list(self.replaced),
            "notes": list(self.notes),
            "relative_error": self.relative,
            "out": str(self.folder),
        }

    def __str__(self) -> str:
        lines = [f"{'tensor':<52} {'rank':>9} {'relative error':>15}"]
        lines += [
            f"{layer.name:<52} {f'{layer.rank}/{layer.full_rank}':>9} {layer.relative:>15.3g}"
            for layer in self.layers
        ]
        lines += [f"whole: {name}" for name in self.replaced]
        return "\n".join([*lines, *self.notes, f"wrote {self.folder}"])


@dataclass
class _MergedTensors:
    """Contents of the merged adapter, by tensor name of the base."""

    factors: dict[str, LoraFactors] = field(default_factory=dict)
    biases: dict[str, Array] = field(default_factory=dict)
    whole: dict[str, Array] = field(default_factory=dict)
    carried: dict[str, Array] = field(default_factory=dict)


def compress_product(
    left: Array, right: Array, *, rank: int | None = None, energy: float | None = None
) -> tuple[Array, Array, Array]:
    """Return the best low-rank approximation of a product, and all of its singular values.

    Args:
        left: (rows, r).
        right: (r, columns).
        rank: Maximum rank; default all.
        energy: Keep the fewest singular values with this share of the sum of squares.

    Returns:
        (rows, k), (k, columns) with the singular values split evenly between both, and the singular
        values, (at most r), largest first. The norm of the truncated part is that of the values
        from k on.
    """
    left_basis, left_core = np.linalg.qr(left)
    right_basis, right_core = np.linalg.qr(right.T)
    u, values, v = np.linalg.svd(left_core @ right_core.T, full_matrices=False)
    kept = choose_rank(values, rank=rank, energy=energy)
    roots = np.sqrt(values[:kept])
    return left_basis @ (u[:, :kept] * roots), (roots[:, None] * v[:kept]) @ right_basis.T, values


def choose_rank(values: Array, *, rank: int | None = None, energy: float | None = None) -> int:
    """Return the number of singular values to keep: at least one, at most ``rank``."""
    rank_kept = len(values) if rank is None else min(rank, len(values))
    if energy is not None:
        shares = np.cumsum(values**2)
        total = shares[-1] if len(shares) else 0.0
        needed = int(np.searchsorted(shares, energy * total * (1 - 1e-15))) + 1
        rank_kept = min(rank_kept, needed if total > 0 else 1)
    return max(1, rank_kept)


def merge_adapters(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    folder: Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    base: Checkpoint | None = None,
    overwrite: bool = False,
) -> AdapterMergeReport:
    """Write the weighted sum of adapters as one adapter that peft loads.

    Without ``rank`` and ``energy`` it is exact: ranks add up. Computed in float64, stored in
    float32.

    Args:
        adapters: Adapters of one base.
        weights: One per adapter; multiplies its change.
        folder: Output folder, written atomically.
        rank: Maximum rank per tensor.
        energy: Share of the squared singular values to keep per tensor, in (0, 1].
        base: The base; only needed if adapters contain whole tensors (``modules_to_save``), whose
            differences from it are summed.
        overwrite: Replace an existing ``folder``.

    Raises:
        RecipeError: If weights or settings are invalid.
        CheckpointError: If an adapter's change cannot be expressed as a sum of products.
        DataError: If ``folder`` exists.
    """
    _check_settings(adapters, weights, rank, energy)
    parts = _MergedTensors()
    layers: list[LayerError] = []
    for name in sorted({name for adapter in adapters for name in adapter.names()}):
        having = [
            (adapter, weight)
            for adapter, weight in zip(adapters, weights, strict=True)
            if name in adapter
        ]
        layers += _merge_tensor(name, having, parts, rank, energy, base)
    names = sorted({adapter.base_name for adapter in adapters if adapter.base_name})
    note = f"The adapters name different bases: {', '.join(names)}."
    notes = (note,) if len(names) > 1 else ()
    result = AdapterMergeReport(folder, tuple(layers), tuple(sorted(parts.whole)), notes)
    rows = [
        f"| {adapter.folder.name} | {weight:g} | `{adapter.fingerprint}` |"
        for adapter, weight in zip(adapters, weights, strict=True)
    ]
    sources = [("adapter", one.folder, one.fingerprint, one.license) for one in adapters]
    sources += [("base", base.folder, base.fingerprint, base.license)] if base else []
    parents, origin = trace_sources("merge.lora.combination", sources, folder)
    body = ["The weighted sum of adapters, merged by Stillroom in their own space.", ""]
    body += ["| adapter | weight | fingerprint |", "|---|---|---|", *rows, ""]
    body += [f"Relative error of the sum after compression: {result.relative:.3g}.", *notes]
    save_adapter(
        folder,
        parts.factors,
        biases=parts.biases,
        replaced_tensors={
            name: PendingTensor.of("F32", values) for name, values in parts.whole.items()
        },
        carried={name: PendingTensor.of("F32", values) for name, values in parts.carried.items()},
        base_name=next((a.base_name for a in adapters if a.base_name), ""),
        config={
            "fan_in_fan_out": bool(adapters[0].config.get("fan_in_fan_out")),
            "task_type": adapters[0].config.get("task_type"),
        },
        title="Merged adapter",
        body="\n".join(body),
        parents=parents,
        origin=origin,
        details={
            "weights": list(weights),
            "rank": rank,
            "energy": energy,
            "relative_error": result.relative,
        },
        overwrite=overwrite,
    )
    return result


def _merge_tensor(
    name: str,
    having: Sequence[tuple[Adapter, float]],
    parts: _MergedTensors,
    rank: int | None,
    energy: float | None,
    base: Checkpoint | None,
) -> Iterator[LayerError]:
    if all(adapter.changes[name].bias for adapter, _ in having):
        parts.biases[name] = sum(
            (weight * adapter.bias(name) for adapter, weight in having), np.zeros(())
        )
        return
    if all(adapter.is_replaced(name) for adapter, _ in having):
        parts.whole[name] = _sum_whole(name, having, base)
        return
    replacements = {adapter.digest_replaced(name) for adapter, _ in having}
    if len(replacements) > 1 or any(
        not adapter.rank(name) or adapter.changes[name].magnitude for adapter, _ in having
    ):
        raise _not_a_sum_error(name, having)
    if replacements != {""}:
        parts.carried[name] = having[0][0].replacement(name)
    pairs = [(adapter.matrices(name), weight) for adapter, weight in having]
    left = np.concatenate([b * weight for (b, _), weight in pairs], axis=1)
    right = np.concatenate([a for (_, a), _ in pairs])
    full, error, norm = len(right), 0.0, 0.0
    if rank is not None or energy is not None:
        left, right, values = compress_product(left, right, rank=rank, energy=energy)
        error = float(np.linalg.norm(values[len(right) :]))
        norm = float(np.linalg.norm(values))
    parts.factors[name] = LoraFactors(left, right, having[0][0].changes[name].is_embedding)
    yield LayerError(name, full, len(right), error, norm)


def _sum_whole(
    name: str, having: Sequence[tuple[Adapter, float]], base: Checkpoint | None
) -> Array:
    """Return the base's tensor plus the weighted differences of the adapters' whole tensors."""
    if base is None:
        raise RecipeError(
            f"{having[0][0].folder.name} contains the whole tensor '{name:.120}', whose "
            f"difference from a base is needed",
            code="merge.base",
            where=name,
            expected="the checkpoint that the adapters were trained on",
            next="give the base, too",
        )
    start = read_rows(base, having[0][0].find_tied(name, base) or name, dtype=np.float64)
    total = start.copy()
    for adapter, weight in having:
        total += weight * (adapter.replacement(name) - start)
    return total


def _check_settings(
    adapters: Sequence[Adapter], weights: Sequence[float], rank: int | None, energy: float | None
) -> None:
    wrong = ""
    if not adapters or len(adapters) != len(weights):
        counts = [(len(adapters), "adapter"), (len(weights), "weight")]
        given = " and ".join(f"{count} {noun}{'s' * (count != 1)}" for count, noun in counts)
        wrong = f"{given}: not one weight for each"
    elif not all(math.isfinite(weight) for weight in weights):
        wrong = f"the weights {list(weights)} are not all finite"
    elif not any(weights):
        wrong = "every weight is 0, so that the sum would change nothing"
    elif rank is not None and rank < 1:
        wrong = f"the rank {rank} is below 1"
    elif energy is not None and not 0 < energy <= 1:
        wrong = f"the energy {energy} is not a share above 0 and up to 1"
    elif len({bool(adapter.config.get("fan_in_fan_out")) for adapter in adapters}) > 1:
        wrong = "some adapters have fan_in_fan_out, and others have not"
    if wrong:
        raise RecipeError(
            wrong,
            code="merge.adapter-settings",
            expected="adapters of one base, a finite weight each, rank from 1, energy in (0, 1]",
            next="give --weight once for each adapter, in their order, or not at all (1 each)"
            if len(adapters) != len(weights)
            else "correct the setting",
        )


def _not_a_sum_error(name: str, having: Sequence[tuple[Adapter, float]]) -> CheckpointError:
    listed = ", ".join(adapter.folder.name for adapter, _ in having)
    return CheckpointError(
        f"the changes of {listed} to tensor '{name:.120}' do not add up to one product",
        code="merge.adapter-not-a-sum",
        where=name,
        expected="LoRA in all of them: no DoRA, no whole tensor in one and a product in another",
        next="merge them in weight space: give each as base and adapter to a method",
    )
