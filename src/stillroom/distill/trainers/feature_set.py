"""Feature losses of a recipe: layer mapping (student to teacher), projectors, activations.

Projectors are parameters of ``FeatureSet`` only: they are trained and saved in the training state
with the student, and are not part of its checkpoint. All sums are in float32 (or float64), one
record and one layer at a time; a (heads, rows, T) block of scores is recomputed in the backward
pass, so that the scores of two layers never exist at once.

Projections are read by hooks on ``q_proj``, ``k_proj`` and ``v_proj``, or on the fused layer of a
family with a known order; queries and keys of attention are captured from the attention function. A
family with neither is rejected with the name of its module.
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
from stillroom.distill.losses.lm_head import gather_positions, get_body
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
]

_MAX_BLOCK_ELEMENTS = 1 << 23


class FeatureSet(nn.Module):
    """Feature losses, their layer pairs, and projectors; called once per micro-batch."""

    def __init__(
        self,
        losses: Sequence[FeatureLoss],
        student: nn.Module,
        teacher: nn.Module,
        *,
        seed: int = 0,
    ) -> None:
        """Pair the layers, create the projectors, and run all losses on two tokens.

        Raises:
            RecipeError: If a pair contains a nonexistent layer.
            ShapeError: If widths or heads are incompatible with a loss.
            CheckpointError: If the layout of a model's attention is unknown.
        """
        super().__init__()
        self.losses = tuple(losses)
        layers = count_layers(student), count_layers(teacher)
        self.pairs = [_pair_layers(loss, *layers) for loss in self.losses]
        self.projectors = nn.ModuleDict()
        widths = _get_hidden_size(student), _get_hidden_size(teacher)
        for number, loss in enumerate(self.losses):
            for student_layer, teacher_layer in (
                self.pairs[number] if isinstance(loss, HiddenStateLoss) else ()
            ):
                name = f"{number}-{student_layer}-{teacher_layer}"
                projector_seed = int(digest_json(["projector", seed, name])[:15], 16)
                projector = cast("HiddenStateLoss", loss).make_projector(*widths, projector_seed)
                if projector is not None:
                    self.projectors[name] = projector
        self.to(next(student.parameters()).device)
        self.student_spec = self._make_spec(0)
        self.teacher_spec = self._make_spec(1)
        self._try(student, teacher)

    def forward(
        self, student: Activations, teacher: Activations, batch: Batch
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the weighted sum of all losses over positions, and the sum of each by name."""
        total = batch.flat.new_zeros((), dtype=torch.float32)
        parts: dict[str, float] = {}
        for number, loss in enumerate(self.losses):
            with torch.autocast(batch.flat.device.type, enabled=False):
                position_loss = self._positions(number, loss, student, teacher, batch)  # (N,)
            name = f"feature_{loss.method_name()}"
            parts[name] = parts.get(name, 0.0) + float(
                position_loss.detach().sum(dtype=torch.float64)
            )
            if batch.weights is not None:
                position_loss = position_loss * batch.weights.to(position_loss.dtype)
            total = total + loss.weight * position_loss.sum()
        return total, parts

    def _positions(
        self,
        number: int,
        loss: FeatureLoss,
        student: Activations,
        teacher: Activations,
        batch: Batch,
    ) -> Tensor:
        """Return one loss at each position, (N,): the mean over its layer pairs."""
        pairs = self.pairs[number]
        total: Tensor | None = None
        for student_layer, teacher_layer in pairs:
            if isinstance(loss, HiddenStateLoss):
                states = (
                    gather_positions(student.states[student_layer], batch.flat),
                    gather_positions(teacher.states[teacher_layer], batch.flat),
                )
                pair_loss = self._compare_states(
                    f"{number}-{student_layer}-{teacher_layer}", loss, *states
                )
            else:
                pair_loss = _compute_by_record(
                    cast("RelationLoss", loss),
                    student,
                    teacher,
                    (student_layer, teacher_layer),
                    batch,
                )
            total = pair_loss if total is None else total + pair_loss
        return cast("Tensor", total) / len(pairs)

    def _compare_states(
        self, name: str, loss: HiddenStateLoss, student_states: Tensor, teacher_states: Tensor
    ) -> Tensor:
        if name in self.projectors:
            projector = cast("nn.Linear", self.projectors[name])
            student_states = projector(student_states.to(projector.weight.dtype))
        return loss.compare(_promote(student_states), _promote(teacher_states))

    def _make_spec(self, side: int) -> CaptureSpec:
        layers_by_input: dict[str, frozenset[int]] = {}
        for loss, pairs in zip(self.losses, self.pairs, strict=True):
            layers = frozenset(pair[side] for pair in pairs)
            layers_by_input[loss.reads] = layers_by_input.get(loss.reads, frozenset()) | layers
        return CaptureSpec(**layers_by_input)

    @torch.no_grad()
    def _try(self, student: nn.Module, teacher: nn.Module) -> None:
        device = next(student.parameters()).device
        ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
        batch = Batch(ids, torch.arange(2, device=device), ids[0], ("",), 2)
        activations = (
            capture_activations(student, ids, self.student_spec),
            capture_activations(teacher, ids, self.teacher_spec),
        )
        for loss, pairs in zip(self.losses, self.pairs, strict=True):
            for student_layer, teacher_layer in pairs if isinstance(loss, RelationLoss) else ():
                cast("RelationLoss", loss).check(
                    _cut_heads(activations[0], loss, student_layer, 0, 2),
                    _cut_heads(activations[1], loss, teacher_layer, 0, 2),
                )
        self(*activations, batch)


