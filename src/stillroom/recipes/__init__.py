"""Recipe: one job as YAML 1.2, validated before anything starts.

A room declares its recipe in ``stillroom/<room>/recipe.py`` as a subclass of ``Recipe``; it is
found by its ``kind`` and imported only when chosen. ``load_recipe`` reads a file and reports every
problem at once, each with its line and column. From the same declaration come the commented recipe
and the JSON Schema. Knows no room by name and imports neither torch nor a model.
"""

from stillroom.recipes.comments import comment_recipe
from stillroom.recipes.emitting import dump_recipe
from stillroom.recipes.engine import ENGINE, EngineChoice, RaySettings, refuse_engine
from stillroom.recipes.kinds import list_kinds, recipe_class
from stillroom.recipes.loading import build_recipe, load_recipe, locate_settings, parse_recipe
from stillroom.recipes.references import list_references
from stillroom.recipes.schema import recipe_schema, write_schema
from stillroom.recipes.settings import (
    Destination,
    Duration,
    Recipe,
    Reference,
    Secret,
    Settings,
    Size,
    check_references,
    resolve_in,
)

__all__ = [
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
    "comment_recipe",
    "dump_recipe",
    "list_kinds",
    "list_references",
    "load_recipe",
    "locate_settings",
    "parse_recipe",
    "recipe_class",
    "recipe_schema",
    "refuse_engine",
    "resolve_in",
    "write_schema",
]
