"""``stillroom sign``, ``verify``, ``publish`` and ``fetch``, by ``provenance`` and ``objects``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stillroom.cli.options import (
    command,
    count_option,
    existing_path,
    file_path,
    flag_option,
    output_options,
    path_option,
    paths_option,
    refuse_existing_output,
    refuse_idle_options,
    replace_option,
)
from stillroom.cli.output import print_json, print_text
from stillroom.cli.proof import (
    OTHER_SIGNER,
    SIGNATURE_WORDS,
    print_replay,
    raise_replay,
    replay_run,
    verify_evidence_file,
)
from stillroom.errors import DataError, IntegrityError, Problem, ResourceError, count_noun
from stillroom.jobs.progress import escape_line

if TYPE_CHECKING:
    from stillroom.provenance import IntegrityMismatch, IntegrityReport

__all__ = [
    "fetch_command",
    "publish_command",
    "sign_command",
    "verify_command",
]


@command(
    "fetch",
    "stillroom fetch s3://models/merged merged",
    "stillroom fetch s3://data/records runs/records --json",
)
@click.argument("address")
@click.argument("folder", type=existing_path)
@output_options
def fetch_command(address: str, folder: Path, as_json: bool) -> None:
    """Download a published job into a folder.

    Its digests and signatures are recomputed, as by stillroom verify.

    Credentials come from the environment, as for stillroom publish.
    """
    from stillroom.objects import fetch_folder
    from stillroom.provenance import read_artifact, verify_artifact

    came = fetch_folder(address, folder)
    if findings := verify_artifact(folder):
        raise IntegrityError([_describe_finding(one, address) for one in findings])
    digest = read_artifact(folder).digest
    if as_json:
        print_json({"out": str(folder), "files": came, "digest": digest})
    else:
        print_text(f"{folder}: {count_noun(came, 'file')}, {digest}")


@command(
    "publish",
    "stillroom publish merged s3://models/merged",
    "stillroom publish runs/records s3://data/records --overwrite",
)
@click.argument("folder", type=existing_path)
@click.argument("address")
@flag_option("--overwrite", help="Replace an existing artifact at the address.")
@output_options
def publish_command(folder: Path, address: str, overwrite: bool, as_json: bool) -> None:
    """Upload a finished job to an object store.

    artifact.json is uploaded last, so nobody reads a partial job. Credentials come from the
    environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL).
    """
    from stillroom.objects import publish_folder
    from stillroom.provenance.artifact import refuse_unfinished

    if not folder.exists():
        refuse_unfinished(folder)
    sent = publish_folder(folder, address, overwrite=overwrite)
    if as_json:
        print_json({"address": address, "sent": sent})
    else:
        print_text(f"{address}: {sent} objects sent")


@command(
    "sign",
    "stillroom sign run --key me.key",
    "stillroom sign merged --key me.key --certificates chain.pem",
)
@click.argument("path", type=existing_path)
@path_option("--key", required=True, help="Your private key, in PEM.")
@path_option("--certificates", help="Chain of your certificates in PEM, your own first.")
@output_options
def sign_command(path: Path, key: Path, certificates: Path | None, as_json: bool) -> None:
    """Sign a finished job, or every job of a run.

    Writes model.sig (OpenSSF model signing 1.0, over every file), claims.jsonl (SLSA provenance:
    what made the job) and signer.pub into each folder. The password of an encrypted key is read
    from STILLROOM_SIGNING_PASSWORD. If STILLROOM_SIGNING_KEY names a key, jobs sign themselves.

    A signature proves who signed, and that the files have not changed since. It does not prove
    that what they state is true.
    """
    from stillroom.provenance import list_run_folders
    from stillroom.provenance.artifact import locate_manifest
    from stillroom.provenance.signing import load_signing_key, read_password, sign_artifact

    signer = load_signing_key(key, read_password(), certificates=certificates)
    _refuse_unfinished(path)
    folders = list_run_folders(path)
    with ExitStack() as held:
        for folder in folders:
            _hold_job(folder, held)
        if locate_manifest(path).is_file():
            _refuse_changed(path)
        for folder in folders:
            sign_artifact(folder, signer)
    if as_json:
        print_json({"signed": [str(folder) for folder in folders], "key": signer.key_id})
    else:
        print_text(
            f"{path}: {count_noun(len(folders), 'folder')} signed with key {signer.key_id[:16]}"
        )


def _refuse_unfinished(path: Path) -> None:
    """Refuse a job that is still at work, or was killed: its files will change.

    Raises:
        DataError: If it is one.
    """
    from stillroom.provenance.artifact import ARTIFACT_FILE

    is_run = (path / "steps").is_dir() and any((path / "steps").glob(".*.partial"))
    is_begun = (path / "recipe.yaml").is_file() and not (path / ARTIFACT_FILE).is_file()
    if is_run or is_begun:
        raise DataError(
            f"{path} is unfinished: its files will change",
            code="data.unfinished",
            where=str(path),
            expected="the folder of a finished job or run",
            next="wait for it, or finish it with --resume, and sign it then",
        )


def _refuse_changed(path: Path) -> None:
    """Refuse to sign files that are not as their job recorded them; an old signature may be.

    Raises:
        DataError: If one has changed.
    """
    from stillroom.provenance import verify_artifact

    changed = [one for one in verify_artifact(path) if one.layer in {"output", "claim"}]
    if changed:
        raise DataError(
            f"{changed[0].path} {changed[0].what}",
            code="data.damaged",
            where=str(path),
            expected="a folder whose files are as its artifact.json records them",
            next=f"stillroom verify {path} lists what differs; restore it, or run the job again",
        )


def _hold_job(folder: Path, held: ExitStack) -> None:
    """Hold a run's or an index's lock against writers while the folder is signed.

    Raises:
        ResourceError: If another process writes to it.
    """
    import fcntl

    from stillroom.provenance.signing.artifacts import LOCK_FILE, WRITER_FILE

    for path in (folder / LOCK_FILE, folder / WRITER_FILE):
        if not path.is_file():
            continue
        try:
            fcntl.flock(held.enter_context(path.open("rb")), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            raise ResourceError(
                f"another process is writing to {folder}",
                code="resource.busy",
                where=str(folder),
                expected="a folder that nothing changes while it is signed",
                next="wait for it, and sign again",
            ) from error


@command(
    "verify",
    "stillroom verify run",
    "stillroom verify run --key alice.pub",
    "stillroom verify run/steps/merge-1a2b3c4d5e6f --json",
    "stillroom verify run --replay 59 --out summary.json",
    "stillroom verify run --replay all --input /srv/notes=./notes",
    "stillroom verify answer.json --key alice.pub --within run",
)
@click.argument("path", type=existing_path)
@paths_option("--key", "keys", help="Public key of a signer whom you trust; may be repeated.")
@paths_option("--trust", "authorities", help="Certificates of authorities that you trust, as PEM.")
@click.option(
    "--replay",
    "amount",
    metavar="SHARE|COUNT|all",
    help="Recompute this share or number of the run's segments, drawn at random, and compare.",
)
@count_option("--seed", least=0, help="Seed of the draw.  [default: random]")
@click.option(
    "--input",
    "moved",
    multiple=True,
    metavar="OLD=NEW",
    help="With --replay: new path of an input that was moved since the run.",
)
@click.option(
    "--out",
    type=file_path,
    help="With --replay: write the verification summary (in-toto, SLSA VSA) to a file.",
)
@replace_option
@path_option(
    "--within", help="For the evidence of an answer: run or index to ask the question again."
)
@click.option("--model", default="", help="With --within: model to use instead of the run's own.")
@output_options
def verify_command(
    path: Path,
    keys: tuple[Path, ...],
    authorities: tuple[Path, ...],
    amount: str | None,
    seed: int | None,
    moved: tuple[str, ...],
    out: Path | None,
    within: Path | None,
    model: str,
    as_json: bool,
) -> None:
    """Recompute digests, verify signatures, and list what differs.

    Each difference is in an output, a claim (what artifact.json states), a parent, the chain (a
    parent's claim has changed since it was used) or a signature. With --key or --trust every folder
    must be signed by one of those signers. --replay also recomputes randomly drawn segments of the
    work, assembles every output again from these and the other segments, and compares the bytes.

    A file that a command wrote, such as a GGUF file, is compared with NAME.artifact.json beside it.

    PATH may be the evidence of an answer, written by 'ask --evidence' or sent by the server.
    --within also compares its passages with the documents and asks its question again.
    """
    from stillroom.provenance import verify_signed
    from stillroom.provenance.artifact import locate_manifest
    from stillroom.provenance.signing import load_trust

    trust = load_trust(keys, authorities) if keys or authorities else None
    is_evidence = path.is_file() and not locate_manifest(path).is_file()
    _refuse_idle_options(is_replayed=amount is not None, is_asked=within is not None)
    refuse_existing_output(out)
    if is_evidence or within:
        refuse_idle_options({"amount"}, "applies to a run, and --within to the evidence of answers")
        verify_evidence_file(path, trust, within=within, model=model, as_json=as_json)
        return
    result = verify_signed(path, trust)
    replayed = None
    if amount is not None and not result.findings:
        replayed = replay_run(path, amount, seed=seed, moved=moved, out=out, quiet=as_json)
    if as_json:
        print_json(
            {
                "path": str(path),
                "findings": [finding.to_json() for finding in result.findings],
                "signatures": {
                    folder: {"state": check.state, "key": check.key_id}
                    for folder, check in result.signatures.items()
                },
                "open_ends": list(result.open_ends),
                "uncovered": list(result.uncovered),
                **({"replay": replayed.to_json()} if replayed is not None else {}),
            }
        )
    if result.findings:
        raise IntegrityError([_describe_finding(finding, path) for finding in result.findings])
    if not as_json:
        print_text(f"{path}: all digests match")
        for line in _describe_signatures(result):
            print_text(line)
    if replayed is not None:
        if not as_json:
            print_replay(replayed)
        raise_replay(replayed)


def _refuse_idle_options(*, is_replayed: bool, is_asked: bool) -> None:
    if not is_asked:
        refuse_idle_options({"model"}, "needs --within")
    if not is_replayed:
        refuse_idle_options({"seed", "moved", "out"}, "needs --replay")


_MAX_UNCOVERED = 20
_AGAIN = "get artifact.json again, or run the job again"
_LAYERS = {
    "signature": (
        "a valid signature over these bytes",
        "if you changed it yourself (as by 'stillroom rag update'), sign it again: stillroom sign "
        "FOLDER --key YOUR.key; else get the signed files again, or ask the signer",
    ),
    "claim": ("what was stated when the job finished", _AGAIN),
    "chain": ("what the parent stated when it was used", _AGAIN),
}
_BYTES = ("the bytes recorded in artifact.json", "restore the file, or run it again")


def _describe_finding(finding: IntegrityMismatch, path: Path | str) -> Problem:
    what = escape_line(f"{finding.layer}: {finding.path} {finding.what}")
    if finding.kind == "other-signer":
        return Problem(what, "integrity.other-signer", str(path), *OTHER_SIGNER)
    code = {
        "signature": "integrity.signature",
        "claim": "integrity.claim",
        "chain": "integrity.chain",
    }.get(finding.layer, "integrity.changed")
    return Problem(what, code, str(path), *_LAYERS.get(finding.layer, _BYTES))


def _describe_signatures(result: IntegrityReport) -> Iterator[str]:
    """Yield a line per signer, one for unsigned folders, open ends, and what is not covered."""
    groups: dict[tuple[str, str], int] = {}
    for check in result.signatures.values():
        groups[check.state, check.key_id] = groups.get((check.state, check.key_id), 0) + 1
    for (state, key_id), count in sorted(groups.items()):
        folders = count_noun(count, "folder")
        yield f"  {folders} {SIGNATURE_WORDS[state]}{f': {key_id}' if key_id else ''}"
    yield from (escape_line(f"  open: {line}") for line in result.open_ends)
    for line in result.uncovered[:_MAX_UNCOVERED]:
        yield escape_line(f"  not covered: {line}")
    if (more := len(result.uncovered) - _MAX_UNCOVERED) > 0:
        yield f"  not covered: {more} more; all with --json"
