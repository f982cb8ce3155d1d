"""Templates: prompts with named fields, checked before anything is sent.

A field is ``{name}`` in lower-case letters; braces around anything else are text, as JSON in a
prompt is. Fields are filled in one pass, so that what a document holds is never read as a field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stillroom.provenance import digest_text
from stillroom.registry.listing import suggest

__all__ = ["Template", "check_prompts"]

_FIELD = re.compile(r"\{([a-z][a-z_]*)\}")


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt's words, with fields to fill."""

    text: str

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields, each once, in order."""
        return tuple(dict.fromkeys(_FIELD.findall(self.text)))

    @property
    def digest(self) -> str:
        """The sha256 of the words."""
        return digest_text(self.text)

    def fill(self, /, **values: str) -> str:
        """Return the words with every field filled.

        Raises:
            KeyError: If a field has no value.
        """
        return _FIELD.sub(lambda match: values[match[1]], self.text)


def check_prompts(own: Mapping[str, str], known: Mapping[str, Template]) -> None:
    """Refuse prompts of a recipe that the generator does not ask by, or cannot fill.

    Raises:
        ValueError: With every prompt that is unknown, and every field that is unknown or missing.
    """
    wrong = [problem for name, text in own.items() for problem in _problems(name, text, known)]
    if wrong:
        raise ValueError("; ".join(wrong))


def _problems(name: str, text: str, known: Mapping[str, Template]) -> Iterable[str]:
    if name not in known:
        near = suggest(name, list(known))
        yield f"there is no prompt {name!r} (there are: {', '.join(known)}){near and f'; {near}'}"
        return
    given, wanted = Template(text).fields, known[name].fields
    for field in given:
        if field not in wanted:
            yield f"prompt {name!r} has a field {{{field}}} that nothing fills"
    for field in wanted:
        if field not in given:
            yield f"prompt {name!r} misses the field {{{field}}}"
