"""Feature losses of a recipe, and the capture of activations that they compare.

The projectors are parameters of this module and of nothing else: they are trained and saved with
the student, and never written with it. All sums are taken in float32 (or float64), one record and
one layer at a time; what a (heads, rows, T) block of scores needs is computed again in the backward
pass, so that no two layers' scores exist at once.

Projections are read by hooks on ``q_proj``, ``k_proj`` and ``v_proj``, or on the fused layer of a
family whose order is known; attention's own queries and keys where they are handed to the attention
function. A family that has neither is refused by the name of its module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stillroom.distill.data.tokenized import Batch
from stillroom.distill.interfaces import FeatureLoss, HiddenStateLoss, RelationLoss
from stillroom.distill.losses.lm_head import get_body
from stillroom.distill.types import AttentionHeads
from stillroom.errors import CheckpointError, RecipeError
from stillroom.models.local.attention import AttentionInputs, capture_attention
from stillroom.provenance import digest_json
from stillroom.train.lora import unwrap_model

__all__ = [
    "Activations",
    "CaptureSpec",
    "FeatureSet",
    "capture_activations",
    "count_layers",
    "get_hidden_size",
    "pair_layers",
]


_MAX_BLOCK_ELEMENTS = 1 << 23


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
        widths = get_hidden_size(student), get_hidden_size(teacher)
        for number, loss in enumerate(self.losses):
            for own, taught in self.pairs[number] if isinstance(loss, HiddenStateLoss) else ():
                name = f"{number}-{own}-{taught}"
                drawn = int(digest_json(["projector", seed, name])[:15], 16)
                made = cast("HiddenStateLoss", loss).make_projector(*widths, drawn)
                if made is not None:
                    self.projectors[name] = made
        self.to(next(student.parameters()).device)
        self.student_wanted = self._wanted(0)
        self.teacher_wanted = self._wanted(1)
        self._try(student, teacher)

    def forward(
        self, student: Activations, teacher: Activations, batch: Batch
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
        self,
        number: int,
        loss: FeatureLoss,
        student: Activations,
        teacher: Activations,
        batch: Batch,
    ) -> Tensor:
        """Return one loss at each position, (N,): the mean over its pairs of layers."""
        pairs = self.pairs[number]
        total: Tensor | None = None
        for own, taught in pairs:
            if isinstance(loss, HiddenStateLoss):
                states = (
                    _gather_positions(student.states[own], batch),
                    _gather_positions(teacher.states[taught], batch),
                )
                each = self._compare_states(f"{number}-{own}-{taught}", loss, *states)
            else:
                each = _compute_by_record(
                    cast("RelationLoss", loss), student, teacher, (own, taught), batch
                )
            total = each if total is None else total + each
        return cast("Tensor", total) / len(pairs)

    def _compare_states(
        self, name: str, loss: HiddenStateLoss, own: Tensor, taught: Tensor
    ) -> Tensor:
        if name in self.projectors:
            projector = cast("nn.Linear", self.projectors[name])
            own = projector(own.to(projector.weight.dtype))
        return loss.compare(_promote(own), _promote(taught))

    def _wanted(self, side: int) -> CaptureSpec:
        found: dict[str, frozenset[int]] = {}
        for loss, pairs in zip(self.losses, self.pairs, strict=True):
            layers = frozenset(pair[side] for pair in pairs)
            found[loss.reads] = found.get(loss.reads, frozenset()) | layers
        return CaptureSpec(**found)

    @torch.no_grad()
    def _try(self, student: nn.Module, teacher: nn.Module) -> None:
        device = next(student.parameters()).device
        ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
        batch = Batch(ids, torch.arange(2, device=device), ids[0], ("",), 2)
        sides = (
            capture_activations(student, ids, self.student_wanted),
            capture_activations(teacher, ids, self.teacher_wanted),
        )
        for loss, pairs in zip(self.losses, self.pairs, strict=True):
            for own, taught in pairs if isinstance(loss, RelationLoss) else ():
                cast("RelationLoss", loss).check(
                    _cut_heads(sides[0], loss, own, 0, 2), _cut_heads(sides[1], loss, taught, 0, 2)
                )
        self(*sides, batch)


def _gather_positions(states: Tensor, batch: Batch) -> Tensor:
    return states.reshape(-1, states.shape[-1])[batch.flat]


def _compute_by_record(
    loss: RelationLoss,
    student: Activations,
    teacher: Activations,
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
            _cut_heads(side, loss, layer, record, stop)
            for side, layer in zip((student, teacher), layers, strict=True)
        )
        visible = _mask_visible(
            [
                side.attention.get(layer)
                for side, layer in ((student, layers[0]), (teacher, layers[1]))
            ],
            record,
            rows,
            stop,
        )
        taught = _promote_heads(taught)
        widest = max(side.queries.shape[0] * side.queries.shape[2] for side in (own, taught))
        height = max(1, _MAX_BLOCK_ELEMENTS // (stop * (widest // 16 + 1)))
        for start in range(0, len(rows), height):
            part = slice(start, start + height)
            found.append(_checkpoint_block(loss, own, taught, rows[part], visible[part]))
    return torch.cat(found) if found else batch.flat.new_zeros(0, dtype=torch.float32)


def _checkpoint_block(
    loss: RelationLoss, own: AttentionHeads, taught: AttentionHeads, rows: Tensor, visible: Tensor
) -> Tensor:
    """Return the loss of a block of rows; its scores are computed again in the backward pass."""

    def compare(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        with torch.autocast(queries.device.type, enabled=False):
            full = _promote_heads(AttentionHeads(queries, keys, values, own.scale, own.cap))
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


def _cut_heads(
    side: Activations, loss: FeatureLoss, layer: int, record: int, stop: int
) -> AttentionHeads:
    """Return one record's queries, keys and values up to a position, for a loss that reads them."""
    if loss.reads == "attention":
        call = side.attention[layer]
        queries, keys = call.queries[record, :, :stop], call.keys[record, :, :stop]
        return AttentionHeads(queries, keys, keys.new_empty(0), call.scale, call.cap)
    queries, keys, values = (part[record, :stop].unsqueeze(0) for part in side.projections[layer])
    return AttentionHeads(queries, keys, values)


