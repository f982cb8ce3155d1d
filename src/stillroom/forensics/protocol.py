"""The protocol of a measurement: everything that decides a figure, and its digest.

The same detector reads .81 or .93 on the same set by the choice of crop, frames and aggregation.
So every figure carries the digest of its protocol, and figures of different protocols are not
compared.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from stillroom.errors import DataError
from stillroom.forensics.items import Item, digest_items
from stillroom.provenance import digest_json

__all__ = ["Aggregation", "NoScore", "Protocol", "Unit", "differences", "open_protocol"]

Unit = Literal["frame", "clip"]
Aggregation = Literal["mean", "max", "top"]
NoScore = Literal["refuse", "drop", "half"]
_PACKAGES = ("numpy", "opencv-python-headless", "pillow", "av")


@dataclass(frozen=True)
class Protocol:
    """What is measured on what, and how.

    Attributes:
        items: Digest of the manifest's rows that are measured.
        split: Which of its splits; empty for all.
        unit: Whether files (``frame``) or whole clips are judged.
        frames: Frames a clip; 0 where the manifest names the frames.
        choice: How frames are chosen.
        crop: How faces are cut out.
        size: Side of what the detector is given, in pixels; 0 if it says itself.
        aggregation: How a clip's score follows from its frames': their mean, their maximum, or the
            mean of the highest fifth.
        no_score: What an item without a score is: an error, left out, or a score of 0.5.
        treatment: What was done to every file of both classes beforehand, as ``jpeg-75``.
        threshold_from: The split that thresholds are chosen on.
        versions: Of the packages that decode and resize.
    """

    items: str
    split: str = "test"
    unit: Unit = "frame"
    frames: int = 0
    choice: str = "named by the manifest"
    crop: str = "whole picture"
    size: int = 0
    aggregation: Aggregation = "mean"
    no_score: NoScore = "refuse"
    treatment: str = "none"
    threshold_from: str = "validation"
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Digest of all of it, 16 digits."""
        return digest_json(self.to_json())[:16]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "versions": dict(self.versions)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Protocol:
        """Read what ``to_json`` wrote.

        Raises:
            DataError: If a key is missing or unknown.
        """
        try:
            return cls(**data)
        except TypeError as error:
            raise DataError(
                f"this is no protocol: {error}",
                code="forensics.protocol",
                expected=", ".join(cls.__dataclass_fields__),
                next="score again with this version",
            ) from error


def open_protocol(items: Sequence[Item], **settings: Any) -> Protocol:
    """Return the protocol of a measurement of these items, with this machine's versions.

    Raises:
        DataError: If a setting has no such value.
    """
    for name, kinds in (("unit", Unit), ("aggregation", Aggregation), ("no_score", NoScore)):
        if name in settings and settings[name] not in get_args(kinds):
            raise DataError(
                f"the protocol's {name} is {settings[name]!r}",
                code="forensics.protocol",
                expected=" or ".join(get_args(kinds)),
                next="choose one of these",
            )
    versions = {name: _version(name) for name in _PACKAGES}
    return Protocol(items=digest_items(items), versions=versions, **settings)


def differences(ours: Protocol, theirs: Protocol) -> list[str]:
    """Return in what two protocols differ, a line each; empty if they are the same."""
    first, second = ours.to_json(), theirs.to_json()
    return [f"{key}: {first[key]} and {second[key]}" for key in first if first[key] != second[key]]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"