def _compute_by_record(
    loss: RelationLoss,
    student: Activations,
    teacher: Activations,
    layers: tuple[int, int],
    batch: Batch,
) -> Tensor:
    """Return a relation loss at each position, (N,), computed record by record in blocks of rows.

    The order is that of ``batch.flat``, which is sorted by record.
    """
    width = batch.input_ids.shape[1]
    blocks = []
    for record in range(len(batch.input_ids)):
        rows = batch.flat[batch.flat // width == record] % width
        if len(rows) == 0:
            continue
        stop = int(rows.max()) + 1  # later positions are invisible
        student_heads, teacher_heads = (
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
        teacher_heads = _promote_heads(teacher_heads)
        widest = max(
            side.queries.shape[0] * side.queries.shape[2] for side in (student_heads, teacher_heads)
        )
        height = max(1, _MAX_BLOCK_ELEMENTS // (stop * (widest // 16 + 1)))
        for start in range(0, len(rows), height):
            part = slice(start, start + height)
            blocks.append(
                _checkpoint_block(loss, student_heads, teacher_heads, rows[part], visible[part])
            )
    return torch.cat(blocks) if blocks else batch.flat.new_zeros(0, dtype=torch.float32)


def _checkpoint_block(
    loss: RelationLoss,
    student_heads: AttentionHeads,
    teacher_heads: AttentionHeads,
    rows: Tensor,
    visible: Tensor,
) -> Tensor:
    """Return the loss of a block of rows; its scores are recomputed in the backward pass."""

    def compare(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        with torch.autocast(queries.device.type, enabled=False):
            full = _promote_heads(
                AttentionHeads(queries, keys, values, student_heads.scale, student_heads.cap)
            )
            return loss.compare(full, teacher_heads, rows, visible)

    loss_of_rows: Any = checkpoint(  # typed in only some versions of torch
        compare,
        student_heads.queries,
        student_heads.keys,
        student_heads.values,
        use_reentrant=False,
        preserve_rng_state=False,
    )
    return cast("Tensor", loss_of_rows)


def _cut_heads(
    side: Activations, loss: FeatureLoss, layer: int, record: int, stop: int
) -> AttentionHeads:
    """Return one record's queries, keys and values up to a position."""
    if loss.reads == "attention":
        call = side.attention[layer]
        queries, keys = call.queries[record, :, :stop], call.keys[record, :, :stop]
        return AttentionHeads(queries, keys, keys.new_empty(0), call.scale, call.cap)
    queries, keys, values = (part[record, :stop].unsqueeze(0) for part in side.projections[layer])
    return AttentionHeads(queries, keys, values)


def _mask_visible(
    calls: Sequence[AttentionInputs | None], record: int, rows: Tensor, stop: int
) -> Tensor:
    """Return which positions are visible to each row in both models, (n, stop)."""
    visible = torch.arange(stop, device=rows.device) <= rows[:, None]
    for call in calls:
        mask = call.mask if call is not None else None
        if mask is not None:
            allowed = mask[record if len(mask) > 1 else 0, 0, rows, :stop]
            visible = visible & (allowed if allowed.dtype == torch.bool else allowed == 0)
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
    """Layers to capture, counted from 1; hidden state 0 is the embeddings."""

    states: frozenset[int] = frozenset()
    attention: frozenset[int] = frozenset()
    projections: frozenset[int] = frozenset()


@dataclass(slots=True)
class Activations:
    """Captured activations of one forward pass, by layer, counted from 1.

    Args:
        last: Input states of the head, (B, T, H).
        states: Hidden states, (B, T, H).
        attention: Inputs of the attention function.
        projections: Queries, keys and values, (B, T, width) each.
    """

    last: Tensor
    states: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, AttentionInputs] = field(default_factory=dict)
    projections: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)


def capture_activations(model: nn.Module, input_ids: Tensor, spec: CaptureSpec) -> Activations:
    """Run the body of a causal model once and capture activations; differentiable.

    Args:
        model: Hugging Face causal language model, including low-rank layers.
        input_ids: (B, T).
        spec: Activations to capture.

    Raises:
        CheckpointError: If the layout of the model's attention is unknown.
    """
    body = get_body(model)
    with ExitStack() as stack:
        calls: Mapping[int, AttentionInputs] = {}
        parts: dict[int, dict[str, Tensor]] = {}
        if spec.attention:
            calls = stack.enter_context(capture_attention(body))
        if spec.projections:
            stack.enter_context(_hook_projections(body, spec.projections, parts))
        output = body(input_ids=input_ids, use_cache=False, output_hidden_states=bool(spec.states))
    for layer in spec.attention:
        if layer - 1 not in calls:
            raise _unknown_layout_error(body, layer)
    for layer in spec.projections:
        if set(parts.get(layer, ())) != set(_PARTS):
            raise _unknown_layout_error(body, layer)
    return Activations(
        output.last_hidden_state,
        {layer: output.hidden_states[layer] for layer in spec.states},
        {layer: calls[layer - 1] for layer in spec.attention},
        {
            layer: cast("Any", tuple(parts[layer][name] for name in _PARTS))
            for layer in spec.projections
        },
    )


def count_layers(model: nn.Module) -> int:
    """Return the number of layers of a causal model."""
    return int(_get_text_config(model).num_hidden_layers)


def _get_hidden_size(model: nn.Module) -> int:
    """Return the width of a causal model's hidden states."""
    return int(_get_text_config(model).hidden_size)


@contextmanager
def _hook_projections(
    body: nn.Module, layers: frozenset[int], parts: dict[int, dict[str, Tensor]]
) -> Iterator[None]:
    """Within the body, store each selected layer's projections in ``parts``."""
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
    """Return the last part of a module's name, with ``attention`` replaced by ``attn``."""
    return name.rsplit(".", 1)[-1].lower().replace("attention", "attn")


SplitProjection = Callable[[Tensor], dict[str, Tensor]]


def _find_projections(attention: nn.Module, config: Any) -> dict[str, SplitProjection]:
    """Return the children of an attention module that compute projections, with their split."""
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
    modules = [
        f"{name} ({type(module).__name__})"
        for name, module in body.named_modules()
        if "attn" in _normalize_name(name) and f".{layer - 1}." in f".{name}"
    ]
    return CheckpointError(
        f"attention of layer {layer} of {type(body).__name__} has an unknown layout"
        + (f": {modules[0]}" if modules else ""),
        code="distill.attention-layout",
        where="features",
        expected="q_proj, k_proj and v_proj, or the fused layer of GPT-2 or Phi-3, and an "
        "attention function registered in transformers",
        next="use the feature loss hidden_state, which needs none of them",
    )


def _pair_layers(loss: FeatureLoss, student: int, teacher: int) -> tuple[tuple[int, int], ...]:
    """Return the ``layer_mapping`` (DistillKit): compared layers as pairs (student, teacher)."""
    if loss.layers == "last":
        return ((student, teacher),)
    if loss.layers == "uniform":
        # rounded half up in integers, independent of floating-point rounding
        return tuple(
            (layer, max(1, (2 * layer * teacher + student) // (2 * student)))
            for layer in range(1, student + 1)
        )
    for student_layer, teacher_layer in loss.layers:
        if student_layer > student or teacher_layer > teacher:
            raise RecipeError(
                f"layers [{student_layer}, {teacher_layer}] do not exist",
                code="distill.feature-layers",
                where=f"features, {loss.method_name()}.layers",
                expected=f"the student's layers up to {student}, the teacher's up to {teacher}",
                next="choose other pairs, or layers: uniform",
            )
    return loss.layers
