"""A model that says what a table says: for behavior that must not hang on random weights."""

import torch

from stillroom.diffusion.model.metadata import DiffusionMetadata

MASK, END = 9, 8


class TableModel:
    """Logits of each place by a function of (text, place), (V,)."""

    vocabulary = 10
    context_length = 4096

    def __init__(self, say, **metadata):
        self.metadata = DiffusionMetadata(
            **{"mask_token_id": MASK, "end_token_ids": (END,), **metadata}
        )
        self.say = say

    def attention_mask(self, queries, keys):
        return torch.ones(len(queries), len(keys), dtype=torch.bool)

    def read(self, readings):
        return [
            torch.stack([self._say(reading, int(at)) for at in reading.want])
            if len(reading.want)
            else torch.zeros(0, self.vocabulary)
            for reading in readings
        ]

    def _say(self, reading, at):
        return torch.as_tensor(self.say(reading.ids.tolist(), int(reading.positions[at])))

    def logits(self, states):
        return states.double()


def likely(token, chance):
    """Return logits that give one token a chance, the others the rest, and the mask none."""
    chances = torch.full((10,), (1 - chance) / 8, dtype=torch.float64)
    chances[token], chances[MASK] = chance, 0.0
    return chances.log()