def _mask_visible(
    calls: Sequence[AttentionInputs | None], record: int, rows: Tensor, stop: int
) -> Tensor:
    """Return which positions each row may look at in both models, (n, stop)."""
    visible = torch.arange(stop, device=rows.device) <= rows[:, None]
    for call in calls:
        mask = call.mask if call is not None else None
        if mask is not None:
            seen = mask[record if len(mask) > 1 else 0, 0, rows, :stop]
            visible = visible & (seen if seen.dtype == torch.bool else seen == 0)
    return visible


def _promote_heads(heads: AttentionHeads) -> AttentionHeads:
    return AttentionHeads(
        _promote(heads.queries),
        _promote(heads.keys),
        _promote(heads.values),
        heads.scale,
        heads.cap,
    )


def _promote(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


_PARTS = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True, slots=True)
class CaptureSpec:
    """Which layers are looked at, counted from 1; hidden state 0 is the embeddings."""

    states: frozenset[int] = frozenset()
    attention: frozenset[int] = frozenset()
    projections: frozenset[int] = frozenset()


@dataclass(slots=True)
class Activations:
    """What happened in one run of a body, by layer, counted from 1.

    Args:
        last: The states that the head gets, (B, T, H).
        states: Hidden states, (B, T, H).
        attention: Calls of the attention function.
        projections: Queries, keys and values, (B, T, width) each.
    """

    last: Tensor
    states: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, AttentionInputs] = field(default_factory=dict)
    projections: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)


def capture_activations(model: nn.Module, input_ids: Tensor, wanted: CaptureSpec) -> Activations:
    """Run the body of a causal model once; a graph is kept where the caller's context keeps one.

    Args:
        model: A Hugging Face causal model, low-rank layers included.
        input_ids: (B, T).
        wanted: What to keep.

    Raises:
        CheckpointError: If the model's attention is of a layout that is not known.
    """
    body = get_body(model)
    with ExitStack() as stack:
        calls: Mapping[int, AttentionInputs] = {}
        parts: dict[int, dict[str, Tensor]] = {}
        if wanted.attention:
            calls = stack.enter_context(capture_attention(body))
        if wanted.projections:
            stack.enter_context(_hook_projections(body, wanted.projections, parts))
        found = body(input_ids=input_ids, use_cache=False, output_hidden_states=bool(wanted.states))
    for layer in wanted.attention:
        if layer - 1 not in calls:
            raise _unknown_layout_error(body, layer)
    for layer in wanted.projections:
        if set(parts.get(layer, ())) != set(_PARTS):
            raise _unknown_layout_error(body, layer)
    return Activations(
        found.last_hidden_state,
        {layer: found.hidden_states[layer] for layer in wanted.states},
        {layer: calls[layer - 1] for layer in wanted.attention},
        {
            layer: cast("Any", tuple(parts[layer][name] for name in _PARTS))
            for layer in wanted.projections
        },
    )


