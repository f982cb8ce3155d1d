"""Facts that several papers give, in the words that all of them use, and the sheet of their fields.

Local paths and the addresses of endpoints stay out of every paper: folders are named by their last
parts, endpoints by their models.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stillroom.flow.papers.graph import ProvenanceGraph
from stillroom.flow.papers.node import Node, TextFacts, hide_places
from stillroom.provenance import canonical_json

__all__ = [
    "UNKNOWN",
    "FieldSheet",
    "Paper",
    "derive_uuid",
    "describe_metric",
    "describe_texts",
    "describe_training",
    "find_filters",
    "find_hub_purl",
    "find_training_seconds",
    "format_counts",
    "format_json",
    "format_time",
    "is_known_license",
    "list_methods",
    "list_settings",
    "normalize_license",
    "select_metrics",
]

UNKNOWN = "unknown"
_SPDX_IDS = (
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC-BY-NC-4.0",
    "CC-BY-NC-SA-4.0",
    "CC-BY-ND-4.0",
    "CC-BY-SA-3.0",
    "CC-BY-SA-4.0",
    "CC0-1.0",
    "GFDL-1.3-only",
    "GPL-2.0-only",
    "GPL-3.0-only",
    "LGPL-2.1-only",
    "LGPL-3.0-only",
    "AGPL-3.0-only",
    "ISC",
    "MIT",
    "MPL-2.0",
    "ODC-By-1.0",
    "ODbL-1.0",
    "PDDL-1.0",
    "PSF-2.0",
    "Python-2.0",
    "Unlicense",
)
_CANONICAL_IDS = {name.lower(): name for name in _SPDX_IDS}
_SIZE_SUFFIXES = ("/size_bytes", "/parameters", "/tokens_per_second", "/cpu_s_a_question")
_HIDDEN_SETTINGS = {"version", "kind", "seed"}
_ADDRESS_SETTINGS = {"endpoint", "address"}


@dataclass(frozen=True, slots=True)
class Paper:
    """One paper (BOM, AIBOM, datasheet): format, file name, title, text, and fields."""

    format: str
    file: str
    title: str
    text: str
    fields: Mapping[str, str]

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names of the fields that the lineage does not hold."""
        return tuple(name for name, value in self.fields.items() if value == UNKNOWN)


@dataclass
class FieldSheet:
    """Fields of a paper with their values; what is not known is written as unknown, and counted."""

    values: dict[str, str] = field(default_factory=dict)

    def fill(self, name: str, value: object) -> str:
        """Keep a field; None and empty values are unknown. Return the text to write."""
        is_empty = value is None or value in ("", [], (), {})
        text = "" if is_empty else ", ".join(map(str, value)) if isinstance(value, list) else value
        self.values[name] = str(text) or UNKNOWN
        return self.values[name]

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names of the unknown fields so far."""
        return tuple(name for name, value in self.values.items() if value == UNKNOWN)

    def make_paper(self, format: str, file: str, title: str, text: str) -> Paper:
        """Return the paper of these fields; characters that UTF-8 cannot hold are escaped."""
        return Paper(format, file, title, _escape_surrogates(text), self.values)


def _escape_surrogates(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()


def format_json(document: Mapping[str, Any]) -> str:
    """Return a document as JSON text: keys as given, no NaN, a line end at the end."""
    return json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def derive_uuid(document: Mapping[str, Any]) -> str:
    """Return a UUID of a document's content: the same document has the same (RFC 9562, 5.5)."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, _escape_surrogates(canonical_json(document))))


def format_time(created: str) -> str:
    """Return a time in seconds and UTC, as SPDX writes it; empty if there is none."""
    return f"{created[:19]}Z" if created else ""


def normalize_license(license: str) -> str:
    """Return an SPDX expression with its ids in their proper case; other names stay as they are."""
    return re.sub(
        r"[\w.+-]+", lambda match: _CANONICAL_IDS.get(match[0].lower(), match[0]), license
    )


def is_known_license(license: str) -> bool:
    """Return whether an expression has only ids that are known here to be SPDX's."""
    words = re.findall(r"[\w.+-]+", license)
    return bool(words) and all(
        word in _CANONICAL_IDS.values() or word in ("AND", "OR", "WITH") for word in words
    )


def format_counts(counts: Mapping[str, int]) -> str:
    """Return counts as text, largest first: ``3 human, 1 unknown``."""
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return ", ".join(f"{count} {name or UNKNOWN}" for name, count in ordered)


