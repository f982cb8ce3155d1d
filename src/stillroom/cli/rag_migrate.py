"""``stillroom rag migrate``: an index moves to another store."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.naming import complete_stores
from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "migrate",
    epilog="""
\b
Examples:
  stillroom rag migrate index --to postgres
  stillroom rag migrate index --to postgres prefix=archive
  stillroom rag migrate index --to folder
  stillroom rag migrate index --drop-source
""",
)
@click.argument("index", type=existing_path)
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--to",
    "store",
    default="",
    shell_complete=complete_stores,
    help="The store; see 'stillroom list methods rag.stores'.",
)
@click.option("--drop-source", is_flag=True, help="Remove what is kept of the store before.")
@click.option(
    "--queries",
    default=64,
    type=click.IntRange(min=0),
    show_default=True,
    help="How many questions by words, and by vectors, must find the same in both.",
)
@click.option("--quiet", is_flag=True, help="Draw no progress.")
@json_option
@debug_option
def command(
    index: Path,
    settings: tuple[str, ...],
    store: str,
    drop_source: bool,
    queries: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Move an index to another store, once it is proved equal.

    Counts, digests, vectors and the scores of a sample of queries are compared before the switch.

    A migration that was killed goes on when it is run again. The source stays, in INDEX/source or
    on its server, until --drop-source.
    """
    from stillroom.jobs import choose_reporter
    from stillroom.rag.migrating import drop_source as drop
    from stillroom.rag.migrating import migrate_index
    from stillroom.rag.storing import STORES

    if bool(store) == drop_source:
        raise click.UsageError("give either --to STORE or --drop-source")
    if drop_source:
        was_there = drop(index)
        if as_json:
            print_json({"dropped": was_there})
        else:
            click.echo("the source was removed" if was_there else "no source is kept")
        return
    told = dict(one.partition("=")[::2] for one in settings)
    method = STORES.build({"name": store, **told})
    done = migrate_index(index, method, queries=queries, reporter=choose_reporter(quiet=quiet))
    if as_json:
        print_json(done.to_json())
        return
    compared = done.comparison
    click.echo(
        f"{done.copied} documents copied from {done.before} to {done.after}; "
        f"{compared.documents} documents and {compared.passages} passages, digest "
        f"{compared.digest[:16]}, both equal"
    )
    click.echo(
        f"{2 * compared.queries} queries find the same in both; the greatest difference of a "
        f"score is {compared.difference:g}"
    )
    click.echo(f"the source is kept: stillroom rag migrate {index} --drop-source removes it")
