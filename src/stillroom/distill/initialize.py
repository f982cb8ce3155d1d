"""A student made of some of the teacher's layers, written as an ordinary checkpoint.

Works on tensor names: ``PREFIX.NUMBER.REST`` is layer NUMBER. Every config list with one entry a
layer is shortened with the layers. Source of ``influence``: Men et al. 2024 (ShortGPT),
arXiv:2403.03853, section 3.2. Knows no architecture beyond that.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stillroom.checkpoints import Checkpoint, CheckpointWriter
from stillroom.distill.encode import Lesson, make_batch
from stillroom.distill.head import body_of
from stillroom.distill.recipe import DropLayers
from stillroom.errors import CheckpointError, RecipeError

__all__ = ["choose_layers", "count_parameters", "initialize_student", "layer_influence"]

_LAYER = re.compile(r"^(.*?)\.(\d+)\.(.+)$")
_COUNT_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def choose_layers(
    checkpoint: Checkpoint, settings: DropLayers, influence: Sequence[float] | None = None
) -> tuple[int, ...]:
    """Return the numbers of the teacher's layers that the student keeps.

    Args:
        checkpoint: The teacher.
        settings: How many, or which.
        influence: How much each layer changes its input, where that decides.

    Raises:
        RecipeError: If the teacher has not these layers, or no layer fits max_parameters.
    """
    names, count = _layer_names(checkpoint)
    if settings.keep is not None:
        if settings.keep[-1] >= count:
            raise RecipeError(
                f"the teacher has no layer {settings.keep[-1]}",
                code="distill.layers",
                where="student.keep",
                expected=f"layers from 0 to {count - 1}",
                next="choose others, or give student.layers",
            )
        kept = settings.keep
    else:
        fitting = _fitting_layers(checkpoint, names, count, settings.max_parameters)
        wanted = min(settings.layers or fitting, count)
        kept = _spread(count, wanted) if influence is None else _rank(influence, wanted)
    share = count_parameters(checkpoint, kept) / checkpoint.parameters
    if share > settings.max_parameters:
        raise RecipeError(
            f"{len(kept)} layers make {share:.1%} of the teacher's parameters",
            code="distill.too-large",
            where="student",
            expected=f"at most student.max_parameters, {settings.max_parameters:.1%}",
            next="keep fewer layers, or raise student.max_parameters",
        )
    return kept


def count_parameters(checkpoint: Checkpoint, kept: Sequence[int]) -> int:
    """Return the parameters of a student that keeps these layers, tied weights once."""
    names, _ = _layer_names(checkpoint)
    gone = sum(
        _numel(checkpoint.shape(name)) for name, number in names.items() if number not in set(kept)
    )
    return checkpoint.parameters - gone


def initialize_student(
    teacher: Path, folder: Path, kept: Sequence[int], *, dtype: torch.dtype = torch.float32
) -> Path:
    """Write the teacher without its other layers to ``folder``, and return it.

    Args:
        teacher: Folder or ``.gguf`` file.
        folder: Where the student will stand; appears whole or not at all.
        kept: Layer numbers, rising.
        dtype: Storage type of the weights.
    """
    checkpoint = Checkpoint.open(teacher)
    names, count = _layer_names(checkpoint)
    places = {old: new for new, old in enumerate(kept)}
    config = _shorten(checkpoint.config, count, kept)
    with CheckpointWriter(folder, config=config, dtype=dtype) as writer:
        for name in checkpoint.names():
            if name not in names:
                writer.add(name, checkpoint.tensor(name))
            elif names[name] in places:
                writer.add(_renumber(name, places[names[name]]), checkpoint.tensor(name))
        writer.copy_tokenizer(checkpoint.folder)
    return folder


def layer_influence(teacher: nn.Module, lessons: Sequence[Lesson]) -> list[float]:
    """Return how much each layer turns its input: the mean of ``1 - cos(in, out)`` over tokens.

    Args:
        teacher: In evaluation mode.
        lessons: What it reads.
    """
    layers = _layers_of(body_of(teacher))
    sums = [0.0] * len(layers)
    tokens = 0

    def hook(number: int) -> Any:
        def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
            after = output[0] if isinstance(output, tuple) else output
            likeness = torch.cosine_similarity(inputs[0].float(), after.float(), -1)
            sums[number] += float((1 - likeness).double().sum())

        return note

    handles = [layer.register_forward_hook(hook(at)) for at, layer in enumerate(layers)]
    try:
        with torch.inference_mode():
            for lesson in lessons:
                device = next(teacher.parameters()).device
                batch = make_batch([lesson], None, device)
                body_of(teacher)(input_ids=batch.input_ids, use_cache=False)
                tokens += len(lesson.ids)
    finally:
        for handle in handles:
            handle.remove()
    return [total / max(tokens, 1) for total in sums]


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


def _layer_names(checkpoint: Checkpoint) -> tuple[dict[str, int], int]:
    """Return the layer number of every tensor within a layer, and how many layers there are."""
    count = next(
        (int(checkpoint.config[key]) for key in _COUNT_KEYS if key in checkpoint.config), 0
    )
    numbers: dict[str, dict[str, int]] = {}
    for name in checkpoint.names():
        match = _LAYER.match(name)
        if match:
            numbers.setdefault(match[1], {})[name] = int(match[2])
    for names in numbers.values():
        if set(names.values()) == set(range(count)) and count:
            return names, count
    raise CheckpointError(
        "the checkpoint's layers cannot be told by their names",
        code="distill.no-layers",
        where=str(checkpoint.folder),
        expected=f"tensors named PREFIX.NUMBER.REST for {count} layers",
        next="give a checkpoint as the student",
    )


def _fitting_layers(checkpoint: Checkpoint, names: dict[str, int], count: int, share: float) -> int:
    inside = sum(_numel(checkpoint.shape(name)) for name in names)
    outside = checkpoint.parameters - inside
    fitting = int((share * checkpoint.parameters - outside) / (inside / count))
    if fitting < 1:
        raise RecipeError(
            f"the embeddings alone are {outside / checkpoint.parameters:.1%} of the teacher",
            code="distill.too-large",
            where="student.max_parameters",
            expected=f"more than {share:.1%}, so that one layer fits",
            next="raise student.max_parameters, or give a checkpoint as the student",
        )
    return min(fitting, count)


def _spread(count: int, wanted: int) -> tuple[int, ...]:
    """Return ``wanted`` of ``count`` numbers, evenly spaced, the first and the last among them."""
    if wanted == 1:
        return (0,)
    return tuple((at * (count - 1) + (wanted - 1) // 2) // (wanted - 1) for at in range(wanted))


def _rank(influence: Sequence[float], wanted: int) -> tuple[int, ...]:
    """Return the most influential layers, the first and the last always among them."""
    last = len(influence) - 1
    order = sorted(range(1, last), key=lambda number: (-influence[number], number))
    ends = [0, last] if last else [0]
    return tuple(sorted([*ends, *order][:wanted]))


def _shorten(config: dict[str, Any], count: int, kept: Sequence[int]) -> dict[str, Any]:
    short = dict(config)
    for key, value in config.items():
        if key in _COUNT_KEYS:
            short[key] = len(kept)
        elif isinstance(value, list) and len(value) == count:
            short[key] = [value[number] for number in kept]
    if "max_window_layers" in short:  # counts layers from the first, as Qwen2 does
        short["max_window_layers"] = sum(number < config["max_window_layers"] for number in kept)
    return short


def _renumber(name: str, number: int) -> str:
    return _LAYER.sub(lambda match: f"{match[1]}.{number}.{match[3]}", name)


def _numel(shape: Sequence[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
