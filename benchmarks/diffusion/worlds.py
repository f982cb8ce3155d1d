"""Small worlds that diffusion models are measured in, made by a seed: records and their truth."""

from __future__ import annotations

import random
from collections.abc import Sequence

from stillroom.records import Message, Record

KEYS, TEMPLATE, VALUES, STYLES = 16, 28, 64, 8


def make_forms(count: int, seed: int, split: str = "train", *, keys: int = KEYS) -> list[Record]:
    """Return records: 16 values (``keys``), and a form of 48 words that copies them.

    A form has 28 words that never change, the 16 values in order, and 4 words of one style out of
    8, free to choose but the same at all four places: what is written in one step without regard to
    each other breaks there.
    """
    rng = random.Random(seed)
    found = []
    for number in range(count):
        values = [f"v{rng.randrange(VALUES)}" for _ in range(keys)]
        form = write_form(values, rng.randrange(STYLES))
        found.append(
            Record(
                (Message("user", " ".join(values)), Message("assistant", " ".join(form))),
                {"split": split, "number": number},
            )
        )
    return found


def write_form(values: Sequence[str], style: int) -> list[str]:
    """Return the 48 words of a form."""
    head = [f"t{at}" for at in range(12)]
    tail = [f"t{at}" for at in range(12, TEMPLATE)]
    return [*head, *values, *tail, *[f"s{style}"] * 4]


def is_valid(text: str, values: Sequence[str]) -> bool:
    """Return whether a text is a form of these values, in any one style."""
    words = text.split()
    return any(words == write_form(values, style) for style in range(STYLES))


def make_facts(
    forward: int, reverse: int, both: int, seed: int
) -> tuple[list[Record], dict[str, list[tuple[str, str]]]]:
    """Return facts as records, and the pairs of each group.

    A fact pairs two names that stand in no other. ``forward`` pairs are told only as "A is B .",
    ``reverse`` ones only as "B is A .", ``both`` in both ways. The reversed sentence of the first
    two groups is in no record.
    """
    rng = random.Random(seed)
    total = forward + reverse + both
    seconds = list(range(total))
    rng.shuffle(seconds)
    pairs = [(f"A{at}", f"B{seconds[at]}") for at in range(total)]
    groups = {
        "forward": pairs[:forward],
        "reverse": pairs[forward : forward + reverse],
        "both": pairs[forward + reverse :],
    }
    said = [f"{a} is {b} ." for a, b in groups["forward"]]
    said += [f"{b} is {a} ." for a, b in groups["reverse"]]
    said += [text for a, b in groups["both"] for text in (f"{a} is {b} .", f"{b} is {a} .")]
    records = [Record((Message("assistant", text),), {"split": "train"}) for text in said]
    return records, groups
