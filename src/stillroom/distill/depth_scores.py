"""Which layers a student can do without, measured on records.

``influence``: how much a layer turns its input (Men et al. 2024, ShortGPT, arXiv:2403.03853,
section 3.2). ``loss`` and ``kl``: what a layer's absence costs, as in Muralidharan et al. 2024
(Minitron), arXiv:2407.14679, section 2.2; it takes as many passes as there are layers, and with
``iterative`` as many again for each layer dropped. ``contiguous``: the run of layers between whose
ends the state turns least (Gromov et al. 2024, arXiv:2403.17887, section 3; they look at the last
token, we at the mean over tokens). The first and the last layer are always kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from stillroom.distill.encode import Lesson, make_batch
from stillroom.distill.head import CHUNK_ROWS, Head, body_of
from stillroom.errors import CheckpointError

__all__ = ["absence_costs", "drop_one_by_one", "layer_influence", "rank_layers", "turning_run"]

Cost = Literal["loss", "kl"]


def rank_layers(scores: Sequence[float], wanted: int) -> tuple[int, ...]:
    """Return the layers that score highest, the first and the last always among them."""
    last = len(scores) - 1
    order = sorted(range(1, last), key=lambda number: (-scores[number], number))
    ends = [0, last] if last else [0]
    return tuple(sorted([*ends, *order][:wanted]))


def layer_influence(teacher: nn.Module, lessons: Sequence[Lesson]) -> list[float]:
    """Return how much each layer turns its input: the mean of ``1 - cos(in, out)`` over tokens.

    Args:
        teacher: In evaluation mode.
        lessons: What it reads.
    """
    sums: list[float] = []
    tokens = 0
    for states in _states(teacher, lessons):
        turned = [
            float((1 - torch.cosine_similarity(before, after, -1)).double().sum())
            for before, after in pairwise(states)
        ]
        sums = [old + new for old, new in zip(sums or [0.0] * len(turned), turned, strict=True)]
        tokens += states[0].shape[0]
    return [total / max(tokens, 1) for total in sums]


def turning_run(teacher: nn.Module, lessons: Sequence[Lesson], length: int) -> range:
    """Return the run of ``length`` layers across which the state turns by the smallest angle.

    Args:
        teacher: In evaluation mode.
        lessons: What it reads.
        length: How many layers; the first and the last are outside unless no other can be.
    """
    count = len(_layers_of(body_of(teacher)))
    starts = list(range(1, count - length)) or [count - length]
    angles = dict.fromkeys(starts, 0.0)
    for states in _states(teacher, lessons):
        for start in starts:
            cosine = torch.cosine_similarity(states[start], states[start + length], -1)
            angles[start] += float(cosine.double().clamp(-1, 1).acos().sum()) / math.pi
    best = min(starts, key=lambda start: (angles[start], start))
    return range(best, best + length)


def absence_costs(
    teacher: nn.Module,
    lessons: Sequence[Lesson],
    cost: Cost,
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
    layers = _layers_of(body_of(teacher))
    head = Head.of(teacher)
    costs = [math.inf] * len(layers)
    with torch.inference_mode():
        whole = [_hidden(teacher, lesson) for lesson in lessons] if cost == "kl" else []
        for number in range(1, len(layers) - 1):
            if number in dropped:
                continue
            total = 0.0
            with _without(layers, {number, *dropped}):
                for at, lesson in enumerate(lessons):
                    hidden = _hidden(teacher, lesson)
                    total += _cost(head, hidden, lesson, whole[at] if whole else None)
            costs[number] = total / max(sum(len(lesson.positions) for lesson in lessons), 1)
            if on_layer:
                on_layer()
    return costs


def drop_one_by_one(
    teacher: nn.Module,
    lessons: Sequence[Lesson],
    cost: Cost,
    wanted: int,
    *,
    on_layer: Callable[[], None] | None = None,
) -> tuple[int, ...]:
    """Return the layers left after dropping the cheapest again and again, measured each time.

    Args:
        teacher: In evaluation mode; left as it was.
        lessons: What it reads.
        cost: See ``absence_costs``.
        wanted: How many layers to keep; fewer than two keep the first.
        on_layer: Called after each layer measured.
    """
    count = len(_layers_of(body_of(teacher)))
    dropped: set[int] = set()
    while count - len(dropped) > max(wanted, 2):
        costs = absence_costs(teacher, lessons, cost, dropped=dropped, on_layer=on_layer)
        dropped.add(min(range(count), key=lambda number: (costs[number], number)))
    kept = [number for number in range(count) if number not in dropped]
    return tuple(kept[:wanted])


def _states(teacher: nn.Module, lessons: Sequence[Lesson]) -> Iterator[list[Tensor]]:
    """Yield, for each lesson, the state before every layer and after the last, (T, D) each."""
    layers = _layers_of(body_of(teacher))
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
                _run_body(teacher, lesson)
            yield list(seen)
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _without(layers: nn.ModuleList, dropped: Collection[int]) -> Iterator[None]:
    """Make some layers give back what they are given, within the body."""

    def skip(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
        return (inputs[0], *output[1:]) if isinstance(output, tuple) else inputs[0]

    handles = [layers[number].register_forward_hook(skip) for number in dropped]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run_body(teacher: nn.Module, lesson: Lesson) -> Tensor:
    """Return the hidden states of a whole lesson, (T, D)."""
    device = next(teacher.parameters()).device
    batch = make_batch([lesson], None, device)
    output = body_of(teacher)(input_ids=batch.input_ids, use_cache=False)
    return cast("Tensor", output.last_hidden_state[0])


def _hidden(teacher: nn.Module, lesson: Lesson) -> Tensor:
    """Return the hidden states of the positions that bear loss, (N, D)."""
    hidden = _run_body(teacher, lesson)
    return hidden[torch.from_numpy(lesson.positions).to(hidden.device)]


def _cost(head: Head, hidden: Tensor, lesson: Lesson, whole: Tensor | None) -> float:
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


def _layers_of(body: nn.Module) -> nn.ModuleList:
    lists = [module for module in body.children() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise CheckpointError(
            f"{type(body).__name__} has no list of layers",
            code="distill.no-layers",
            expected="a transformer with its layers in one list",
            next="give student.keep, or a checkpoint as the student",
        )
    return max(lists, key=len)
