"""Model cards: README.md with YAML front matter as read by the Hugging Face hub."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from stillroom.jobs import atomic_write
from stillroom.recipes.yaml_text import load_foreign_yaml

__all__ = ["CardFields", "compose_card", "read_card", "write_card"]

_MAX_FRONT = 64_000
_FENCE = "---"


def read_card(folder: Path) -> dict[str, Any]:
    """Return the front matter of ``folder/README.md``; empty if it is missing or unreadable.

    Cards are optional: invalid YAML is ignored instead of raising an error.
    """
    path = folder / "README.md"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", errors="replace") as file:
        text = file.read(_MAX_FRONT)
    lines = text.splitlines()
    if (
        not lines
        or lines[0].strip() != _FENCE
        or _FENCE not in (line.strip() for line in lines[1:])
    ):
        return {}
    end = next(number for number, line in enumerate(lines[1:], 1) if line.strip() == _FENCE)
    try:
        front = load_foreign_yaml("\n".join(lines[1:end]))
    except (ValueError, RecursionError):
        return {}
    return dict(front) if isinstance(front, dict) else {}


class CardFields(TypedDict, total=False):
    """Front matter of a card.

    ``license`` is an SPDX id; several joined with AND become ``other`` with the name kept.
    ``base_models`` are names or paths of the parents, and ``relation`` is ``finetune``, ``merge``,
    ``quantized`` or empty; ``fields`` is any other front matter.
    """

    license: str
    base_models: Sequence[str]
    relation: str
    tags: Sequence[str]
    fields: Mapping[str, Any]


def compose_card(title: str, body: str, **fields: Unpack[CardFields]) -> str:
    """Return a model card: front matter for the Hugging Face hub, a heading, and the body."""
    from ruamel.yaml import YAML

    front: dict[str, Any] = {}
    if license := fields.get("license", ""):
        simple = " AND " not in license
        front["license"] = license.lower() if simple else "other"
        if not simple:
            front["license_name"] = license
    if base_models := fields.get("base_models"):
        front["base_model"] = list(base_models)
    if relation := fields.get("relation"):
        front["base_model_relation"] = relation
    front["library_name"] = "transformers"
    front["tags"] = sorted({"stillroom", *fields.get("tags", ())})
    front.update(fields.get("fields", {}))
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    text = io.StringIO()
    yaml.dump(front, text)
    return (
        f"{_FENCE}\n{text.getvalue()}{_FENCE}\n\n# {' '.join(title.split())}\n\n{body.rstrip()}\n"
    )


def write_card(folder: Path, title: str, body: str, **fields: Unpack[CardFields]) -> None:
    """Write ``folder/README.md``; arguments as in ``compose_card``."""
    with atomic_write(folder / "README.md") as file:
        file.write(compose_card(title, body, **fields))
