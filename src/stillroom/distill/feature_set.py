"""The feature losses of a recipe over one student and one teacher, with their projectors.

The projectors are parameters of this module and of nothing else: they are trained and saved with
the student, and never written with it. All sums are taken in float32 (or float64), one record and
one layer at a time; what a (heads, rows, T) block of scores needs is computed again in the backward
pass, so that no two layers' scores exist at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stillroom.distill.encode import Batch
from stillroom.distill.feature import FeatureLoss, HeadLoss, Heads, StateLoss, pair_layers
from stillroom.distill.observing import Observed, Wanted, count_layers, observe, state_width
from stillroom.models.attention import AttentionCall
from stillroom.provenance import digest_json

__all__ = ["FeatureSet"]

_BLOCK_NUMBERS = 1 << 23


class FeatureSet(nn.Module):
    """Feature losses, the layers they pair, and projectors; called once a micro-batch."""

    def __init__(
        self,
        losses: Sequence[FeatureLoss],
        student: nn.Module,
        teacher: nn.Module,
        *,
        seed: int = 0,
    ) -> None:
        """Pair the layers, make the projectors, and try all on two tokens.

        Args:
            losses: Of the recipe.
            student: On its device, low-rank layers included.
            teacher: In evaluation mode.
            seed: Draws what of the projectors is drawn.

        Raises:
            RecipeError: If a pair names a layer that is not there.
            ShapeError: If widths or heads do not allow a loss.
            CheckpointError: If a model's attention is of a layout that is not known.
        """
        super().__init__()
        self.losses = tuple(losses)
        layers = count_layers(student), count_layers(teacher)
        self.pairs = [pair_layers(loss, *layers) for loss in self.losses]
        self.projectors = nn.ModuleDict()
        widths = state_width(student), state_width(teacher)
        for number, loss in enumerate(self.losses):
            for own, taught in self.pairs[number] if isinstance(loss, StateLoss) else ():
                name = f"{number}-{own}-{taught}"
                drawn = int(digest_json(["projector", seed, name])[:15], 16)
                made = cast("StateLoss", loss).make_projector(*widths, drawn)
                if made is not None:
                    self.projectors[name] = made
        self.to(next(student.parameters()).device)
        self.student_wanted = self._wanted(0)
        self.teacher_wanted = self._wanted(1)
        self._try(student, teacher)

    def forward(
        self, student: Observed, teacher: Observed, batch: Batch
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted losses of all positions, summed, and the sum of each by name."""
        total = batch.flat.new_zeros((), dtype=torch.float32)
        parts: dict[str, float] = {}
        for number, loss in enumerate(self.losses):
            with torch.autocast(batch.flat.device.type, enabled=False):
                each = self._positions(number, loss, student, teacher, batch)  # (N,)
            name = f"feature_{loss.method_name()}"
            parts[name] = parts.get(name, 0.0) + float(each.detach().sum(dtype=torch.float64))
            if batch.weights is not None:
                each = each * batch.weights.to(each.dtype)
            total = total + loss.weight * each.sum()
        return total, parts

    def _positions(
        self, number: int, loss: FeatureLoss, student: Observed, teacher: Observed, batch: Batch
    ) -> Tensor:
        """Return one loss at each position, (N,): the mean over its pairs of layers."""
        pairs = self.pairs[number]
        total: Tensor | None = None
        for own, taught in pairs:
            if isinstance(loss, StateLoss):
                states = _picked(student.states[own], batch), _picked(teacher.states[taught], batch)
                each = self._compare_states(f"{number}-{own}-{taught}", loss, *states)
            else:
                each = _by_record(cast("HeadLoss", loss), student, teacher, (own, taught), batch)
            total = each if total is None else total + each
        return cast("Tensor", total) / len(pairs)

    def _compare_states(self, name: str, loss: StateLoss, own: Tensor, taught: Tensor) -> Tensor:
        if name in self.projectors:
            projector = cast("nn.Linear", self.projectors[name])
            own = projector(own.to(projector.weight.dtype))
        return loss.compare(_full(own), _full(taught))

    def _wanted(self, side: int) -> Wanted:
        found: dict[str, frozenset[int]] = {}
        for loss, pairs in zip(self.losses, self.pairs, strict=True):
            layers = frozenset(pair[side] for pair in pairs)
            found[loss.reads] = found.get(loss.reads, frozenset()) | layers
        return Wanted(**found)

    @torch.no_grad()
    def _try(self, student: nn.Module, teacher: nn.Module) -> None:
        device = next(student.parameters()).device
        ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
        batch = Batch(ids, torch.arange(2, device=device), ids[0], ("",), 2)
        sides = (
            observe(student, ids, self.student_wanted),
            observe(teacher, ids, self.teacher_wanted),
        )
        for loss, pairs in zip(self.losses, self.pairs, strict=True):
            for own, taught in pairs if isinstance(loss, HeadLoss) else ():
                cast("HeadLoss", loss).check(
                    _heads(sides[0], loss, own, 0, 2), _heads(sides[1], loss, taught, 0, 2)
                )
        self(*sides, batch)


