"""Personal: mail addresses, telephone and account numbers, keys: nothing to train a model on.

Own method, by form and check digit (``text.personal``). ``action: mask`` puts a pseudonym in place
of each find instead of dropping the record, in the messages and in every field: the same value is
the same pseudonym throughout, and no pseudonym can be dialed, paid to or mailed. Names and postal
addresses are not looked for: they cannot be told by their form.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from typing_extensions import override

from stillroom.recipes.settings import Secret
from stillroom.records import Record
from stillroom.synth.masking import mask_record, said_in
from stillroom.synth.method import Context, Filter, Judge, Verdict
from stillroom.text.personal import PersonalKind, find_personal
from stillroom.text.pseudonyms import Pseudonyms

__all__ = ["Personal"]


class Personal(Filter):
    """Drops records that hold what identifies or exposes a person, or masks it."""

    paper: ClassVar[str] = ""
    judges_passages: ClassVar[bool] = True

    kinds: tuple[PersonalKind, ...] = Field(
        ("email", "phone", "card", "iban", "ssn", "ip", "secret"),
        min_length=1,
        description="what is looked for",
    )
    action: Literal["drop", "mask"] = Field("drop", description="what becomes of the record")
    style: Literal["tag", "surrogate"] = Field(
        "tag",
        description="of a mask: [email-3f2a91], or a value of the same form that belongs to nobody",
    )
    key: Secret | None = Field(
        None,
        description="secret that pseudonyms are made with; without one they follow from the seed, "
        "and who knows the recipe can test a guess",
    )

    @override
    def judge(self, record: Record) -> Verdict:
        return self._judge(record, Pseudonyms("", self.style))

    @override
    def begin(self, context: Context) -> Judge:
        secret = self.key.reveal() if self.key is not None else f"seed {context.seed}"
        return _Masking(self, Pseudonyms(secret, self.style))

    def _judge(self, record: Record, pseudonyms: Pseudonyms) -> Verdict:
        if self.action == "mask":
            changed, counts = mask_record(record, self.kinds, pseudonyms)
            total = float(sum(counts.values()))
            if counts:
                return Verdict(True, score=total, told={"masked": counts}, changed=changed)
            return Verdict(True, score=0.0)
        for text in dict.fromkeys(said_in(record)):  # a rejected answer is exported too
            found = [one for one in find_personal(text) if one.kind in self.kinds]
            if found:
                return Verdict(
                    False, f"personal data: {found[0].kind}", float(len(found)), limit=0.0
                )
        return Verdict(True, score=0.0)


class _Masking:
    def __init__(self, chosen: Personal, pseudonyms: Pseudonyms) -> None:
        self._chosen, self._pseudonyms = chosen, pseudonyms

    def judge(self, record: Record) -> Verdict:
        return self._chosen._judge(record, self._pseudonyms)

    def admit(self, record: Record) -> None:
        """Remember nothing: a pseudonym follows from the value alone."""
