"""``compat: mergekit``: whole tensors, in mergekit's types, order of operations and of visits.

For those who must get the weights that mergekit 0.1.5 gives. Every tensor is cast when it is read,
the arithmetic is the method's ``replicate``, and random numbers come from torch's one generator,
seeded once; so, other than in the paper's mode, the result depends on the order of models and on
which tensors there are, and whole tensors are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from stillroom.checkpoints.numbers import BIT_TYPES, has_not_finite
from stillroom.checkpoints.store import torch_dtype
from stillroom.jobs import Journal
from stillroom.merge.fused import FusedExperts, fuses_experts, group_experts
from stillroom.merge.method import Array, Place
from stillroom.merge.plan import Input, MergePlan, PlannedTensor
from stillroom.merge.stream import Engine, Merge, as_bytes, not_finite
from stillroom.merge.workers import Workers

if TYPE_CHECKING:
    import torch

__all__ = ["Replicator"]

_STATE = "#random"


class Replicator(Engine):
    """The engine of ``compat: mergekit``."""

    def __init__(self, merge: Merge, plan: MergePlan, workers: Workers) -> None:
        """Stand over a merge whose plan is made, and seed torch's generator."""
        import torch

        super().__init__(merge, plan, workers)
        is_fused = fuses_experts(plan.config)
        self._experts = group_experts(plan.tensors) if is_fused else {}
        torch.manual_seed(merge.seed)

    def make(
        self,
        tensor: PlannedTensor,
        place: Callable[[str, int, memoryview], None] | None = None,
    ) -> Iterator[Array]:
        """Yield a tensor, whole."""
        import torch

        from stillroom.train.precision import fixed_threads

        if tensor.tuned is None:
            yield from super().make(tensor, place)
            return
        if tensor.name in self._experts:
            yield from self._make_expert(tensor, self._experts[tensor.name], place)
            return
        dtype = self._dtype(tensor)
        base = self._read(tensor, tensor.base, dtype) if tensor.base else None
        parents = [self._read(tensor, home, dtype) for home in tensor.parents]
        at = Place(
            tensor.name,
            tensor.shape,
            tuple(self.merge.sources[home.source].name for home in tensor.parents),
            tensor.tuned.weights,
            tensor.tuned.own,
            self.merge.seed,
            0,
            tensor.layer,
        )
        with fixed_threads(1):  # sums that are split over more threads round otherwise
            merged = tensor.tuned.method.replicate(base, parents, at)
        merged = merged.to("cpu", torch_dtype(tensor.stored))
        kind = BIT_TYPES[tensor.stored]
        bits: Array = merged.contiguous().reshape(-1).view(torch.uint8).numpy().view(kind)
        if has_not_finite(bits, tensor.stored):
            guilty = [
                self.merge.sources[home.source].name
                for home, read in zip(tensor.parents, parents, strict=True)
                if not bool(torch.isfinite(read).all())
            ]
            raise not_finite(tensor.name, ", ".join(guilty))
        bits = bits.reshape(tensor.shape)
        if place is not None:
            place(tensor.name, 0, as_bytes(bits))
        yield bits

    def _make_expert(
        self,
        tensor: PlannedTensor,
        group: FusedExperts,
        place: Callable[[str, int, memoryview], None] | None,
    ) -> Iterator[Array]:
        """Yield an expert's matrix: its part of the tensor that all are merged as."""
        import torch

        from stillroom.train.precision import fixed_threads

        first = group.first
        if group.merged is None and first.tuned is not None:
            dtype = self._dtype(first)
            base = None
            if first.base is not None:
                base = group.join(lambda one: self._read(one, one.base or one.parents[0], dtype))
            parents = [
                group.join(lambda one, at=at: self._read(one, one.parents[at], dtype))  # type: ignore[misc]
                for at in range(len(first.parents))
            ]
            at = Place(
                group.name,
                tuple(parents[0].shape),
                tuple(self.merge.sources[home.source].name for home in first.parents),
                first.tuned.weights,
                first.tuned.own,
                self.merge.seed,
                0,
                first.layer,
            )
            with fixed_threads(1):
                merged = first.tuned.method.replicate(base, parents, at)
            group.merged = merged.to("cpu", torch_dtype(tensor.stored))
        part = group.part(tensor.name).contiguous()
        if tensor.name == group.last:
            group.merged = None
        kind = BIT_TYPES[tensor.stored]
        bits: Array = part.reshape(-1).view(torch.uint8).numpy().view(kind).reshape(tensor.shape)
        if has_not_finite(bits, tensor.stored):
            raise not_finite(tensor.name)
        if place is not None:
            place(tensor.name, 0, as_bytes(bits))
        yield bits

    def note_state(self, journal: Journal, name: str) -> None:
        """Keep the generator's state, on which the next tensors depend.

        Of experts that are merged as one, the last keeps it: a run that goes on within them merges
        them again, from the state before.
        """
        import torch

        if name in self._experts and name != self._experts[name].last:
            return
        journal.put(f"{name}{_STATE}", torch.get_rng_state().numpy().tobytes().hex())

    def recall_state(self, journal: Journal | None, name: str) -> None:
        """Put the generator where it was after a tensor that a killed run made."""
        import torch

        kept = journal.get(f"{name}{_STATE}") if journal is not None else None
        if isinstance(kept, str):
            torch.set_rng_state(torch.frombuffer(bytearray.fromhex(kept), dtype=torch.uint8))

    def _dtype(self, tensor: PlannedTensor) -> torch.dtype:
        """Return the type that is computed in: the recipe's, else what the inputs promote to."""
        import torch

        if self.merge.rules.compute is not None:
            dtype: torch.dtype = getattr(torch, self.merge.rules.compute)
            return dtype
        found = [
            torch_dtype(self.merge.sources[home.source].checkpoint.entry(home.name).dtype)
            for home in tensor.inputs
        ]
        widest = found[0]
        for dtype in found[1:]:
            widest = torch.promote_types(widest, dtype)
        return widest

    def _read(self, tensor: PlannedTensor, home: Input, dtype: torch.dtype) -> torch.Tensor:
        import numpy as np
        import torch

        source = self.merge.sources[home.source]
        if source.adapted is None and not tensor.is_table:
            return source.checkpoint.tensor(home.name).to(self.merge.device, dtype)
        rows = tensor.shape[0] if tensor.shape else 1
        whole = self.read(tensor, home, 0, rows, np.float32)
        return (
            torch.from_numpy(np.ascontiguousarray(whole))
            .reshape(tensor.shape)
            .to(self.merge.device, dtype)
        )
