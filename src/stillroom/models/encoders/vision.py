"""Vision (image) encoders: any transformers checkpoint that maps an image to one vector.

Of models of images and texts (CLIP, SigLIP) only the vision tower is loaded; CLIP's with its
projection. Labels are not used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stillroom.checkpoints.config_file import make_config_error, open_config
from stillroom.errors import CheckpointError
from stillroom.models.local.causal_lm import load_pretrained
from stillroom.models.local.runtime import silence_transformers

__all__ = ["VisionModel", "build_vision", "load_vision"]

_CLIP_TYPES = ("clip", "clip_vision_model")
_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, eq=False)
class VisionModel:
    """Vision encoder with its config and image preprocessing.

    ``side`` is the image height and width; ``mean`` and ``deviation`` normalize the channels of
    images in [0, 1]. Without a pooler, the vector is the state of the first token.
    """

    model: Any
    config: Mapping[str, Any]
    side: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    has_pooler: bool = True

    def vectors(self, images: Tensor) -> Tensor:
        """Return one vector per image, (B, D), of normalized images (B, 3, side, side)."""
        out = self.model(pixel_values=images)
        for name in ("image_embeds", "pooler_output") if self.has_pooler else ():
            vectors = getattr(out, name, None)
            if isinstance(vectors, Tensor):
                return vectors.flatten(1)
        return torch.as_tensor(out.last_hidden_state)[:, 0]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON from which ``build_vision`` builds the network, without weights."""
        return {
            "config": dict(self.config),
            "side": self.side,
            "mean": list(self.mean),
            "deviation": list(self.deviation),
            **({} if self.has_pooler else {"has_pooler": False}),
        }


def load_vision(folder: Path) -> VisionModel:
    """Load a vision model from a Hugging Face folder, in float32 and evaluation mode.

    Raises:
        CheckpointError: If the folder has no vision model, or none that can be loaded safely.
    """
    from transformers import AutoConfig, AutoModel, CLIPVisionModelWithProjection

    try:
        with silence_transformers():
            full_config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
            config = getattr(full_config, "vision_config", full_config)
            if full_config.model_type in _CLIP_TYPES:
                model, missing = _load(CLIPVisionModelWithProjection, folder, config=config)
            else:
                model, missing = _load(AutoModel, folder)
                if config is not full_config:
                    model = _vision_tower(model, config)
                    missing = [name for name in missing if name.startswith("vision_model.")]
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError) as error:
        raise _unloadable_error(folder, str(error)) from error
    lacking = [name for name in missing if not name.startswith("pooler.")]
    if lacking:
        raise _unloadable_error(
            folder, f"it lacks {min(lacking)}, which would be initialized at random"
        )
    mean, deviation = _normalization(folder)
    side = getattr(config, "image_size", None)
    side = side[0] if isinstance(side, list | tuple) else side
    if not isinstance(side, int):
        raise _unloadable_error(folder, "its config has no image_size")
    vision = VisionModel(
        model.eval(), config.to_dict(), side, mean, deviation, has_pooler=not missing
    )
    _check_outputs(vision, folder)
    return vision


def build_vision(settings: Mapping[str, Any]) -> VisionModel:
    """Build the network of ``VisionModel.to_json`` output, with random weights.

    Raises:
        CheckpointError: If transformers does not support it.
    """
    from transformers import AutoConfig, AutoModel, CLIPVisionModelWithProjection

    try:
        config = dict(settings["config"])
        kind = str(config.pop("model_type"))
        with silence_transformers():
            model_config: Any = AutoConfig.for_model(kind, **config)
            untyped: Any = AutoModel
            model = (
                CLIPVisionModelWithProjection(model_config)
                if kind in _CLIP_TYPES
                else untyped.from_config(model_config)
            )
        mean, deviation = tuple(settings["mean"]), tuple(settings["deviation"])
        return VisionModel(
            model.eval(),
            dict(settings["config"]),
            int(settings["side"]),
            mean,
            deviation,
            has_pooler=bool(settings.get("has_pooler", True)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _unloadable_error(Path("config.json"), str(error)) from error


def _load(loader: Any, folder: Path, **settings: Any) -> tuple[Any, list[str]]:
    """Return the model, and the names of its tensors that the folder lacks."""
    model, report = load_pretrained(
        loader, folder, dtype=torch.float32, output_loading_info=True, **settings
    )
    return model, list(report["missing_keys"])


def _vision_tower(model: Any, config: Any) -> Any:
    from transformers import AutoModel

    untyped: Any = AutoModel
    half: Any = untyped.from_config(config)
    inner = getattr(half, "vision_model", half)
    inner.load_state_dict(model.vision_model.state_dict())
    return half


def _normalization(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of preprocessor_config.json; 0.5 without one."""
    path = folder / "preprocessor_config.json"
    if not path.exists():
        return _HALF, _HALF
    settings = open_config(path)
    mean, deviation = settings.get("image_mean", _HALF), settings.get("image_std", _HALF)
    try:
        return tuple(float(value) for value in mean), tuple(float(value) for value in deviation)
    except (ValueError, TypeError, OverflowError) as error:
        expected = "image_mean and image_std as lists of numbers"
        raise make_config_error(path, f"{error!s:.200}", expected) from error


def _check_outputs(vision: VisionModel, folder: Path) -> None:
    """Check that the model returns one vector per image."""
    with torch.inference_mode():
        try:
            vectors = vision.vectors(torch.zeros(1, 3, vision.side, vision.side))
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise _unloadable_error(folder, f"it does not accept images ({error})") from error
    if vectors.dim() != 2:
        raise _unloadable_error(
            folder, f"it returns {tuple(vectors.shape)} for one image, not a vector"
        )


def _unloadable_error(folder: Path, why: str) -> CheckpointError:
    first = (why.strip() or "it cannot be read").splitlines()[0]
    return CheckpointError(
        f"{folder} has no loadable vision model: {first}",
        code="checkpoint.no-vision",
        where=str(folder),
        expected="a vision checkpoint of transformers (CLIP, SigLIP, DINOv2, ViT) in safetensors",
        next="check that the folder is complete",
    )
