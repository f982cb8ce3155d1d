"""Interactive model tools: streamed diffusion sampling, and merge previews.

Sampling keeps one model open and generates one text at a time.

Merge previews measure the conflict of task vectors by layer, and the held-out loss on the line
between two models. They block; when cancelled, they stop at the next tensor or point.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stillroom.errors import Cancelled, DataError, RecipeError
from stillroom.provenance import find_output
from stillroom.records import Record
from stillroom.serve.middleware.concurrency import IsStopped
from stillroom.serve.views.folder import read_folder_artifact, resolve_name
from stillroom.serve.views.records import RecordSet, open_record_set
from stillroom.serve.views.sources import Sources

if TYPE_CHECKING:
    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.diffusion.sampling.sampler import StepEvent

__all__ = [
    "MAX_PARENTS",
    "DiffusionStreamRequest",
    "DiffusionStreamService",
    "inspect_models",
    "measure_loss_path",
]


class DiffusionStreamRequest(BaseModel):
    """Prompt and decoding settings; methods are named without settings of their own."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field("", max_length=4000)
    is_chat: bool = False
    order: str = Field("confidence", max_length=40, pattern=r"\A[a-z_]+\z")
    commit: str = Field("threshold", max_length=40, pattern=r"\A[a-z_]+\z")
    remasking: str = Field("", max_length=40, pattern=r"\A[a-z_]*\z")
    at_once: int | None = Field(
        None, ge=1, le=64, description="tokens committed in a step, for top_k"
    )
    block_length: int | None = Field(None, ge=1, le=256)
    max_new_tokens: int = Field(48, ge=1, le=256)
    temperature: float = Field(0.0, ge=0, le=2)
    seed: int = Field(0, ge=0, le=2**31 - 1)


