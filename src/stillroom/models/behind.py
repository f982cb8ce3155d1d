"""A model that stands before another one, and says of itself what that one is."""

from __future__ import annotations

from stillroom.models.protocols import TextModel

__all__ = ["ModelBefore"]


class ModelBefore:
    """What a model has of the one behind it: its name, fingerprint and context length."""

    def __init__(self, model: TextModel) -> None:
        """Stand before ``model``."""
        self.model = model

    @property
    def name(self) -> str:
        """The name of the model behind."""
        return self.model.name

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the model behind."""
        return self.model.fingerprint

    @property
    def context_length(self) -> int:
        """The context length of the model behind."""
        return self.model.context_length
