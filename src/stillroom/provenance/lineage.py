"""Lineage tree from an artifact, record or answer down to byte ranges of documents.

The links are recorded by ``artifact.make_parent`` (digests of inputs) and ``records.origin``. Reads
artifact.json, records and passages. Nothing is omitted: missing and changed parents are shown as
such, and cycles are marked. Loads no model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from stillroom.errors import DataError
from stillroom.provenance.artifact import Artifact, Parent, locate_manifest, read_artifact
from stillroom.provenance.digests import digest_file, digest_like
from stillroom.provenance.evidence import CitedSpan, StoredAnswer
from stillroom.provenance.sources import (
    count_origins,
    find_dropped,
    find_passages,
    find_records,
    has_passages,
    has_path,
    is_reference,
    iter_documents,
    iter_passages,
    list_ancestors,
    locate_document,
    resolve_parent,
)
from stillroom.records import Passage, Record, describe_place, find_record_file, read_records

__all__ = [
    "ProvenanceNode",
    "note_other_index",
    "render_tree",
    "walk_answer",
    "walk_lineage",
    "walk_record",
]

_MAX_DEPTH = 64
_EXCERPT = 80
_MAX_SUBFOLDERS = 4


def walk_lineage(path: Path, *, examples: int = 3) -> ProvenanceNode:
    """Return the tree of an artifact's inputs, down to documents.

    ``examples`` is the number of records and passages to follow.

    Raises:
        DataError: If the path is missing, or its artifact.json cannot be read.
    """
    if not path.exists():
        raise _missing_error(path)
    if locate_manifest(path).exists():
        read_artifact(path)  # a broken root is an error; a broken parent is shown in the tree
    return _LineageWalker(max(examples, 0)).artifact(path, path.name or str(path))


def walk_record(path: Path, record_id: str) -> ProvenanceNode:
    """Return the tree of one record or passage: its chain, down to the bytes of documents.

    The path is an artifact of records, one derived from it (also a whole run), an index, or a file
    of records; the id begins with ``rec-`` or ``pas-``.

    Raises:
        DataError: If the path is missing, or no artifact on the way contains the record.
    """
    if not path.exists():
        raise _missing_error(path)
    walker = _LineageWalker(0)
    if record_id.startswith("pas-"):
        sources = [folder for folder, _ in list_ancestors(path)]
        node = walker.passages(sources, [record_id])[0]
        if node.kind != "missing":
            return node
    elif not locate_manifest(path).is_file():
        for record in find_records(path, record_id):
            return walker.record(path, record)
    else:
        for folder, artifact in list_ancestors(path):
            if artifact.kind != "records":
                continue
            for record in find_records(folder / "output", record_id):
                return walker.record(folder, record)
            for record, reason in find_dropped(folder / "output", record_id):
                return replace(walker.record(folder, record), notes=(f"dropped: {reason}",))
    raise DataError(
        f"{record_id} is not in {path}",
        code="data.no-such-record",
        where=str(path),
        expected="the id of a record or passage in this artifact or one it was made from",
        next=f"stillroom show {path} --lineage shows some",
    )


def walk_answer(answer: StoredAnswer, within: Path) -> ProvenanceNode:
    """Return the tree of an answer: each citation's passage and bytes, then the index.

    ``within`` is the run or index that was queried.

    Raises:
        DataError: If the path is missing.
    """
    if not within.exists():
        raise _missing_error(within)
    walker = _LineageWalker(0)
    folders = [(folder, artifact) for folder, artifact in list_ancestors(within)]
    sources = [folder for folder, _ in folders]
    cited = [walker.cited(sources, citation) for citation in answer.cited]
    notes = [f"model {answer.model}"] if answer.model else []
    if answer.judged:
        verdict, time = str(answer.judged.get("verdict"))[:20], str(answer.judged.get("time"))[:10]
        notes.append(f"origin human: follows a person's judgment ({verdict}) of {time}")
    if not cited:
        notes.append("it cites nothing")
    notes += note_other_index(answer, within)
    text = " ".join(answer.text.split())
    title = text if len(text) <= _EXCERPT else f"{text[: _EXCERPT - 1]}…"
    below = walker.artifact(within, "asked of")
    return ProvenanceNode(
        f"“{title}”", "answer", "", "", "synthetic", (*cited, below), tuple(notes)
    )


def note_other_index(answer: StoredAnswer, within: Path) -> list[str]:
    """Return a note if no index that ``within`` was made from is in the state that answered.

    Raises:
        DataError: If the path is no artifact.
    """
    states = [
        artifact.details.get("index", "")
        for _, artifact in list_ancestors(within)
        if artifact.kind == "index"
    ]
    if not answer.index or not states or answer.index in states:
        return []
    return [f"the index has changed since: it was {answer.index[:SHOWN_DIGEST_DIGITS]} then"]


class _LineageWalker:
    """Walks each artifact once; later occurrences refer to the first."""

    def __init__(self, examples: int) -> None:
        self.examples = examples
        self.open: list[Path] = []
        self.shown: set[Path] = set()

    def artifact(self, folder: Path, title: str, parent: Parent | None = None) -> ProvenanceNode:
        """Return the node of an artifact, a file or a folder at ``folder``."""
        here = Path(os.path.normpath(folder.absolute()))
        if not here.exists():
            digest = parent.digest if parent else ""
            return ProvenanceNode(
                title, "missing", digest, str(folder), notes=("nothing lies here any more",)
            )
        if not locate_manifest(here).is_file():
            return self.foreign(here, title, parent)
        try:
            artifact = read_artifact(here)
        except DataError as error:
            return ProvenanceNode(title, "broken", path=str(here), notes=(error.problems[0].what,))
        node = ProvenanceNode(
            title, artifact.kind, artifact.digest, str(here), _origin_text(artifact.origin)
        )
        notes: tuple[str, ...] = ()
        if here.is_file():  # others may edit it, and leave what it was made from beside it
            node = replace(node, digest=digest_file(here))
            notes = _compare_digest(node.digest, parent)
            if node.digest != artifact.digest:
                notes = (*notes, f"changed since {locate_manifest(here).name} was written")
        elif parent is None or parent.kind:  # else the digest is of what was read of a folder
            notes = _compare_digest(node.digest, parent)
        if here in self.open or len(self.open) > _MAX_DEPTH:
            return replace(node, notes=(*notes, "it is among its own parents: a circle"))
        if here in self.shown:
            return replace(node, notes=(*notes, "shown above"))
        self.open.append(here)
        children, more = self.contents(here, artifact)
        self.open.pop()
        self.shown.add(here)
        return replace(node, children=tuple(children), notes=(*notes, *more))

    def contents(self, folder: Path, artifact: Artifact) -> tuple[list[ProvenanceNode], list[str]]:
        """Return examples from an artifact, then its parents, with notes."""
        children: list[ProvenanceNode] = []
        notes: list[str] = []
        try:
            if artifact.kind == "records" and not artifact.is_flat:
                children += self.records(folder)
            elif artifact.kind == "index":
                notes += count_origins(folder)
                children += self.first_passages(folder)
        except (DataError, OSError) as error:
            notes.append(f"its contents cannot be read: {error}".split("\n", 1)[0])
        parents = artifact.parents
        for parent in reversed(parents) if artifact.kind == "report" else parents:
            children.append(self.parent(folder, parent))
        return children, notes

    def parent(self, folder: Path, parent: Parent) -> ProvenanceNode:
        if not has_path(parent):
            return ProvenanceNode(str(parent.role), "broken", notes=("its path is not a text",))
        if is_reference(parent.path):
            kind = parent.kind or "reference"
            return ProvenanceNode(parent.role, kind, parent.digest, parent.path)
        return self.artifact(resolve_parent(folder, parent), parent.role, parent)

    def foreign(self, path: Path, title: str, parent: Parent | None) -> ProvenanceNode:
        """Return the node of data from elsewhere, or of a file that an artifact lists."""
        kind = "file" if path.is_file() else "folder"
        digest = parent.digest if parent else ""
        notes: tuple[str, ...] = ()
        if path.is_file() and len(digest) == 64:
            notes = _compare_digest(digest_file(path), parent)
        children, found = self.container(path) if path.is_file() else ((), ())
        kind = parent.kind if parent and parent.kind else kind
        return ProvenanceNode(title, kind, digest, str(path), "", children, (*notes, *found))

    def container(self, path: Path) -> tuple[tuple[ProvenanceNode, ...], tuple[str, ...]]:
        """Return the node of the artifact that a file is in, with notes on the file."""
        for folder in islice(path.parents, _MAX_SUBFOLDERS):
            if not folder.name or not locate_manifest(folder).is_file():
                continue
            with suppress(DataError):
                name = path.relative_to(folder).as_posix()
                for entry in read_artifact(folder).files:
                    if entry.path == name:
                        is_same = digest_like(path, entry.digest) == entry.digest
                        changed = f"changed since {folder.name} was written"
                        node = self.artifact(folder, "part of")
                        return (node,), () if is_same else (changed,)
            break
        return (), ()

    def records(self, folder: Path) -> list[ProvenanceNode]:
        """Return nodes of the first records."""
        if not self.examples:
            return []
        records = islice(read_records(find_record_file(folder / "output")), self.examples)
        return [self.record(folder, record) for record in records]

    def record(self, folder: Path, record: Record) -> ProvenanceNode:
        """Return the node of a record above its steps, the latest first."""
        sources = [node for node, _ in list_ancestors(folder)]
        children: tuple[ProvenanceNode, ...] = ()
        for link in record.origin.chain:  # oldest first, so that each step encloses earlier ones
            parents = [name for name in link.parents if name != record.id]
            known = self.passages(sources, [name for name in parents if name.startswith("pas-")])
            known += self.documents(sources, [name for name in parents if name.startswith("doc-")])
            others = [
                ProvenanceNode(name, "record" if name.startswith("rec-") else "reference")
                for name in parents
                if not name.startswith(("pas-", "doc-"))
            ]
            notes = (f"model {link.model}",) if link.model else ()
            children = (
                ProvenanceNode(
                    link.method, "step", "", "", "", (*known, *others, *children), notes
                ),
            )
        notes = () if record.origin.chain else ("no chain is recorded",)
        return ProvenanceNode(
            record.id,
            "record",
            "",
            str(folder),
            _origin_text(record.origin.to_json()),
            children,
            notes,
        )

    def first_passages(self, folder: Path) -> list[ProvenanceNode]:
        ids = [row.get("id", "") for row in islice(iter_passages(folder), self.examples)]
        return self.passages([folder], ids)

    def passages(self, sources: list[Path], ids: list[str]) -> list[ProvenanceNode]:
        """Return one node per passage, above the bytes of its document."""
        left = list(dict.fromkeys(ids))
        nodes: dict[str, ProvenanceNode] = {}
        for folder in sources:
            pending = [name for name in left if name not in nodes]
            if not pending or not has_passages(folder):
                continue
            for name, passage in find_passages(folder, pending).items():
                nodes[name] = self.passage(folder, passage)
        absent = "in no index that this was made from"
        return [
            nodes.get(name) or ProvenanceNode(name, "missing", notes=(absent,)) for name in left
        ]

    def passage(self, folder: Path, passage: Passage) -> ProvenanceNode:
        place = passage.location
        file, notes = locate_document(folder, place.path, place.digest)
        document = ProvenanceNode(
            str(place),
            "document",
            place.digest,
            str(file) if file else "",
            notes=(*notes, place.note) if place.note else notes,
        )
        text = " ".join(passage.text.split())
        excerpt = text if len(text) <= _EXCERPT else f"{text[: _EXCERPT - 1]}…"
        origin = _origin_text(passage.origin.to_json())
        credentials = [
            f"content credential {link.method.removeprefix('c2pa.')}"
            + (f", model {link.model}" if link.model else "")
            for link in passage.origin.chain
            if link.method.startswith("c2pa.")
        ]
        credentials += [
            f"says so itself ({link.method.removeprefix('statement.')})"
            + (f", model {link.model}" if link.model else "")
            for link in passage.origin.chain
            if link.method.startswith("statement.")
        ]
        about = (f"“{excerpt}”", *credentials)
        return ProvenanceNode(passage.id, "passage", "", str(folder), origin, (document,), about)

    def cited(self, sources: list[Path], span: CitedSpan) -> ProvenanceNode:
        """Return the node of a citation above its passage, or above the bytes that it cited."""
        (node,) = self.passages(sources, [span.passage_id])
        if node.kind == "missing":
            here = next((folder for folder in sources if has_passages(folder)), None)
            file, notes = locate_document(here, span.path, span.digest) if here else (None, ())
            place = describe_place(span.path, span.byte_start, span.byte_end, span.pages)
            below = ProvenanceNode(
                place, "document", span.digest, str(file or ""), span.origin, (), notes
            )
            node = replace(node, children=(below,))
        return ProvenanceNode(f"[{span.number}]", "citation", children=(node,))

    def documents(self, sources: list[Path], ids: list[str]) -> list[ProvenanceNode]:
        """Return one node per document."""
        nodes: dict[str, ProvenanceNode] = {}
        for folder in sources:
            pending = {name for name in ids if name not in nodes}
            if not pending:
                continue
            for row in iter_documents(folder, pending):
                if row.get("id") in pending:
                    path, digest = str(row.get("path", "")), str(row.get("digest", ""))
                    file, notes = locate_document(folder, path, digest)
                    shown = str(file) if file else ""
                    origin = _origin_text(row.get("origin"))
                    nodes[row["id"]] = ProvenanceNode(
                        path, "document", digest, shown, origin, (), notes
                    )
        absent = "in no index that this was made from"
        return [nodes.get(name) or ProvenanceNode(name, "missing", notes=(absent,)) for name in ids]


def _compare_digest(digest: str, parent: Parent | None) -> tuple[str, ...]:
    if parent is None or not parent.digest or parent.digest == digest:
        return ()
    return (f"changed since: it was {parent.digest[:SHOWN_DIGEST_DIGITS]} when this was made",)


def _origin_text(origin: Any) -> str:
    """Return an origin's kind and license, or counts by kind for an artifact of many."""
    if not isinstance(origin, dict):
        return ""
    kind, license = origin.get("kind"), origin.get("license")
    if isinstance(kind, str):
        return f"{kind}, {license}" if license else kind
    counts = {key: value for key, value in origin.items() if isinstance(value, int)}
    return ", ".join(f"{value} {key}" for key, value in sorted(counts.items()))


