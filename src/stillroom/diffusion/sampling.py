"""Writing several texts: each by its own writer, their readings joined into calls.

With ``rows: 1`` every call reads one text, without padding: a text gets the same bits whatever is
asked beside it. On a processor that costs nothing, as blocks keep it busy; on an accelerator raise
``rows``, and texts agree up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stillroom.diffusion.canvas import Request
from stillroom.diffusion.decoding import DecodeSettings
from stillroom.diffusion.model import DiffusionModel, Reading
from stillroom.diffusion.writing import Event, Reads, Sample, Writer

__all__ = ["generate"]


@torch.inference_mode()
def generate(
    model: DiffusionModel,
    requests: Sequence[Request],
    settings: DecodeSettings,
    *,
    on_step: Callable[[Event], None] | None = None,
    on_done: Callable[[int, Sample], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> list[Sample]:
    """Write every request, in order.

    Args:
        model: A diffusion model.
        requests: What to write.
        settings: How.
        on_step: Told after every step of every text.
        on_done: Told of each text as it is done, in any order.
        is_cancelled: Asked before every call; once true, texts come back as they stand.

    Raises:
        RecipeError: If the settings ask for what the model cannot do.
        DataError: If a request cannot be written.
    """
    settings.check_against(model.metadata)
    writers = [
        Writer(model, settings, request, row, on_step) for row, request in enumerate(requests)
    ]
    samples: dict[int, Sample] = {}
    is_stopped = is_cancelled or (lambda: False)
    waiting = list(range(len(writers)))
    active: dict[int, tuple[Reads, Reading]] = {}

    def finish(row: int, *, cancelled: bool = False) -> None:
        samples[row] = writers[row].sample(cancelled=cancelled)
        if on_done is not None:
            on_done(row, samples[row])

    while (waiting or active) and not is_stopped():
        while waiting and len(active) < settings.rows:
            row = waiting.pop(0)
            run = writers[row].run()
            active[row] = (run, next(run))
        chosen = _share_call(active)
        states = model.read([active[row][1] for row in chosen])
        for row, own in zip(chosen, states, strict=True):
            following = _send(active[row][0], own)
            if following is None:
                del active[row]
                finish(row)
            else:
                active[row] = (active[row][0], following)
    for row in sorted({*waiting, *active}):
        finish(row, cancelled=True)
    return [samples[row] for row in range(len(writers))]


def _share_call(active: dict[int, tuple[Reads, Reading]]) -> list[int]:
    """Return the rows whose readings go into one call: all with keys, or all without."""
    rows = sorted(active)
    with_keys = active[rows[0]][1].keys is not None
    return [row for row in rows if (active[row][1].keys is not None) == with_keys]


def _send(run: Reads, states: Tensor) -> Reading | None:
    try:
        return run.send(states)
    except StopIteration:
        return None
