"""``stillroom verify``, ``publish`` and ``fetch``: integrity and transfer of finished jobs."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import existing_path, output_options
from stillroom.cli.output import print_json

__all__ = [
    "fetch_command",
    "publish_command",
    "verify_command",
]


@click.command(
    "fetch",
    epilog="""
\b
Examples:
  stillroom fetch s3://models/merged merged
  stillroom fetch s3://data/records runs/records --json
""",
)
@click.argument("address")
@click.argument("folder", type=existing_path)
@output_options
def fetch_command(address: str, folder: Path, as_json: bool) -> None:
    """Download a published job into a folder.

    Its digests are recomputed, as by stillroom verify.

    Credentials come from the environment, as for stillroom publish.
    """
    from stillroom.errors import IntegrityError
    from stillroom.objects import fetch_folder
    from stillroom.provenance import read_artifact, verify_artifact

    came = fetch_folder(address, folder)
    for finding in verify_artifact(folder, parents=False):
        raise IntegrityError(
            f"{finding.path} {finding.what}",
            code="integrity.changed",
            where=address,
            expected="the bytes recorded in artifact.json",
            next="publish the folder again",
        )
    digest = read_artifact(folder).digest
    if as_json:
        print_json({"out": str(folder), "files": came, "digest": digest})
    else:
        click.echo(f"{folder}: {came} files, {digest}")


@click.command(
    "publish",
    epilog="""
\b
Examples:
  stillroom publish merged s3://models/merged
  stillroom publish runs/records s3://data/records --overwrite
""",
)
@click.argument("folder", type=existing_path)
@click.argument("address")
@click.option("--overwrite", is_flag=True, help="Replace an existing artifact at the address.")
@output_options
def publish_command(folder: Path, address: str, overwrite: bool, as_json: bool) -> None:
    """Upload a finished job to an object store.

    Its manifest is sent last: until then readers of the address find no artifact.json, and so no
    partial job. Credentials come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
    AWS_ENDPOINT_URL).
    """
    from stillroom.objects import publish_folder

    sent = publish_folder(folder, address, overwrite=overwrite)
    if as_json:
        print_json({"address": address, "sent": sent})
    else:
        click.echo(f"{address}: {sent} objects sent")


@click.command(
    "verify",
    epilog="""
\b
Examples:
  stillroom verify run
  stillroom verify run/steps/merge-1a2b3c4d5e6f --json
  stillroom verify run --replay 59 --out summary.json
  stillroom verify run --replay all --input /home/me/notes=./notes
""",
)
@click.argument("path", type=existing_path)
@click.option(
    "--replay",
    "amount",
    metavar="SHARE|COUNT|all",
    help="Recompute so many segments of the run's work, drawn at random, and compare.",
)
@click.option("--seed", type=int, help="Seed of the draw.  [default: random]")
@click.option(
    "--input",
    "moved",
    multiple=True,
    metavar="OLD=NEW",
    help="With --replay: an input that lies elsewhere than when the run was made.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="With --replay: write the verification summary (in-toto, SLSA VSA) to a file.",
)
@output_options
def verify_command(
    path: Path,
    amount: str | None,
    seed: int | None,
    moved: tuple[str, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Recompute digests and list changed files; with --replay, also recompute the work."""
    from stillroom.cli import replay
    from stillroom.errors import IntegrityError, Problem
    from stillroom.provenance import verify_artifact

    findings = verify_artifact(path)
    result = None
    if amount is not None and not findings:
        result = replay.replay(path, amount, seed=seed, moved=moved, out=out, quiet=as_json)
    if as_json:
        replayed = {"replay": result.to_json()} if result is not None else {}
        listed = [finding.to_json() for finding in findings]
        print_json({"path": str(path), "findings": listed, **replayed})
    if findings:
        raise IntegrityError(
            [
                Problem(
                    f"{finding.path} {finding.what}",
                    "integrity.changed",
                    str(path),
                    "the bytes recorded in artifact.json",
                    "restore the file, or run the job again",
                )
                for finding in findings
            ]
        )
    if not as_json:
        click.echo(f"{path}: all digests match")
    if result is not None:
        if not as_json:
            replay.print_replay(result)
        replay.raise_replay(result)
