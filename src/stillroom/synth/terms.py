"""What the makers of known teachers ask of those who train on their models' outputs.

A table of what license texts say, by a model's name; it is a reminder to read them, not advice. A
model that is not in it has terms that nobody here has read, and the report says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

__all__ = ["Terms", "find_terms"]

Bound = Literal["free", "named", "restricted", "unknown"]


@dataclass(frozen=True, slots=True)
class Terms:
    """A teacher's terms.

    ``free`` asks nothing of outputs, ``named`` a name or notice, ``restricted`` forbids some uses,
    ``unknown`` has not been read.
    """

    family: str
    license: str
    bound: Bound
    says: str


_APACHE = "nothing of outputs"
_KNOWN: tuple[tuple[str, Terms], ...] = (
    (r"smol(?:lm|vlm)", Terms("SmolLM", "Apache-2.0", "free", _APACHE)),
    (r"qwen(?!.*(?:72b|3b)\b)", Terms("Qwen", "Apache-2.0 (most sizes)", "free", _APACHE)),
    (
        r"qwen",
        Terms(
            "Qwen",
            "Qwen license (this size)",
            "named",
            "a model trained on outputs says 'Built with Qwen' or 'Improved using Qwen'",
        ),
    ),
    (r"mixtral|mistral-(?:7b|nemo|small)", Terms("Mistral", "Apache-2.0", "free", _APACHE)),
    (
        r"mistral|codestral|ministral",
        Terms("Mistral", "Mistral research license", "restricted", "research use only"),
    ),
    (
        r"llama-?3[.-][1-9]|llama-?4",
        Terms(
            "Llama",
            "Llama community license",
            "named",
            "a model trained on outputs has 'Llama' at the beginning of its name",
        ),
    ),
    (
        r"llama-?[23](?:\b|-)",
        Terms(
            "Llama",
            "Llama 2 or 3 community license",
            "restricted",
            "outputs may not improve any other language model",
        ),
    ),
    (
        r"gemma",
        Terms(
            "Gemma",
            "Gemma terms of use",
            "restricted",
            "a model trained on outputs is a derivative and carries the use restrictions on",
        ),
    ),
    (r"phi-?[1-9]", Terms("Phi", "MIT", "free", _APACHE)),
    (r"deepseek", Terms("DeepSeek", "MIT (R1, V3-0324 on)", "free", "distillation is allowed")),
    (r"olmo|tulu", Terms("OLMo", "Apache-2.0", "free", _APACHE)),
    (r"gpt-oss", Terms("gpt-oss", "Apache-2.0", "free", _APACHE)),
    (
        r"gpt-|\bo[1345](?:-|\b)|api\.openai\.com",
        Terms("OpenAI", "service terms", "restricted", "outputs may not train models that compete"),
    ),
    (
        r"claude|api\.anthropic\.com",
        Terms(
            "Anthropic", "service terms", "restricted", "outputs may not train models that compete"
        ),
    ),
    (
        r"gemini|generativelanguage\.googleapis",
        Terms("Google", "service terms", "restricted", "outputs may not train models that compete"),
    ),
)


def find_terms(teacher: str) -> Terms:
    """Return the terms of a teacher, by the reference or fingerprint that names it."""
    for pattern, terms in _KNOWN:
        if re.search(pattern, teacher, re.IGNORECASE):
            return terms
    return Terms(teacher, "", "unknown", "nobody here has read its terms: read them")
