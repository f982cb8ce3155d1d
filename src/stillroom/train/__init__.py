"""Training loop, data order, LoRA and distributed training shared by all rooms.

AdamW with weight decay on matrices only; a constant, cosine or linear schedule; gradient
accumulation with the loss normalized over the whole optimizer step; gradient clipping; bfloat16
where the hardware supports it; gradient checkpointing; LoRA through peft; several processes through
accelerate. A resumed run produces the same bytes as an uninterrupted one.

Papers: AdamW, Loshchilov and Hutter 2017, arXiv:1711.05101; cosine schedule, Loshchilov and Hutter
2016, arXiv:1608.03983; LoRA, Hu et al. 2021, arXiv:2106.09685.

A room provides a ``BatchSource`` (the micro-batches of optimizer step s) and an objective (the
summed loss of one micro-batch). Importing the package loads only ``settings``; everything else
needs torch and is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.exports import export_lazily
from stillroom.train.settings import LoraSettings, TrainSettings

if TYPE_CHECKING:
    from stillroom.train.data import BatchSource, MicroBatch, RecordSource
    from stillroom.train.loop import Loss, Objective, TrainSummary, train
    from stillroom.train.lora import add_lora, export_tensors

__all__ = [
    "BatchSource",
    "LoraSettings",
    "Loss",
    "MicroBatch",
    "Objective",
    "RecordSource",
    "TrainSettings",
    "TrainSummary",
    "add_lora",
    "export_tensors",
    "train",
]

__getattr__ = export_lazily(__name__)
