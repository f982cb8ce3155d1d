"""mergekit's ``modules`` as name patterns: which tensors of a folder a module of its is.

mergekit knows modules by role (text_decoder, vision_tower) for the architectures that it has a list
for, and else by what stands before their layers' numbers. Files on disk name the same module in
several ways; patterns cover those that transformers writes.
"""

from __future__ import annotations

__all__ = ["REST", "has_main_layers", "patterns_of"]

REST = ("*",)
_WORDS = {
    "multi_modal_projector": (
        "multi_modal_projector",
        "mm_projector",
        "visual.merger",
        "visual.deepstack_merger_list",
        "connector",
    ),
    "vision_tower": ("vision_tower", "vision_model", "visual", "vision_encoder"),
    "vision_model": ("vision_tower", "vision_model", "visual", "vision_encoder"),
    "audio_tower": ("audio_tower", "audio_model", "audio_encoder"),
    "encoder": ("encoder",),
    "decoder": ("decoder", "lm_head", "proj_out"),
    "shared": ("shared",),
}
_MAIN = ("text_decoder", "default", "decoder", "language_model")


def patterns_of(module: str) -> tuple[str, ...]:
    """Return the name patterns of a module's tensors; ``REST`` for all that no other has."""
    if module in ("text_decoder", "default", "language_model"):
        return REST
    words = _WORDS.get(module)
    if words is None:  # mergekit inferred it: the words before the layers' numbers
        path = module.removeprefix("model.").rstrip(".")
        words = (path, path.replace("language_model.", "language_model.model.", 1))
    found = [pattern for word in words for pattern in (f"{word}.*", f"*.{word}.*")]
    return tuple(dict.fromkeys(found))


def has_main_layers(module: str) -> bool:
    """Return whether its layers are those that ``slices`` of a recipe stack."""
    return module in _MAIN or "language_model" in module
