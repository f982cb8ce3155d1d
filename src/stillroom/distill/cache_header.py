"""What a teacher cache says of itself, and the layout of its rows that follows from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from stillroom.distill.targets import CacheMode
from stillroom.errors import DataError, IntegrityError

if TYPE_CHECKING:
    import numpy as np

__all__ = ["UNKNOWN", "CacheHeader", "row_bytes", "row_dtype", "token_dtype"]

UNKNOWN = "unknown"

_FORMAT = 2
_SMALL_VOCABULARY = 1 << 16
_NOT_COMPARED = frozenset({"license", "about", "source"})


class CacheHeader(BaseModel):
    """Whose words a cache holds, and in which form.

    ``width`` is k in mode top_k, the number of tokens drawn in mode sampled, the vocabulary in mode
    dense; mode own has none and keeps the log-probability of each record's own token alone.
    ``temperature`` is what the teacher's logits were divided by; dense rows stand at 1 and serve
    every temperature. ``license`` is the teacher's, ``about`` what else is known of it (its name,
    where it was found, that its weights are quantized, which endpoint it stands behind), ``source``
    who made the rows: they are kept for those who share the cache, and not compared. A ``template``
    or ``precision`` of ``unknown`` belongs to words made elsewhere, and is not compared either.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    format: int = _FORMAT
    teacher: str
    tokenizer: str
    template: str
    vocabulary: int = Field(gt=0)
    mode: CacheMode
    width: int = Field(ge=0)
    temperature: float = Field(default=1.0, gt=0)
    sampling_temperature: float = Field(default=1.0, gt=0)
    precision: str
    logprob_dtype: Literal["float16", "float32"]
    seed: int = 0
    license: str = ""
    about: dict[str, Any] = {}
    source: str = "capture"

    @classmethod
    def read(cls, folder: Path) -> CacheHeader:
        """Read the header of a cache.

        Raises:
            DataError: If the folder holds no cache.
            IntegrityError: If the header cannot be read.
        """
        path = folder / "header.json"
        if not path.is_file():
            raise DataError(
                f"{folder} is no teacher cache",
                code="distill.no-cache",
                where=str(path),
                expected="the header.json that capture writes",
                next="stillroom distill capture RECIPE --out " + str(folder),
            )
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise IntegrityError(
                "the header of the teacher cache cannot be read",
                code="distill.cache-damaged",
                where=str(path),
                expected="the JSON that this version's capture writes",
                next=f"remove {folder} and run again",
            ) from error

    def refuse_other(self, wanted: CacheHeader, folder: Path) -> None:
        """Refuse to be used as a cache of other words.

        Raises:
            DataError: Naming the first field that differs.
        """
        for name in type(self).model_fields:
            was, now = getattr(self, name), getattr(wanted, name)
            if was == now or name in _NOT_COMPARED or UNKNOWN in (was, now):
                continue
            raise DataError(
                f"the teacher cache was made with another {name}: {was!r:.80}",
                code="distill.cache-mismatch",
                where=f"{folder / 'header.json'} {name}",
                expected=f"{now!r:.80}",
                next="give this job another targets.cache folder",
            )


def row_dtype(header: CacheHeader) -> np.dtype[np.void]:
    """Return the layout of one row, little-endian: ids, log-probabilities, and one number more."""
    import numpy as np

    if header.mode == "own":
        return np.dtype([("logprob", "<f4")])
    number = "<f2" if header.logprob_dtype == "float16" else "<f4"
    logprobs: tuple[Any, ...] = ("logprobs", number, (header.width,))
    if header.mode == "dense":
        return np.dtype([logprobs])
    last = "tail" if header.mode == "top_k" else "scale"
    return np.dtype([("ids", _id_type(header), (header.width,)), logprobs, (last, "<f4")])


def token_dtype(header: CacheHeader) -> np.dtype[np.void]:
    """Return the layout of one token of a record: its id, and 1 where a row predicts the next."""
    import numpy as np

    return np.dtype([("id", _id_type(header)), ("row", "u1")])


def row_bytes(header: CacheHeader) -> tuple[int, int]:
    """Return bytes of one row, and of one token of a record beside it."""
    return row_dtype(header).itemsize, token_dtype(header).itemsize


def _id_type(header: CacheHeader) -> str:
    return "<u2" if header.vocabulary <= _SMALL_VOCABULARY else "<u4"
