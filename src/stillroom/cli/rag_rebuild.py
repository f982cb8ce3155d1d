"""``stillroom rag rebuild``: a new embedder or chunker, built beside, measured, switched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stillroom.cli.judged import align_columns, find_access, find_judged, judged_options
from stillroom.cli.options import (
    access_options,
    debug_option,
    existing_path,
    json_option,
    print_json,
)

if TYPE_CHECKING:
    from stillroom.recipes import Recipe

__all__ = ["command"]


@click.command(
    "rebuild",
    epilog="""
\b
Examples:
  stillroom rag rebuild index --recipe new.yaml
  stillroom rag rebuild index chunker.size=120 --queries queries.tsv --qrels qrels.tsv
  stillroom rag rebuild index --rollback
""",
)
@click.argument("index", type=existing_path)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--recipe", type=existing_path, help="The new recipe; default the index's own.")
@judged_options
@click.option("--way", default="convex", show_default=True, help="How both are searched.")
@click.option("--measure", "measures", multiple=True, help="As ndcg@10; the first one decides.")
@click.option(
    "--anyway",
    is_flag=True,
    help="Switch even if the new index is worse beyond doubt; roll back without an update.",
)
@click.option(
    "--rollback",
    is_flag=True,
    help="Bring the index before the last rebuild up to its documents, and let it answer.",
)
@click.option("--drop-previous", is_flag=True, help="Remove the index before the last rebuild.")
@access_options
@click.option("--quiet", is_flag=True, help="Draw no progress.")
@json_option
@debug_option
def command(index: Path, as_json: bool, **given: Any) -> None:
    """Build an index anew beside the one that answers, measure both, and switch.

    Measured on judged questions, or, without them, on some words of some passages whose document is
    to be found again. A rebuild that was killed goes on when it is run again.
    """
    from stillroom.jobs import choose_reporter
    from stillroom.rag.rebuilding import drop_previous, roll_back

    if given["rollback"]:
        reporter = choose_reporter(quiet=given["quiet"])
        done = roll_back(index, anyway=given["anyway"], reporter=reporter)
        if as_json:
            print_json({"rolled_back": True, "update": done.to_json() if done else None})
            return
        since = "as it was before the last rebuild" if done is None else str(done)
        click.echo(f"{index}: rolled back; {since}")
        return
    if given["drop_previous"]:
        dropped = drop_previous(index)
        if as_json:
            print_json({"dropped": dropped})
            return
        click.echo(f"{index}: " + ("the previous one is removed" if dropped else "none is kept"))
        return
    _rebuild(index, as_json, given)


def _change(source: Path, overrides: tuple[str, ...]) -> Recipe:
    """Return an index's own recipe, whose paths stand as they are, with those of a command."""
    from stillroom.recipes import parse_recipe

    text = source.read_text(encoding="utf-8")
    recipe = parse_recipe(text, str(source))
    changed = parse_recipe(text, str(source), overrides, folder=Path.cwd())
    named = {one.partition("=")[0].partition(".")[0] for one in overrides}
    return recipe.model_copy(update={name: getattr(changed, name) for name in named})


def _rebuild(index: Path, as_json: bool, given: dict[str, Any]) -> None:
    from stillroom.jobs import choose_reporter
    from stillroom.provenance import read_artifact
    from stillroom.rag.rebuilding import Questions, rebuild_index
    from stillroom.rag.recipe import RagRecipe
    from stillroom.recipes import load_recipe

    read_artifact(index)
    source = Path(given["recipe"] or index / "recipe.yaml")
    if given["recipe"]:
        recipe = load_recipe(source, given["overrides"])
    else:
        recipe = _change(source, given["overrides"])
    if not isinstance(recipe, RagRecipe):
        raise click.UsageError(f"{source} is no recipe of kind rag")
    queries = qrels = None
    if given["collection"] or given["queries"] or given["qrels"]:
        places = (given[name] for name in ("collection", "split", "queries", "qrels"))
        queries, qrels = find_judged(*places)
    access = find_access(given["tenant"], given["principals"])
    questions = Questions(queries, qrels, given["way"], access=access)
    if given["measures"]:
        questions = Questions(queries, qrels, given["way"], given["measures"], access)
    done = rebuild_index(
        index,
        recipe,
        questions,
        anyway=given["anyway"],
        reporter=choose_reporter(quiet=given["quiet"]),
    )
    told = done.to_json()
    if as_json:
        print_json(told)
        return
    rows = [["measure", "before", "after", "difference", "p"]]
    for name, one in told["measures"].items():
        gap = one["difference"]
        within = "no interval" if gap["low"] is None else f"{gap['low']:+.4f} to {gap['high']:+.4f}"
        rows.append(
            [
                name,
                f"{one['before']['value']:.4f}",
                f"{one['after']['value']:.4f}",
                f"{gap['value']:+.4f} ({within})",
                f"{one['p']:.3g}",
            ]
        )
    click.echo(f"{done.queries} {done.kind} questions")
    click.echo(align_columns(rows))
    click.echo(f"{index}: switched; stillroom rag rebuild {index} --rollback goes back")
