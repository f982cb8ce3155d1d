"""Modality (medium, domain): all that differs between images and audio for a detector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["Modality"]

Floats = npt.NDArray[np.float64]
Perturbation = Callable[[Any, np.random.Generator], Any]
"""Random change of a sample."""


@dataclass(frozen=True)
class Modality(ABC):
    """Input of a detector.

    Class variables: ``name``; ``subject``, what samples show; ``detail_unit``, unit of the detail
    in ``FileTraits``; ``batch_size`` of scoring; ``features``, the values of ``measure``;
    ``conditions``, perturbations by name under which a detector is evaluated.
    """

    name: ClassVar[Literal["image", "audio"]]
    subject: ClassVar[str]
    detail_unit: ClassVar[str]
    batch_size: ClassVar[int]
    features: ClassVar[tuple[str, ...]]
    conditions: ClassVar[Mapping[str, Callable[[Any], Any]]]

    @property
    @abstractmethod
    def input_size(self) -> int:
        """Size that a detector method builds its network for."""

    @abstractmethod
    def prepare(self, samples: Sequence[Any]) -> npt.NDArray[np.float32]:
        """Return the network's input for N samples, (N, ...)."""

    @abstractmethod
    def measure(self, sample: Any) -> Floats:
        """Measure ``features`` of a sample, (L,), for out-of-domain detection."""

    def limits(self) -> str:
        """Return a clause on the validated conditions; empty without any."""
        return ""

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        return {"modality": self.name, **asdict(self)}
