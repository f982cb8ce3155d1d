"""Nodes of a provenance graph, with the facts that their files hold."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from stillroom.errors import DataError, StillroomError
from stillroom.provenance import Artifact, FileEntry, digest_text
from stillroom.provenance.digests import load_json
from stillroom.provenance.signing import Trust, find_signer
from stillroom.provenance.sources import has_passages, iter_documents
from stillroom.records import Origin, Record, combine_origins, find_record_file, read_records

__all__ = [
    "DATA_KINDS",
    "DocumentFacts",
    "ModelFacts",
    "Node",
    "NodeKind",
    "TextFacts",
    "hide_places",
    "read_recipe",
]

NodeKind = Literal[
    "checkpoint",
    "records",
    "dataset",
    "index",
    "media",
    "report",
    "model",
    "documents",
    "file",
    "missing",
]
DATA_KINDS: tuple[NodeKind, ...] = ("records", "dataset", "index", "media")


@dataclass(frozen=True, slots=True)
class DocumentFacts:
    """One document of an index: path in its folder, SHA-256, media type, language, origin."""

    path: str
    digest: str
    media_type: str
    language: str
    origin: str
    license: str
    text_bytes: int


def hide_places(text: str) -> str:
    """Return a path or a reference without its folders, or without an endpoint's address.

    Of an endpoint (``http://host/v1#model``, or the fingerprint of one) the model's name is left.
    """
    if endpoint := re.fullmatch(r"(?:openai:|endpoint:)?https?://[^#]*#(.*)", text, re.DOTALL):
        return f"endpoint#{endpoint[1]}"
    local = re.fullmatch(r"((?:[a-z][a-z0-9+.-]+:)?)(/(?!/).*|\.{1,2}/.*|[A-Za-z]:[\\/].*)", text)
    if local is None:
        return text
    return local[1] + re.split(r"[\\/]", local[2].rstrip("\\/"))[-1]


@dataclass
class TextFacts:
    """Counts over the texts of one node: records, or documents.

    ``text_bytes`` is the size of the text in UTF-8; the counters count texts by value, with an
    empty string for those of which it is unknown. ``problem`` says why they could not be read.
    """

    unit: str
    count: int = 0
    text_bytes: int = 0
    origins: Counter[str] = field(default_factory=Counter)
    licenses: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    media_types: Counter[str] = field(default_factory=Counter)
    splits: Counter[str] = field(default_factory=Counter)
    split_bytes: Counter[str] = field(default_factory=Counter)
    methods: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    documents: tuple[DocumentFacts, ...] = ()
    problem: str = ""

    def add_record(self, record: Record) -> None:
        """Count one record."""
        self.count += 1
        texts = (message.content for message in record.messages)
        size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
        self.text_bytes += size
        self.origins[record.origin.kind] += 1
        self.licenses[record.origin.license] += 1
        split = str(record.fields.get("split") or "")
        self.splits[split] += 1
        self.split_bytes[split] += size
        for link in record.origin.chain:
            self.methods[link.method] += 1
            if link.model:
                self.models[hide_places(link.model)] += 1

    def combine_licenses(self, stated: str) -> str:
        """Return the license of all texts, empty if some have none; ``stated`` if none has one."""
        if not any(self.licenses):
            return stated
        if "" in self.licenses:
            return ""
        return combine_origins(Origin(license=license) for license in self.licenses).license

    @property
    def training(self) -> tuple[int, int]:
        """Number and bytes of the texts that are trained on: those of the split train, or all."""
        if not any(self.splits):
            return self.count, self.text_bytes
        return self.splits["train"], self.split_bytes["train"]


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the files of a checkpoint say: architecture, family, parameters, context in tokens."""

    architecture: str = ""
    family: str = ""
    parameters: int | None = None
    context: int | None = None


@dataclass(eq=False)
class Node:
    """An artifact or an outside input; ``id`` is unique in the graph and the same on every machine.

    ``location`` is its folder relative to the run, or its reference; empty where neither is known
    without a local path. ``license`` is an SPDX expression or empty.
    """

    id: str
    name: str
    kind: NodeKind
    digest: str = ""
    location: str = ""
    license: str = ""
    folder: Path | None = None
    artifact: Artifact | None = None

    @cached_property
    def recipe(self) -> Mapping[str, Any]:
        """Settings of the job, as resolved; empty if the recipe is gone or was changed."""
        if self.folder is None or self.artifact is None:
            return {}
        return read_recipe(self.folder, self.artifact)

    @cached_property
    def text(self) -> TextFacts | None:
        """Counts over the records or documents; None for other kinds."""
        if self.folder is None:
            return None
        if self.kind == "records":
            return _read_record_facts(self.folder)
        return _read_document_facts(self.folder) if self.kind == "index" else None

    @cached_property
    def model(self) -> ModelFacts:
        """Facts of a checkpoint's files; empty for other kinds."""
        if self.folder is None or self.kind != "checkpoint":
            return ModelFacts()
        is_flat = self.artifact is not None and self.artifact.is_flat
        return _read_model_facts(self.folder if is_flat else self.folder / "output")

    @cached_property
    def seconds(self) -> Mapping[str, float]:
        """Seconds of each phase, from the job's events."""
        return {} if self.folder is None else _read_phases(self.folder / "events.jsonl")

    @cached_property
    def signer(self) -> str:
        """Id of the key that signed the folder's model.sig; empty if it is not signed.

        Whether its files are still those that were signed is not checked.
        """
        if self.folder is None or self.artifact is None:
            return ""
        key = find_signer(self.folder, Trust())
        return key.key_id if key is not None else ""

    @property
    def files(self) -> list[FileEntry]:
        """Files of the artifact by path, timed ones too; none of an outside input."""
        artifact = self.artifact
        every = (*artifact.files, *artifact.timed_files) if artifact else ()
        return sorted(every, key=lambda entry: entry.path)

    @property
    def origin(self) -> str:
        """``human``, ``synthetic`` or ``unknown``."""
        return str(self.artifact.origin.get("kind", "unknown")) if self.artifact else "unknown"

    @property
    def created(self) -> str:
        """Time at which the job finished, ISO 8601; empty if it is not recorded."""
        return self.artifact.created if self.artifact else ""


def read_recipe(folder: Path, artifact: Artifact) -> Mapping[str, Any]:
    """Return the settings of a job; empty if its recipe is gone or was changed."""
    from stillroom.recipes import parse_recipe

    try:
        text = (folder / "recipe.yaml").read_text(encoding="utf-8")
        if digest_text(text) != artifact.recipe_digest:
            return {}
        return parse_recipe(text, folder=folder).model_dump(mode="json")
    except (OSError, StillroomError):
        return {}


def _read_record_facts(folder: Path) -> TextFacts:
    facts = TextFacts("records")
    try:
        file = find_record_file(folder / "output")
    except DataError:
        facts.problem = "its records were deleted and cannot be counted"
        return facts
    for record in read_records(file):
        facts.add_record(record)
    return facts


def _read_document_facts(folder: Path) -> TextFacts:
    facts = TextFacts("documents")
    if not has_passages(folder):
        facts.problem = "its documents were deleted and cannot be counted"
        return facts
    documents = []
    try:
        for row in iter_documents(folder):
            origin = row.get("origin") if isinstance(row.get("origin"), Mapping) else {}
            text = str(row.get("text") or "")
            document = DocumentFacts(
                str(row["path"]),
                str(row["digest"]),
                str(row.get("media_type") or ""),
                str(row.get("language") or ""),
                str((origin or {}).get("kind", "unknown")),
                str((origin or {}).get("license") or ""),
                len(text.encode("utf-8", "surrogatepass")),
            )
            documents.append(document)
    except DataError as error:  # an index with tenants is not read without saying who asks
        facts.problem = error.problems[0].what
        return facts
    facts.documents = tuple(sorted(documents, key=lambda one: (one.path, one.digest)))
    facts.count = len(documents)
    for one in facts.documents:
        facts.text_bytes += one.text_bytes
        facts.origins[one.origin] += 1
        facts.licenses[one.license] += 1
        facts.languages[one.language] += 1
        facts.media_types[one.media_type] += 1
    return facts


def _read_model_facts(output: Path) -> ModelFacts:
    from stillroom.checkpoints.safetensors_format import read_header

    config: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        loaded = load_json((output / "config.json").read_text(encoding="utf-8"))
        config = loaded if isinstance(loaded, dict) else {}
    count = 0
    try:
        for file in sorted(output.glob("*.safetensors")):
            for entry in read_header(file).values():
                count += math.prod(entry.shape)
    except StillroomError:
        count = 0
    names = config.get("architectures")
    context = config.get("max_position_embeddings")
    return ModelFacts(
        str(names[0]) if isinstance(names, list) and names else "",
        str(config.get("model_type") or ""),
        count or None,
        context if isinstance(context, int) else None,
    )


def _read_phases(path: Path) -> Mapping[str, float]:
    seconds: Counter[str] = Counter()
    for event in _iter_events(path):
        if event.get("event") == "phase" and isinstance(event.get("seconds"), int | float):
            seconds[str(event.get("name"))] += event["seconds"]
    return {name: round(total, 3) for name, total in seconds.items()}


def _iter_events(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError:
        return
    for line in lines:
        try:
            event = load_json(line)
        except ValueError:  # the last line of a killed job
            continue
        if isinstance(event, dict):
            yield event
