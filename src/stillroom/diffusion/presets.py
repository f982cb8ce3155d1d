"""Presets: decoding settings under a name, with the checkpoint and the figures they stand on.

``stillroom diffusion tune`` writes one; ``sample --preset`` and the backend's setting ``preset``
read it. What is read is the file, or the folder that tune left. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from stillroom.diffusion.decoding import DecodeSettings
from stillroom.errors import RecipeError
from stillroom.jobs import atomic_write
from stillroom.recipes import Settings
from stillroom.recipes.emitting import emit
from stillroom.recipes.groups import parse_group

__all__ = ["PRESET_FILE", "Preset", "find_preset", "read_preset", "write_preset"]

PRESET_FILE = "preset.yaml"


class Preset(Settings):
    """Decoding settings under a name."""

    name: str = Field(description="for people; part of what a run records")
    checkpoint: str = Field(
        default="", description="fingerprint of the weights it was measured on; empty fits any"
    )
    settings: DecodeSettings = Field(
        default_factory=DecodeSettings, description="as `stillroom diffusion sample --set` has them"
    )
    measured: dict[str, float | int | str] = Field(
        default_factory=dict, description="what it came to where it was chosen"
    )

    def check_against(self, fingerprint: str) -> None:
        """Refuse weights that the preset was not measured on.

        Raises:
            RecipeError: If it names other weights.
        """
        if self.checkpoint and self.checkpoint != fingerprint:
            raise RecipeError(
                f"preset '{self.name}' was measured on other weights "
                f"({self.checkpoint[:12]}, not {fingerprint[:12]})",
                code="diffusion.preset",
                expected="the checkpoint it was measured on",
                next="tune this checkpoint, or take the line 'checkpoint' out of the preset to use "
                "it unmeasured",
            )


def read_preset(path: Path) -> Preset:
    """Read a preset from its file, or from the folder that tune left.

    Raises:
        RecipeError: If there is none, or with every problem in it.
    """
    places = (path, path / PRESET_FILE, path / "output" / PRESET_FILE)
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise RecipeError(
            f"there is no preset at {path}",
            code="diffusion.preset",
            expected="a preset's file, or the folder that tune left",
            next="stillroom diffusion tune CHECKPOINT --records R --out FOLDER",
        )
    return parse_group(Preset, found.read_text(encoding="utf-8"), str(found))


def find_preset(checkpoint: Path) -> Path | None:
    """Return the preset that ``tune --write`` left at a checkpoint, or None.

    It lies in the checkpoint's folder; of a run, beside its artifact.json and not among its output.
    """
    places = [checkpoint / PRESET_FILE]
    if checkpoint.name == "output" and (checkpoint.parent / "artifact.json").is_file():
        places.append(checkpoint.parent / PRESET_FILE)
    return next((place for place in places if place.is_file()), None)


def write_preset(path: Path, preset: Preset) -> None:
    """Write a preset as YAML."""
    with atomic_write(path) as file:
        file.write("# stillroom diffusion sample CHECKPOINT --preset " + PRESET_FILE + "\n")
        file.write("\n".join(emit(preset.model_dump(mode="json"))) + "\n")
