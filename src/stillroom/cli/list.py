"""``stillroom list``: one line each, without importing what is listed."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.naming import complete_seams
from stillroom.cli.options import debug_option, hang, json_option, print_json

__all__ = ["command"]


@click.command(
    "list",
    epilog="""
\b
Examples:
  stillroom list methods
  stillroom list methods merge.methods
""",
)
@click.argument("what", type=click.Choice(["methods", "kinds", "backends", "jobs"]))
@click.argument("seam", default="", shell_complete=complete_seams)
@json_option
@debug_option
def command(what: str, seam: str, as_json: bool) -> None:
    """List methods, kinds, backends or jobs.

    SEAM narrows methods to one folder (as `merge.methods`), and names the folder for jobs.
    """
    rows = _rows(what, seam)
    if as_json:
        print_json({what: rows})
        return
    width = max((len(row["name"]) for row in rows), default=0)
    group = ""
    for row in rows:
        if row.get("seam", "") != group:
            group = row["seam"]
            click.echo(f"\n{group.removeprefix('stillroom.')}")
        click.echo(hang(f"  {row['name']:{width}}  ", row["summary"]))


def _rows(what: str, seam: str) -> list[dict[str, str]]:
    if what == "kinds":
        return _kinds()
    if what == "jobs":
        return _jobs(Path(seam or "."))
    return _methods("models.backends" if what == "backends" else seam)


def _methods(seam: str) -> list[dict[str, str]]:
    from stillroom.errors import RecipeError
    from stillroom.registry.listing import find_seams, list_methods, suggest

    seams = find_seams()
    if seam:
        name = f"stillroom.{seam.removeprefix('stillroom.')}"
        if name not in seams:
            short = [known.removeprefix("stillroom.") for known in seams]
            raise RecipeError(
                f"'{seam}' is not a folder of methods",
                code="recipe.unknown-seam",
                expected=f"one of: {', '.join(short)}",
                next=suggest(seam, short) or "stillroom list methods",
            )
        seams = {name: seams[name]}
    return [
        {
            "name": row.name,
            "seam": row.seam,
            "summary": row.summary + (" (experimental)" if row.status == "experimental" else ""),
            "paper": row.paper,
        }
        for row in list_methods(seams)
    ]


def _kinds() -> list[dict[str, str]]:
    from stillroom.registry.listing import list_kinds

    return [{"name": name, "summary": summary} for name, summary in list_kinds().items()]


def _jobs(folder: Path) -> list[dict[str, str]]:
    from stillroom.provenance import ARTIFACT_FILE, read_artifact

    rows = []
    for path in sorted(folder.glob("*")):
        if (path / ARTIFACT_FILE).is_file():
            artifact = read_artifact(path)
            line = f"{artifact.kind}, finished {artifact.created}, {artifact.digest[:12]}"
            rows.append({"name": path.name, "summary": line})
    for path in sorted(folder.glob(".*.partial")):
        name = path.name.removeprefix(".").removesuffix(".partial")
        rows.append({"name": name, "summary": "unfinished; go on with --resume"})
    return rows
