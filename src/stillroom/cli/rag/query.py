"""``stillroom rag search``: options and output of ``rag.retrieval.pipeline``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from stillroom.cli.options import (
    build_access,
    command,
    count_option,
    existing_path,
    flag_option,
    output_options,
    view_options,
)
from stillroom.cli.output import print_json, print_text
from stillroom.cli.results import format_excerpt, format_place, print_flags
from stillroom.jobs.progress import escape_line

__all__ = ["search_command"]


@command(
    "search",
    'stillroom rag search index "context manager"',
    'stillroom rag search index "context manager" --pipeline keyword+mmr --k 10 --json',
    "stillroom rag search index '\"context manager\" headings:library'",
    'stillroom rag search index "context manager" --where "path ~ \'library/*\' and '
    'not language = de"',
)
@click.argument("index", type=existing_path)
@click.argument("query")
@count_option("--k", default=5, show_default=True, help="Number of passages to list.")
@click.option(
    "--pipeline",
    default="",
    help="Retrieval pipeline: [TRANSFORM>]RETRIEVER[+RERANKER]; default: convex.",
)
@flag_option("--timings", help="Print the time of each stage, in milliseconds.")
@view_options
@output_options
def search_command(
    index: Path,
    query: str,
    k: int,
    pipeline: str,
    timings: bool,
    where: str,
    snapshot: str | None,
    tenant: str,
    principals: tuple[str, ...],
    as_json: bool,
) -> None:
    """List the passages that a query finds, and the words of it that no passage has.

    Words in quotation marks must occur in a passage as a phrase; headings:WORD and body:WORD must
    occur in its headings or its text. If no passage matches, a note says so, and the
    words are searched without these conditions.
    """
    from stillroom.jobs import LineReporter
    from stillroom.rag.generation.content_flags import flag_text
    from stillroom.rag.generation.question import list_missing_words
    from stillroom.rag.index.searcher import Index
    from stillroom.rag.observability import (
        collect_stages,
        collect_warnings,
        configure_from_environment,
    )
    from stillroom.rag.retrieval.pipeline import parse_pipeline, retrieve

    configure_from_environment()
    parsed = parse_pipeline(pipeline) if pipeline else None
    access = build_access(tenant, principals)
    with (
        collect_stages() as times,
        collect_warnings() as warnings,
        Index.open(index, snapshot=snapshot, access=access) as opened,
    ):
        shown = opened.restrict(where) if where else opened
        hits = retrieve(
            shown,
            query,
            k,
            retriever=parsed.retriever if parsed else None,
            reranker=parsed.reranker if parsed else None,
            transform=parsed.transform if parsed else None,
        )
        if missing := list_missing_words(query, opened):
            warnings.append(f"no passage has {', '.join(map(json.dumps, missing))}")
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
        print_json({"query": query, "hits": rows, "notices": warnings, **spent})
        return
    for line in warnings:
        LineReporter().warn(line)
    for hit in hits:
        place = format_place(hit.passage.location, hit.passage.headings)
        print_text(escape_line(f"{hit.rank}. {hit.score:.4f}  {place}"))
        print_text(f"   {format_excerpt(hit.passage.text, hit.passage.headings)}")
        print_flags(flag_text(hit.passage.text), indent=3)
    if not hits:
        print_text("nothing was found")
    for name, spent_ms in times.milliseconds.items() if timings else ():
        print_text(f"{name:10} {spent_ms:9.2f} ms")
