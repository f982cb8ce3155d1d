"""Conversion of documents to plain-text records for distillation without prompts.

Each document is cut where its own structure allows it (the ``recursive`` chunker) into pieces of at
most ``max_tokens`` of the teacher's tokens, so that nothing is cut off when it is learned. A piece
is a record of one assistant's message; its chain names the passage, and the passage the bytes of
its document.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stillroom.errors import CheckpointError, DataError
from stillroom.jobs import Job, Reporter, atomic_write
from stillroom.provenance import Artifact, Parent, digest_json, digest_text
from stillroom.records import (
    Document,
    Link,
    Message,
    Origin,
    Passage,
    Record,
    combine_origins,
    write_records,
)
from stillroom.text import (
    CHUNKERS,
    ParseFailure,
    ParseLimits,
    TokenCounter,
    parse_folder,
    scan_folder,
)

__all__ = [
    "ChunkingPlan",
    "ChunkingReport",
    "chunk_documents",
    "open_tokenizer",
]


_WHOLE_DOCUMENTS = 10


"""From so many documents on, whole ones are held out; below, the end of each."""


@dataclass(frozen=True, slots=True)
class ChunkingPlan:
    """What is cut and how.

    Args:
        documents: A folder, or one file.
        tokenizer: Whose tokens are counted: a checkpoint, as recipes name it, or a tokenizer.json.
        max_tokens: Most tokens of a record.
        held_out: Share that is measured on only.
        origin: Who made the documents, and under which license.
    """

    documents: Path
    tokenizer: str
    max_tokens: int = 512
    held_out: float = 0.1
    origin: Origin = field(default_factory=Origin)

    def to_text(self) -> str:
        """Return what the job's recipe.yaml holds: a note, since no recipe runs it."""
        told = {**asdict(self), "documents": str(self.documents), "origin": self.origin.to_json()}
        return "\n".join(["# stillroom distill texts", *_encode_lines(told)]) + "\n"


