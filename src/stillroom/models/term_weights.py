"""Term weights: a masked language model says which words of its vocabulary a text is about.

The logits of every position are made positive and damped, log(1 + max(0, x)), and of each term the
largest over the positions is kept: a few hundred terms a text, those that it holds and those that
it implies. Any masked-LM checkpoint can be read so; one that was trained for it (SPLADE) finds
more than one that was not.

Source: SPLADE, Formal et al. 2021, arXiv:2107.05720; the maximum, arXiv:2109.10086.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stillroom.errors import CheckpointError
from stillroom.models.reading import TextReader, load_encoder, longest_text
from stillroom.models.vectors import refuse_empty
from stillroom.provenance import digest_json

__all__ = ["TermEncoder"]


class TermEncoder:
    """Gives a text's terms with their weights; what it gives depends on the text alone."""

    def __init__(
        self,
        folder: Path,
        *,
        max_tokens: int | None = None,
        max_terms: int | None = None,
        device: str = "cpu",
    ) -> None:
        """Open a folder.

        Args:
            folder: A transformers checkpoint with a head for masked language modelling.
            max_tokens: Tokens read of a text; by default what the model reads.
            max_terms: The heaviest terms that are kept of a text; by default all above 0.
            device: cpu, cuda, cuda:1 or mps.

        Raises:
            CheckpointError: If the folder is no such checkpoint.
        """
        from stillroom.checkpoints import Checkpoint

        def refuse(why: str) -> CheckpointError:
            return _refuse(folder, why)

        tokenizer, self._model, missing = load_encoder(
            folder, "AutoModelForMaskedLM", device, refuse
        )
        if missing:
            raise refuse(f"it lacks {missing[0]}, so that its terms would be drawn at random")
        self.max_tokens = longest_text(self._model, tokenizer, max_tokens)
        self.max_terms, self._device = max_terms, device
        self._reader = TextReader(tokenizer, self.max_tokens, device)
        self._terms: list[str] = tokenizer.convert_ids_to_tokens(
            list(range(int(self._model.config.vocab_size)))
        )
        self.fingerprint = digest_json(
            [Checkpoint.open(folder).fingerprint, "log1p-max", self.max_tokens, max_terms]
        )

    @property
    def truncated(self) -> int:
        """How many texts were longer than ``max_tokens`` and read without their ends."""
        return self._reader.truncated

    def encode(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Return the terms of each text with their weights above 0, heaviest first.

        Raises:
            DataError: If a text is empty.
        """
        refuse_empty(texts)
        return self._reader.map(self._encode_one, texts)

    def close(self) -> None:
        """End the threads."""
        self._reader.close()

    def _encode_one(self, text: str) -> dict[str, float]:
        import torch

        ids = self._reader.encode(text, self.max_tokens)
        given = torch.tensor([ids], device=self._device)
        with torch.inference_mode():
            logits: Any = self._model(
                input_ids=given, attention_mask=torch.ones_like(given)
            ).logits[0]
            weights = torch.log1p(torch.relu(logits.float()).max(dim=0).values)
        found = torch.nonzero(weights > 0)[:, 0].tolist()
        values = weights[found].tolist()
        order = sorted(range(len(found)), key=lambda at: (-values[at], found[at]))
        return {self._terms[found[at]]: values[at] for at in order[: self.max_terms]}


def _refuse(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{folder} cannot be used to weigh terms: {why}",
        code="checkpoint.not-a-masked-lm",
        expected="a masked language model with its head (SPLADE or another), in safetensors",
        next="give a SPLADE checkpoint's folder, or leave sparse out",
    )
