"""License: only records that may be used as you say, with the attribution that is owed.

Own method, over the SPDX expressions that origins carry: what is joined by ``AND`` must all be
allowed, of what is joined by ``OR`` one is enough. A license that nobody has told is what the
setting says it is, never silently allowed. Licenses that ask for attribution leave it in the
record's field ``attribution``. The terms of the teachers are for the report (``synth.terms``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.records import Passage, Record
from stillroom.synth.evidence import passage_of
from stillroom.synth.method import Context, Filter, Judge, Verdict
from stillroom.synth.spdx import allowed_terms, owes_attribution

__all__ = ["License"]

_OPEN = (
    "CC0-1.0",
    "CC-BY-4.0",
    "CC-BY-3.0",
    "CC-BY-SA-4.0",
    "CC-BY-SA-3.0",
    "MIT",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "PSF-2.0",
    "ODC-By-1.0",
    "PDDL-1.0",
    "Unlicense",
)


class License(Filter):
    """Drops records whose license is not allowed, or that nobody has told."""

    paper: ClassVar[str] = ""
    judges_passages: ClassVar[bool] = True

    allow: tuple[str, ...] = Field(
        _OPEN, min_length=1, description="SPDX ids; a name that ends in * allows what begins so"
    )
    unknown: Literal["drop", "keep"] = Field(
        "drop", description="what becomes of records whose license nobody has told"
    )
    attribute: bool = Field(True, description="leave the attribution that a license asks for")

    @override
    def judge(self, record: Record) -> Verdict:
        return self._judge(record, None)

    @override
    def begin(self, context: Context) -> Judge:
        return _InContext(self, context)

    def _judge(self, record: Record, passage: Passage | None) -> Verdict:
        told = record.origin.license or (passage.origin.license if passage is not None else "")
        if not told:
            if self.unknown == "drop":
                return Verdict(False, "nobody tells its license", 0.0)
            return Verdict(True)
        terms = allowed_terms(told, self.allow)
        if terms is None:
            return Verdict(False, "license not allowed", 0.0, told={"license": told})
        owed = [term for term in terms if owes_attribution(term)]
        if not self.attribute or not owed or "attribution" in record.fields:
            return Verdict(True)
        fields = {**record.fields, "attribution": _attribute(record, passage, terms)}
        return Verdict(True, told={"license": told}, changed=replace(record, fields=fields))


class _InContext:
    def __init__(self, chosen: License, context: Context) -> None:
        self._chosen, self._context = chosen, context

    def judge(self, record: Record) -> Verdict:
        return self._chosen._judge(record, passage_of(record, self._context))

    def admit(self, record: Record) -> None:
        """Remember nothing: a license does not depend on what was kept."""


def _attribute(record: Record, passage: Passage | None, terms: tuple[str, ...]) -> str:
    """Return a line that names the source, its place and the license."""
    parts = []
    if passage is not None:
        parts += [passage.title, passage.location.path]
    else:
        parts.append(str(record.fields.get("document_id", "")))
    source = ", ".join(dict.fromkeys(part for part in parts if part)) or "source not told"
    return f"{source}; license: {' AND '.join(terms)}"
