"""Terms of the teachers: what the licenses of models say of their outputs, by model name.

A reminder to read the licenses, not legal advice. The terms of a model outside the table are
reported as unknown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

__all__ = ["ModelTerms", "find_model_terms"]

OutputPolicy = Literal["free", "named", "restricted", "unknown"]


@dataclass(frozen=True, slots=True)
class ModelTerms:
    """A teacher's terms for its outputs.

    ``free`` sets no conditions, ``named`` requires a name or notice, ``restricted`` forbids some
    uses, ``unknown`` is not in the table.
    """

    family: str
    license: str
    bound: OutputPolicy
    says: str


_NO_CONDITIONS = "nothing of outputs"

_MODEL_TERMS: tuple[tuple[str, ModelTerms], ...] = (
    (r"smol(?:lm|vlm)", ModelTerms("SmolLM", "Apache-2.0", "free", _NO_CONDITIONS)),
    (
        r"qwen(?!.*(?<![a\d])(?:72b|3b)\b)",  # not the 3b of a mixture's a3b
        ModelTerms("Qwen", "Apache-2.0 (most sizes)", "free", _NO_CONDITIONS),
    ),
    (
        r"qwen",
        ModelTerms(
            "Qwen",
            "Qwen license (this size)",
            "named",
            "a model trained on outputs says 'Built with Qwen' or 'Improved using Qwen'",
        ),
    ),
    (
        r"mixtral|mistral-(?:7b|nemo|small)",
        ModelTerms("Mistral", "Apache-2.0", "free", _NO_CONDITIONS),
    ),
    (
        r"mistral|codestral|ministral",
        ModelTerms("Mistral", "Mistral research license", "restricted", "research use only"),
    ),
    (
        r"llama-?3(?:\.[1-9]|-[1-9]-)|llama-?4",  # 3.1 on: 3-8b is of Llama 3
        ModelTerms(
            "Llama",
            "Llama community license",
            "named",
            "a model trained on outputs has 'Llama' at the beginning of its name",
        ),
    ),
    (
        r"llama-?[23](?:\b|-)",
        ModelTerms(
            "Llama",
            "Llama 2 or 3 community license",
            "restricted",
            "outputs may not improve any other language model",
        ),
    ),
    (
        r"gemma",
        ModelTerms(
            "Gemma",
            "Gemma terms of use",
            "restricted",
            "a model trained on outputs is a derivative and carries the use restrictions on",
        ),
    ),
    (r"phi-?[1-9]", ModelTerms("Phi", "MIT", "free", _NO_CONDITIONS)),
    (
        r"deepseek",
        ModelTerms("DeepSeek", "MIT (R1, V3-0324 on)", "free", "distillation is allowed"),
    ),
    (r"olmo|tulu", ModelTerms("OLMo", "Apache-2.0", "free", _NO_CONDITIONS)),
    (r"gpt-oss", ModelTerms("gpt-oss", "Apache-2.0", "free", _NO_CONDITIONS)),
    (
        r"gpt-|\bo[1345](?:-|\b)|api\.openai\.com",
        ModelTerms(
            "OpenAI", "service terms", "restricted", "outputs may not train models that compete"
        ),
    ),
    (
        r"claude|api\.anthropic\.com",
        ModelTerms(
            "Anthropic", "service terms", "restricted", "outputs may not train models that compete"
        ),
    ),
    (
        r"gemini|generativelanguage\.googleapis",
        ModelTerms(
            "Google", "service terms", "restricted", "outputs may not train models that compete"
        ),
    ),
)


def find_model_terms(teacher: str) -> ModelTerms:
    """Return the terms of a teacher, given its reference or fingerprint."""
    for pattern, terms in _MODEL_TERMS:
        if re.search(pattern, teacher, re.IGNORECASE):
            return terms
    return ModelTerms(teacher, "", "unknown", "nobody here has read its terms: read them")
