"""``stillroom forensics consent``, ``ledger`` and ``trace``: calls of ``forensics.labeling``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from stillroom.cli.options import command, existing_path, output_options, path_option, paths_option
from stillroom.cli.output import print_json, print_text

__all__ = [
    "consent_command",
    "ledger_command",
    "trace_command",
]


@command(
    "consent",
    'stillroom forensics consent anna/ --who "Anna Example" --basis "signed form of 3 May" \\\n'
    "    --scope sbi --expires 2027-05-03 --out anna.json",
    "stillroom run forge.yaml --out set 'faces={type: people, folder: anna, consent: anna.json}'",
    'stillroom forensics consent voices/ --who "Anna Example" --basis "signed form of 3 May" \\\n'
    "    --scope vocoder --expires 2027-05-03 --out voices.json",
)
@click.argument("files", type=existing_path, nargs=-1, required=True)
@click.option("--who", required=True, help="Person shown or recorded.")
@click.option("--basis", required=True, help="Basis of the consent: a form, a contract.")
@click.option(
    "--scope",
    multiple=True,
    required=True,
    help="Forgery or edit that is agreed to, or 'any'; may be repeated.",
)
@click.option(
    "--expires", type=click.DateTime(["%Y-%m-%d"]), required=True, help="Last day of validity."
)
@path_option("--out", required=True, help="Output file.")
@output_options
def consent_command(
    files: tuple[Path, ...],
    who: str,
    basis: str,
    scope: tuple[str, ...],
    expires: datetime,
    out: Path,
    as_json: bool,
) -> None:
    """Write a consent record for images or recordings of a person.

    The record lists the files' digests: it is valid for these files and no others. For a folder,
    all images and recordings below it are listed.
    """
    from stillroom.forensics.synthesis.consent import list_consented_files, write_consent

    named = [consented for file in files for consented in list_consented_files(file)]
    consent = write_consent(out, named, who=who, basis=basis, scope=scope, expires=expires.date())
    if as_json:
        print_json({"id": consent.id, "files": len(consent.files), "path": str(out)})
        return
    count = f"{len(consent.files)} file{'' if len(consent.files) == 1 else 's'}"
    print_text(f"{out}: consent {consent.id} of {consent.who} for {count}")


@command(
    "ledger",
    "stillroom forensics ledger",
    "stillroom forensics ledger --unmarked run/output",
    "stillroom forensics ledger --unmarked run/output --unmarked other/output --json",
)
@paths_option(
    "--unmarked",
    help="Folder whose media must carry every mark of the lab; others are listed. May be repeated.",
)
@output_options
def ledger_command(unmarked: tuple[Path, ...], as_json: bool) -> None:
    """Verify the lab's ledger, row by row.

    Exit code 1 if a file lacks a mark, or a given folder contains no media.
    """
    from stillroom.forensics.labeling.dataset_writer import find_unmarked_files
    from stillroom.forensics.labeling.lab import open_lab
    from stillroom.jobs import escape_line

    lab = open_lab()
    rows = lab.ledger.verify()
    unmarked_files = {folder: find_unmarked_files(folder, lab) for folder in unmarked}
    lacking = {
        str(folder if folder.is_file() else folder / name): missing
        for folder, names in unmarked_files.items()
        for name, missing in names.items()
    }
    if as_json:
        print_json({"lab": str(lab.folder), "rows": rows, "unmarked": lacking})
    else:
        found = (
            f"{rows} rows, all unchanged" if rows else "no rows: none was written, or all are lost"
        )
        print_text(f"{lab.ledger.path}: {found}")
        for name, missing in lacking.items():
            print_text(escape_line(f"{name}: lacks {', '.join(missing)}"))
        for folder, names in unmarked_files.items():
            if not names:
                print_text(escape_line(f"{folder}: every media file carries every mark"))
    if lacking:
        raise click.exceptions.Exit(1)


@command(
    "trace",
    "stillroom forensics trace screenshot.png",
    "stillroom forensics trace downloads/*.jpg --json",
)
@click.argument("files", type=existing_path, nargs=-1, required=True)
@output_options
def trace_command(files: tuple[Path, ...], as_json: bool) -> None:
    """Detect the lab's watermark in files, with or without metadata.

    Finds only files of this lab, also after recompression, resizing, or a crop of up to 10 % per
    side. A missing watermark proves nothing. A watermark that was copied to other content is
    reported as copied; a small edit of a watermarked file is not reported.
    """
    from stillroom.errors import DataError
    from stillroom.forensics.labeling.lab import open_lab
    from stillroom.forensics.labeling.lookup import look_up_file
    from stillroom.jobs import escape_line

    lab = open_lab()
    results, failed = {}, False
    for file in files:
        try:
            trace = look_up_file(file, lab)
        except DataError as error:
            print_text(str(error), err=True)
            failed = True
            continue
        results[str(file)] = trace.to_json()
        if not as_json:
            print_text(escape_line(f"{file}: {trace.line()}"))
    if as_json:
        print_json({"files": results})
    if failed:
        raise click.exceptions.Exit(1)