def _missing_error(path: Path) -> DataError:
    return DataError(
        f"{path} does not exist",
        code="data.missing",
        expected="an artifact, or a file of records",
        next="check the path",
    )


SHOWN_DIGEST_DIGITS = 16
"""Digits of a digest shown in the tree."""


@dataclass(frozen=True, slots=True)
class ProvenanceNode:
    """A node of the lineage tree, with its inputs as children.

    ``kind`` is an artifact's kind, or one of ``record``, ``step``, ``passage``, ``document``,
    ``file``, ``folder``, ``reference``, ``missing`` and ``broken``; ``notes`` are lines to show.
    """

    title: str
    kind: str
    digest: str = ""
    path: str = ""
    origin: str = ""
    children: tuple[ProvenanceNode, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values with nested children."""
        return asdict(self) | {
            "notes": list(self.notes),
            "children": [child.to_json() for child in self.children],
        }


def render_tree(node: ProvenanceNode, *, ascii: bool = False) -> str:
    """Render the tree as lines for a terminal; control characters are escaped."""
    marks = ("|- ", "`- ", "|  ", "   ") if ascii else ("├─ ", "└─ ", "│  ", "   ")
    return "\n".join(_render_node(node, "", "", marks)) + "\n"


def _render_node(
    node: ProvenanceNode, head: str, tail: str, marks: tuple[str, ...]
) -> Iterator[str]:
    parts = [node.title, node.kind, node.digest[:SHOWN_DIGEST_DIGITS], node.origin, node.path]
    yield head + _printable("  ".join(part for part in parts if part))
    for note in node.notes:
        yield f"{tail}{marks[2] if node.children else marks[3]}{_printable(note)}"
    for index, child in enumerate(node.children):
        is_last = index == len(node.children) - 1
        yield from _render_node(
            child,
            tail + (marks[1] if is_last else marks[0]),
            tail + (marks[3] if is_last else marks[2]),
            marks,
        )


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
