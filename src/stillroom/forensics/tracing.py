"""Finding the lab's own files again by their watermark, when everything else was stripped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillroom.forensics.lab import Lab
from stillroom.forensics.pictures import load_picture
from stillroom.forensics.watermark import Watermark

__all__ = ["Trace", "trace_file", "trace_image"]


@dataclass(frozen=True, slots=True)
class Trace:
    """A watermark that was read, and the ledger's row of the file that it was written into.

    ``row`` is None where the mark is in no row: of a ledger that was lost, or of a run that was
    killed. ``kept`` is the share of width and height that a crop left.
    """

    watermark: str = ""
    kept: tuple[float, float] = (1.0, 1.0)
    row: Mapping[str, Any] | None = None

    def line(self) -> str:
        """Return the finding as one line."""
        if not self.watermark:
            return "no watermark of this lab; that says nothing about where the file is from"
        crop = (
            ""
            if self.kept == (1.0, 1.0)
            else f", cropped to {self.kept[0]:.0%} x {self.kept[1]:.0%}"
        )
        if self.row is None:
            return f"watermark {self.watermark} of this lab{crop}; it is in no row of the ledger"
        return (
            f"made by this lab{crop}: {self.row['generator']}, seed {self.row['seed']}, "
            f"{self.row['time']}, ledger row {self.row['number']}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "watermark": self.watermark or None,
            "kept": list(self.kept),
            "row": dict(self.row) if self.row else None,
        }


def trace_file(path: Path, lab: Lab) -> Trace:
    """Read the lab's watermark from a picture, also from a crop, and find its row.

    Raises:
        DataError: If the picture cannot be read.
        IntegrityError: If the ledger is broken.
    """
    return trace_image(load_picture(path).image, lab)


def trace_image(image: Any, lab: Lab) -> Trace:
    """Read the lab's watermark from pixels, RGB (H, W, 3), and find its row."""
    found = Watermark(lab.key).read(image, search=True)
    if found.payload is None:
        return Trace()
    return Trace(format(found.payload, "012x"), found.kept, lab.ledger.find(found.payload))
