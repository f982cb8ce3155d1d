"""Personal: mail addresses, telephone and account numbers, keys: nothing to train a model on.

Own method, by form and check digit (``text.personal``); names are not looked for.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from typing_extensions import override

from stillroom.records import Record
from stillroom.synth.method import Filter, Verdict
from stillroom.text.personal import PersonalKind, find_personal

__all__ = ["Personal"]


class Personal(Filter):
    """Drops records that hold what identifies or exposes a person."""

    paper: ClassVar[str] = ""
    judges_passages: ClassVar[bool] = True

    kinds: tuple[PersonalKind, ...] = Field(
        ("email", "phone", "card", "iban", "ssn", "ip", "secret"),
        min_length=1,
        description="what is looked for",
    )

    @override
    def judge(self, record: Record) -> Verdict:
        for message in record.messages:
            found = [one for one in find_personal(message.content) if one.kind in self.kinds]
            if found:
                return Verdict(False, f"personal data: {found[0].kind}", float(len(found)))
        return Verdict(True, score=0.0)
