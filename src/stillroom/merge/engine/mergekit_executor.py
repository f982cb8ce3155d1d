"""Executor bit-exact with mergekit 0.1.5: its types, its order of operations and of tensors.

Tensors are cast when they are read. The arithmetic is that of ``mergekit.exact``: numpy blocks
where they give the bits of whole tensors in torch, else the latter. Random numbers come from one
torch generator, seeded once, so that, unlike in the default mode, the result depends on the order
of models and on the set of tensors. Masks, and all tensors if torch computes them, are held whole
in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from stillroom.checkpoints.dtypes import BIT_TYPES, has_not_finite, narrow
from stillroom.checkpoints.store import torch_dtype
from stillroom.jobs import Journal
from stillroom.merge.engine.executor import (
    MergeExecutor,
    OrderedThreadPool,
    StreamedBlocks,
    non_finite_error,
)
from stillroom.merge.interfaces import Array, BlockContext, MergeMethod, RowBlock
from stillroom.merge.mergekit.exact import has_exact_blocks, merge_blocks, merge_whole_tensor
from stillroom.merge.mergekit.numpy_arithmetic import SUPPORTED_DTYPES, round_to, to_stored_bits
from stillroom.merge.mergekit.torch_emulation import TorchGenerator
from stillroom.merge.planning.plan import (
    SAFETENSORS_DTYPES,
    MergePlan,
    PlannedTensor,
    SourceTensor,
    find_widest_dtype,
)
from stillroom.merge.tensors.storage import array_to_bytes
from stillroom.merge.tensors.structure import FusedExperts, group_experts, has_fused_experts

if TYPE_CHECKING:
    import torch

    from stillroom.merge.engine.merge import Merge
    from stillroom.merge.planning.inputs import ResolvedSettings

__all__ = ["MergekitExecutor"]

_STATE = "#random"


class MergekitExecutor(MergeExecutor):
    """Executor for ``arithmetic: mergekit``."""

    def __init__(self, merge: Merge, plan: MergePlan, workers: OrderedThreadPool) -> None:
        """Create an executor for a planned merge, and seed the generator."""
        super().__init__(merge, plan, workers)
        self._experts = group_experts(plan.tensors) if has_fused_experts(plan.config) else {}
        self._current_group: FusedExperts | None = None
        self.draws: TorchGenerator | None = None
        # All tensors draw from one generator, so all use the same implementation.
        is_plain = merge.device == "cpu" and not self._experts
        if is_plain and all(self._has_exact_blocks(tensor) for tensor in plan.tensors):
            self.draws = TorchGenerator(merge.seed)
        else:
            import torch

            torch.manual_seed(merge.seed)

    def make(
        self,
        tensor: PlannedTensor,
        write_rows: Callable[[str, int, memoryview], None] | None = None,
    ) -> Iterator[Array]:
        """Yield a tensor in blocks, or whole if torch computes it."""
        if tensor.settings is None:
            yield from super().make(tensor, write_rows)
        elif self.draws is not None:
            yield from self._merge_blocks(tensor, tensor.settings.method, self.draws, write_rows)
        else:
            yield from self._merge_whole(tensor, tensor.settings, write_rows)

    def _has_exact_blocks(self, tensor: PlannedTensor) -> bool:
        if tensor.settings is None:
            return True
        kind = self._kind(tensor)
        return {
            *self._list_kinds(tensor),
            kind,
            tensor.dtype,
        } <= SUPPORTED_DTYPES and has_exact_blocks(
            tensor.settings.method, kind, tensor.shape, len(tensor.parents)
        )

    def _list_kinds(self, tensor: PlannedTensor) -> list[str]:
        """Return the storage type of every input."""
        sources = self.merge.sources
        return [sources[home.source].checkpoint.entry(home.name).dtype for home in tensor.inputs]

    def _kind(self, tensor: PlannedTensor) -> str:
        """Return the compute type: the recipe's, else the widest of the inputs'."""
        if self.merge.rules.compute_dtype is not None:
            return SAFETENSORS_DTYPES[self.merge.rules.compute_dtype]
        return find_widest_dtype(self._list_kinds(tensor))

    def _merge_blocks(
        self,
        tensor: PlannedTensor,
        method: MergeMethod,
        draws: TorchGenerator,
        write_rows: Callable[[str, int, memoryview], None] | None,
    ) -> Iterator[Array]:
        blocks = _CastBlocks(self, tensor, self._kind(tensor))
        merge_block = merge_blocks(method, blocks, draws)

        def work(number: int) -> Array:
            values = merge_block(number)
            is_exact = tensor.dtype == blocks.kind == "BF16"
            if is_exact:
                bits = to_stored_bits(values, "BF16").reshape(values.shape)
            else:
                bits = narrow(values, tensor.dtype)
            if has_not_finite(bits, tensor.dtype):
                parents = blocks[number].parents
                self._refuse(tensor, [bool(np.isfinite(parent).all()) for parent in parents])
            if write_rows is not None:
                write_rows(tensor.name, blocks.first_row(number), array_to_bytes(bits))
            return bits if tensor.shape else bits.reshape(())

        yield from self.workers.map(work, len(blocks))

    def _refuse(self, tensor: PlannedTensor, finite: list[bool]) -> None:
        guilty = [
            self.merge.sources[home.source].name
            for home, is_finite in zip(tensor.parents, finite, strict=True)
            if not is_finite
        ]
        raise non_finite_error(tensor.name, ", ".join(guilty))

    def _merge_whole(
        self,
        tensor: PlannedTensor,
        settings: ResolvedSettings,
        write_rows: Callable[[str, int, memoryview], None] | None,
    ) -> Iterator[Array]:
        import torch

        if tensor.name in self._experts:
            yield from self._make_expert(tensor, self._experts[tensor.name], write_rows)
            return
        dtype = torch_dtype(self._kind(tensor))
        base = self._read(tensor, tensor.base, dtype) if tensor.base else None
        parents = [self._read(tensor, home, dtype) for home in tensor.parents]
        merged = self._merge_with_torch(tensor, settings, base, parents)
        bits = _as_bits(merged, tensor.dtype)
        if has_not_finite(bits, tensor.dtype):
            self._refuse(tensor, [bool(torch.isfinite(read).all()) for read in parents])
        bits = bits.reshape(tensor.shape)
        if write_rows is not None:
            write_rows(tensor.name, 0, array_to_bytes(bits))
        yield bits

    def _merge_with_torch(
        self,
        tensor: PlannedTensor,
        settings: ResolvedSettings,
        base: torch.Tensor | None,
        parents: list[torch.Tensor],
        name: str = "",
    ) -> torch.Tensor:
        """Return a whole tensor, or that of all experts ``name`` if ``tensor`` is the first one."""
        from stillroom.train.precision import limit_threads

        context = BlockContext(
            name or tensor.name,
            tuple(parents[0].shape),
            tuple(self.merge.sources[home.source].name for home in tensor.parents),
            settings.weights,
            settings.per_model,
            self.merge.seed,
            0,
            tensor.layer,
        )
        with limit_threads(1):  # sums split over several threads round differently
            merged = merge_whole_tensor(settings.method, base, parents, context)
        return merged.to("cpu", torch_dtype(tensor.dtype))

    def _make_expert(
        self,
        tensor: PlannedTensor,
        group: FusedExperts,
        write_rows: Callable[[str, int, memoryview], None] | None,
    ) -> Iterator[Array]:
        """Yield an expert's matrix: its part of the fused tensor of all experts."""
        first = group.first
        if group.merged is None and first.settings is not None:
            # A group's members are consecutive in the plan; a replay may not request the last one.
            if self._current_group is not None:
                self._current_group.merged = None
            self._current_group = group
            dtype = torch_dtype(self._kind(first))
            base = None
            if first.base is not None:
                base = group.join(
                    lambda member: self._read(member, member.base or member.parents[0], dtype)
                )

            def read_input(member: PlannedTensor, number: int) -> torch.Tensor:
                return self._read(member, member.parents[number], dtype)

            parents = [
                group.join(partial(read_input, number=number))
                for number in range(len(first.parents))
            ]
            group.merged = self._merge_with_torch(first, first.settings, base, parents, group.name)
        bits = _as_bits(group.part(tensor.name), tensor.dtype).reshape(tensor.shape)
        if tensor.name == group.last:
            group.merged = None
        if has_not_finite(bits, tensor.dtype):
            raise non_finite_error(tensor.name)
        if write_rows is not None:
            write_rows(tensor.name, 0, array_to_bytes(bits))
        yield bits

    def state(self) -> bytes:
        """Return the generator's state, on which later tensors depend."""
        if self.draws is not None:
            return self.draws.state
        import torch

        return bytes(torch.get_rng_state().numpy().tobytes())

    def note_state(self, journal: Journal, name: str) -> None:
        """Write the generator's state to the journal.

        Of experts merged as one tensor, only the last writes it: a run resumed within them merges
        them again, from the state before.
        """
        if name in self._experts and name != self._experts[name].last:
            return
        journal.put(f"{name}{_STATE}", self.state().hex())

    def recall_state(self, journal: Journal | None, name: str) -> None:
        """Restore the generator's state after a tensor written by an interrupted run."""
        state = journal.get(f"{name}{_STATE}") if journal is not None else None
        if not isinstance(state, str):
            return
        if self.draws is not None:
            self.draws.state = bytes.fromhex(state)
            return
        import torch

        torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state), dtype=torch.uint8))

    def _read(self, tensor: PlannedTensor, home: SourceTensor, dtype: torch.dtype) -> torch.Tensor:
        import torch

        source = self.merge.sources[home.source]
        if source.adapted is None and not tensor.is_token_table:
            stored = source.checkpoint.tensor(home.name)
            kind = source.checkpoint.entry(home.name).dtype
            if has_not_finite(_as_bits(stored, kind), kind):  # a mask or a cast may hide it
                raise non_finite_error(tensor.name, source.name)
            return stored.to(self.merge.device, dtype)
        rows = tensor.shape[0] if tensor.shape else 1
        values = self.read(tensor, home, 0, rows, np.float32)
        return (
            torch.from_numpy(np.ascontiguousarray(values))
            .reshape(tensor.shape)
            .to(self.merge.device, dtype)
        )


