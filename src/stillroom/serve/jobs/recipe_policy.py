"""Policy for recipes of clients: names, addresses and secrets that a recipe may refer to.

Every string of a recipe is checked, whatever its setting means: names inside the folder are
allowed, and so are the addresses, hubs and secrets that the operator allowed by name. This policy
covers the text of a recipe; for accesses that the text does not show, the process that runs it is
confined again (``serve.jobs.processes``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stillroom.errors import Problem, RecipeError
from stillroom.evaluate.qa.judgments import JUDGMENTS_SUFFIX
from stillroom.recipes import Recipe, check_references, parse_recipe
from stillroom.recipes.loader import apply_overrides, iterate_texts
from stillroom.recipes.yaml_text import format_path, read_yaml
from stillroom.serve.workspace import CONTROL_FOLDER, TenantRoot

__all__ = ["RecipePolicy", "dump_client_recipe", "validate_client_recipe"]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+._-]*:")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_KNOWN_SCHEME = re.compile(
    r"(file|https?|ftp|hub|hf[-_]hub|local-dir|s3|gs|data|job|step|sqlite|postgres(ql)?):", re.I
)
_HOME_PATH = re.compile(r"~[\w.-]*(/|\Z)")
_EMBEDDED_PATH = re.compile(
    r"[=:,](/|~|\.\.|[A-Za-z][A-Za-z0-9+.-]*://|(file|hub|local-dir|hf[-_]hub):)", re.I
)
_VARIABLE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
_MAX_NAME_LENGTH = 1024
_SCRIPTED_PREFIX = "scripted:"


@dataclass(frozen=True, slots=True)
class RecipePolicy:
    """Resources outside the served folder that client recipes may use; none by default.

    Args:
        endpoints: Base URLs of allowed model servers; every address below one is allowed.
        hub: Whether ``hub:`` references may be downloaded; if not, only cached ones resolve.
        variables: Environment variables of the server that ``${env:NAME}`` may name.
    """

    endpoints: tuple[str, ...] = ()
    hub: bool = False
    variables: tuple[str, ...] = ()

    def has_endpoint(self, address: str) -> bool:
        """Return whether an address lies at or below an allowed endpoint."""
        try:
            url = urlsplit(address.partition("#")[0])
            port = url.port
        except ValueError:
            return False
        if url.username is not None or ".." in url.path.split("/"):
            return False
        for endpoint in self.endpoints:
            known = urlsplit(endpoint)
            same = (known.scheme, known.hostname, known.port) == (
                url.scheme,
                url.hostname,
                port,
            )
            path = known.path.rstrip("/")
            if same and (url.path.rstrip("/") == path or url.path.startswith(f"{path}/")):
                return True
        return False

    @property
    def ports(self) -> tuple[int, ...]:
        """TCP ports that a job may connect to."""
        ports = {443} if self.hub else set()
        for endpoint in self.endpoints:
            parts = urlsplit(endpoint)
            ports.add(parts.port or (443 if parts.scheme == "https" else 80))
        return tuple(sorted(ports))


def dump_client_recipe(recipe: str | Mapping[str, Any]) -> str:
    """Return a recipe as YAML; JSON is read by the same reader."""
    if isinstance(recipe, str):
        return recipe
    return json.dumps(recipe, ensure_ascii=False, indent=1)


def validate_client_recipe(
    text: str, root: TenantRoot, policy: RecipePolicy, overrides: Sequence[str] = ()
) -> Recipe:
    """Validate a client's recipe; its relative paths are kept unchanged.

    Raises:
        RecipeError: With every problem; code ``recipe.outside`` if it refers to anything outside.
    """
    tree = read_yaml(text, "recipe")
    apply_overrides(tree, overrides)
    problems, reported = [], set()
    for path, text_value in iterate_texts(tree.data):
        reported.add(text_value)
        if fault := _find_fault(text_value, root, policy):
            problems.append(
                _outside_problem(fault, f"{tree.place_of_value(path)} {format_path(path)}")
            )
    if problems:
        raise RecipeError(problems)

    def check(reference: str) -> None:
        if reference not in reported:
            return  # a default value, which is trusted
        if fault := _find_reference_fault(reference, root, policy):
            raise RecipeError([_outside_problem(fault, "")])

    with check_references(check):
        recipe = parse_recipe(text, "recipe", overrides)
    _refuse_clusters(recipe)
    return recipe


def _refuse_clusters(recipe: Recipe) -> None:
    """Refuse work on other machines: a cluster is outside the sandbox."""
    from stillroom.flow.recipe import FlowRecipe, engine_of

    steps = recipe.steps.values() if isinstance(recipe, FlowRecipe) else ()
    for step_recipe in (recipe, *(step.recipe for step in steps)):
        engine = engine_of(step_recipe)
        if engine is not None and engine.ray is not None:
            raise RecipeError(
                [_outside_problem("engine: ray is not allowed in recipes of clients", "engine")]
            )


def _outside_problem(message: str, where: str) -> Problem:
    return Problem(
        message,
        "recipe.outside",
        where,
        "names inside the served folder, or resources that the server's operator allowed",
        "list the names that can be used with GET /v1/workspace",
    )


def _find_reference_fault(text: str, root: TenantRoot, policy: RecipePolicy) -> str:
    """Return the problem of a string that is known to be a reference; empty if there is none."""
    if text.startswith("builtin:"):
        return ""
    if text.startswith(_SCRIPTED_PREFIX):
        return _find_path_fault(text.removeprefix(_SCRIPTED_PREFIX), root, is_sure=True)
    if _SCHEME.match(text):
        return _find_address_fault(text, policy)
    return _find_path_fault(text, root, is_sure=True)


def _find_fault(text: str, root: TenantRoot, policy: RecipePolicy) -> str:
    """Return the problem of the string of any setting; empty if there is none."""
    bare = text.strip()
    for name in _VARIABLE.findall(text):
        if name not in policy.variables:
            return f"the variable {name} is not allowed in recipes"
    if "\0" in text:
        return "a text contains a NUL character"
    is_word = not re.search(r"\s", bare)
    if _URL.match(bare) or (is_word and _KNOWN_SCHEME.match(bare)):
        return _find_address_fault(bare, policy)
    if is_word and _EMBEDDED_PATH.search(bare):
        return f"{bare!r:.80} is a path or an address inside a setting"
    return _find_path_fault(bare, root, is_sure=False)


def _find_address_fault(text: str, policy: RecipePolicy) -> str:
    if text.startswith("hub:") and ".." not in text:
        return ""
    if text.startswith(("http://", "https://")) and policy.has_endpoint(text):
        return ""
    return f"{text!r:.80} is not allowed in recipes"


def _find_path_fault(text: str, root: TenantRoot, *, is_sure: bool) -> str:
    """Return the problem of a string that is, or may be, a path."""
    parts = re.split(r"[/\\]", text)
    is_word = is_sure or not re.search(r"\s", text)
    if text.startswith(("/", "\\")) or _HOME_PATH.match(text) or ".." in parts:
        return f"{text!r:.80} lies outside the served folder"
    hidden = [part for part in parts if part.startswith(".") and part != "."]
    if hidden and (is_sure or (is_word and len(parts) > 1) or hidden[0] == CONTROL_FOLDER):
        return f"{text!r:.80} names a hidden file"
    if any(part.lower().endswith(JUDGMENTS_SUFFIX) for part in parts):
        return f"{text!r:.80} names judgments, which their owner alone reads"
    if is_word and text.lower().endswith((".py", ".pyc", ".pyz")):
        return f"{text!r:.80} is code, which recipes of clients may not contain"
    if "\n" not in text and len(text) <= _MAX_NAME_LENGTH and not root.contains(Path(text)):
        return f"{text!r:.80} resolves to a path outside the served folder"
    return ""
