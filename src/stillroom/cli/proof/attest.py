"""``stillroom attest``: inventory and data papers of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stillroom.cli.options import (
    command,
    existing_path,
    output_options,
    overwrite_option,
    path_option,
    paths_option,
)
from stillroom.cli.output import format_row, print_json

if TYPE_CHECKING:
    from stillroom.flow.papers.facts import Paper

__all__ = ["attest_command"]

_FORMATS = ("cyclonedx", "spdx", "croissant", "eu-summary", "eu-form", "card")
_MAX_NAMED = 8


@command(
    "attest",
    "stillroom attest run --format all --out papers",
    "stillroom attest run --format cyclonedx --out bom.cdx.json",
    'stillroom attest run --format eu-summary --provider "Ann Lee, ann@example.org"',
)
@click.argument("run", type=existing_path)
@click.option(
    "--format",
    "format_name",
    type=click.Choice([*_FORMATS, "all"]),
    required=True,
    help="Paper to write; all writes every one.",
)
@click.option("--name", default="", help="Name of the model; by default the folder's name.")
@click.option("--provider", default="", help="Name and contact of who answers for the model.")
@paths_option(
    "--report",
    "reports",
    help="Evaluation job to include; a run includes its own. May be repeated.",
)
@path_option("--out", help="Output file, or a folder; by default the paper is printed.")
@overwrite_option
@output_options
def attest_command(
    run: Path,
    format_name: str,
    name: str,
    provider: str,
    reports: tuple[Path, ...],
    out: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write inventory and data papers of a run from its lineage.

    CycloneDX 1.7 (ML-BOM), SPDX 3.0.1 (AI and data), Croissant 1.1, the EU's public
    summary of training content and Model Documentation Form, and a model card. What the lineage
    does not hold is written as unknown, and counted. The same run gives the same bytes.
    """
    from stillroom.errors import DataError
    from stillroom.flow.papers.graph import read_graph
    from stillroom.flow.papers.writer import FORMATS, save_papers, write_all
    from stillroom.jobs import escape_line

    is_all = format_name == "all"
    if is_all and out is None:
        raise DataError(
            "several papers cannot be printed at once",
            code="attest.no-folder",
            expected="--out FOLDER with --format all",
            next="give --out, or one format",
        )
    graph = read_graph(run, reports=reports, name=name, provider=provider)
    papers, left_out = write_all(graph) if is_all else ([FORMATS[format_name](graph)], {})
    if out is not None:
        folder, renamed = _place(papers, out, is_folder=is_all or out.is_dir())
        save_papers(renamed, folder, overwrite=overwrite)
        papers = renamed
    if as_json:
        print_json(
            {
                "out": str(out) if out else None,
                "papers": [_to_json(paper, with_text=out is None) for paper in papers],
                "left_out": left_out,
                "open_ends": graph.open_ends,
            }
        )
        return
    if out is None:
        click.echo(papers[0].text, nl=False)
    for paper in papers:
        row = format_row(escape_line(f"{paper.file:28}"), escape_line(_describe(paper)))
        click.echo(row, err=out is None)
    for format, why in left_out.items():
        row = format_row(f"{format:28}", escape_line(f"not written: {why}"))
        click.echo(row, err=out is None)
    for end in graph.open_ends:
        click.echo(escape_line(f"open end: {end}"), err=True)


def _place(papers: list[Paper], out: Path, *, is_folder: bool) -> tuple[Path, list[Paper]]:
    """Return the folder to write to, and the papers under the names of their files."""
    from dataclasses import replace

    if is_folder:
        return out, papers
    return out.parent, [replace(papers[0], file=out.name)]


def _describe(paper: Paper) -> str:
    """Return title and unknown fields of a paper, for a terminal."""
    unknown = paper.unknown
    if not unknown:
        return f"{paper.title}: all of {len(paper.fields)} fields known"
    named = ", ".join(unknown[:_MAX_NAMED])
    more = f", and {len(unknown) - _MAX_NAMED} more" if len(unknown) > _MAX_NAMED else ""
    return f"{paper.title}: {len(unknown)} of {len(paper.fields)} fields unknown: {named}{more}"


def _to_json(paper: Paper, *, with_text: bool) -> dict[str, object]:
    told: dict[str, object] = {
        "format": paper.format,
        "file": paper.file,
        "fields": dict(paper.fields),
        "unknown": list(paper.unknown),
    }
    return {**told, "text": paper.text} if with_text else told
