"""Importance scores of channels, heads and layers, measured on calibration records.

Width: Muralidharan et al. 2024 (Minitron), arXiv:2407.14679, section 2.2: forward passes only; the
score of a channel is the L2 norm over records of its mean magnitude over a record's tokens.
Feed-forward channels are read at the input of ``down_proj``, heads at the input of ``o_proj``,
hidden channels at the output of the norms before attention and feed-forward, summed over layers.
Records are processed one at a time; sums are float64.

Depth: ``influence`` is the change of direction from a layer's input to its output (Men et al. 2024,
ShortGPT, arXiv:2403.03853, section 3.2). ``kl`` is the cost of ablating a layer (Muralidharan et
al. 2024, arXiv:2407.14679, section 2.2), with as many passes as layers. The first and the last
layer are always kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stillroom.distill.data.tokenized import TokenizedRecord, make_batch
from stillroom.distill.losses.lm_head import CHUNK_ROWS, LMHead, get_body
from stillroom.distill.pruning.shapes import is_norm
from stillroom.errors import CheckpointError

__all__ = [
    "WidthStatistics",
    "gather_width_statistics",
    "measure_ablation_costs",
    "measure_block_influence",
    "measure_norm_shrinkage",
    "rank_layers",
]

_FFN = re.compile(r"(?:^|\.)(\d+)\.mlp\.(?:down_proj|c_proj)$")
_ATTENTION = re.compile(r"(?:^|\.)(\d+)\.(?:self_)?attn\.(?:o_proj|c_proj)$")

_READING_NORM = re.compile(
    r"(?:^|\.)(\d+)\.(?:input_layernorm|post_attention_layernorm|pre_feedforward_layernorm"
    r"|ln_1|ln_2)$"
)


@dataclass(frozen=True, slots=True)
class WidthStatistics:
    """Scores of every channel, by layer number; float64.

    ``ffn`` is (I,) per layer, ``attention`` (heads * head_dim,) per layer, ``hidden`` is (D,).
    """

    ffn: dict[int, Tensor]
    attention: dict[int, Tensor]
    hidden: Tensor


def gather_width_statistics(
    teacher: nn.Module,
    records: Sequence[TokenizedRecord],
    *,
    layers: Sequence[int] | None = None,
    on_record: Callable[[], None] | None = None,
) -> WidthStatistics:
    """Run a teacher over records and return the scores of its channels.

    Args:
        teacher: Model in evaluation mode.
        records: Calibration records; every token counts.
        layers: Layers whose norms count for hidden channels; None is all.
        on_record: Called after each record.
    """
    body = get_body(teacher)
    modules = dict(body.named_modules())
    has_post_norms = any(name.endswith("pre_feedforward_layernorm") for name in modules)
    ffn, attention, norms = _MagnitudeSums(), _MagnitudeSums(), _MagnitudeSums()
    reading = {
        (number, name): module
        for (number, name), module in _group_by_layer(modules, _READING_NORM).items()
        # with norms after attention and feed-forward, this norm feeds no linear layer
        if not (has_post_norms and name.endswith("post_attention_layernorm"))
    }
    with (
        ffn.watching(_group_by_layer(modules, _FFN), behind=False),
        attention.watching(_group_by_layer(modules, _ATTENTION), behind=False),
        norms.watching(reading, behind=True),
        torch.inference_mode(),
    ):
        _run_records(teacher, records, on_record)
    norm_scores = [
        scores for (number, _), scores in norms.scores() if layers is None or number in layers
    ]
    return WidthStatistics(
        {number: scores for (number, _), scores in ffn.scores()},
        {number: scores for (number, _), scores in attention.scores()},
        torch.stack(norm_scores).sum(0),
    )


def measure_norm_shrinkage(
    teacher: nn.Module, records: Sequence[TokenizedRecord], kept: Tensor
) -> dict[str, float]:
    """Return the ratio of each norm's divisor over some channels to that over all.

    A norm divides by the root mean square (a LayerNorm by the standard deviation) of its input,
    which changes with the number of channels. The mean ratio over tokens, by the norm's name, is
    the factor of its weight in the student. If the removed channels are zero it is exactly
    ``sqrt(D / kept)``, and the logits do not change.

    Args:
        teacher: Model in evaluation mode.
        records: Calibration records.
        kept: Indices of the kept hidden channels, (D',).
    """
    sums: dict[str, tuple[float, int]] = {}
    body = get_body(teacher)

    def hook(name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            state = inputs[0].double()
            ratio = _compute_divisor(state[..., kept.to(state.device)], module)
            ratio /= _compute_divisor(state, module)
            total, tokens = sums.get(name, (0.0, 0))
            sums[name] = total + float(ratio.sum()), tokens + ratio.numel()

        return note

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in body.named_modules()
        if is_norm(f"{name}.weight")
    ]
    with _removed_after(handles), torch.inference_mode():
        _run_records(teacher, records, None)
    return {name: total / max(tokens, 1) for name, (total, tokens) in sums.items()}


@dataclass(slots=True)
class _MagnitudeSums:
    """Sums over records of the squared mean magnitude of each channel, by module."""

    sums: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def take(self, key: tuple[int, str], activation: Tensor) -> None:
        """Add one record's activations, (1, T, C)."""
        mean = activation[0].double().abs().mean(0).square()
        self.sums[key] = self.sums[key] + mean if key in self.sums else mean

    def scores(self) -> list[tuple[tuple[int, str], Tensor]]:
        """Return the square roots of the sums, in order of layers."""
        return [(key, self.sums[key].sqrt().cpu()) for key in sorted(self.sums)]

    @contextmanager
    def watching(
        self, modules: dict[tuple[int, str], nn.Module], *, behind: bool
    ) -> Iterator[None]:
        """Record the inputs of modules, or their outputs, within the body."""

        def hook(key: tuple[int, str]) -> Any:
            return lambda module, inputs, output: self.take(key, output if behind else inputs[0])

        handles = [module.register_forward_hook(hook(key)) for key, module in modules.items()]
        with _removed_after(handles):
            yield


@contextmanager
def _removed_after(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Remove hooks after the body."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _group_by_layer(
    modules: dict[str, nn.Module], pattern: re.Pattern[str]
) -> dict[tuple[int, str], nn.Module]:
    grouped = {}
    for name, module in modules.items():
        match = pattern.search(name)
        if match:
            grouped[int(match[1]), name] = module
    return grouped


def _run_records(
    teacher: nn.Module, records: Sequence[TokenizedRecord], on_record: Callable[[], None] | None
) -> None:
    for record in records:
        _compute_states(teacher, record)
        if on_record:
            on_record()


def _compute_divisor(state: Tensor, norm: nn.Module) -> Tensor:
    epsilon = next(
        (float(getattr(norm, name)) for name in ("variance_epsilon", "eps") if hasattr(norm, name)),
        0.0,
    )
    if isinstance(norm, nn.LayerNorm):
        state = state - state.mean(-1, keepdim=True)
    return state.square().mean(-1).add(epsilon).sqrt()


def rank_layers(scores: Sequence[float], count: int) -> tuple[int, ...]:
    """Return the layers with the highest scores, always including the first and the last."""
    last = len(scores) - 1
    order = sorted(range(1, last), key=lambda number: (-scores[number], number))
    ends = [0, last] if last else [0]
    return tuple(sorted([*ends, *order][:count]))


def measure_block_influence(teacher: nn.Module, records: Sequence[TokenizedRecord]) -> list[float]:
    """Return each layer's change of direction: the mean of ``1 - cos(in, out)`` over tokens."""
    sums: list[float] = []
    tokens = 0
    for states in _iterate_states(teacher, records):
        changes = [
            float((1 - torch.cosine_similarity(before, after, -1)).double().sum())
            for before, after in pairwise(states)
        ]
        sums = [
            total + change
            for total, change in zip(sums or [0.0] * len(changes), changes, strict=True)
        ]
        tokens += states[0].shape[0]
    return [sum_of_layer / max(tokens, 1) for sum_of_layer in sums]


def measure_ablation_costs(
    teacher: nn.Module,
    records: Sequence[TokenizedRecord],
    *,
    on_layer: Callable[[], None] | None = None,
) -> list[float]:
    """Return the KL from the whole teacher without each layer, in nats per loss position.

    Args:
        teacher: Model in evaluation mode; restored afterwards.
        records: Calibration records.
        on_layer: Called after each measured layer; the first and the last cost infinity.
    """
    layers = _find_layers(get_body(teacher))
    head = LMHead.of(teacher)
    costs = [math.inf] * len(layers)
    with torch.inference_mode():
        reference_states = [_compute_loss_states(teacher, record) for record in records]
        for number in range(1, len(layers) - 1):
            total = 0.0
            with _skip_layer(layers[number]):
                for record, reference in zip(records, reference_states, strict=True):
                    total += _compute_kl(head, _compute_loss_states(teacher, record), reference)
            costs[number] = total / max(sum(len(record.positions) for record in records), 1)
            if on_layer:
                on_layer()
    return costs


def _iterate_states(
    teacher: nn.Module, records: Sequence[TokenizedRecord]
) -> Iterator[list[Tensor]]:
    """Yield, for each record, the state before every layer and after the last, (T, D) each."""
    layers = _find_layers(get_body(teacher))
    states: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        if not states:
            states.append(inputs[0][0].float())
        states.append((output[0] if isinstance(output, tuple) else output)[0].float())

    handles = [layer.register_forward_hook(note) for layer in layers]
    with _removed_after(handles):
        for record in records:
            states.clear()
            with torch.inference_mode():
                _compute_states(teacher, record)
            yield list(states)


@contextmanager
def _skip_layer(layer: nn.Module) -> Iterator[None]:
    """Make a layer return its input."""

    def skip(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
        return (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]

    with _removed_after([layer.register_forward_hook(skip)]):
        yield


def _compute_states(teacher: nn.Module, record: TokenizedRecord) -> Tensor:
    """Return the hidden states of a whole record, (T, D)."""
    device = next(teacher.parameters()).device
    batch = make_batch([record], None, device)
    output = get_body(teacher)(input_ids=batch.input_ids, use_cache=False)
    return cast("Tensor", output.last_hidden_state[0])


def _compute_loss_states(teacher: nn.Module, record: TokenizedRecord) -> Tensor:
    """Return the hidden states at the loss positions, (N, D)."""
    hidden = _compute_states(teacher, record)
    return hidden[torch.from_numpy(record.positions).to(hidden.device)]


def _compute_kl(head: LMHead, hidden: Tensor, reference: Tensor) -> float:
    """Return the summed KL of a record's positions, a few rows of logits at a time."""
    total = 0.0
    for start in range(0, len(hidden), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        student_logprobs = torch.log_softmax(head.logits(hidden[rows]).float(), -1)
        teacher_logprobs = torch.log_softmax(head.logits(reference[rows]).float(), -1)
        total += float(
            (teacher_logprobs.exp() * (teacher_logprobs - student_logprobs)).double().sum()
        )
    return total


def _find_layers(body: nn.Module) -> nn.ModuleList:
    lists = [module for module in body.children() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise CheckpointError(
            f"{type(body).__name__} has no list of layers",
            code="distill.no-layers",
            expected="a transformer with its layers in one list",
            next="set student.keep, or use a checkpoint as the student",
        )
    return max(lists, key=len)
