"""A whole run of the robustness suite over a manifest, with a scorer from a file of the user's."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.forensics.curves import Curve, draw_curves, trace_curves
from stillroom.forensics.face import Image
from stillroom.forensics.intervals import pick_threshold
from stillroom.forensics.items import Item, find_manifest, read_items
from stillroom.forensics.page import frame_page
from stillroom.forensics.pictures import load_picture
from stillroom.forensics.protocol import Protocol, open_protocol
from stillroom.forensics.stress import stress_items

__all__ = ["Scorer", "Strain", "draw_stress_page", "load_scorer", "stress_manifest"]

Scorer = Callable[[Sequence[Image]], Iterable[float]]


@dataclass(frozen=True)
class Strain:
    """The curves of one detector on one manifest, the threshold, and where that came from."""

    detector: str
    protocol: Protocol
    threshold: float
    threshold_from: str
    curves: tuple[Curve, ...]

    def lines(self) -> list[str]:
        """Return the curves as a user reads them."""
        head = f"{self.detector}: protocol {self.protocol.digest}, threshold {self.threshold:.4g} "
        return [f"{head}chosen on {self.threshold_from}", *(curve.line() for curve in self.curves)]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "detector": self.detector,
            "protocol_digest": self.protocol.digest,
            "protocol": self.protocol.to_json(),
            "threshold": self.threshold,
            "threshold_from": self.threshold_from,
            "curves": [curve.to_json() for curve in self.curves],
        }


def stress_manifest(
    manifest: Path,
    scorer: str | Scorer,
    *,
    treatments: Sequence[str] = (),
    split: str = "test",
    seed: int = 0,
    allow_code: bool = False,
) -> Strain:
    """Run the suite over a manifest's pictures.

    Args:
        manifest: The file, or its folder.
        scorer: A callable, ``FILE.py:NAME`` of one, or the folder of a trained detector, which
            takes the pictures as squares about faces, as the lab's sets hold them.
        treatments: Names; default all.
        split: Which rows; empty for all.
        seed: Of what is drawn by lot.
        allow_code: Whether a file may be run.

    Raises:
        DataError: If rows, files or the scorer are not as they have to be.
    """
    score = load_scorer(scorer, allow_code=allow_code) if isinstance(scorer, str) else scorer
    file = find_manifest(manifest)
    items = read_items(file)
    tested = [item for item in items if not split or item.split == split]
    if not tested:
        raise DataError(
            f"no row is of the split {split!r}",
            code="forensics.stress",
            where=str(file),
            expected="rows of that split",
            next="name another --split, or '' for all",
        )

    def load(item: Item) -> Image:
        return load_picture(file.parent / item.path).image

    chosen = [item for item in items if item.split == "validation" and split != "validation"]
    source = "the validation split"
    if len({item.label for item in chosen}) < 2:
        chosen, source = tested, "the tested files as they are"
    scores = [float(value) for item in chosen for value in score([load(item)])]
    threshold = pick_threshold([item.label for item in chosen], scores)
    rows = stress_items(tested, load, score, treatments=treatments, seed=seed)
    curves = trace_curves(rows, threshold if threshold is not None else 0.5, seed=seed)
    protocol = open_protocol(items, split=split, treatment="suite", threshold_from=source)
    name = scorer if isinstance(scorer, str) else getattr(scorer, "__name__", "detector")
    return Strain(name, protocol, threshold or 0.0, source, tuple(curves))


def load_scorer(named: str, *, allow_code: bool) -> Scorer:
    """Return a trained detector's scores of squares about faces, or what ``FILE.py:NAME`` names.

    Raises:
        DataError: If code may not be run, or the file has no such function.
        CheckpointError: If a folder is named that holds no detector.
    """
    if Path(named).is_dir():
        from stillroom.forensics.detecting import TrainedDetector

        return TrainedDetector.open(Path(named)).logits
    path, _, name = named.rpartition(":")
    if not allow_code:
        raise _no_scorer(named, "a file of code was named, and code may not be run", "--allow-code")
    spec = importlib.util.spec_from_file_location("stillroom_scorer", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise _no_scorer(named, f"{path or named} is no Python file", "FILE.py:NAME")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, name, None)
    if not callable(found):
        raise _no_scorer(named, f"{path} has no function {name!r}", "FILE.py:NAME")
    return found  # type: ignore[no-any-return]  # what it returns is checked where it is used


def draw_stress_page(strain: Strain) -> str:
    """Return the curves as one HTML page with everything inline."""
    lines = "".join(f"<li>{escape(line)}</li>" for line in strain.lines())
    return frame_page(
        f"How {strain.detector} holds",
        "<p>Area under the curve over five strengths of each treatment, given to real and fake "
        "files alike; 0.5 is chance. Bands are 95 % intervals over recordings.</p>"
        f'<section><div class="plots">{draw_curves(strain.curves)}</div></section>'
        f'<section><h2>Figures</h2><ul class="quiet">{lines}</ul></section>',
    )


def _no_scorer(named: str, what: str, expected: str) -> DataError:
    return DataError(
        what,
        code="forensics.scorer",
        where=named,
        expected=expected,
        next="def score(images): return [0.5 for image in images]",
    )