class DiffusionStreamService:
    """Opens diffusion checkpoints of a folder; the last one stays open."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._open: tuple[str, DiffusionModel] | None = None

    def write(
        self, name: str, body: DiffusionStreamRequest, is_stopped: IsStopped
    ) -> Iterator[dict[str, Any]]:
        """Yield the tokens of each step, then the text with its cost; blocks.

        Raises:
            DataError: If the name is not a diffusion checkpoint of the folder.
            RecipeError: If a method is unknown or unsuitable for the model.
        """
        from stillroom.diffusion.sampling.sampler import generate
        from stillroom.diffusion.sampling.sequence import (
            build_chat_request,
            build_text_request,
            decode_text,
        )

        settings = _build_decode_settings(body)
        with self._lock:
            model = self._model(name)
            ask = build_chat_request if body.is_chat else build_text_request
            request = ask(model.tokenizer, body.prompt, body.max_new_tokens)
            events: list[StepEvent] = []
            (sample,) = generate(
                model, [request], settings, on_step=events.append, is_cancelled=is_stopped
            )
            first = len(request.ids)
            for event in events:
                step = event.describe(model.tokenizer, first=first)
                yield {
                    "step": step.step,
                    "nfe": step.readings,
                    "pieces": step.pieces,
                    "written": step.written,
                    "changed": step.changed,
                    "confidence": [round(confidence, 4) for confidence in event.confidence[first:]],
                }
            yield {
                "text": decode_text(model.tokenizer, sample.new_ids),
                "nfe": sample.nfe,
                "steps": sample.steps,
                "reopened": sample.reopened,
                "tokens": len(sample.new_ids),
                "finish_reason": sample.finish_reason,
            }

    def _model(self, name: str) -> DiffusionModel:
        from stillroom.diffusion.model.loading import open_diffusion

        if self._open is not None and self._open[0] == name:
            return self._open[1]
        checkpoint = _find_checkpoint(self.root, name, page="Diffusion")
        self._open = None
        model = open_diffusion(str(checkpoint))
        if model.tokenizer is None:
            raise DataError(
                f"{name!r:.200} has no tokenizer",
                code="data.missing",
                expected="tokenizer.json beside the weights",
                next="copy the tokenizer's files into the folder",
            )
        self._open = (name, model)
        return model


def _build_decode_settings(request: DiffusionStreamRequest) -> Any:
    from stillroom.diffusion.sampling.settings import DecodeSettings

    commit: Any = request.commit
    if request.at_once is not None:
        commit = {"name": "top_k", "k": request.at_once}
    try:
        return DecodeSettings.model_validate(
            {
                "max_new_tokens": request.max_new_tokens,
                "block_length": request.block_length,
                "order": request.order,
                "commit": commit,
                "remasking": request.remasking or None,
                "temperature": request.temperature,
                "seed": request.seed,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            code="console.settings",
            expected="methods listed by `stillroom list methods`",
            next="choose another",
        ) from error


MAX_PARENTS = 4
_MAX_RECORDS = 64
_MAX_TOKENS = 512


def inspect_models(
    root: Path, base: str, parents: Sequence[str], density: float, is_stopped: IsStopped
) -> Iterator[dict[str, Any]]:
    """Yield one value: agreement of the parents' task vectors, by layer and by module.

    ``parents`` are the names of 2 to ``MAX_PARENTS`` fine-tuned models, ``density`` is the share of
    each tensor that trimming would keep. ``is_stopped`` is called after every tensor.

    Raises:
        DataError: If a name is not a checkpoint of the folder, or they are too few or too many.
        CheckpointError: If architectures or tokenizers differ.
        ShapeError: If shapes differ.
    """
    from stillroom.checkpoints import Checkpoint
    from stillroom.merge.analysis.comparison import inspect_models, open_model

    if not 2 <= len(parents) <= MAX_PARENTS:
        raise DataError(
            f"{len(parents)} parents are given",
            code="console.parents",
            expected=f"2 to {MAX_PARENTS}",
            next=f"choose 2 to {MAX_PARENTS} parents on the page Merge",
        )
    opened = Checkpoint.open(_find_checkpoint(root, base, page="Merge"))
    inspection = inspect_models(
        opened,
        [open_model(str(_find_checkpoint(root, name, page="Merge")), opened) for name in parents],
        density=density,
        on_tensor=_make_cancel_check(is_stopped),
    ).to_json()
    del inspection["tensors"]  # hundreds of tensors; the page shows the layers alone
    yield {**inspection, "base": base, "parents": list(parents)}


def measure_loss_path(
    sources: Sources,
    ends: tuple[str, str],
    records: str,
    *,
    count: int,
    points: int,
    is_stopped: IsStopped,
) -> Iterator[dict[str, Any]]:
    """Yield one value: the loss at evenly spaced points from the first model to the second.

    ``records`` names an artifact of records, of which ``count`` (at most 64) are used, held-out
    ones if any. Both ends are among the ``points``; ``is_stopped`` is called after each.

    Raises:
        DataError: If a name is not in the folder or not visible, or no record has an answer.
        CheckpointError: If a model cannot be loaded.
    """
    from stillroom.checkpoints import Checkpoint
    from stillroom.merge.analysis.comparison import measure_loss_path

    first, second = (
        Checkpoint.open(_find_checkpoint(sources.root, name, page="Merge")) for name in ends
    )
    with open_record_set(sources, records) as opened:
        selected, is_held_out = _select_records(opened, min(count, _MAX_RECORDS))
    path = measure_loss_path(
        ends,
        (first, second),
        selected,
        max_tokens=_MAX_TOKENS,
        points=points,
        on_point=_make_cancel_check(is_stopped),
    )
    yield {**path.to_json(), "records": len(selected), "held_out": is_held_out, "best": path.best}


def _select_records(opened: RecordSet, count: int) -> tuple[list[Record], bool]:
    """Return the first held-out records, or the first of all if none is marked as held out."""
    rows = list(islice(opened.records(), 20_000))
    held = [record for record in rows if record.fields.get("split") == "held_out"]
    return (held or rows)[:count], bool(held)


def _find_checkpoint(root: Path, name: str, *, page: str) -> Path:
    if read_folder_artifact(root, name).kind != "checkpoint":
        raise DataError(
            f"{name!r:.200} is not a checkpoint",
            code="data.wrong-kind",
            expected="a checkpoint of the folder",
            next=f"choose one on the page {page}",
        )
    return find_output(resolve_name(root, name), "checkpoint")


def _make_cancel_check(is_stopped: IsStopped) -> Callable[[], None]:
    def look() -> None:
        if is_stopped():
            raise Cancelled("stopped", code="job.cancelled")

    return look
