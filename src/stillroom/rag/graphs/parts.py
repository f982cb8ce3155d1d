"""Entity, Edge, Community, CommunityReport: what a graph is made of, and how each is written.

Everything names the spans that it stands on: ``(row, start, end)`` is ``text[start:end]`` of the
graph's source of that row, which names a passage by its id.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Community", "CommunityReport", "Edge", "Entity", "Finding", "SourcePassage", "Span"]

Span = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class SourcePassage:
    """A passage that the graph was made from: its id, its document's, its extraction's key."""

    passage_id: str
    document_id: str
    key: str

    def to_json(self) -> list[str]:
        """Return a compact list."""
        return [self.passage_id, self.document_id, self.key]


@dataclass(frozen=True, slots=True)
class Entity:
    """Something that passages speak of, under all its names.

    ``key`` is its normalized name; a ``description`` is always written by a model.
    """

    key: str
    name: str
    type: str
    aliases: tuple[str, ...]
    description: str
    mentions: tuple[Span, ...]

    @property
    def rows(self) -> list[int]:
        """The rows of the passages that mention it, each once, ascending."""
        return sorted({row for row, _, _ in self.mentions})

    @property
    def text(self) -> str:
        """What its vector is made of."""
        return f"{self.name}\n{self.description}" if self.description else self.name

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "key": self.key,
            "name": self.name,
            "type": self.type,
            "aliases": list(self.aliases),
            "description": self.description,
            "mentions": [list(span) for span in self.mentions],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Entity:
        """Read what ``to_json`` wrote."""
        return cls(
            data["key"],
            data["name"],
            data["type"],
            tuple(data["aliases"]),
            data["description"],
            _spans(data["mentions"]),
        )


@dataclass(frozen=True, slots=True)
class Edge:
    """Two entities that passages relate, by their numbers; ``source`` is the smaller one."""

    source: int
    target: int
    weight: float
    keywords: tuple[str, ...]
    description: str
    mentions: tuple[Span, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "source": self.source,
            "target": self.target,
            "weight": self.weight,
            "keywords": list(self.keywords),
            "description": self.description,
            "mentions": [list(span) for span in self.mentions],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Edge:
        """Read what ``to_json`` wrote."""
        return cls(
            data["source"],
            data["target"],
            data["weight"],
            tuple(data["keywords"]),
            data["description"],
            _spans(data["mentions"]),
        )


@dataclass(frozen=True, slots=True)
class Finding:
    """One statement of a report, and the spans that it stands on."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class CommunityReport:
    """What a community is about; ``origin`` is ``source`` (quoted sentences) or ``synthetic``."""

    title: str
    summary: str
    findings: tuple[Finding, ...]
    origin: str

    @property
    def text(self) -> str:
        """What its vector is made of."""
        return "\n".join([self.title, self.summary, *(one.text for one in self.findings)]).strip()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "title": self.title,
            "summary": self.summary,
            "findings": [[one.text, [list(span) for span in one.spans]] for one in self.findings],
            "origin": self.origin,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CommunityReport:
        """Read what ``to_json`` wrote."""
        return cls(
            data["title"],
            data["summary"],
            tuple(Finding(text, _spans(spans)) for text, spans in data["findings"]),
            data["origin"],
        )


@dataclass(frozen=True, slots=True)
class Community:
    """Entities that are more related to each other than to others, by their numbers.

    ``id`` follows from the level and the members' keys; ``parent`` is the id of the larger one that
    it is a part of, empty at level 0; ``rows`` are the passages that its report stands on.
    """

    id: str
    level: int
    parent: str
    entities: tuple[int, ...]
    rows: tuple[int, ...]
    report: CommunityReport

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "id": self.id,
            "level": self.level,
            "parent": self.parent,
            "entities": list(self.entities),
            "rows": list(self.rows),
            "report": self.report.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Community:
        """Read what ``to_json`` wrote."""
        return cls(
            data["id"],
            data["level"],
            data["parent"],
            tuple(data["entities"]),
            tuple(data["rows"]),
            CommunityReport.from_json(data["report"]),
        )


def _spans(rows: list[list[int]]) -> tuple[Span, ...]:
    return tuple((row, start, end) for row, start, end in rows)
