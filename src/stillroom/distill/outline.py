"""A checkpoint without weights: what a teacher will look like, before it is fetched or converted.

Its file of tensors has a true header over a hole, so that plans of a student are made of it by the
same code that makes them of the real one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.quantization import plain_config
from stillroom.models.outlining import outline_model

__all__ = ["outline_checkpoint"]

_BYTES = 2  # bfloat16, which is named and never read


@contextmanager
def outline_checkpoint(config: Path) -> Iterator[Checkpoint]:
    """Give a checkpoint of the right names and shapes; its numbers must not be read.

    Args:
        config: A ``config.json`` or a ``.gguf`` file.

    Raises:
        CheckpointError: If no model can be made of it.
    """
    told, shapes = outline_model(config)
    with TemporaryDirectory(prefix="stillroom-outline-") as place:
        folder = Path(place)
        (folder / "config.json").write_text(
            json.dumps(plain_config(told), default=str), encoding="utf-8"
        )
        entries, end = {}, 0
        for name, shape in shapes.items():
            start, end = end, end + _BYTES * math.prod(shape)
            entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        with (folder / "model.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + end)
        yield Checkpoint.open(folder)
