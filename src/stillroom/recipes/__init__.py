"""Recipes: one job as validated YAML 1.2.

A room declares a kind of job in ``stillroom/<room>/jobs/<name>.py``, with a subclass of
``Recipe``; it is found by its name, ``room.name``, and imported on demand. ``load_recipe`` reads a
file, applies KEY=VALUE overrides, and reports all problems at once, each with line and column. The
commented recipe and the JSON Schema are generated from the same declaration. Torch and models are
not imported. Recipes are run by ``stillroom.flow``, whose ``step_cache`` skips unchanged steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillroom.exports import export_lazily

if TYPE_CHECKING:
    from stillroom.recipes.loader import (
        build_recipe,
        load_recipe,
        make_setting_locator,
        parse_recipe,
    )
    from stillroom.recipes.schema import (
        find_recipe_class,
        import_kind_module,
        list_kinds,
        list_references,
        recipe_schema,
    )
    from stillroom.recipes.settings import (
        DISTINCT,
        ENGINE,
        Destination,
        Duration,
        EngineChoice,
        RaySettings,
        Recipe,
        Reference,
        Secret,
        Settings,
        Size,
        check_references,
        choose_by_key,
        resolve_references_in,
    )
    from stillroom.recipes.template import render_template
    from stillroom.recipes.yaml_text import dump_recipe

__all__ = [
    "DISTINCT",
    "ENGINE",
    "Destination",
    "Duration",
    "EngineChoice",
    "RaySettings",
    "Recipe",
    "Reference",
    "Secret",
    "Settings",
    "Size",
    "build_recipe",
    "check_references",
    "choose_by_key",
    "dump_recipe",
    "find_recipe_class",
    "import_kind_module",
    "list_kinds",
    "list_references",
    "load_recipe",
    "make_setting_locator",
    "parse_recipe",
    "recipe_schema",
    "render_template",
    "resolve_references_in",
]

__getattr__ = export_lazily(__name__)