def _picked(states: Tensor, batch: Batch) -> Tensor:
    return states.reshape(-1, states.shape[-1])[batch.flat]


def _by_record(
    loss: HeadLoss,
    student: Observed,
    teacher: Observed,
    layers: tuple[int, int],
    batch: Batch,
) -> Tensor:
    """Return a loss on heads at each position, (N,), record by record, a block of rows at once.

    The order is that of ``batch.flat``, which goes through the records one after the other.
    """
    width = batch.input_ids.shape[1]
    found = []
    for record in range(len(batch.input_ids)):
        rows = batch.flat[batch.flat // width == record] % width
        if len(rows) == 0:
            continue
        stop = int(rows.max()) + 1  # what comes later no position looks at
        own, taught = (
            _heads(side, loss, layer, record, stop)
            for side, layer in zip((student, teacher), layers, strict=True)
        )
        visible = _visible(
            [
                side.attention.get(layer)
                for side, layer in ((student, layers[0]), (teacher, layers[1]))
            ],
            record,
            rows,
            stop,
        )
        taught = _full_heads(taught)
        widest = max(side.queries.shape[0] * side.queries.shape[2] for side in (own, taught))
        height = max(1, _BLOCK_NUMBERS // (stop * (widest // 16 + 1)))
        for start in range(0, len(rows), height):
            part = slice(start, start + height)
            found.append(_again(loss, own, taught, rows[part], visible[part]))
    return torch.cat(found) if found else batch.flat.new_zeros(0, dtype=torch.float32)


def _again(loss: HeadLoss, own: Heads, taught: Heads, rows: Tensor, visible: Tensor) -> Tensor:
    """Return the loss of a block of rows; its scores are computed again in the backward pass."""

    def compare(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        with torch.autocast(queries.device.type, enabled=False):
            full = _full_heads(Heads(queries, keys, values, own.scale, own.cap))
            return loss.compare(full, taught, rows, visible)

    found: Any = checkpoint(  # typed in some versions of torch, and not in others
        compare,
        own.queries,
        own.keys,
        own.values,
        use_reentrant=False,
        preserve_rng_state=False,
    )
    return cast("Tensor", found)


def _heads(side: Observed, loss: FeatureLoss, layer: int, record: int, stop: int) -> Heads:
    """Return one record's queries, keys and values up to a position, for a loss that reads them."""
    if loss.reads == "attention":
        call = side.attention[layer]
        queries, keys = call.queries[record, :, :stop], call.keys[record, :, :stop]
        return Heads(queries, keys, keys.new_empty(0), call.scale, call.cap)
    queries, keys, values = (part[record, :stop].unsqueeze(0) for part in side.projections[layer])
    return Heads(queries, keys, values)


def _visible(calls: Sequence[AttentionCall | None], record: int, rows: Tensor, stop: int) -> Tensor:
    """Return which positions each row may look at in both models, (n, stop)."""
    visible = torch.arange(stop, device=rows.device) <= rows[:, None]
    for call in calls:
        mask = call.mask if call is not None else None
        if mask is not None:
            seen = mask[record if len(mask) > 1 else 0, 0, rows, :stop]
            visible = visible & (seen if seen.dtype == torch.bool else seen == 0)
    return visible


def _full_heads(heads: Heads) -> Heads:
    return Heads(
        _full(heads.queries), _full(heads.keys), _full(heads.values), heads.scale, heads.cap
    )


def _full(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
