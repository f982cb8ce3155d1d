"""Importance scores of channels, heads and layers, measured on calibration records.

Source: Muralidharan et al. 2024 (Minitron), arXiv:2407.14679, section 2.2: forward passes alone, a
channel's score the L2 norm over records of its mean magnitude over a record's tokens. Feed-forward
channels are read where ``down_proj`` takes them in, heads where ``o_proj`` does, hidden channels
behind the norms that a layer reads through, summed over layers. Records stream by one at a time;
sums are float64.

``influence``: how much a layer turns its input (Men et al. 2024, ShortGPT, arXiv:2403.03853,
section 3.2). ``loss`` and ``kl``: what a layer's absence costs, as in Muralidharan et al. 2024
(Minitron), arXiv:2407.14679, section 2.2; it takes as many passes as there are layers, and with
``iterative`` as many again for each layer dropped. ``contiguous``: the run of layers between whose
ends the state turns least (Gromov et al. 2024, arXiv:2403.17887, section 3; they look at the last
token, we at the mean over tokens). The first and the last layer are always kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from stillroom.distill.data.tokenized import TokenizedRecord, make_batch
from stillroom.distill.losses.lm_head import CHUNK_ROWS, LMHead, get_body
from stillroom.distill.pruning.shapes import is_norm
from stillroom.errors import CheckpointError

__all__ = [
    "WidthStatistics",
    "drop_iteratively",
    "find_redundant_block",
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

    ``ffn`` holds (I,) a layer, ``attention`` (heads * head_dim,), ``hidden`` is (D,).
    """

    ffn: dict[int, Tensor]
    attention: dict[int, Tensor]
    hidden: Tensor


def gather_width_statistics(
    teacher: nn.Module,
    lessons: Sequence[TokenizedRecord],
    *,
    layers: Sequence[int] | None = None,
    on_lesson: Callable[[], None] | None = None,
) -> WidthStatistics:
    """Run a teacher over records and return its channels' scores.

    Args:
        teacher: In evaluation mode.
        lessons: What it reads; every token counts.
        layers: The layers whose norms count for the hidden channels; default all.
        on_lesson: Called after each lesson.
    """
    body = get_body(teacher)
    modules = dict(body.named_modules())
    has_post_norms = any(name.endswith("pre_feedforward_layernorm") for name in modules)
    ffn, attention, norms = _MagnitudeSums(), _MagnitudeSums(), _MagnitudeSums()
    reading = {
        (number, name): module
        for (number, name), module in _group_by_layer(modules, _READING_NORM).items()
        # where a layer has norms behind its parts, this one is no door to the next part
        if not (has_post_norms and name.endswith("post_attention_layernorm"))
    }
    with (
        ffn.watching(_group_by_layer(modules, _FFN), behind=False),
        attention.watching(_group_by_layer(modules, _ATTENTION), behind=False),
        norms.watching(reading, behind=True),
        torch.inference_mode(),
    ):
        _run_records(teacher, lessons, on_lesson)
    chosen = [
        scores for (number, _), scores in norms.scores() if layers is None or number in layers
    ]
    return WidthStatistics(
        {number: scores for (number, _), scores in ffn.scores()},
        {number: scores for (number, _), scores in attention.scores()},
        torch.stack(chosen).sum(0),
    )


