"""``Backend`` and ``EmbedderMethod``: the settings of an engine, and the verb that opens it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from stillroom.registry import Method, Seam

if TYPE_CHECKING:
    from stillroom.models.protocols import Embedder, TextModel

__all__ = ["BACKENDS", "EMBEDDERS", "Backend", "EmbedderMethod"]


class Backend(Method, ABC):
    """An engine behind a TextModel; its fields are the engine's settings."""

    paper: ClassVar[str] = ""

    num_threads: int | None = Field(
        None, ge=1, description="processor threads; by default all cores this process may use"
    )
    context_length: int | None = Field(
        None, ge=64, description="tokens of prompt and completion together; by default the model's"
    )

    @abstractmethod
    def open(self, reference: str) -> TextModel:
        """Open a model.

        Args:
            reference: A checkpoint's folder or ``.gguf`` file, or an endpoint's address.

        Raises:
            BackendError: If the engine cannot open it.
            MissingExtraError: If the engine's package is not installed.
        """


class EmbedderMethod(Method, ABC):
    """An engine behind an Embedder; its fields are the engine's settings."""

    paper: ClassVar[str] = ""

    @abstractmethod
    def open(self, reference: str) -> Embedder:
        """Open an embedder.

        Args:
            reference: A checkpoint's folder, an endpoint's address, or the method's own name.

        Raises:
            BackendError: If the engine cannot open it.
            MissingExtraError: If the engine's package is not installed.
        """


BACKENDS = Seam("stillroom.models.backends", Backend)
EMBEDDERS = Seam("stillroom.models.embedders", EmbedderMethod)
