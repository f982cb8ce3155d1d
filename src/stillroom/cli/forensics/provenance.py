"""``stillroom forensics provenance`` and ``check``: calls of ``forensics.c2pa``, ``check``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from stillroom.cli.app import command_group
from stillroom.cli.options import (
    FiniteFloatRange,
    command,
    count_option,
    engine_option,
    existing_path,
    flag_option,
    output_options,
    path_option,
    paths_option,
    read_engine,
    refuse_existing_output,
    refuse_idle_options,
    replace_option,
)
from stillroom.cli.output import print_json, print_text

__all__ = [
    "check_command",
    "init_ca_command",
    "provenance_group",
    "sign_command",
    "trust_options",
    "verify_command",
]

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


def trust_options(function: CommandT) -> CommandT:
    """Add --trust, --official, --interim and --remote: how credentials are verified."""
    lists = {
        "--interim": "Interim C2PA trust list, frozen at the start of 2026, as PEM.",
        "--official": "Official C2PA trust list, as PEM.",
        "--trust": "Certificate authorities that you trust, or public keys of texts, as PEM.",
    }
    function = flag_option(
        "--remote", help="Fetch remote manifests and query OCSP; needs the network."
    )(function)
    for name, text in lists.items():
        function = click.option(name, type=existing_path, multiple=True, help=text)(function)
    return function


@command_group(
    "provenance",
    "stillroom forensics provenance init-ca ca",
    "stillroom forensics provenance verify signed.jpg --trust ca/ca.pem",
)
def provenance_group() -> None:
    """Provenance: sign media, and verify content credentials."""


@provenance_group.subcommand(
    "init-ca",
    "stillroom forensics provenance init-ca ca",
    'stillroom forensics provenance init-ca ca --organization "My newsroom" --days 365',
)
@click.argument("folder", type=existing_path)
@click.option(
    "--organization",
    default="Stillroom lab",
    show_default=True,
    help="Issuer name in the certificates.",
)
@count_option(
    "--days",
    default=3650,
    show_default=True,
    most=10950,
    help="Days of validity of the certificates.",
)
@output_options
def init_ca_command(folder: Path, organization: str, days: int, as_json: bool) -> None:
    """Create a certificate authority and a signer.

    The new signer signs a test image, which is verified, before anything is written. Readers trust
    the authority only if they are given its ca.pem as --trust.
    """
    from stillroom.forensics.c2pa.signature import init_ca

    files = init_ca(folder, organization=organization, days=days)
    if as_json:
        print_json({"folder": str(folder), "files": [str(path) for path in files]})
        return
    for path in files:
        print_text(str(path))
    print_text(
        f"next: stillroom forensics provenance sign FILE --ca {folder} --out SIGNED", err=True
    )


@provenance_group.subcommand(
    "sign",
    "stillroom forensics provenance sign photo.jpg --ca ca --out signed.jpg",
    "stillroom forensics provenance sign clip.mp4 --ca ca --out signed.mp4 "
    '--made-by "my generator"',
    "stillroom forensics provenance sign run/report.html --out report.html",
)
@click.argument("file", type=existing_path)
@path_option(
    "--ca",
    help="Folder created by init-ca; a text may be signed by the key in STILLROOM_SIGNING_KEY.",
)
@path_option("--out", required=True, help="Output file.")
@click.option("--title", default="", help="Title of the file; default its name.")
@click.option(
    "--made-by",
    default="",
    help="Generator of a synthetic file, which is then marked as trainedAlgorithmicMedia. "
    "Without it the credentials claim nothing about how the file was made.",
)
@click.option(
    "--timestamp-url", default="", help="URL of a timestamp authority; needs the network."
)
@output_options
def sign_command(
    file: Path,
    ca: Path | None,
    out: Path,
    title: str,
    as_json: bool,
    **settings: str,
) -> None:
    """Sign a file with content credentials.

    Pictures, clips, recordings, PDFs, and texts (.txt, .md, .html).
    """
    from stillroom.forensics.c2pa.signature import sign_file
    from stillroom.forensics.labeling.lookup import refuse_lab_file

    verification = sign_file(
        file, out, ca, refuse=refuse_lab_file, title=title or file.name, **settings
    )
    if as_json:
        print_json({"file": str(out), **verification.to_json()})
        return
    print_text(f"{out}: {verification.integrity}, {verification.trust}")


@provenance_group.subcommand(
    "verify",
    "stillroom forensics provenance verify photo.jpg",
    "stillroom forensics provenance verify *.jpg --official C2PA-TRUST-LIST.pem --trust ca/ca.pem",
    "stillroom forensics provenance verify answer.md --trust me.pub",
)
@click.argument("files", type=existing_path, nargs=-1, required=True)
@trust_options
@output_options
def verify_command(
    files: tuple[Path, ...],
    trust: tuple[Path, ...],
    official: tuple[Path, ...],
    interim: tuple[Path, ...],
    remote: bool,
    as_json: bool,
) -> None:
    """Verify content credentials: integrity, signer, and trust.

    The three findings are reported separately. Missing credentials do not show
    whether a file is authentic. Exit code 1 if a file was changed since it was signed, or
    cannot be read.
    """
    from stillroom.errors import StillroomError
    from stillroom.forensics.c2pa.credentials import verify_file
    from stillroom.forensics.c2pa.signature import is_text_file, open_trust_lists, verify_text
    from stillroom.forensics.extras import require_packages
    from stillroom.forensics.labeling.lab import has_lab, open_lab
    from stillroom.jobs import escape_line

    if not all(map(is_text_file, files)):
        require_packages("c2pa")
    lab = open_lab() if has_lab() else None
    own = lab.trust if lab else None
    lists = open_trust_lists(official=official, interim=interim, user=trust, lab=own)
    results, failed = {}, False
    for file in files:
        try:
            if is_text_file(file):
                verification = verify_text(file, lists)
            else:
                verification = verify_file(file, lists, remote=remote)
        except StillroomError as error:
            print_text(str(error), err=True)
            failed = True
            continue
        failed = failed or verification.integrity in {"broken", "unreadable"}
        results[str(file)] = verification.to_json()
        if not as_json:
            print_text(escape_line(str(file)))
            for line in verification.lines():
                print_text(f"  {line}")
    if as_json:
        print_json({"files": results})
    if failed:
        raise click.exceptions.Exit(1)


@command(
    "check",
    "stillroom forensics check photo.jpg",
    "stillroom forensics check downloads --official C2PA-TRUST-LIST.pem --html check.html",
    "stillroom forensics check photo.jpg --detector runs/sbi --prevalence 0.01 --maps",
)
@click.argument("paths", type=existing_path, nargs=-1, required=True)
@trust_options
@path_option("--html", help="Write a self-contained HTML page.")
@replace_option
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
    maps: bool,
    engine: str,
    as_json: bool,
) -> None:
    """Check files: content credentials, this lab's watermark, detectors.

    Lists separate findings and their limitations, not one overall score. Detectors passed with
    --detector score each face; their findings are probabilities, or inconclusive, for example if
    the image quality is too low. Exit code 1 if there is no file, or a file cannot be checked; the
    other files are still checked.
    """
    from stillroom.forensics.c2pa.signature import open_trust_lists
    from stillroom.forensics.check.check import FileCheckTask, check_files, list_media
    from stillroom.forensics.check.report_page import render_check_page
    from stillroom.forensics.labeling.lab import has_lab, open_lab
    from stillroom.jobs import atomic_write
    from stillroom.jobs.engines import open_engine

    refuse_existing_output(html, "--html")
    if not detectors:
        refuse_idle_options({"prevalence", "maps"}, "needs --detector")
    lists = open_trust_lists(official=official, interim=interim, user=trust)
    lab = open_lab() if has_lab() else None
    limits = _read_limits(detectors)
    reports = []
    listed = list_media(paths)
    work = FileCheckTask(tuple(lists), remote, detectors, prevalence, maps)
    with open_engine(read_engine(engine), lambda line: print_text(line, err=True)) as opened:
        for report in check_files(work, listed.media, opened, lab=lab):
            reports.append(report)
            if not as_json:
                print_text("\n".join(report.lines()))
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
            print_text("nothing was checked: the folder contains no media files", err=True)
        if listed.passed_over:
            print_text(listed.line(), err=True)
        for line in limits:
            print_text(line, err=True)
    if not reports or any(report.error for report in reports):
        raise click.exceptions.Exit(1)


def _read_limits(detectors: tuple[Path, ...]) -> tuple[str, ...]:
    """Return the limitations of all findings; detectors are opened once more to list theirs."""
    from stillroom.forensics.check.check import list_limits

    if not detectors:
        return list_limits(None)
    from stillroom.forensics.inference.detector_set import open_detectors

    return list_limits(open_detectors(detectors))
