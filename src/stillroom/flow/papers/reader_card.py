"""Model card of a sentence reader: its base, its data and their licenses, and what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from stillroom.flow.papers.node import read_recipe
from stillroom.provenance import ARTIFACT_FILE, Artifact, read_artifact

__all__ = ["describe_reader", "describe_reader_training", "find_reader_bases", "list_licenses"]

PACKAGED = "builtin:reader"
PACKAGED_LICENSE = "CC-BY-SA-4.0"
_PACKAGED_NOTICE = (
    "The packaged reader that it starts from was trained on questions and passages of SQuAD 1.1 "
    "(Rajpurkar et al. 2016) and XQuAD (Artetxe et al. 2020), which are under CC BY-SA 4.0."
)


def describe_reader(folder: Path, artifact: Artifact, name: str, license: str) -> str:
    """Return what a reader is, in a paragraph."""
    recipe = read_recipe(folder, artifact)
    base = str(recipe.get("base", "an encoder that is not recorded")).removeprefix("hub:")
    text = (
        f"{name} is a sentence reader: an encoder ({base} with low-rank updates) that picks the "
        "sentences of retrieved passages that answer a question. They are quoted; it writes no "
        f"text. Its combined license is {license or 'not recorded'}."
    )
    return f"{text} {_PACKAGED_NOTICE}" if PACKAGED in _list_starts(folder, artifact) else text


def describe_reader_training(folder: Path, artifact: Artifact) -> str:
    """Return what the training did, and whether its result was kept."""
    recipe, details = read_recipe(folder, artifact), artifact.details
    train, comparison = details.get("train") or {}, details.get("comparison") or {}
    start = recipe.get("start")
    lines = [
        "## Training procedure",
        "",
        f"Low-rank updates were trained for {train.get('steps', 'an unknown number of')} steps, "
        f"seed {artifact.seed}, from {start or 'the base'}.",
    ]
    if comparison:
        figures = [comparison[name] for name in ("difference", "low", "high")]
        shown = ", ".join(
            f"{value:+.3f}" for value in figures if value is not None and math.isfinite(value)
        )
        compared = (
            f"right first sentences of {comparison['n']} held-out questions, trained less start "
            f"(mean, low, high): {shown or 'not measured'}"
        )
        lines.append(
            f"**The result was not kept:** the weights are those of {start} ({compared})."
            if details.get("kept") == "start"
            else f"The result was kept ({compared}); the same questions are not an independent "
            "test of it."
        )
    return "\n".join(lines)


def find_reader_bases(folder: Path, artifact: Artifact) -> dict[str, str]:
    """Return the encoder of a reader, as a card lists it, with an empty digest."""
    base = read_recipe(folder, artifact).get("base")
    return {str(base).removeprefix("hub:").partition("@")[0]: ""} if base else {}


def list_licenses(folder: Path, artifact: Artifact) -> list[str]:
    """Return the licenses of the weights that a reader starts from."""
    return [PACKAGED_LICENSE] if PACKAGED in _list_starts(folder, artifact) else []


def _list_starts(folder: Path, artifact: Artifact) -> Iterator[str]:
    """Yield the readers that a reader was trained from, the nearest first."""
    seen: set[Path] = set()
    while folder not in seen:
        seen.add(folder)
        start = read_recipe(folder, artifact).get("start")
        if not start:
            return
        yield str(start)
        folder = Path(str(start))
        if not (folder / ARTIFACT_FILE).is_file():
            return
        artifact = read_artifact(folder)