def describe_texts(node: Node) -> str:
    """Return count, size, splits and origins of a node's texts; empty if they cannot be read."""
    facts = node.text
    if facts is None or facts.problem:
        return ""
    splits = f"; split: {format_counts(facts.splits)}" if any(facts.splits) else ""
    origins = format_counts(facts.origins) or UNKNOWN
    return (
        f"{facts.count} {facts.unit}, {facts.text_bytes} bytes of text{splits}; origin: {origins}"
    )


def list_methods(graph: ProvenanceGraph, node: Node) -> list[str]:
    """Return the methods that made a node and its texts, each once."""
    artifact, facts = node.artifact, node.text or TextFacts("")
    chain = artifact.origin.get("chain", ()) if artifact else ()
    named = [str(link.get("method", "")) for link in chain] + sorted(facts.methods)
    kind = str(node.recipe.get("kind", ""))
    return list(dict.fromkeys(name for name in (*named, kind) if name))


def describe_training(graph: ProvenanceGraph, node: Node) -> str:
    """Return the methods that made a node, and how long it was trained, as its job counted."""
    train = node.artifact.details.get("train") if node.artifact else None
    counts = train if isinstance(train, Mapping) else {}
    named = [f"{counts[name]} {name}" for name in ("steps", "tokens") if name in counts]
    losses = [counts.get(name) for name in ("first_loss", "last_loss")]
    if all(isinstance(loss, int | float) for loss in losses):
        named.append(f"loss {losses[0]:.4g} at first and {losses[1]:.4g} at last")
    return ", ".join([*list_methods(graph, node), *named])


def list_settings(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield a recipe's settings with dotted names; folders by their last part, no empty ones.

    Of an objective that does not count, only the weights are given: 0, and that of what counts.
    """
    is_left_out = settings.get("kd_weight") == 0
    for name, value in settings.items():
        is_of_it = is_left_out and not name.endswith("_weight")
        if is_of_it or (not prefix and name in _HIDDEN_SETTINGS):
            continue
        yield from _list_setting(f"{prefix}{name}", value)


def _list_setting(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if value is None or value == "" or value == [] or value == {}:
        return
    if isinstance(value, Mapping):
        yield from list_settings(value, f"{name}.")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for at, one in enumerate(value):
            yield from _list_setting(f"{name}.{at}", one)
    else:
        is_address = name.rpartition(".")[2] in _ADDRESS_SETTINGS
        yield name, "an address" if is_address else hide_places(str(value))


def find_filters(node: Node) -> list[str]:
    """Return the names of the filters that a job of records ran, as its recipe lists them."""
    return [name for name in dict.fromkeys(_list_filters(node.recipe.get("pipeline"))) if name]


def _list_filters(value: Any) -> Iterator[str]:
    """Yield the filters of a generator, or of each of several steps."""
    if isinstance(value, list | tuple):
        for one in value:
            yield from _list_filters(one)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if name == "filters" and isinstance(inner, list | tuple):
                yield from (str(one["name"] if isinstance(one, Mapping) else one) for one in inner)
            else:
                yield from _list_filters(inner)


def find_hub_purl(node: Node) -> str:
    """Return the package URL of a model of the Hugging Face hub; empty for other models."""
    if not node.location.startswith("hub:"):
        return ""
    name, _, revision = node.location.removeprefix("hub:").partition("@")
    return f"pkg:huggingface/{name}" + (f"@{revision.lower()}" if revision else "")


def find_training_seconds(graph: ProvenanceGraph) -> dict[str, float]:
    """Return how long training or merging took, by the events of each job that made weights."""
    seconds = {
        node.name: sum(node.seconds.get(name, 0.0) for name in ("train", "merge"))
        for node in graph.select("checkpoint", of=graph.subject)
    }
    return {name: total for name, total in seconds.items() if total}


def select_metrics(graph: ProvenanceGraph, *, quality: bool) -> list[dict[str, Any]]:
    """Return the metrics of quality, or those of sizes and times."""
    return [
        metric
        for metric in graph.metrics
        if quality
        != (metric["name"].startswith("seconds/") or metric["name"].endswith(_SIZE_SUFFIXES))
    ]


def describe_metric(metric: Mapping[str, Any]) -> str:
    """Return a metric's value with unit, interval and n, for a text field."""
    low, high, unit = metric.get("low"), metric.get("high"), metric.get("unit") or ""
    interval = f" [{low:.4g}, {high:.4g}]" if low is not None and high is not None else ""
    value = metric["value"]
    return f"{value:.6g}{f' {unit}' if unit else ''}{interval} (n={metric['n']})"
