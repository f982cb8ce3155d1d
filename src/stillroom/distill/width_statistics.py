"""How large each channel of a teacher's activations is on records: what pruning its width goes by.

Source: Muralidharan et al. 2024 (Minitron), arXiv:2407.14679, section 2.2: forward passes alone, a
channel's score the L2 norm over records of its mean magnitude over a record's tokens. Feed-forward
channels are read where ``down_proj`` takes them in, heads where ``o_proj`` does, hidden channels
behind the norms that a layer reads through, summed over layers. Records stream by one at a time;
sums are float64.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.distill.encode import Lesson, make_batch
from stillroom.distill.head import body_of
from stillroom.distill.width_axes import is_norm

__all__ = ["WidthStatistics", "gather_width_statistics", "norm_shrinkage"]

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
    lessons: Sequence[Lesson],
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
    body = body_of(teacher)
    modules = dict(body.named_modules())
    has_post_norms = any(name.endswith("pre_feedforward_layernorm") for name in modules)
    ffn, attention, norms = _Magnitudes(), _Magnitudes(), _Magnitudes()
    reading = {
        (number, name): module
        for (number, name), module in _by_layer(modules, _READING_NORM).items()
        # where a layer has norms behind its parts, this one is no door to the next part
        if not (has_post_norms and name.endswith("post_attention_layernorm"))
    }
    with (
        ffn.watching(_by_layer(modules, _FFN), behind=False),
        attention.watching(_by_layer(modules, _ATTENTION), behind=False),
        norms.watching(reading, behind=True),
        torch.inference_mode(),
    ):
        _run_all(teacher, lessons, on_lesson)
    chosen = [
        scores for (number, _), scores in norms.scores() if layers is None or number in layers
    ]
    return WidthStatistics(
        {number: scores for (number, _), scores in ffn.scores()},
        {number: scores for (number, _), scores in attention.scores()},
        torch.stack(chosen).sum(0),
    )


def norm_shrinkage(teacher: nn.Module, lessons: Sequence[Lesson], kept: Tensor) -> dict[str, float]:
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
    body = body_of(teacher)

    def hook(name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            state = inputs[0].double()
            is_centered = isinstance(module, nn.LayerNorm)
            ratio = _divisor(state[..., kept.to(state.device)], module, is_centered=is_centered)
            ratio /= _divisor(state, module, is_centered=is_centered)
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
            _run_all(teacher, lessons, None)
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / max(tokens, 1) for name, (total, tokens) in sums.items()}


@dataclass(slots=True)
class _Magnitudes:
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


def _by_layer(
    modules: dict[str, nn.Module], pattern: re.Pattern[str]
) -> dict[tuple[int, str], nn.Module]:
    found = {}
    for name, module in modules.items():
        match = pattern.search(name)
        if match:
            found[int(match[1]), name] = module
    return found


def _run_all(
    teacher: nn.Module, lessons: Sequence[Lesson], on_lesson: Callable[[], None] | None
) -> None:
    device = next(teacher.parameters()).device
    for lesson in lessons:
        batch = make_batch([lesson], None, device)
        body_of(teacher)(input_ids=batch.input_ids, use_cache=False)
        if on_lesson:
            on_lesson()


def _divisor(state: Tensor, norm: nn.Module, *, is_centered: bool) -> Tensor:
    epsilon = next(
        (float(getattr(norm, name)) for name in ("variance_epsilon", "eps") if hasattr(norm, name)),
        0.0,
    )
    if is_centered:
        state = state - state.mean(-1, keepdim=True)
    return state.square().mean(-1).add(epsilon).sqrt()
