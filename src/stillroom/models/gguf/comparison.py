"""Comparison of a GGUF file in llama.cpp with the checkpoint that it was exported from.

Three checks: equal token ids of the same texts; equal output of the chat template; and, along
llama.cpp's greedy continuation, the difference of its log-probabilities from transformers' in
float32, and whether both select the same token. Token ids are compared exactly; log-probabilities
differ by rounding and quantization, and are reported.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stillroom.errors import BackendError, CheckpointError
from stillroom.models.gguf.export import GgufType
from stillroom.models.interfaces import BACKENDS
from stillroom.models.local.causal_lm import load_causal_lm
from stillroom.models.tokenization.chat_template import render_chat
from stillroom.records import Message

if TYPE_CHECKING:
    from stillroom.models.backends.llamacpp import LlamacppModel

__all__ = ["PROBES", "GgufComparison", "compare_gguf", "open_engine"]

PROBES: tuple[str, ...] = (
    "The capital of France is",
    "In 1847 the mill ground 320 sacks; by 1851, 1234567.89 had been paid.",
    "  def still(wine):\n\t\treturn [w for w in wine if w >= 0.5]  # it's warm\n\n\n",
    "Größe, naïveté, Ærø, l’été; Ελληνικά, Русский, 日本語, 한국어, العربية",
    "emoji 🍷🧪, CAPITALS don'T matter; a\r\nb    c\u00a0d",
    "What is distilled twice is",
)
"""Texts on which pre-tokenizers differ: digits, spaces, contractions, scripts, punctuation."""

_PROBE_MESSAGES = (
    Message("user", "What is a still?"),
    Message("assistant", "A vessel."),
    Message("user", "Why?"),
)

_TOKENS, _TOP, _CONTEXT = 24, 10, 512

_MAX_DIFFERENCE_NATS: Mapping[GgufType, float] = {
    "f32": 0.02,
    "f16": 0.02,
    "bf16": 0.1,
    "q8_0": 0.4,
}
"""At least four times the mean difference by rounding: 0.0018, 0.0038, 0.021 and 0.10 for
SmolLM2-135M, over 130 positions. The KV cache is float16 for all types.
"""


@contextmanager
def open_engine(path: Path, context: int) -> Iterator[LlamacppModel]:
    """Open a GGUF file in llama.cpp for a context of so many tokens."""
    # One thread: llama.cpp's threads spin at barriers, and stall on a busy machine.
    settings = {"name": "llamacpp", "context_length": context, "instances": 1, "num_threads": 1}
    engine = cast("LlamacppModel", BACKENDS.build(settings).open(str(path)))
    try:
        yield engine
    finally:
        engine.close()


@dataclass(frozen=True, slots=True)
class GgufComparison:
    """Agreement of a GGUF file with its checkpoint.

    ``template`` is ``alike``, ``unlike`` or ``none``; differences are of log-probabilities, in
    nats, over the most probable tokens at ``positions`` positions.
    """

    texts: int
    texts_alike: int
    template: str
    positions: int
    same_token: int
    mean_difference: float
    largest_difference: float

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)

    def __str__(self) -> str:
        """Return a one-line summary."""
        if not self.positions:
            return (
                f"{self.texts_alike} of {self.texts} texts tokenized alike; llama.cpp wrote nothing"
            )
        return (
            f"{self.texts_alike} of {self.texts} texts tokenized alike; chat template "
            f"{self.template}; "
            f"{self.same_token} of {self.positions} greedy tokens the same; log-probabilities "
            f"differ by {self.mean_difference:.2g} nats on average, {self.largest_difference:.2g} "
            "at most"
        )


def compare_gguf(
    folder: Path,
    path: Path,
    type: GgufType,
    *,
    probes: Sequence[str] = PROBES,
    name: Path | None = None,
) -> GgufComparison:
    """Compare a GGUF file in llama.cpp with the folder it was exported from.

    Raises:
        CheckpointError: If a text is tokenized differently, or log-probabilities differ too much,
            are NaN or missing.
        MissingExtraError: If xllamacpp is not installed.
    """
    model, tokenizer = load_causal_lm(folder, dtype="float32", device="cpu")
    with open_engine(path, _CONTEXT) as engine:
        probe_ids = [
            list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in probes
        ]
        pairs = zip(probes, probe_ids, strict=True)
        different = [text for text, ids in pairs if engine.tokenize(text) != ids]
        template = _compare_template(tokenizer, engine)
        is_same_token, differences = _compare_logprobs(model, tokenizer, engine, probe_ids)
    comparison = GgufComparison(
        len(probes),
        len(probes) - len(different),
        template,
        len(is_same_token),
        sum(is_same_token),
        statistics.fmean(differences) if differences else math.nan,
        math.nan if any(map(math.isnan, differences)) else max(differences, default=math.nan),
    )
    is_near = comparison.mean_difference <= _MAX_DIFFERENCE_NATS[type]  # False for NaN
    if different or not is_near:
        raise CheckpointError(
            f"llama.cpp disagrees with transformers: {comparison}",
            code="checkpoint.gguf-unlike",
            where=str(name or path),
            expected="equal tokens of every text, and log-probabilities that differ by rounding "
            "only",
            next="use llama.cpp's converter; "
            + (
                f"first text tokenized differently: {different[0]!r:.80}"
                if different
                else "report the architecture and config.json"
            ),
        )
    return comparison


def _compare_template(tokenizer: Any, engine: LlamacppModel) -> str:
    if not tokenizer.chat_template:
        return "none"
    expected = render_chat(tokenizer, _PROBE_MESSAGES)
    try:
        rendered = engine.render_by_engine(_PROBE_MESSAGES)
    except BackendError:
        return "unlike"
    mark = tokenizer.bos_token or ""
    return "alike" if rendered.removeprefix(mark) == expected.removeprefix(mark) else "unlike"


def _compare_logprobs(
    model: Any, tokenizer: Any, engine: LlamacppModel, probe_ids: Sequence[list[int]]
) -> tuple[list[bool], list[float]]:
    """Return, per greedy token, whether transformers agrees, and all differences in nats."""
    import torch

    ends = {tokenizer.eos_token_id}
    is_same_token: list[bool] = []
    differences: list[float] = []
    for ids in probe_ids:
        steps = engine.continue_tokens(ids, _TOKENS, _TOP)
        sequence = torch.tensor([[*ids, *(token for token, _ in steps)]])
        with torch.no_grad():
            logits = model(sequence).logits[0].float()
        chances = torch.log_softmax(logits, dim=-1)  # (T, V)
        for position, (token, likely) in enumerate(steps, len(ids) - 1):
            if token in ends:
                break
            is_same_token.append(int(chances[position].argmax()) == token)
            differences += [
                abs(float(chances[position, key]) - logprob) for key, logprob in likely.items()
            ]
    return is_same_token, differences