def count_layers(model: nn.Module) -> int:
    """Return how many layers a causal model has."""
    return int(_get_text_config(model).num_hidden_layers)


def get_hidden_size(model: nn.Module) -> int:
    """Return how wide a causal model's hidden states are."""
    return int(_get_text_config(model).hidden_size)


@contextmanager
def _hook_projections(
    body: nn.Module, layers: frozenset[int], parts: dict[int, dict[str, Tensor]]
) -> Iterator[None]:
    """Within the body, put each wanted layer's projections into ``parts``."""
    with ExitStack() as stack:
        for name, module in body.named_modules():
            number = getattr(module, "layer_idx", None)
            if (
                number is None
                or int(number) + 1 not in layers
                or "attn" not in _normalize_name(name)
            ):
                continue
            into = parts.setdefault(int(number) + 1, {})
            for child, read in _find_projections(module, _get_text_config(body)).items():
                hook = module.get_submodule(child).register_forward_hook(_store(read, into))
                stack.callback(hook.remove)
        yield


def _normalize_name(name: str) -> str:
    """Return the last part of a module's name, with ``attention`` written as ``attn``."""
    return name.rsplit(".", 1)[-1].lower().replace("attention", "attn")


SplitProjection = Callable[[Tensor], dict[str, Tensor]]


def _find_projections(attention: nn.Module, config: Any) -> dict[str, SplitProjection]:
    """Return which children of an attention module give which projections."""
    if all(hasattr(attention, part) for part in _PARTS):
        return {part: _read_whole(part) for part in _PARTS}
    kind = str(getattr(config, "model_type", ""))
    if kind == "gpt2" and hasattr(attention, "c_attn"):
        width = int(config.hidden_size)
        return {"c_attn": _split_fused(width, width, width)}
    if kind == "phi3" and hasattr(attention, "qkv_proj"):
        heads = int(config.num_attention_heads)
        size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        keys = int(config.num_key_value_heads) * size
        return {"qkv_proj": _split_fused(heads * size, keys, keys)}
    return {}


def _read_whole(part: str) -> SplitProjection:
    return lambda output: {part: output}


def _split_fused(*widths: int) -> SplitProjection:
    return lambda output: dict(zip(_PARTS, torch.split(output, list(widths), -1), strict=True))


def _store(
    read: SplitProjection, into: dict[str, Tensor]
) -> Callable[[nn.Module, Any, Tensor], None]:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        into.update(read(output))

    return hook


def _get_text_config(model: nn.Module) -> Any:
    config = cast("Any", unwrap_model(model)).config
    return config.get_text_config()


def _unknown_layout_error(body: nn.Module, layer: int) -> CheckpointError:
    named = [
        f"{name} ({type(module).__name__})"
        for name, module in body.named_modules()
        if "attn" in _normalize_name(name) and f".{layer - 1}." in f".{name}"
    ]
    return CheckpointError(
        f"attention of layer {layer} of {type(body).__name__} is of a layout that is not known"
        + (f": {named[0]}" if named else ""),
        code="distill.attention-layout",
        where="features",
        expected="q_proj, k_proj and v_proj, or the fused layer of GPT-2 or Phi-3, and an "
        "attention function of the library's table",
        next="use the feature hidden_state, which needs none of them",
    )


def pair_layers(loss: FeatureLoss, student: int, teacher: int) -> tuple[tuple[int, int], ...]:
    """Return which layers are compared, as (student's, teacher's).

    Args:
        loss: Says how.
        student: How many layers the student has.
        teacher: How many the teacher has.

    Raises:
        RecipeError: If a pair names a layer that is not there.
    """
    if loss.layers == "last":
        return ((student, teacher),)
    if loss.layers == "uniform":
        # rounded half up in whole numbers, so that no float decides
        return tuple(
            (layer, max(1, (2 * layer * teacher + student) // (2 * student)))
            for layer in range(1, student + 1)
        )
    for own, taught in loss.layers:
        if own > student or taught > teacher:
            raise RecipeError(
                f"there is no pair of layers [{own}, {taught}]",
                code="distill.feature-layers",
                where=f"features, {loss.method_name()}.layers",
                expected=f"the student's layers up to {student}, the teacher's up to {teacher}",
                next="choose other pairs, or layers: uniform",
            )
    return loss.layers
