"""Verification of an answer's evidence within its run: the documents, and the question asked again.

The same question is asked with the same settings of the state of the index that answered, and what
comes is compared with what the evidence states, byte for byte; scores within a thousandth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom.errors import DataError
from stillroom.evaluate.qa.judgments import find_judgments
from stillroom.flow.opening import OpenedRun, find_index, find_model, find_reader, open_index
from stillroom.flow.opening import set_reader as choose_reader
from stillroom.provenance import digest_bytes, find_output, read_artifact
from stillroom.provenance.evidence import (
    Evidence,
    EvidenceFinding,
    EvidenceLayer,
    check_document,
    check_evidence,
)
from stillroom.provenance.signing import Trust
from stillroom.provenance.sources import locate_document
from stillroom.records import Answer

if TYPE_CHECKING:
    from stillroom.rag.generation.evidence import RestoredQuestion

__all__ = ["EvidenceReport", "verify_evidence"]

_SCORE_TOLERANCE = 1e-3
_FIRST_DIGITS = 12
_SHOWN_CHARACTERS = 160


@dataclass(frozen=True, slots=True)
class EvidenceReport:
    """What is wrong with an answer's evidence, and what was not checked.

    ``signature`` is the state of the signature, as in ``SignatureCheck``; ``notes`` are conditions
    under which the answer was asked again; ``open_ends`` are what was not checked.
    """

    findings: tuple[EvidenceFinding, ...]
    signature: str
    key_id: str
    is_reasked: bool = False
    notes: tuple[str, ...] = ()
    open_ends: tuple[str, ...] = ()


def verify_evidence(
    evidence: Evidence, trust: Trust | None = None, *, within: Path | None = None, model: str = ""
) -> EvidenceReport:
    """Verify a bundle; within its run, also its documents, and ask the question again.

    Raises:
        DataError: If the run or index cannot be opened, or the settings cannot be read.
        CheckpointError: If a model that is needed cannot be opened.
    """
    own = check_evidence(evidence, trust)
    if within is None:
        unread = (
            "the documents were not compared, and the "
            "question was not asked again: --within RUN does both"
        )
        ends = (*own.open_ends, unread)
        return EvidenceReport(own.findings, own.signature, own.key_id, open_ends=ends)
    findings = list(own.findings)
    check = _RunCheck(evidence, find_index(within), is_trusted=own.signature == "trusted")
    with check.open(within, model) as opened:
        findings += check.passages(opened)
        findings += check.files()
        findings += check.again(opened)
    return EvidenceReport(
        tuple(dict.fromkeys(findings)),
        own.signature,
        own.key_id,
        check.is_reasked,
        tuple(check.notes),
        (*own.open_ends, *check.open_ends),
    )


class _RunCheck:
    """One bundle against one index."""

    def __init__(self, evidence: Evidence, index: Path, *, is_trusted: bool) -> None:
        self.evidence, self.stated, self.folder = evidence, evidence.predicate, index
        self.is_trusted = is_trusted
        self.notes: list[str] = []
        self.open_ends: list[str] = []
        self.early: list[EvidenceFinding] = []
        self.is_reasked = False

    @contextmanager
    def open(self, run: Path, model: str) -> Iterator[OpenedRun]:
        """Open the state of the index that answered, or the newest if it is not kept."""
        from stillroom.rag.index.view import AccessContext

        stated = self.stated["index"]
        is_index = read_artifact(run).kind == "index"
        reference = model or ("" if is_index else find_model(run))
        if is_index and self.stated["model"]["calls"] and not model:
            raise DataError(
                f"{run} is an index, which names no model to ask",
                code="data.evidence",
                where=self.evidence.where,
                expected=f"the model {self.stated['model']['name']}",
                next="pass --model REFERENCE",
            )
        seen = AccessContext(stated["tenant"], stated["principals"]) if stated["tenant"] else None
        snapshot = self._find_snapshot()
        with open_index(
            self.folder, reference, where=stated["where"], snapshot=snapshot, access=seen
        ) as opened:
            self._compare_state(opened)
            self.reader = "" if is_index else find_reader(run)
            yield opened

    def _find_snapshot(self) -> str | None:
        """Return the snapshot of the stated digest if it is kept; else None, for the newest."""
        stated = self.stated["index"]
        by_number = self._digest_of(str(stated["snapshot"]))
        if by_number == stated["digest"]:
            return str(stated["snapshot"])
        if self._digest_of(stated["digest"]) != stated["digest"]:
            return None
        if by_number:
            self._find("index", f"snapshot {stated['snapshot']} of the index is another state")
        return str(stated["digest"])

    def _digest_of(self, snapshot: str) -> str:
        """Return the digest of a snapshot by its number or digest; empty if it is not kept."""
        from stillroom.rag.storage.snapshots import open_store

        try:
            opened = open_store(find_output(self.folder, "index")).read(snapshot, verify=False)
        except DataError as error:
            if error.code != "rag.no-such-snapshot":
                raise
            return ""
        with closing(opened):
            return opened.snapshot.digest

    def _compare_state(self, opened: OpenedRun) -> None:
        stated, index = self.stated["index"], opened.index
        number = index.snapshot
        if index.digest == stated["digest"] and number != stated["snapshot"]:
            self.notes.append(
                f"the state that answered is snapshot {number} here, not {stated['snapshot']}"
            )
        if index.digest != stated["digest"]:
            self._find(
                "index",
                f"the index has changed: it is {index.digest[:_FIRST_DIGITS]}, and the state that "
                f"answered, {stated['digest'][:_FIRST_DIGITS]}, is not kept; it was asked instead",
            )
        elif read_artifact(self.folder).claim != stated["claim"]:
            if index.newest().digest == index.digest:
                self._find("index", "the index claims other things than when it answered")
            else:
                self.notes.append("the index was updated since; its earlier state was asked")

    def passages(self, opened: OpenedRun) -> Iterator[EvidenceFinding]:
        """Yield the passages that do not stand in the index's documents."""
        yield from self.early
        for passage in self.stated["passages"]:
            what = f"passage [{passage['number']}]"
            try:
                document = opened.index.document(passage["document_id"])
            except DataError:
                where = f"{passage['path']} as it was read"
                yield EvidenceFinding("document", f"{what}: the index does not hold {where}")
                continue
            if (document.path, document.digest) != (passage["path"], passage["document_sha256"]):
                yield EvidenceFinding("document", f"{what} names another file than its document")
            if document.text[passage["text_start"] : passage["text_end"]] != passage["text"]:
                yield EvidenceFinding(
                    "document", f"{what} does not stand in {document.path}, where it says"
                )

    def files(self) -> Iterator[EvidenceFinding]:
        """Yield what the files of the documents contradict; those that are gone are open ends."""
        known = {one["path"]: one["document_sha256"] for one in self.stated["passages"]}
        for path, digest in sorted(known.items()):
            file, why = locate_document(self.folder, path, "")
            data = None if file is None or why else file.read_bytes()
            if data is None or digest_bytes(data) != digest:
                reason = "; ".join(why) or "the file has changed since it was read"
                self.open_ends.append(f"{path} was compared as the index holds it: {reason}")
                continue
            yield from check_document(self.evidence, path, data)

    def again(self, opened: OpenedRun) -> Iterator[EvidenceFinding]:
        """Ask again, and yield what differs."""
        from stillroom.provenance.artifact import list_installed_versions
        from stillroom.rag.generation.evidence import list_outside_settings, restore_question

        if self.stated["withheld"]:
            names = ", ".join(self.stated["withheld"])
            self.open_ends.append(f"not asked again: the server withholds {names}")
            return
        restored = restore_question(self.stated)
        outside = list_outside_settings(self.stated)
        if outside and not self.is_trusted:
            self.open_ends.append(
                f"not asked again: {', '.join(outside)} of the evidence may send your documents to "
                "a stranger; if you trust its signer, name the key (--key)"
            )
            return
        versions = list_installed_versions()
        self.notes += [
            f"{name} is {versions.get(name, 'missing')}; it was {version}"
            for name, version in self.stated["versions"].items()
            if versions.get(name) != version
        ]
        self._check_judgment(opened, restored)
        now = self._ask(opened, restored)
        self.is_reasked = True
        then, here = self.stated["model"]["name"], now["model"]["name"]
        if then != here and here:
            self.notes.append(f"the model that answered is named {here!r} here, not {then!r}")
        yield from _compare(self.stated, now)

    def _check_judgment(self, opened: OpenedRun, restored: RestoredQuestion) -> None:
        """Note that no judgment beside the run leads to what the answer follows."""
        from stillroom.rag.generation.judged import is_borne_out

        judged, asked = restored.judged, self.stated["index"]
        store, scope = find_judgments(self.folder), (asked["tenant"], *asked["principals"])
        if judged and not is_borne_out(judged, store, opened.index, restored.query.text, scope):
            self.open_ends.append(
                f"the judgment {judged.id:.20} that the answer follows is not stored beside the "
                "run as one of this question with these quotes (it may have been deleted): that a "
                "person judged is the signer's word"
            )

    def _ask(self, opened: OpenedRun, restored: RestoredQuestion) -> dict[str, Any]:
        from stillroom.rag.generation.answer import ask
        from stillroom.rag.generation.evidence import make_evidence

        judged = restored.judged
        places = judged.quotes if judged else ()
        if any(opened.index.find_row(name) is None for name, _, _ in places):
            judged = None  # in another state of the index: that it is not followed is a finding
        again: Answer = ask(
            opened.index,
            opened.model,
            restored.query,
            sampling=restored.sampling,
            judged=judged,
            **choose_reader(restored.settings, self.reader),
        )
        return make_evidence(
            again,
            opened.index,
            opened.model,
            restored.query,
            sampling=restored.sampling,
            **restored.settings,
        )

    def _find(self, layer: EvidenceLayer, what: str) -> None:
        self.early.append(EvidenceFinding(layer, what))


