"""Frame-to-video aggregation of scores (video-level score): mean, maximum or top fifth.

Both the scores of a benchmark by clips and those of a user's clip or recording are aggregated here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["Aggregation", "aggregate_frame_scores"]

Aggregation = Literal["mean", "max", "top"]
_TOP_PART = 5


def aggregate_frame_scores(
    scores: Sequence[float] | npt.NDArray[np.float64], how: Aggregation
) -> float:
    """Return one score of a clip's frames or segments, (N,) with N of at least 1.

    ``top`` is the mean of the highest fifth, rounded up to whole frames: a forgery that shows in
    part of a clip is averaged away by ``mean``, and ``max`` is that of one bad frame.
    """
    values = np.asarray(scores, dtype=np.float64)
    if how == "mean":
        return float(values.mean())
    count = 1 if how == "max" else math.ceil(len(values) / _TOP_PART)
    return float(np.sort(values)[-count:].mean())
