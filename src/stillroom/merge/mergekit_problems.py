"""What is wrong with a file of mergekit's, with its place, and what mergekit itself overlooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from stillroom.errors import Problem
from stillroom.recipes.overrides import is_override
from stillroom.recipes.reading import Path, Tree, dotted
from stillroom.registry.listing import suggest

__all__ = ["Reporter"]


@dataclass(frozen=True)
class Reporter:
    """Gathers the problems of one file and the notes of one of its merges."""

    tree: Tree
    problems: list[Problem]
    notes: list[str] = field(default_factory=list)

    def check_keys(
        self,
        path: Path,
        data: Mapping[str, Any],
        known: Sequence[str],
        refused: Mapping[str, str] | None = None,
        overlooked: Sequence[str] = (),
    ) -> None:
        """Weigh the keys that are not known; note those known to do nothing."""
        for key in data:
            here = (*path, key)
            if key in overlooked:
                self.note(here, "changes nothing in mergekit either")
            elif refused and key in refused:
                self.problems.append(
                    Problem(
                        f"{dotted(here)} is not supported",
                        "merge.mergekit-key",
                        self.tree.place_of_key(here),
                        refused[key],
                        "merge what it names with a file of its own",
                    )
                )
            elif key not in known:
                self.weigh_key(here, key, known)

    def check_entry(
        self, path: Path, data: Mapping[str, Any], known: Sequence[str], parameters: Set[str]
    ) -> None:
        """Refuse keys of a model's entry that were meant to count; warn of the others."""
        kept = {}
        for key in data:
            if key in parameters:
                self.refuse_key((*path, key), key, known, "put it under 'parameters'")
            elif key == "revision":
                remedy = "for that revision write model: NAME@REVISION"
                self.overlook((*path, key), remedy)
            else:
                kept[key] = data[key]
        self.check_keys(path, kept, known, overlooked=("residual_weight",))

    def weigh_key(self, path: Path, key: str, known: Sequence[str]) -> None:
        """Refuse a key that looks like a known one misspelled; overlook any other.

        mergekit overlooks both. The first was meant to count; without the second the merge is what
        mergekit makes of the same file.
        """
        if suggest(key, known):
            self.refuse_key(path, key, known)
        else:
            self.overlook(path)

    def refuse_key(self, path: Path, key: str, known: Sequence[str], remedy: str = "") -> None:
        """Refuse a key that nobody reads."""
        self.problems.append(
            Problem(
                f"{dotted(path)} is unknown; mergekit would overlook it",
                "merge.mergekit-key",
                self.tree.place_of_key(path),
                f"one of: {', '.join(known)}" if known else "nothing here",
                remedy or suggest(key, known) or "remove it",
            )
        )

    def refuse(self, path: Path, what: str, expected: str, remedy: str = "") -> None:
        """Refuse the value at a path."""
        name = dotted(path)
        self.problems.append(
            Problem(
                f"{name}: {what}" if name else what,
                "merge.mergekit-value",
                self.tree.place_of_value(path),
                expected,
                remedy or "correct it",
            )
        )

    def overlook(self, path: Path, remedy: str = "") -> None:
        """Warn of a key that nobody reads; refuse one that is given on the command line.

        A file may have been written for mergekit as it is; an override is only ever written to
        change the merge at hand.
        """
        place = self.tree.place_of_key(path)
        what = "is overlooked, as mergekit does" + (f": {remedy}" if remedy else "")
        if not is_override(place):
            self.warn(path, what)
            return
        self.problems.append(
            Problem(
                f"{dotted(path)} {what}",
                "merge.mergekit-key",
                place,
                "a key that changes the merge, in mergekit's words, or seed, threads or device",
                "remove it; --arithmetic chooses how the merge is computed",
            )
        )

    def warn(self, path: Path, what: str) -> None:
        """Warn of what somebody may have thought to count."""
        self.notes.append(f"warning: {dotted(path)} {what}")

    def note(self, path: Path, what: str) -> None:
        """Note what is read and changes nothing."""
        self.notes.append(f"{dotted(path)} {what}")
