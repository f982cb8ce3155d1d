"""Formulas of the documentation as MathML, made while the site is built.

A block fenced as ``math`` and an inline ``$`...`$`` are what GitHub shows as formulas, too.
Browsers draw MathML themselves, so that no page loads a script or a font for it.
"""

from __future__ import annotations

import re

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor

_BLOCK = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"\$`([^`\n]+)`\$")


class _Formulas(Preprocessor):
    """Replaces every formula of a page."""

    def run(self, lines: list[str]) -> list[str]:
        blocks = _BLOCK.sub(lambda found: _draw(found[1], "block"), "\n".join(lines))
        return _INLINE.sub(lambda found: _draw(found[1], "inline"), blocks).split("\n")


class MathExtension(Extension):
    """Formulas as MathML."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 - Markdown's name
        """Run before fences (25) and raw HTML (20) are read."""
        md.preprocessors.register(_Formulas(md), "site_math", 28)


def makeExtension(**settings: object) -> MathExtension:  # noqa: N802 - Markdown's name
    """Return the extension that mkdocs.yml names."""
    return MathExtension(**settings)


def _draw(formula: str, display: str) -> str:
    drawn = convert(" ".join(formula.split()), display=display)
    # Markdown reads what stands in a line: stars and underscores mean emphasis there.
    drawn = drawn.replace("*", "&#x2217;").replace("_", "&#x5F;")
    if display == "inline":
        return f"<span>{drawn}</span>"  # a line that begins with <math> would be a block
    return f'<div style="overflow-x:auto; padding:.5em 0">{drawn}</div>\n'
