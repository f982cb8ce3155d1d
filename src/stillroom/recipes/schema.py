"""JSON Schema of all recipes, for editors: one branch per kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stillroom.recipes.kinds import list_kinds, recipe_class

__all__ = ["SCHEMA_FILE", "recipe_schema", "write_schema"]

SCHEMA_FILE = Path(__file__).with_name("recipe.schema.json")


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) that every recipe fits, chosen by its ``kind``."""
    branches: dict[str, Any] = {}
    for kind in list_kinds():
        branch = recipe_class(kind).model_json_schema(
            ref_template=f"#/$defs/{kind}/$defs/{{model}}", by_alias=True
        )
        branch["required"] = list(dict.fromkeys(["kind", *branch.get("required", [])]))
        branches[kind] = branch
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Stillroom recipe",
        "type": "object",
        "required": ["kind"],
        "oneOf": [{"$ref": f"#/$defs/{kind}"} for kind in branches],
        "$defs": branches,
    }


def write_schema(path: Path = SCHEMA_FILE) -> Path:
    """Write the schema as stable JSON; return where."""
    text = json.dumps(recipe_schema(), indent=1, ensure_ascii=False, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
    return path