def _as_bits(tensor: torch.Tensor, kind: str) -> Array:
    """Return a tensor's stored values, flat."""
    import torch

    flat = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    bits: Array = flat.view(BIT_TYPES[kind])
    return bits


class _CastBlocks(StreamedBlocks):
    """Row blocks as mergekit reads them: in the recipe's order, cast first."""

    def __init__(self, engine: MergekitExecutor, tensor: PlannedTensor, kind: str) -> None:
        super().__init__(engine, tensor, in_order=True)
        self.kind = kind

    def base(self, number: int) -> RowBlock:
        """Read a block of the base only."""
        start = number * self._step
        stop = min(start + self._step, self._rows)
        if self._tensor.base is None:
            raise ValueError("there is no base")
        # Finite, since its differences from the parents were computed from checked values.
        base = self._read(self._tensor.base, start, stop, np.float32, check=False)
        return RowBlock(base, (), replace(self.context, offset=start * self._width))

    def read(self, number: int, dtype: object, *, check: bool = True) -> RowBlock:
        """Read one block, cast to ``kind``.

        Always checked for finite values, which a mask or a cast may hide.
        """
        return super().read(number, np.float32)

    def _read(self, home: SourceTensor, start: int, stop: int, dtype: object, check: bool) -> Array:
        # numpy turns results on 0-d arrays into immutable scalars, and copies instead of viewing.
        values = np.atleast_1d(super()._read(home, start, stop, dtype, check))
        return values if self._stored_as(home) == self.kind else round_to(values, self.kind)

    def _stored_as(self, home: SourceTensor) -> str:
        source = self._engine.merge.sources[home.source]
        is_plain = source.adapted is None and not self._tensor.is_token_table
        return source.checkpoint.entry(home.name).dtype if is_plain else ""
