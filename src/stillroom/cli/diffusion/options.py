"""Parsing of the settings and models that diffusion commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.objects.disk import require_file
from stillroom.provenance.digests import load_json

if TYPE_CHECKING:
    from stillroom.diffusion.interfaces import LikelihoodEstimator
    from stillroom.diffusion.model.network import DiffusionModel
    from stillroom.diffusion.sampling.settings import DecodeSettings, DecodingPreset

__all__ = ["open_model", "read_estimator", "read_schema", "read_settings"]


def read_settings(
    path: Path | None, overrides: Sequence[str], preset: DecodingPreset | None = None
) -> DecodeSettings:
    """Return decoding settings from a YAML file or a preset, with overrides.

    Raises:
        RecipeError: With every problem and its location.
    """
    from stillroom.diffusion.sampling.settings import DecodeSettings
    from stillroom.errors import RecipeError
    from stillroom.jobs import LineReporter
    from stillroom.recipes.loader import parse_group
    from stillroom.recipes.yaml_text import emit_yaml

    text, where = "", "settings"
    if preset is not None:
        where = f"preset {preset.name}"
        text = "\n".join(emit_yaml(preset.settings.model_dump(mode="json")))
    elif path is not None and path.is_file():
        where, text = str(path), path.read_text(encoding="utf-8")
    elif path is not None:
        raise RecipeError(
            f"{path} does not exist",
            code="recipe.not-found",
            expected="a YAML file of decoding settings",
            next="leave --settings out, and use --set for single settings",
        )
    settings = parse_group(DecodeSettings, text, where, overrides)
    for line in settings.describe_unused():
        LineReporter().warn(line)
    return settings


def read_schema(path: Path) -> dict[str, Any]:
    """Return the JSON Schema of a file.

    Raises:
        DataError: If the file is missing, or is not a JSON object.
    """
    from stillroom.errors import DataError

    try:
        schema = load_json(require_file(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"the schema cannot be read: {error}",
            code="diffusion.schema",
            where=str(path),
            expected="a file with a JSON Schema",
            next="check the path and the JSON",
        ) from error
    if not isinstance(schema, dict):
        raise DataError(
            "the schema is not an object",
            code="diffusion.schema",
            where=str(path),
            expected='a JSON Schema, as {"type": "object", "properties": {...}}',
        )
    return schema


def read_estimator(name: str, overrides: Sequence[str]) -> LikelihoodEstimator:
    """Return an estimator with its settings.

    Raises:
        RecipeError: If there is no such estimator.
        ValidationError: If it has no such setting.
    """
    from stillroom.diffusion.interfaces import ESTIMATORS
    from stillroom.recipes.loader import parse_values

    return ESTIMATORS.build({"name": name, **parse_values(overrides)})


def open_model(
    reference: str, known: Sequence[str], *, dtype: str = "auto", device: str = "auto"
) -> DiffusionModel:
    """Open a diffusion model that has a tokenizer.

    Raises:
        CheckpointError: If it is not a diffusion model, or has no tokenizer.
    """
    from stillroom.diffusion.model.loading import open_diffusion
    from stillroom.recipes.loader import parse_values

    return open_diffusion(
        reference,
        overrides=parse_values(known),
        dtype=dtype,
        device=device,
        needs_tokenizer=True,
    )
