"""Conversion of documents to plain-text records for distillation without prompts.

Each document is split by the ``recursive`` chunker at its own structure into pieces of at most
``max_tokens`` of the teacher's tokens, so that nothing is truncated in training. A piece is a
record of one assistant message; its origin chain names the passage, and the passage the bytes of
its document.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
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
"""Minimum number of documents for holding out whole documents; below it, the end of each."""


@dataclass(frozen=True, slots=True)
class ChunkingPlan:
    """Settings of a conversion.

    Args:
        documents: A folder, or one file.
        tokenizer: Tokenizer that counts tokens: a checkpoint reference, or a tokenizer.json.
        max_tokens: Maximum tokens of a record.
        held_out: Share of the text that is held out for evaluation.
        origin: Origin and license of the documents.
    """

    documents: Path
    tokenizer: str
    max_tokens: int = 512
    held_out: float = 0.1
    origin: Origin = field(default_factory=Origin)

    def to_text(self) -> str:
        """Return the text of the job's recipe.yaml, a note: no recipe runs this job."""
        values = {**asdict(self), "documents": str(self.documents), "origin": self.origin.to_json()}
        lines = [f"{name}: {json.dumps(value)}" for name, value in values.items()]
        return "\n".join(["# stillroom distill texts", *lines]) + "\n"


@dataclass(frozen=True, slots=True)
class ChunkingReport:
    """Numbers of documents, records by split and tokens, and files that could not be read."""

    documents: int
    records: dict[str, int]
    tokens: int
    failures: tuple[ParseFailure, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        """Return a summary line, and one line per file that could not be read."""
        train, held = self.records.get("train", 0), self.records.get("held_out", 0)
        lines = [
            f"{self.documents} documents, {self.tokens} tokens: {train} training records, "
            f"{held} held out"
        ]
        lines += [f"not read: {failure.path}: {failure.reason}" for failure in self.failures]
        return "\n".join(lines)


def chunk_documents(
    plan: ChunkingPlan,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Artifact, ChunkingReport]:
    """Convert documents to records at ``out``.

    Args:
        plan: Settings.
        out: Folder of the artifact; ``output`` contains records, passages and documents.
        resume: Continue an interrupted job. It starts over and produces the same bytes.
        overwrite: Replace an existing artifact at ``out``.
        reporter: Progress reporter; None reports nothing.

    Raises:
        DataError: If no document contains text.
        CheckpointError: If the tokenizer cannot be loaded.
        Cancelled: If cancellation was requested.
    """
    if plan.max_tokens < 16 or not 0 <= plan.held_out < 1:
        raise DataError(
            f"max_tokens {plan.max_tokens} or held_out {plan.held_out} is out of range",
            code="distill.texts",
            expected="at least 16 tokens, and a share from 0 to below 1",
            next="change the value",
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
    size = plan.max_tokens - backend.num_special_tokens_to_add(False)
    chunker = CHUNKERS.build({"name": "recursive", "size": size})

    def count(text: str) -> int:
        return len(backend.encode(text, add_special_tokens=False).ids)

    passages: dict[str, list[Passage]] = {}
    documents: list[dict[str, Any]] = []
    failures: list[ParseFailure] = []
    total = len(scan_folder(plan.documents).files)
    with job.phase("read", total, "documents") as progress:
        for parsed in parse_folder(plan.documents, limits=ParseLimits(), origin=plan.origin):
            job.check_cancelled()
            if isinstance(parsed, ParseFailure):
                failures.append(parsed)
            else:
                documents.append(_get_provenance(parsed))
                passages[parsed.id] = list(_chunk(chunker, parsed, count))
            progress.advance(1)
    if not any(passages.values()):
        raise DataError(
            f"{plan.documents} contains no text",
            code="distill.no-text",
            where=str(plan.documents),
            expected="at least one document with text",
            next="; ".join(f"{parsed.path}: {parsed.reason}" for parsed in failures[:3])
            or "add documents",
        )
    split_passages = [*_split(passages, plan.held_out)]
    with atomic_write(job.output / "passages.jsonl") as file:
        for passage, _ in split_passages:
            file.write(json.dumps(passage.to_json(), ensure_ascii=False) + "\n")
    with atomic_write(job.output / "documents.jsonl") as file:
        for document in documents:
            file.write(json.dumps(document, ensure_ascii=False) + "\n")
    write_records(job.output / "records.jsonl", (_record(*pair) for pair in split_passages))
    report = ChunkingReport(
        len(passages),
        dict(Counter(split for _, split in split_passages)),
        sum(count(passage.text) for passage, _ in split_passages),
        tuple(failures),
    )
    job.say(str(report))
    root = Path(plan.documents).absolute()
    files = [[parsed["path"], parsed["digest"]] for parsed in documents]
    artifact = job.finish(
        "records",
        parents=[
            Parent("documents", str(root if root.is_dir() else root.parent), digest_json(files))
        ],
        origin=combine_origins([passage.origin for passage, _ in split_passages]).to_json(),
        details=report.to_json(),
    )
    return artifact, report


def _get_provenance(document: Document) -> dict[str, Any]:
    """Return a document's provenance, without its text."""
    origin = document.origin.to_json()
    return {"id": document.id, "path": document.path, "digest": document.digest, "origin": origin}


def _chunk(chunker: Any, document: Document, count: TokenCounter) -> Iterator[Passage]:
    for passage in chunker.chunk(document, count=count):
        if passage.text.strip():
            yield passage


def _split(passages: dict[str, list[Passage]], held_out: float) -> Iterator[tuple[Passage, str]]:
    """Yield every passage with its split, in order.

    Neighboring passages overlap in content: with enough documents, whole documents are held out by
    the hash of their id, and else the last part of each.
    """
    by_document = len(passages) >= _WHOLE_DOCUMENTS
    for name, passages_of_document in passages.items():
        is_held = int(digest_text(name)[:8], 16) / 16**8 < held_out
        border = len(passages_of_document) - int(len(passages_of_document) * held_out)
        for index, passage in enumerate(passages_of_document):
            is_held_out = is_held if by_document else index >= border
            yield passage, "held_out" if is_held_out else "train"


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


def open_tokenizer(reference: str, *, say: Callable[[str], None] | None = None) -> Any:
    """Return the tokenizer of a checkpoint or of a tokenizer.json file.

    Args:
        reference: A folder, a ``.gguf`` file, ``hub:NAME``, or the path of a tokenizer.json.
        say: Called with a message if the reference resolves to something else than it names.

    Raises:
        CheckpointError: If there is no such tokenizer, it cannot be read, or it multiplies a text.
    """
    path = Path(reference)
    if path.suffix == ".json" and path.is_file():
        from tokenizers import Tokenizer

        from stillroom.models.tokenization.growth import check_growth

        check_growth(path)
        try:
            return Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises a bare Exception
            raise CheckpointError(
                f"{path} cannot be read: {error!s:.80}",
                code="checkpoint.tokenizer",
                where=str(path),
                expected="a tokenizer.json of the tokenizers library",
                next="pass the folder of its checkpoint",
            ) from error
    from stillroom.checkpoints import dequantize_gguf
    from stillroom.models.hub import resolve_checkpoint
    from stillroom.models.local.causal_lm import load_tokenizer

    checkpoint = resolve_checkpoint(reference, say=say)
    return load_tokenizer(
        dequantize_gguf(checkpoint) if checkpoint.suffix == ".gguf" else checkpoint
    )
