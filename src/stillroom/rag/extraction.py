"""What a passage speaks of: entities and relations, each with the characters that say so.

An Extraction follows from the passage's text, the extractor and its model alone, so that it can be
kept and used again wherever the same text stands. Offsets are into that text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from stillroom.provenance import digest_json
from stillroom.registry import Method, Seam

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.records import Passage

__all__ = ["EXTRACTORS", "Extraction", "Extractor", "Mention", "Relation"]


@dataclass(frozen=True, slots=True)
class Mention:
    """An entity as one place of a text names it: ``text[start:end]``, in which sentence."""

    name: str
    start: int
    end: int
    sentence: int
    type: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True)
class Relation:
    """What a text says of two entities, by their names; ``text[start:end]`` names both."""

    source: str
    target: str
    start: int
    end: int
    keywords: tuple[str, ...] = ()
    description: str = ""
    strength: float = 1.0


@dataclass(frozen=True, slots=True)
class Extraction:
    """Mentions, relations and acronyms of one text, and what was found and could not be used.

    ``aliases`` are (acronym, what it stands for). ``dropped`` counts by reason: ``ungrounded`` (no
    place of the text says it), ``unreadable`` (an answer that is no JSON).
    """

    mentions: tuple[Mention, ...] = ()
    relations: tuple[Relation, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "mentions": [
                [one.name, one.start, one.end, one.sentence, one.type, one.description]
                for one in self.mentions
            ],
            "relations": [
                [
                    one.source,
                    one.target,
                    one.start,
                    one.end,
                    list(one.keywords),
                    one.description,
                    one.strength,
                ]
                for one in self.relations
            ],
            "aliases": [list(pair) for pair in self.aliases],
            "dropped": dict(sorted(self.dropped.items())),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Extraction:
        """Read what ``to_json`` wrote."""
        return cls(
            tuple(Mention(*row) for row in data["mentions"]),
            tuple(
                Relation(source, target, start, end, tuple(keywords), description, strength)
                for source, target, start, end, keywords, description, strength in data["relations"]
            ),
            tuple((short, long) for short, long in data["aliases"]),
            dict(data["dropped"]),
        )


class Extractor(Method, ABC):
    """Finds what passages speak of."""

    needs_model: ClassVar[bool] = False
    calls_per_passage: ClassVar[int] = 0

    min_count: int = Field(
        1, ge=1, le=1000, description="in how many passages an entity must be mentioned to stay"
    )

    @abstractmethod
    def extract(
        self,
        passages: Sequence[Passage],
        model: TextModel | None = None,
        *,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[Extraction]:
        """Return what each passage speaks of, in order; fewer where it was cancelled.

        What is given for a passage does not depend on the passages beside it.

        Raises:
            DataError: If the method needs a model and none is given.
        """

    def weigh(self, together: float, source: int, target: int, passages: int) -> float:
        """Return the weight of a relation; 0 or less leaves it out.

        Args:
            together: In how many passages both ends are mentioned as related.
            source: In how many the one end is mentioned.
            target: In how many the other is.
            passages: How many there are.
        """
        return float(together)

    @property
    def reach(self) -> int:
        """Within how many sentences two mentions are related; 0 where the extractor relates."""
        return 0

    @property
    def pruned(self) -> float:
        """Which share of the edges is left out, the lightest ones."""
        return 0.0

    def fingerprint(self, model: TextModel | None) -> str:
        """Return what an extraction depends on beside the text."""
        settings = self.model_dump(mode="json", exclude=set(self.assembly_settings))
        return digest_json([settings, model.fingerprint if model and self.needs_model else ""])

    @property
    def assembly_settings(self) -> tuple[str, ...]:
        """The settings that shape the graph alone, not the extractions."""
        return ("min_count",)


EXTRACTORS = Seam("stillroom.rag.extractors", Extractor)
