"""``Layout``: how a published format of diffusion checkpoints is read with stock modules.

A layout looks at config.json, says which stock architecture computes the same, and renames (or
folds) the tensors. No code from the checkpoint's folder is ever run.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from stillroom.errors import CheckpointError
from stillroom.registry import Method, Seam

if TYPE_CHECKING:
    from torch import Tensor

    from stillroom.diffusion.metadata import DiffusionMetadata

__all__ = ["LAYOUTS", "Layout", "Stored", "Translation", "find_special", "refuse_config"]


class Stored(Protocol):
    """What a layout reads: a checkpoint on disk, as ``Checkpoint`` gives it."""

    folder: Path
    config: dict[str, Any]

    def names(self) -> list[str]:
        """Return the names of all tensors, sorted."""

    def tensor(self, name: str) -> Tensor:
        """Return one tensor."""


@dataclass(frozen=True)
class Translation:
    """A foreign checkpoint in terms of a stock architecture.

    Args:
        config: config.json of the stock architecture, ``model_type`` included.
        metadata: What it is as a diffusion model.
        names: The tensors there are, by the stock names; one that has no place keeps its own.
        tensor: Returns one of them.
    """

    config: Mapping[str, Any]
    metadata: DiffusionMetadata
    names: tuple[str, ...]
    tensor: Callable[[str], Tensor]


class Layout(Method):
    """A format of diffusion checkpoints, recognized by its config.json."""

    model_types: ClassVar[tuple[str, ...]]

    def fits(self, config: Mapping[str, Any]) -> bool:
        """Return whether a config.json is of this format."""
        return config.get("model_type") in self.model_types

    @abstractmethod
    def translate(self, stored: Stored) -> Translation:
        """Return a checkpoint of this format in terms of a stock architecture.

        Args:
            stored: The checkpoint; tensors are read when they are asked for.

        Raises:
            CheckpointError: If its config asks for what no stock architecture computes, or names no
                mask token.
        """


def find_special(stored: Stored, name: str, texts: tuple[str, ...]) -> int | None:
    """Return a special token's id: from config.json, else from the tokenizer's files by its text.

    Args:
        stored: The checkpoint.
        name: The key of config.json, as ``mask_token_id``.
        texts: How the token may be written in tokenizer.json.
    """
    said = stored.config.get(name)
    if isinstance(said, int) and not isinstance(said, bool):
        return said
    path = stored.folder / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens", [])
        found = {str(token["content"]): int(token["id"]) for token in added}
    except (ValueError, TypeError, KeyError, AttributeError):
        return None  # a tokenizer that cannot be read is the tokenizer's own error, later
    return next((found[text] for text in texts if text in found), None)


def refuse_config(stored: Stored, what: str) -> CheckpointError:
    """Return the error for a config that no stock architecture computes."""
    return CheckpointError(
        f"this checkpoint cannot be read with stock modules: {what}",
        code="diffusion.layout",
        where=str(stored.folder / "config.json"),
        expected="a published configuration of its format",
        next="stillroom list methods diffusion.layouts shows what is read",
    )


LAYOUTS = Seam("stillroom.diffusion.layouts", Layout)
