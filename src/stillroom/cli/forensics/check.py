"""``stillroom forensics check``: forensic evidence on media files."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.forensics.provenance import trust_options
from stillroom.cli.options import (
    FiniteFloatRange,
    command,
    engine_option,
    existing_path,
    flag_option,
    output_options,
    path_option,
    paths_option,
    read_engine,
)
from stillroom.cli.output import print_json

__all__ = ["check_command"]


@command(
    "check",
    "stillroom forensics check photo.jpg",
    "stillroom forensics check downloads --official C2PA-TRUST-LIST.pem --html check.html",
    "stillroom forensics check photo.jpg --detector runs/sbi --prevalence 0.01 --maps",
)
@click.argument("paths", type=existing_path, nargs=-1, required=True)
@trust_options
@path_option("--html", help="Write a self-contained HTML page.")
@paths_option(
    "--detector",
    "detectors",
    help="Trained detector, applied to each face, in videos frame by frame; may be repeated.",
)
@click.option(
    "--prevalence",
    type=FiniteFloatRange(0, 1, min_open=True, max_open=True),
    default=0.5,
    show_default=True,
    help="Expected share of forged files; it shifts the probabilities.",
)
@flag_option(
    "--pulse", help="Look for a pulse in the faces of videos; decodes up to 20 seconds of each."
)
@flag_option("--maps", help="Show heat maps of detectors that indicate a forgery.")
@engine_option
@output_options
def check_command(
    paths: tuple[Path, ...],
    trust: tuple[Path, ...],
    official: tuple[Path, ...],
    interim: tuple[Path, ...],
    html: Path | None,
    remote: bool,
    detectors: tuple[Path, ...],
    prevalence: float,
    pulse: bool,
    maps: bool,
    engine: str,
    as_json: bool,
) -> None:
    """Check files: content credentials, this lab's watermark, detectors and limitations.

    Lists evidence, never a single number. Detectors passed with --detector score each face; their
    findings are listed apart from the credentials, as probabilities, or as inconclusive if the
    image quality is too low. Exit code 1 if a file could not be checked, or there was none; the
    others are checked nevertheless.
    """
    from stillroom.forensics.c2pa.signature import open_trust_lists
    from stillroom.forensics.check.check import FileCheckTask, check_files, list_media
    from stillroom.forensics.check.report_page import render_check_page
    from stillroom.forensics.labeling.lab import has_lab, open_lab
    from stillroom.jobs import atomic_write
    from stillroom.jobs.engines import open_engine

    lists = open_trust_lists(official=official, interim=interim, user=trust)
    lab = open_lab() if has_lab() else None
    limits = _read_limits(detectors)
    reports = []
    listed = list_media(paths)
    work = FileCheckTask(tuple(lists), remote, detectors, prevalence, maps, pulse)
    with open_engine(read_engine(engine), lambda line: click.echo(line, err=True)) as opened:
        for report in check_files(work, listed.media, opened, lab=lab):
            reports.append(report)
            if not as_json:
                click.echo("\n".join(report.lines()))
    if html is not None:
        with atomic_write(html) as file:
            file.write(render_check_page(reports, limits, listed.line()))
    if as_json:
        print_json(
            {
                "files": [report.to_json() for report in reports],
                "limits": list(limits),
                "passed_over": [str(path) for path in listed.passed_over],
            }
        )
    else:
        if not reports:
            click.echo("nothing was checked: the folder contains no media files", err=True)
        if listed.passed_over:
            click.echo(listed.line(), err=True)
        for line in limits:
            click.echo(line, err=True)
    if not reports or any(report.error for report in reports):
        raise click.exceptions.Exit(1)


def _read_limits(detectors: tuple[Path, ...]) -> tuple[str, ...]:
    """Return the limitations of all findings; detectors are opened once more to list theirs."""
    from stillroom.forensics.check.check import list_limits

    if not detectors:
        return list_limits(None)
    from stillroom.forensics.inference.detector_set import open_detectors

    return list_limits(open_detectors(detectors))
