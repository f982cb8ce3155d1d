"""Evidence of answers on the command line: written by ``ask``, verified by ``verify FILE``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stillroom.cli.options import path_option
from stillroom.cli.output import print_json
from stillroom.errors import DataError, IntegrityError, Problem
from stillroom.jobs import escape_line

if TYPE_CHECKING:
    from stillroom.flow import OpenedRun
    from stillroom.flow.evidence import EvidenceReport
    from stillroom.provenance.evidence import EvidenceFinding
    from stillroom.provenance.signing import Trust
    from stillroom.records import Answer

__all__ = ["EvidenceWriter", "evidence_options", "verify_evidence_file"]

CommandT = TypeVar("CommandT", bound=Callable[..., Any])
_BUNDLE_LAYERS = ("digest", "quote", "document")
_SIGNATURES = {
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
        type=click.Path(dir_okay=False, path_type=Path),
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
            PASSWORD_VARIABLE,
            find_configured_key,
            load_signing_key,
        )

        if path.is_file():
            raise DataError(
                f"{path} exists already",
                code="data.exists",
                where=str(path),
                expected="a new file for the evidence of each answer",
                next="choose another name",
            )
        password = os.environ.get(PASSWORD_VARIABLE, "").encode() or None
        self._signer = load_signing_key(key, password) if key else find_configured_key()

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
                from stillroom.jobs.files import atomic_write
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
        click.echo(f"{path}: the evidence holds")
        for line in _list_lines(report):
            click.echo(escape_line(f"  {line}"))


def _list_lines(report: EvidenceReport) -> Iterable[str]:
    key = f": {report.key_id}" if report.key_id else ""
    yield f"{_SIGNATURES[report.signature]}{key}"
    if report.is_reasked:
        yield "asked again: the same answer from the same passages, byte for byte"
    yield from (f"note: {line}" for line in report.notes)
    yield from (f"open: {line}" for line in report.open_ends)


def _describe_finding(finding: EvidenceFinding, path: Path) -> Problem:
    what, where = f"{finding.layer}: {finding.what}", str(path)
    if finding.is_other_signer:
        expected = "a signer given by --key or --trust"
        advice = "ask who signed it, or pass that signer's key"
        return Problem(what, "integrity.other-signer", where, expected, advice)
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