def _compare(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[EvidenceFinding]:
    """Yield what an answer that was asked again has in place of what is stated."""
    if then["reader"] != now["reader"]:
        yield EvidenceFinding("model", _differ("reader", then["reader"], now["reader"]))
    if then["model"]["fingerprint"] != now["model"]["fingerprint"]:
        stated, found = then["model"]["fingerprint"], now["model"]["fingerprint"]
        yield EvidenceFinding("model", _differ("model", stated, found))
    elif (stated := then["model"]["calls"]) != (found := now["model"]["calls"]):
        yield EvidenceFinding("model", f"calls of the model: {found}, not {stated}")
    elif then["model"]["name"] and not now["model"]["name"]:
        yield EvidenceFinding("model", f"no model is asked, not {then['model']['name']!r:.80}")
    if then["moments"] != now["moments"]:
        what = f"the ranking depends on {now['moments']} now, on {then['moments']} then"
        yield EvidenceFinding("settings", what)
    if then.get("judged") != now.get("judged"):
        yield EvidenceFinding("answer", "what a person judged of the question is not followed")
    if then["settings"] != now["settings"] or then["method"] != now["method"]:
        yield EvidenceFinding("settings", "the settings are not those of such an answer")
    yield from _compare_passages(then["passages"], now["passages"])
    if then["read"] != now["read"]:
        yield EvidenceFinding("prompt", f"what was read differs: the {now['read']['kind']}")
    yield from _compare_answers(then, now)


def _compare_passages(
    then: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]
) -> Iterator[EvidenceFinding]:
    if [one["id"] for one in then] != [one["id"] for one in now]:
        yield EvidenceFinding("passages", "other passages are found, or in another order")
        return
    for one, other in zip(then, now, strict=True):
        if names := [key for key in other if not _is_close(one.get(key), other[key])]:
            what = f"passage [{other['number']}] has another {', '.join(names)}"
            yield EvidenceFinding("passages", what)


def _compare_answers(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[EvidenceFinding]:
    if then["answer"]["text"] != now["answer"]["text"]:
        shown = " ".join(now["answer"]["text"].split())[:_SHOWN_CHARACTERS]
        yield EvidenceFinding("answer", f"the answer is another one: {shown!r}")
    elif then["answer"] | {"cached_for": ""} != now["answer"] | {"cached_for": ""}:
        yield EvidenceFinding("answer", "the answer is the same, its quotes or citations are not")
    elif not _is_close(then["support"], now["support"]):
        yield EvidenceFinding("support", "the support of the answer is scored otherwise")


def _differ(kind: str, then: str, now: str) -> str:
    shown = [one[:_FIRST_DIGITS] or "none" for one in (now, then)]
    return f"another {kind} answers: {shown[0]}, not {shown[1]}"


def _is_close(one: Any, other: Any) -> bool:
    """Return whether JSON values are equal, numbers within the tolerance."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_close(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_close, one, other))
    if isinstance(one, float) or isinstance(other, float):
        is_number = isinstance(one, int | float) and isinstance(other, int | float)
        return is_number and abs(one - other) <= _SCORE_TOLERANCE
    return bool(one == other)
