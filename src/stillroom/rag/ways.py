"""Way: one whole manner of retrieving, written in a line.

``[TRANSFORM>]RETRIEVER[+RERANKER]``, each a method's name, perhaps with settings after a colon:
``convex:alpha=0.3+proximity``. Where questions are answered, ``=>ANSWERING[!UNSUPPORTED]`` may
follow: ``convex=>corrective:max_rounds=1!drop``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast, get_args

from pydantic import ValidationError

from stillroom.errors import Problem, RecipeError
from stillroom.rag.composing import Unsupported
from stillroom.rag.method import (
    ANSWERING,
    RERANKERS,
    RETRIEVERS,
    TRANSFORMS,
    Answering,
    Reranker,
    Retriever,
    Transform,
)
from stillroom.registry import Method, Seam
from stillroom.registry.listing import suggest
from stillroom.registry.method import Choice

__all__ = ["Way", "parse_method", "parse_reading_way", "parse_way"]

M = TypeVar("M", bound=Method)


@dataclass(frozen=True, slots=True)
class Way:
    """A retriever, with the transform before it and the reranker after it, if any.

    ``answering`` and ``unsupported`` say how a question is answered from what is found.
    """

    name: str
    retriever: Retriever
    reranker: Reranker | None = None
    transform: Transform | None = None
    answering: Answering | None = None
    unsupported: Unsupported = "mark"


def parse_reading_way(text: str) -> Way:
    """Return the way that a line describes, with how questions are answered if it says so.

    Raises:
        RecipeError: If a method or setting is unknown; the nearest is suggested.
    """
    found, arrow, answering = text.partition("=>")
    way = replace(parse_way(found), name=text.strip())
    if not arrow:
        return way
    method, mark, unsupported = answering.partition("!")
    if mark and unsupported.strip() not in get_args(Unsupported):
        raise RecipeError(
            f"{unsupported.strip()!r} is not what is done with unsupported sentences",
            code="recipe.value",
            where=text,
            expected=f"one of: {', '.join(get_args(Unsupported))}",
            next=f"write {found}=>{method}!drop",
        )
    return replace(
        way,
        answering=parse_method(ANSWERING, method),
        unsupported=cast("Unsupported", unsupported.strip() or "mark"),
    )


def parse_way(text: str) -> Way:
    """Return the way that a line describes.

    Raises:
        RecipeError: If a method or setting is unknown; the nearest is suggested.
    """
    head, arrow, rest = text.rpartition(">")
    body, plus, last = (rest if arrow else text).partition("+")
    return Way(
        text.strip(),
        parse_method(RETRIEVERS, body),
        parse_method(RERANKERS, last) if plus else None,
        parse_method(TRANSFORMS, head) if arrow else None,
    )


def parse_method(seam: Seam[M], text: str) -> M:
    """Return the method of a seam that ``NAME[:KEY=VALUE,...]`` describes.

    A setting that is itself a method takes its settings after another colon, with semicolons
    between them: ``corrective:grader=yes_no:words=80;upper=0.7``.

    Raises:
        RecipeError: If the method or a setting is unknown, or a value is out of bounds.
    """
    name, _, settings = text.strip().partition(":")
    chosen: dict[str, Any] = {"name": name.strip()}
    for part in filter(None, (part.strip() for part in settings.split(","))):
        key, equals, value = part.partition("=")
        if not equals:
            raise RecipeError(
                f"{part!r} is no setting",
                code="recipe.override",
                where=text,
                expected="KEY=VALUE",
                next=f"write {name}:{key}=VALUE",
            )
        chosen[key.strip()] = value.strip()
    try:
        return seam.build(_build_inner(seam, chosen))
    except ValidationError as error:
        raise _refuse(seam.get(chosen["name"]), error, text) from error


def _build_inner(seam: Seam[M], chosen: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with those that are themselves methods built from their lines."""
    built = dict(chosen)
    for key, field in seam.get(chosen["name"]).model_fields.items():
        choice = next((one for one in field.metadata if isinstance(one, Choice)), None)
        if choice is not None and ":" in str(chosen.get(key, "")):
            built[key] = parse_method(choice.seam, chosen[key].replace(";", ","))
    return built


def _refuse(method: type[Method], error: ValidationError, text: str) -> RecipeError:
    """Return what is wrong with a line's settings, as errors of a recipe are said."""
    name, known = method.method_name(), sorted(method.model_fields)
    problems = []
    for found in error.errors(include_url=False):
        key = ".".join(map(str, found["loc"]))
        told = found["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        code, what, expected = "recipe.value", f"{key}: {found['input']!r:.60} is refused", told
        step = f"stillroom show {name}"
        if found["type"] == "missing":
            code, what = "recipe.missing", f"{name} needs {key}"
            own = method.model_fields.get(key)
            expected = own.description or "" if own else ""
            step = f"write {name}:{key.replace('.', '=NAME:')}=VALUE"
        elif found["type"] == "extra_forbidden":
            code, what = "recipe.unknown-key", f"{key!r} is no setting of {name}"
            expected, step = f"one of: {', '.join(known)}", suggest(key, known)
        problems.append(Problem(what, code=code, where=text, expected=expected, next=step))
    return RecipeError(problems)