@dataclass(frozen=True, slots=True)
class ChunkingReport:
    """What came of it: documents, records by split, tokens, and files that could not be read."""

    documents: int
    records: dict[str, int]
    tokens: int
    failures: tuple[ParseFailure, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        """Return a line, and one for each file that could not be read."""
        train, held = self.records.get("train", 0), self.records.get("held_out", 0)
        lines = [
            f"{self.documents} documents, {self.tokens} tokens: {train} records to learn from, "
            f"{held} held out"
        ]
        lines += [f"not read: {one.path}: {one.reason}" for one in self.failures]
        return "\n".join(lines)


def chunk_documents(
    plan: ChunkingPlan,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Artifact, ChunkingReport]:
    """Write documents as records at ``out``.

    Args:
        plan: What is cut and how.
        out: The folder of the artifact; ``output`` holds records, passages and documents.
        resume: Go on where a killed run stopped; it begins anew, and ends with the same bytes.
        overwrite: Replace what lies at ``out``.
        reporter: What draws progress; default nothing.

    Raises:
        DataError: If no document holds text.
        CheckpointError: If the tokenizer cannot be loaded.
        Cancelled: If the user stopped it.
    """
    if plan.max_tokens < 16 or not 0 <= plan.held_out < 1:
        raise DataError(
            f"max_tokens {plan.max_tokens} and held_out {plan.held_out} cut nothing",
            code="distill.texts",
            expected="at least 16 tokens, and a share from 0 to below 1",
            next="change them",
        )
    job = Job.start(out, plan.to_text(), resume=resume, overwrite=overwrite, reporter=reporter)
    try:
        with job.interruptible():
            return _chunk_all(plan, job)
    finally:
        job.close()


def _chunk_all(plan: ChunkingPlan, job: Job) -> tuple[Artifact, ChunkingReport]:
    tokenizer = open_tokenizer(plan.tokenizer, say=job.say)
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    room = plan.max_tokens - backend.num_special_tokens_to_add(False)
    chunker = CHUNKERS.build({"name": "recursive", "size": room})

    def count(text: str) -> int:
        return len(backend.encode(text, add_special_tokens=False).ids)

    passages: dict[str, list[Passage]] = {}
    documents: list[dict[str, Any]] = []
    failures: list[ParseFailure] = []
    total = len(scan_folder(plan.documents).files)
    with job.phase("read", total, "documents") as progress:
        for one in parse_folder(plan.documents, limits=ParseLimits(), origin=plan.origin):
            job.check_cancelled()
            if isinstance(one, ParseFailure):
                failures.append(one)
            else:
                documents.append(_get_provenance(one))
                passages[one.id] = list(_chunk(chunker, one, count))
            progress.advance(1)
    if not any(passages.values()):
        raise DataError(
            f"{plan.documents} holds no text",
            code="distill.no-text",
            where=str(plan.documents),
            expected="at least one document with text",
            next="; ".join(f"{one.path}: {one.reason}" for one in failures[:3]) or "add documents",
        )
    chosen = [*_split(passages, plan.held_out)]
    with atomic_write(job.output / "passages.jsonl") as file:
        for passage, _ in chosen:
            file.write(json.dumps(passage.to_json(), ensure_ascii=False) + "\n")
    with atomic_write(job.output / "documents.jsonl") as file:
        for told_of in documents:
            file.write(json.dumps(told_of, ensure_ascii=False) + "\n")
    write_records(job.output / "records.jsonl", (_record(*pair) for pair in chosen))
    told = ChunkingReport(
        len(passages),
        dict(Counter(split for _, split in chosen)),
        sum(count(passage.text) for passage, _ in chosen),
        tuple(failures),
    )
    job.say(str(told))
    root = Path(plan.documents).absolute()
    files = [[one["path"], one["digest"]] for one in documents]
    artifact = job.finish(
        "records",
        parents=[
            Parent("documents", str(root if root.is_dir() else root.parent), digest_json(files))
        ],
        origin=combine_origins([passage.origin for passage, _ in chosen]).to_json(),
        details=told.to_json(),
    )
    return artifact, told


def _get_provenance(document: Document) -> dict[str, Any]:
    """Return what lineage asks of a document; its text stands in the passages."""
    origin = document.origin.to_json()
    return {"id": document.id, "path": document.path, "digest": document.digest, "origin": origin}


def _chunk(chunker: Any, document: Document, count: TokenCounter) -> Iterator[Passage]:
    for passage in chunker.chunk(document, count=count):
        if passage.text.strip():
            yield passage


def _split(passages: dict[str, list[Passage]], held_out: float) -> Iterator[tuple[Passage, str]]:
    """Yield every passage with its split, in order.

    Neighbors say the same things: where there are documents enough whole ones are held out, by the
    hash of their id, and else the last part of each.
    """
    by_document = len(passages) >= _WHOLE_DOCUMENTS
    for name, found in passages.items():
        is_held = int(digest_text(name)[:8], 16) / 16**8 < held_out
        border = len(found) - int(len(found) * held_out)
        for at, passage in enumerate(found):
            held = is_held if by_document else at >= border
            yield passage, "held_out" if held else "train"


def _record(passage: Passage, split: str) -> Record:
    link = Link("distill.texts", "", (passage.id,))
    origin = passage.origin
    return Record(
        (Message("assistant", passage.text),),
        {
            "split": split,
            "document_id": passage.document_id,
            "passage_id": passage.id,
            "source": passage.location.path,
        },
        Origin(origin.kind, (*origin.chain, link), origin.license),
    )


def _encode_lines(told: dict[str, Any]) -> Sequence[str]:
    return [f"{name}: {json.dumps(value)}" for name, value in told.items()]


def open_tokenizer(reference: str, *, say: Callable[[str], None] | None = None) -> Any:
    """Return the tokenizer of a checkpoint, or the one in a tokenizer.json file.

    Args:
        reference: A folder, a ``.gguf`` file, ``hub:NAME``, or the path of a tokenizer.json.
        say: Told what was taken, where that is not what the reference literally names.

    Raises:
        CheckpointError: If there is no such tokenizer, or it cannot be read.
    """
    path = Path(reference)
    if path.suffix == ".json" and path.is_file():
        return _read_tokenizer_file(path)
    from stillroom.checkpoints import dequantize_gguf
    from stillroom.models.hub import resolve_checkpoint
    from stillroom.models.local.causal_lm import load_tokenizer

    found = resolve_checkpoint(reference, say=say)
    return load_tokenizer(dequantize_gguf(found) if found.suffix == ".gguf" else found)


def _read_tokenizer_file(path: Path) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise CheckpointError(
            f"{path} cannot be read: {error!s:.80}",
            code="checkpoint.tokenizer",
            where=str(path),
            expected="a tokenizer as the tokenizers library writes it",
            next="give the folder of its checkpoint",
        ) from error
