"""``stillroom rag search``: the passages that a query finds."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import (
    debug_option,
    existing_path,
    json_option,
    print_json,
    view_options,
)

__all__ = ["command"]


@click.command(
    "search",
    epilog="""
\b
Examples:
  stillroom rag search index "context manager"
  stillroom rag search index "context manager" --way keyword+proximity --k 10 --json
  stillroom rag search index '"context manager" headings:library'
  stillroom rag search index "context manager" --where "path ~ 'library/*' and not language = de"
""",
)
@click.argument("index", type=existing_path)
@click.argument("query")
@click.option(
    "--k",
    default=5,
    type=click.IntRange(min=1),
    show_default=True,
    help="How many passages to list.",
)
@click.option(
    "--way",
    default="",
    help="[TRANSFORM>]RETRIEVER[+RERANKER], as 'stillroom rag eval' compares them; default: what "
    "'rag tune --write' left in the index, else convex.",
)
@click.option("--timings", is_flag=True, help="Say what each stage took, in milliseconds.")
@view_options
@json_option
@debug_option
def command(
    index: Path,
    query: str,
    k: int,
    way: str,
    timings: bool,
    where: str,
    snapshot: str | None,
    tenant: str,
    principals: tuple[str, ...],
    as_json: bool,
) -> None:
    """List the passages that a query finds.

    What stands in quotation marks must stand so in a passage, one word after another;
    headings:WORD and body:WORD must stand there. Where no passage has it, that is said, and the
    words alone are searched.
    """
    from stillroom.rag.access import Access
    from stillroom.rag.flags import flag_text
    from stillroom.rag.index import Index
    from stillroom.rag.notices import collect_notices
    from stillroom.rag.stages import collect_stages
    from stillroom.rag.tracing import observe_if_asked
    from stillroom.rag.ways import parse_way

    observe_if_asked()
    chosen = parse_way(way) if way else None
    access = Access(tenant, principals) if tenant or principals else None
    with (
        collect_stages() as times,
        collect_notices() as told,
        Index.open(index, snapshot=snapshot, access=access) as opened,
    ):
        shown = opened.restrict(where) if where else opened
        hits = shown.retrieve(
            query,
            k,
            retriever=chosen.retriever if chosen else None,
            reranker=chosen.reranker if chosen else None,
            transform=chosen.transform if chosen else None,
        )
    if as_json:
        rows = [
            {
                "rank": hit.rank,
                "score": hit.score,
                "passage": hit.passage.to_json(),
                "flags": list(flag_text(hit.passage.text)),
            }
            for hit in hits
        ]
        spent = {"stage_ms": times.to_json()} if timings else {}
        print_json({"query": query, "hits": rows, "notices": told, **spent})
        return
    for line in told:
        click.echo(line, err=True)
    for hit in hits:
        first = " ".join(hit.passage.text.split())[:160]
        click.echo(f"{hit.rank}. {hit.score:.4f}  {hit.passage.location}\n   {first}")
        if labels := flag_text(hit.passage.text):
            click.echo(f"   look twice: {', '.join(labels)}")
    if not hits:
        click.echo("nothing was found")
    for name, spent_ms in times.milliseconds.items() if timings else ():
        click.echo(f"{name:10} {spent_ms:9.2f} ms")
