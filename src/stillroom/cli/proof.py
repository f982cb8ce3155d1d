"""``stillroom attest`` and ``keys``, evidence, replay: calls of ``provenance`` and ``flow``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click
from typing_extensions import override

from stillroom.cli.app import command_group
from stillroom.cli.options import (
    command,
    existing_path,
    file_path,
    output_options,
    overwrite_option,
    path_option,
    paths_option,
    refuse_existing_output,
    refuse_idle_options,
)
from stillroom.cli.output import format_row, print_json, print_json_text, print_text
from stillroom.errors import DataError, IntegrityError, Problem, RecipeError
from stillroom.jobs import atomic_write, choose_reporter, escape_line

if TYPE_CHECKING:
    from stillroom.flow import OpenedRun
    from stillroom.flow.evidence import EvidenceReport
    from stillroom.flow.papers.facts import Paper
    from stillroom.flow.replay import ReplayResult
    from stillroom.provenance.evidence import EvidenceFinding
    from stillroom.provenance.signing import KeyAlgorithm, Trust
    from stillroom.records import Answer

__all__ = [
    "OTHER_SIGNER",
    "SIGNATURE_WORDS",
    "EvidenceWriter",
    "attest_command",
    "evidence_options",
    "keys_group",
    "new_command",
    "print_replay",
    "raise_replay",
    "replay_run",
    "verify_evidence_file",
]

CommandT = TypeVar("CommandT", bound=Callable[..., Any])
_BUNDLE_LAYERS = ("digest", "quote", "document")
OTHER_SIGNER = (
    "a signer given by --key or --trust",
    "ask who signed it, or pass that signer's key",
)
SIGNATURE_WORDS = {
    "trusted": "signed by a key you trust",
    "unknown-signer": "signed, by a key that you did not name (--key)",
    "unsigned": "not signed: digests show accidents, not who made this",
}


def evidence_options(function: CommandT) -> CommandT:
    """Add --evidence and --key."""
    function = path_option(
        "--key", help="Private key that signs the evidence; by default STILLROOM_SIGNING_KEY."
    )(function)
    return click.option(
        "--evidence",
        type=file_path,
        help="Write what the answer was made from to this file, signed if there is a key.",
    )(function)


class EvidenceWriter:
    """Writes the evidence of an answer that passes by; without a file it does nothing."""

    def __init__(self, path: Path | None, key: Path | None) -> None:
        """Read the key.

        Raises:
            DataError: If the file exists, or the key cannot be read.
        """
        self.path, self.line = path, ""
        if path is None:
            if key is not None:
                raise click.UsageError("--key signs the evidence: give --evidence FILE, too")
            return
        from stillroom.provenance.signing import (
            find_configured_key,
            load_signing_key,
            read_password,
        )

        refuse_existing_output(path, "--evidence")
        self._signer = load_signing_key(key, read_password()) if key else find_configured_key()

    def watch(
        self,
        opened: OpenedRun,
        question: str,
        settings: Mapping[str, Any],
        asked_of: Path,
    ) -> Iterator[str | Answer]:
        """Yield the pieces of an answer, and the Answer once its evidence is written."""
        from stillroom.records import Answer

        for piece in opened.ask(question, **settings):
            if isinstance(piece, Answer) and self.path is not None:
                from stillroom.objects.disk import atomic_write
                from stillroom.provenance.evidence import seal_evidence

                near = os.path.relpath(asked_of.absolute(), self.path.absolute().parent)
                stated = opened.make_evidence(piece, question, asked_of=near, **settings)
                envelope = seal_evidence(stated, self._signer)
                with atomic_write(self.path) as file:
                    file.write(json.dumps(envelope) + "\n")
                by = f"signed with key {self._signer.key_id[:16]}" if self._signer else "not signed"
                self.line = f"evidence {self.path}, {by}"
            yield piece


def verify_evidence_file(
    path: Path, trust: Trust | None, *, within: Path | None, model: str, as_json: bool
) -> None:
    """Verify the evidence of an answer, and print what holds.

    Raises:
        DataError: If the file is no evidence, or the run cannot be opened.
        IntegrityError: If anything differs.
    """
    from stillroom.flow.evidence import verify_evidence
    from stillroom.provenance.evidence import read_evidence

    report = verify_evidence(read_evidence(path), trust, within=within, model=model)
    if as_json:
        print_json(
            {
                "path": str(path),
                "findings": [{"layer": one.layer, "what": one.what} for one in report.findings],
                "signatures": {path.name: {"state": report.signature, "key": report.key_id}},
                "asked_again": report.is_reasked,
                "notes": list(report.notes),
                "open_ends": list(report.open_ends),
            }
        )
    if report.findings:
        problems = [_describe_finding(one, path) for one in report.findings]
        raise IntegrityError(problems)
    if not as_json:
        print_text(f"{path}: the evidence holds")
        for line in _list_lines(report):
            print_text(escape_line(f"  {line}"))


def _list_lines(report: EvidenceReport) -> Iterable[str]:
    key = f": {report.key_id}" if report.key_id else ""
    yield f"{SIGNATURE_WORDS[report.signature]}{key}"
    if report.is_reasked:
        yield "asked again: the same answer from the same passages, byte for byte"
    yield from (f"note: {line}" for line in report.notes)
    yield from (f"open: {line}" for line in report.open_ends)


def _describe_finding(finding: EvidenceFinding, path: Path) -> Problem:
    what, where = escape_line(f"{finding.layer}: {finding.what}"), str(path)
    if finding.is_other_signer:
        return Problem(what, "integrity.other-signer", where, *OTHER_SIGNER)
    if finding.layer == "signature":
        expected = "a valid signature over the evidence"
        advice = "get the file again from the one who signed it"
        return Problem(what, "integrity.signature", where, expected, advice)
    if finding.layer in _BUNDLE_LAYERS:
        expected = "digests and quotes that fit the passages, and passages that stand in documents"
        advice = "do not rely on the answer; get the file again"
        return Problem(what, "integrity.evidence", where, expected, advice)
    expected = "what the evidence states"
    advice = "compare the run and its model with those that answered"
    return Problem(what, "integrity.answer", where, expected, advice)


def _parse_moved(pairs: Sequence[str]) -> dict[str, str]:
    """Return ``OLD=NEW`` pairs as a map."""
    for pair in pairs:
        if "=" not in pair:
            raise RecipeError(
                f"'{pair}' names no two places",
                code="replay.input",
                where="--input",
                expected="OLD=NEW, as /srv/notes=./notes",
                next="stillroom verify RUN --replay 59 --input OLD=NEW",
            )
    return dict(pair.split("=", 1) for pair in pairs)


def replay_run(
    path: Path,
    amount: str,
    *,
    seed: int | None,
    moved: Sequence[str],
    out: Path | None,
    quiet: bool,
) -> ReplayResult:
    """Draw, tell the cost, recompute, and write the verification summary.

    If a key is configured, the summary is signed with it, and also appended to the claims of a run
    that is signed itself.

    Raises:
        StillroomError: If the run, the amount or the configured key cannot be read.
    """
    import secrets

    from stillroom.flow.replay import ReplayAmount, plan_replay
    from stillroom.provenance.signing import (
        CLAIMS_FILE,
        SIGNATURE_FILE,
        append_claim,
        find_configured_key,
        sign_statement,
    )

    reporter = choose_reporter(quiet=quiet)
    draw = secrets.randbelow(1 << 31) if seed is None else seed
    plan = plan_replay(
        path, ReplayAmount.parse(amount), seed=draw, moved=_parse_moved(moved), reporter=reporter
    )
    reporter.say(plan.describe())
    signer = find_configured_key()
    result = plan.run()
    summary = result.to_statement()
    if signer is not None:
        summary = sign_statement(summary, signer)
    if out is not None:
        with atomic_write(out) as file:
            json.dump(summary, file, ensure_ascii=False, indent=1)
            file.write("\n")
    if signer is not None and (path / SIGNATURE_FILE).is_file():
        append_claim(path, summary)
        reporter.say(f"the summary is signed with key {signer.key_id[:16]}, in {CLAIMS_FILE}")
    return result


def print_replay(result: ReplayResult) -> None:
    """Print what was replayed, what stays open, and what differs."""
    width = max(len(job.name) for job in result.jobs)
    for job in result.jobs:
        if job.open:
            text = f"open: {job.open}"
        else:
            wrong = len(job.differences)
            near = sum(1 for one in job.outcomes if one.within)
            found = f"{wrong} differ" if wrong else "all as committed"
            found += f", {near} of them within bounds only" if near else ""
            outputs = len(job.outcomes) - len(job.replayed)
            text = f"{job.amount} and {outputs:,} outputs: {found}"
            if job.replayed != job.drawn:
                text = f"broken off after {len(job.replayed):,} of {job.amount}: {found}"
        print_text(f"{job.name:{width}}  {text}")
    for line in dict.fromkeys(line for job in result.jobs for line in job.machine):
        of = sum(line in job.machine for job in result.jobs)
        print_text(f"This machine differs in kind from the one that did {of} of the jobs: {line}")
    spent, taken = (sum(getattr(job, key) for job in result.jobs) for key in ("spent", "seconds"))
    is_known = not result.open_jobs and all(job.is_measured for job in result.jobs)
    share = f", {spent / taken:.1%} of the making" if taken and is_known else ""
    print_text(f"{result.power} It took {spent:.0f} s of processor time{share}.")
    if result.open_jobs:
        print_text(f"{len(result.open_jobs)} of {len(result.jobs)} jobs stay open: not proved.")


def raise_replay(result: ReplayResult) -> None:
    """Raise an error that names each segment and output that differs.

    Raises:
        IntegrityError: If there is one.
    """
    problems: list[Any] = [
        Problem(
            f"{job.name}: {outcome.name} {outcome}",
            "replay.differs",
            str(job.folder),
            "what the recipe makes of the committed inputs",
            "a machine of the same kind gives equal bytes: "
            + (
                "; ".join(job.machine)
                or "this one is, so the job, one of its inputs or Stillroom itself was changed"
            ),
        )
        for job, outcome in result.differences
    ]
    if problems:
        raise IntegrityError(problems)
    if not result.drawn:
        reasons = "; ".join(f"{job.name}: {job.open}" for job in result.open_jobs)
        raise IntegrityError(
            "no segment could be recomputed",
            code="replay.nothing",
            where=str(result.path),
            expected="a job whose work is committed in segments and can be done again here",
            next=reasons or "no job of it commits segments",
        )


_OF_ALL = "a run, model, dataset or index"
_OF_MODEL = "a run or a job that made a language model or a sentence reader"
_FORMATS = {
    "cyclonedx": f"bill of materials, of {_OF_ALL}",
    "spdx": f"bill of materials, of {_OF_ALL}",
    "croissant": "description of a dataset, of a run or job with records in its lineage",
    "eu-summary": f"public summary of training content, of {_OF_MODEL}",
    "eu-form": f"Model Documentation Form, of {_OF_MODEL}",
    "card": f"model card, of {_OF_MODEL}",
    "all": "every one that fits, with --out FOLDER",
}
_MAX_NAMED = 8


class _PaperChoice(click.Choice[str]):
    """Choice of a document that, if it is missing, says what each one is of."""

    @override
    def get_missing_message(self, param: click.Parameter, ctx: click.Context | None) -> str:
        return "Choose from:\n" + "\n".join(f"\t{name:12}{of}" for name, of in _FORMATS.items())


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
    type=_PaperChoice(_FORMATS),
    required=True,
    help="Document to write; all writes every document.",
)
@click.option("--name", default="", help="Name of the model; by default the folder's name.")
@click.option(
    "--provider",
    default="",
    help="Name and contact of the provider, who is responsible for the model.",
)
@paths_option(
    "--report",
    "reports",
    help="Evaluation job to include; a run includes its own. May be repeated.",
)
@path_option("--out", help="Output file, or a folder; by default the document is printed.")
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
    """Write bills of materials, data sheets and a model card of a run from its lineage.

    CycloneDX 1.7 (ML-BOM), SPDX 3.0.1 (AI and data), Croissant 1.1, the EU's public
    summary of training content and Model Documentation Form, and a model card. What the lineage
    does not hold is written as unknown, and counted. The same run gives the same bytes.
    """
    from stillroom.flow.papers.graph import read_graph
    from stillroom.flow.papers.writer import FORMATS, save_papers, write_all

    is_all = format_name == "all"
    if is_all and out is None:
        raise DataError(
            "several documents cannot be printed at once",
            code="attest.no-folder",
            expected="--out FOLDER with --format all",
            next="give --out, or one format",
        )
    if out is None:
        refuse_idle_options({"overwrite"}, "needs --out")
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
        write = print_json_text if papers[0].file.endswith(".json") else print_text
        write(papers[0].text, nl=False)
    for paper in papers:
        row = format_row(escape_line(f"{paper.file:28}"), escape_line(_describe(paper)))
        print_text(row, err=out is None)
    for format, why in left_out.items():
        row = format_row(f"{format:28}", escape_line(f"not written: {why}"))
        print_text(row, err=out is None)
    for end in graph.open_ends:
        print_text(escape_line(f"open end: {end}"), err=True)


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
    fields: dict[str, object] = {
        "format": paper.format,
        "file": paper.file,
        "fields": dict(paper.fields),
        "unknown": list(paper.unknown),
    }
    return {**fields, "text": paper.text} if with_text else fields


@command_group(
    "keys",
    "stillroom keys new me",
    "stillroom keys new team --algorithm ed25519",
)
def keys_group() -> None:
    """Keys: create key pairs for signing."""


@keys_group.subcommand(
    "new",
    "stillroom keys new me",
    "STILLROOM_SIGNING_PASSWORD=... stillroom keys new me --algorithm ed25519",
)
@click.argument("name", type=existing_path)
@click.option(
    "--algorithm",
    type=click.Choice(["ecdsa-p256", "ed25519"]),
    default="ecdsa-p256",
    show_default=True,
    help="Signature algorithm; tools of OpenSSF model signing verify only ECDSA.",
)
@output_options
def new_command(name: Path, algorithm: str, as_json: bool) -> None:
    """Create a key pair.

    Writes the private key to NAME.key, which only you can read, and the public key to NAME.pub:
    give it to those who verify your signatures.

    With STILLROOM_SIGNING_PASSWORD set, the private key is encrypted with it.
    """
    from stillroom.provenance.signing import (
        KEY_VARIABLE,
        create_key_pair,
        load_public_key,
        read_password,
    )

    if not name.name:
        raise click.UsageError("NAME is empty; give one, as in 'stillroom keys new me'")
    password = read_password()
    private, public = create_key_pair(
        name, algorithm=cast("KeyAlgorithm", algorithm), password=password
    )
    key_id = load_public_key(public).key_id
    if as_json:
        print_json({"private": str(private), "public": str(public), "key": key_id})
        return
    print_text(f"{private}: private key, {'encrypted' if password else 'not encrypted'}; keep it")
    print_text(f"{public}: public key {key_id[:16]}; give it to those who verify")
    print_text(f"jobs sign themselves with: export {KEY_VARIABLE}={private.absolute()}")
