"""Formulas of the documentation as MathML, made while the site is built.

A block fenced as ``math`` and an inline ``$`...`$`` are what GitHub shows as formulas, too.
Browsers draw MathML themselves, so that no page loads a script or a font for it.
"""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

_BLOCK = re.compile(r"^```math\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"\$`([^`\n]+)`\$")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace every formula of a page; MkDocs calls this."""
    blocks = _BLOCK.sub(lambda found: _draw(found[1], "block"), markdown)
    return _INLINE.sub(lambda found: _draw(found[1], "inline"), blocks)


def _draw(formula: str, display: str) -> str:
    drawn = convert(" ".join(formula.split()), display=display)
    # Markdown reads what stands in a line: stars and underscores mean emphasis there.
    drawn = drawn.replace("*", "&#x2217;").replace("_", "&#x5F;")
    if display == "inline":
        return f"<span>{drawn}</span>"  # a line that begins with <math> would be a block
    return f'<div style="overflow-x:auto; padding:.5em 0">{drawn}</div>\n'
