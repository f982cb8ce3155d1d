"""Unmasking: a diffusion model's steps one by one, for whoever watches.

One model is open at a time, and one text is written at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stillroom.errors import DataError, RecipeError
from stillroom.provenance import find_output
from stillroom.serve.slots import IsStopped
from stillroom.serve.views.found import find_inside, read_found

if TYPE_CHECKING:
    from stillroom.diffusion.model import DiffusionModel
    from stillroom.diffusion.writing import Event

__all__ = ["Unmasker", "Unmasking"]


class Unmasking(BaseModel):
    """What is to be written, and how; methods are named without settings of their own."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field("", max_length=4000)
    is_chat: bool = False
    order: str = Field("confidence", max_length=40, pattern=r"\A[a-z_]+\z")
    commit: str = Field("threshold", max_length=40, pattern=r"\A[a-z_]+\z")
    remasking: str = Field("", max_length=40, pattern=r"\A[a-z_]*\z")
    at_once: int | None = Field(None, ge=1, le=64, description="places a step, by top_k")
    block_length: int | None = Field(None, ge=1, le=256)
    max_new_tokens: int = Field(48, ge=1, le=256)
    temperature: float = Field(0.0, ge=0, le=2)
    seed: int = Field(0, ge=0, le=2**31 - 1)


class Unmasker:
    """Opens a folder's diffusion checkpoints, the last one stays."""

    def __init__(self, root: Path) -> None:
        """Stand over a folder."""
        self.root = root
        self._lock = threading.Lock()
        self._open: tuple[str, DiffusionModel] | None = None

    def write(
        self, name: str, wanted: Unmasking, is_stopped: IsStopped
    ) -> Iterator[dict[str, Any]]:
        """Yield what each step wrote, then the text with what it took; blocks.

        Raises:
            DataError: If the name is no diffusion checkpoint of the folder.
            RecipeError: If a method is unknown or does not suit the model.
        """
        from stillroom.diffusion.requests import chat_request, decode, piece_texts, text_request
        from stillroom.diffusion.sampling import generate

        settings = _settings(wanted)
        with self._lock:
            model = self._model(name)
            ask = chat_request if wanted.is_chat else text_request
            request = ask(model.tokenizer, wanted.prompt, wanted.max_new_tokens)
            events: list[Event] = []
            (sample,) = generate(
                model, [request], settings, on_step=events.append, is_cancelled=is_stopped
            )
            first = len(request.ids)
            for event in events:
                texts = piece_texts(model.tokenizer, event.ids)
                yield {
                    "step": event.step,
                    "nfe": event.nfe,
                    "pieces": [
                        None if event.is_open[at] else texts[at]
                        for at in range(first, len(event.ids))
                    ],
                    "written": [at - first for at in event.written if at >= first],
                    "changed": [at - first for at in event.changed if at >= first],
                    "confidence": [round(one, 4) for one in event.confidence[first:]],
                }
            yield {
                "text": decode(model.tokenizer, sample, whole=False),
                "nfe": sample.nfe,
                "steps": sample.steps,
                "reopened": sample.reopened,
                "tokens": len(sample.new_ids),
                "finish_reason": sample.finish_reason,
            }

    def _model(self, name: str) -> DiffusionModel:
        from stillroom.diffusion.opening import open_diffusion

        if self._open is not None and self._open[0] == name:
            return self._open[1]
        if read_found(self.root, name).kind != "checkpoint":
            raise DataError(
                f"{name!r:.200} is no checkpoint",
                code="data.wrong-kind",
                expected="a diffusion checkpoint of the folder",
                next="choose one on the page Diffusion",
            )
        self._open = None
        model = open_diffusion(str(find_output(find_inside(self.root, name), "checkpoint")))
        if model.tokenizer is None:
            raise DataError(
                f"{name!r:.200} has no tokenizer",
                code="data.missing",
                expected="tokenizer.json beside the weights",
                next="copy the tokenizer's files into the folder",
            )
        self._open = (name, model)
        return model


def _settings(wanted: Unmasking) -> Any:
    from stillroom.diffusion.decoding import DecodeSettings

    commit: Any = wanted.commit
    if wanted.at_once is not None:
        commit = {"name": "top_k", "k": wanted.at_once}
    try:
        return DecodeSettings.model_validate(
            {
                "max_new_tokens": wanted.max_new_tokens,
                "block_length": wanted.block_length,
                "order": wanted.order,
                "commit": commit,
                "remasking": wanted.remasking or None,
                "temperature": wanted.temperature,
                "seed": wanted.seed,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            code="console.settings",
            expected="methods that `stillroom list methods` names",
            next="choose another",
        ) from error
