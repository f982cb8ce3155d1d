"""Names that a shell completes: methods, seams and kinds, found without importing any."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

__all__ = ["complete_recipes", "complete_seams", "complete_shown", "complete_stores"]


def complete_recipes(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    """Complete KIND, and KIND/METHOD behind a slash."""
    from stillroom.registry.listing import find_seams, name_examples, name_kinds, names_in

    kind, slash, start = incomplete.partition("/")
    if not slash:
        return [name for name in name_kinds() if name.startswith(kind)]
    seams = {seam: folder for seam, folder in find_seams().items() if f".{kind}." in seam}
    names = {name for folder in seams.values() for name in names_in(folder)}
    if kind in name_kinds():
        names.update(name_examples(kind))
    return [f"{kind}/{name}" for name in sorted(names) if name.startswith(start)]


def complete_seams(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    """Complete a folder of methods, as ``merge.methods``."""
    from stillroom.registry.listing import find_seams

    short = [seam.removeprefix("stillroom.") for seam in find_seams()]
    return [seam for seam in short if seam.startswith(incomplete)]


def complete_stores(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[str]:
    """Complete where an index can lie."""
    from stillroom.registry.listing import find_seams, names_in

    names = names_in(find_seams()["stillroom.rag.stores"])
    return [name for name in names if name.startswith(incomplete)]


def complete_shown(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Complete a method's name, or a path where none begins so."""
    from click.shell_completion import CompletionItem

    from stillroom.registry.listing import find_seams, names_in

    names = sorted({name for folder in find_seams().values() for name in names_in(folder)})
    found = [name for name in names if incomplete and name.startswith(incomplete)]
    return [CompletionItem(name) for name in found] or [CompletionItem(incomplete, type="file")]