def measure_norm_shrinkage(
    teacher: nn.Module, lessons: Sequence[TokenizedRecord], kept: Tensor
) -> dict[str, float]:
    """Return how much smaller each norm's divisor is over some channels than over all.

    A norm divides by the root mean square (a LayerNorm by the standard deviation) of what it is
    given; over fewer channels that is another number. The mean of their ratio over tokens, by the
    norm's name, is what its weight has to be multiplied with. Where the channels that are gone
    were zero it is exactly ``sqrt(D / kept)``, and no logit changes.

    Args:
        teacher: In evaluation mode.
        lessons: What it reads.
        kept: Numbers of the hidden channels that stay, (D',).
    """
    sums: dict[str, tuple[float, int]] = {}
    body = get_body(teacher)

    def hook(name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            state = inputs[0].double()
            is_centered = isinstance(module, nn.LayerNorm)
            ratio = _compute_divisor(
                state[..., kept.to(state.device)], module, is_centered=is_centered
            )
            ratio /= _compute_divisor(state, module, is_centered=is_centered)
            total, tokens = sums.get(name, (0.0, 0))
            sums[name] = total + float(ratio.sum()), tokens + ratio.numel()

        return note

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in body.named_modules()
        if is_norm(f"{name}.weight")
    ]
    try:
        with torch.inference_mode():
            _run_records(teacher, lessons, None)
    finally:
        for handle in handles:
            handle.remove()
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
        """Return the roots of the sums, in the order of layers."""
        return [(key, self.sums[key].sqrt().cpu()) for key in sorted(self.sums)]

    @contextmanager
    def watching(
        self, modules: dict[tuple[int, str], nn.Module], *, behind: bool
    ) -> Iterator[None]:
        """Take in what modules are given, or what they give, within the body."""

        def before(key: tuple[int, str]) -> Any:
            return lambda module, inputs: self.take(key, inputs[0])

        def after(key: tuple[int, str]) -> Any:
            return lambda module, inputs, output: self.take(key, output)

        handles = [
            module.register_forward_hook(after(key))
            if behind
            else module.register_forward_pre_hook(before(key))
            for key, module in modules.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _group_by_layer(
    modules: dict[str, nn.Module], pattern: re.Pattern[str]
) -> dict[tuple[int, str], nn.Module]:
    found = {}
    for name, module in modules.items():
        match = pattern.search(name)
        if match:
            found[int(match[1]), name] = module
    return found


def _run_records(
    teacher: nn.Module, lessons: Sequence[TokenizedRecord], on_lesson: Callable[[], None] | None
) -> None:
    device = next(teacher.parameters()).device
    for lesson in lessons:
        batch = make_batch([lesson], None, device)
        get_body(teacher)(input_ids=batch.input_ids, use_cache=False)
        if on_lesson:
            on_lesson()


def _compute_divisor(state: Tensor, norm: nn.Module, *, is_centered: bool) -> Tensor:
    epsilon = next(
        (float(getattr(norm, name)) for name in ("variance_epsilon", "eps") if hasattr(norm, name)),
        0.0,
    )
    if is_centered:
        state = state - state.mean(-1, keepdim=True)
    return state.square().mean(-1).add(epsilon).sqrt()


AblationMetric = Literal["loss", "kl"]


def rank_layers(scores: Sequence[float], wanted: int) -> tuple[int, ...]:
    """Return the layers that score highest, the first and the last always among them."""
    last = len(scores) - 1
    order = sorted(range(1, last), key=lambda number: (-scores[number], number))
    ends = [0, last] if last else [0]
    return tuple(sorted([*ends, *order][:wanted]))


def measure_block_influence(teacher: nn.Module, lessons: Sequence[TokenizedRecord]) -> list[float]:
    """Return how much each layer turns its input: the mean of ``1 - cos(in, out)`` over tokens.

    Args:
        teacher: In evaluation mode.
        lessons: What it reads.
    """
    sums: list[float] = []
    tokens = 0
    for states in _iterate_states(teacher, lessons):
        turned = [
            float((1 - torch.cosine_similarity(before, after, -1)).double().sum())
            for before, after in pairwise(states)
        ]
        sums = [old + new for old, new in zip(sums or [0.0] * len(turned), turned, strict=True)]
        tokens += states[0].shape[0]
    return [total / max(tokens, 1) for total in sums]


def find_redundant_block(
    teacher: nn.Module, lessons: Sequence[TokenizedRecord], length: int
) -> range:
    """Return the run of ``length`` layers across which the state turns by the smallest angle.

    Args:
        teacher: In evaluation mode.
        lessons: What it reads.
        length: How many layers; the first and the last are outside unless no other can be.
    """
    count = len(_find_layers(get_body(teacher)))
    starts = list(range(1, count - length)) or [count - length]
    angles = dict.fromkeys(starts, 0.0)
    for states in _iterate_states(teacher, lessons):
        for start in starts:
            cosine = torch.cosine_similarity(states[start], states[start + length], -1)
            angles[start] += float(cosine.double().clamp(-1, 1).acos().sum()) / math.pi
    best = min(starts, key=lambda start: (angles[start], start))
    return range(best, best + length)


def measure_ablation_costs(
    teacher: nn.Module,
    lessons: Sequence[TokenizedRecord],
    cost: AblationMetric,
    *,
    dropped: Collection[int] = (),
    on_layer: Callable[[], None] | None = None,
) -> list[float]:
    """Return what leaving out each layer costs, in nats a position that bears loss.

    Args:
        teacher: In evaluation mode; left as it was.
        lessons: What it reads.
        cost: ``loss``: cross-entropy of the records; ``kl``: KL from the whole teacher.
        dropped: Layers that are left out already; they, the first and the last cost infinity.
        on_layer: Called after each layer measured.
    """
    layers = _find_layers(get_body(teacher))
    head = LMHead.of(teacher)
    costs = [math.inf] * len(layers)
    with torch.inference_mode():
        whole = (
            [_compute_loss_states(teacher, lesson) for lesson in lessons] if cost == "kl" else []
        )
        for number in range(1, len(layers) - 1):
            if number in dropped:
                continue
            total = 0.0
            with _skip_layers(layers, {number, *dropped}):
                for at, lesson in enumerate(lessons):
                    hidden = _compute_loss_states(teacher, lesson)
                    total += _compute_cost(head, hidden, lesson, whole[at] if whole else None)
            costs[number] = total / max(sum(len(lesson.positions) for lesson in lessons), 1)
            if on_layer:
                on_layer()
    return costs


def drop_iteratively(
    teacher: nn.Module,
    lessons: Sequence[TokenizedRecord],
    cost: AblationMetric,
    wanted: int,
    *,
    on_layer: Callable[[], None] | None = None,
) -> tuple[int, ...]:
    """Return the layers left after dropping the cheapest again and again, measured each time.

    Args:
        teacher: In evaluation mode; left as it was.
        lessons: What it reads.
        cost: See ``measure_ablation_costs``.
        wanted: How many layers to keep; fewer than two keep the first.
        on_layer: Called after each layer measured.
    """
    count = len(_find_layers(get_body(teacher)))
    dropped: set[int] = set()
    while count - len(dropped) > max(wanted, 2):
        costs = measure_ablation_costs(teacher, lessons, cost, dropped=dropped, on_layer=on_layer)
        dropped.add(min(range(count), key=lambda number: (costs[number], number)))
    kept = [number for number in range(count) if number not in dropped]
    return tuple(kept[:wanted])


def _iterate_states(
    teacher: nn.Module, lessons: Sequence[TokenizedRecord]
) -> Iterator[list[Tensor]]:
    """Yield, for each lesson, the state before every layer and after the last, (T, D) each."""
    layers = _find_layers(get_body(teacher))
    seen: list[Tensor] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        if not seen:
            seen.append(inputs[0][0].float())
        seen.append((output[0] if isinstance(output, tuple) else output)[0].float())

    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        for lesson in lessons:
            seen.clear()
            with torch.inference_mode():
                _compute_states(teacher, lesson)
            yield list(seen)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _skip_layers(layers: nn.ModuleList, dropped: Collection[int]) -> Iterator[None]:
    """Make some layers give back what they are given, within the body."""

    def skip(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
        return (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]

    handles = [layers[number].register_forward_hook(skip) for number in dropped]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _compute_states(teacher: nn.Module, lesson: TokenizedRecord) -> Tensor:
    """Return the hidden states of a whole lesson, (T, D)."""
    device = next(teacher.parameters()).device
    batch = make_batch([lesson], None, device)
    output = get_body(teacher)(input_ids=batch.input_ids, use_cache=False)
    return cast("Tensor", output.last_hidden_state[0])


def _compute_loss_states(teacher: nn.Module, lesson: TokenizedRecord) -> Tensor:
    """Return the hidden states of the positions that bear loss, (N, D)."""
    hidden = _compute_states(teacher, lesson)
    return hidden[torch.from_numpy(lesson.positions).to(hidden.device)]


def _compute_cost(
    head: LMHead, hidden: Tensor, lesson: TokenizedRecord, whole: Tensor | None
) -> float:
    """Return the summed cost of a lesson's positions, a few rows of logits at a time."""
    labels = torch.from_numpy(lesson.labels).to(hidden.device)
    total = 0.0
    for start in range(0, len(hidden), CHUNK_ROWS):
        rows = slice(start, start + CHUNK_ROWS)
        ours = torch.log_softmax(head.logits(hidden[rows]).float(), -1)
        if whole is None:
            total -= float(ours.gather(1, labels[rows, None]).double().sum())
        else:
            theirs = torch.log_softmax(head.logits(whole[rows]).float(), -1)
            total += float((theirs.exp() * (theirs - ours)).double().sum())
    return total


def _find_layers(body: nn.Module) -> nn.ModuleList:
    lists = [module for module in body.children() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise CheckpointError(
            f"{type(body).__name__} has no list of layers",
            code="distill.no-layers",
            expected="a transformer with its layers in one list",
            next="give student.keep, or a checkpoint as the student",
        )
    return max(lists, key=len)
