"""Small student models trained to measure their training data, and human reference records.

A student starts from random weights with a tokenizer of its own, or from a checkpoint with low-rank
additions; it learns records through the house's one training loop, is measured on records it has
not seen, and can write records of its own. Two students of one seed start from the same weights and
see the same number of records in each step, whatever they learn from.

Knows nothing of generations or of subsets: those who compare students do.

Reads files of records, artifacts and indexes, text files, and recipes of kind synth (their
passages). Records that share a document never stand on both sides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.random_init import write_random_checkpoint
from stillroom.errors import DataError
from stillroom.evaluate.lm.encoding import EncodedConversation, encode_record
from stillroom.evaluate.lm.loss import encoded_loss
from stillroom.jobs import Job
from stillroom.models import load_causal_lm, render_chat, resolve_checkpoint
from stillroom.models.local.generation import complete_prompts
from stillroom.objects import resolve_local
from stillroom.provenance import digest_json
from stillroom.recipes import Settings
from stillroom.records import Link, Message, Origin, Record, read_records
from stillroom.synth.pipeline.inputs import find_duplicate_documents, split_documents
from stillroom.synth.seeds import read_seed_passages
from stillroom.train import Loss, RecordSource, TrainSettings, add_lora, train
from stillroom.train.loop import STATE_FILE
from stillroom.train.precision import autocast_body, choose_precision

__all__ = [
    "FRESH",
    "TRUNCATED",
    "HumanSplit",
    "StudentSettings",
    "StudentTrainer",
    "count_student_parameters",
    "describe_origins",
    "is_plain",
    "read_human_records",
    "sample_records",
    "split_human_records",
]


FRESH = "fresh"
TRUNCATED = "cut"
"""The field of a record whose text goes on: its end is not learned."""

_SMALL = 20_000_000
_ROWS_SMALL, _ROWS = 256, 16


class StudentSettings(Settings):
    """What a student is and how it learns."""

    start: str = Field(default=FRESH, description="'fresh' for random weights, or a checkpoint")
    layers: int = Field(default=2, ge=1, description="layers of a fresh student")
    hidden: int = Field(default=128, ge=16, multiple_of=16, description="its width")
    vocabulary: int = Field(default=1024, ge=260, description="tokens of its tokenizer")
    max_tokens: int = Field(default=128, ge=8, description="most tokens of a record")
    train: TrainSettings = Field(default_factory=TrainSettings, description="how it learns")


@dataclass(frozen=True, slots=True)
class _StudentBatch:
    """Records padded to one width, and the places of what is learned."""

    ids: Tensor  # (B, T)
    flat: Tensor  # (N,), into B * T
    labels: Tensor  # (N,)
    record_ids: tuple[str, ...]
    tokens: int

    @property
    def valid(self) -> int:
        """Number of positions that bear loss."""
        return int(self.flat.shape[0])


class StudentTrainer:
    """Makes, trains and measures students of one kind.

    Use within ``fixed_threads``, so that sums are split alike each time.
    """

    def __init__(self, settings: StudentSettings, texts: Iterable[str], job: Job) -> None:
        """Set up.

        Args:
            settings: What they are and how they learn.
            texts: A fresh student's tokenizer is made from these.
            job: Holds their first weights, and the state of one that is being trained.
        """
        self.settings, self._job = settings, job
        self._texts = texts
        self._folders: dict[int, Path] = {}

    @property
    def is_fresh(self) -> bool:
        """Whether they start from random weights."""
        return self.settings.start == FRESH

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of all of them."""
        from stillroom.models.local.causal_lm import load_tokenizer

        return load_tokenizer(self._folder(0))

    @cached_property
    def parameters(self) -> int:
        """How many numbers one has."""
        return Checkpoint.open(self._folder(0)).parameters

    @property
    def fingerprint(self) -> str:
        """What the one of seed 0 starts from."""
        return Checkpoint.open(self._folder(0)).fingerprint

    def encode(self, records: Sequence[Record]) -> list[EncodedConversation]:
        """Return records as tokens with what is learned marked.

        Plain text stands between the tokenizer's first and last token; of one that is ``cut`` the
        last is not there.
        """
        return [self._encode(record) for record in records]

    def fits(self, record: Record) -> bool:
        """Return whether a conversation is short enough, and has something to learn."""
        found = self._encode(record)
        return not found.truncated and bool(found.targets)

    def cut(self, record: Record) -> list[Record]:
        """Return a plain text in pieces that fit; all but the last are marked as ``cut``."""
        room = self.settings.max_tokens - 2
        text = record.messages[0].content
        told = self._tokens(text, return_offsets_mapping=True)
        offsets = told["offset_mapping"]
        if len(offsets) <= room:
            return [record]
        begins = [offsets[at][0] for at in range(0, len(offsets), room)]
        ends = [*begins[1:], len(text)]
        return [
            replace(
                record,
                messages=(Message("assistant", text[begin:end]),),
                fields={**record.fields, **({TRUNCATED: True} if end < len(text) else {})},
            )
            for begin, end in zip(begins, ends, strict=True)
        ]

    def teach(self, encoded: Sequence[EncodedConversation], seed: int, name: str) -> Any:
        """Return a student of a seed that has learned from some records.

        Args:
            encoded: From ``encode``; at least one with something to learn.
            seed: Draws its weights, if it is fresh, and the order of records.
            name: Of the training; a killed job goes on with that of the same name.
        """
        model = self.begin(seed)
        settings = self.settings.train
        if settings.lora is not None:
            model = add_lora(model, settings.lora, seed)
        useful = [one for one in encoded if one.targets]
        source = RecordSource(
            useful,
            ids=[digest_json(one.ids) for one in useful],
            lengths=[len(one.ids) for one in useful],
            valid=[len(one.targets) for one in useful],
            load=_load,
            batch_size=settings.batch_size,
            micro_tokens=settings.micro_tokens,
            seed=seed,
        )
        train(model, source, _compute_loss, settings, self._job, seed=seed, name=name)
        model.eval()
        return model

    def forget(self, name: str) -> None:
        """Remove the saved state of a training whose outcome is journaled."""
        (self._job.scratch / f"{name}-{STATE_FILE}").unlink(missing_ok=True)

    def begin(self, seed: int) -> Any:
        """Return the student of a seed before it has learned anything."""
        model, _ = load_causal_lm(self._folder(seed), dtype="float32")
        return model

    def losses(self, model: Any, encoded: Sequence[EncodedConversation]) -> list[tuple[float, int]]:
        """Return (nats, tokens) of each record under a student."""
        with self._precision(model):
            return encoded_loss(model, encoded, batch_tokens=self.settings.train.micro_tokens * 4)

    def write(self, model: Any, records: Sequence[Record], seed: int, link: Link) -> list[Record]:
        """Return as many records of the student's own, drawn at temperature 1.

        A plain text is written from nothing; of a conversation the last assistant message is
        written anew. One that did not end within as many tokens as the longest of the given ones
        has is marked as ``cut``.

        Args:
            model: From ``teach``.
            records: What stands in for.
            seed: Of the draws.
            link: Added to the records' chain of origin.
        """
        prompts = [self._prompt(record) for record in records]
        longest = max(len(one.targets) for one in self.encode(records))
        with self._precision(model):
            written = complete_prompts(
                model,
                self.tokenizer,
                prompts,
                max_new_tokens=max(longest, 1),
                temperature=1.0,
                seed=seed,
                batch_size=_ROWS_SMALL if self.parameters < _SMALL else _ROWS,
                on_done=lambda count: self._job.check_cancelled(),
            )
        made = []
        for record, told in zip(records, written, strict=True):
            text = self.tokenizer.decode(told.ids, skip_special_tokens=True)
            fields = {key: value for key, value in record.fields.items() if key != TRUNCATED}
            if not told.has_ended:
                fields[TRUNCATED] = True
            before = () if is_plain(record) else record.messages[:-1]
            origin = Origin("synthetic", (*record.origin.chain, link), record.origin.license)
            made.append(Record((*before, Message("assistant", text)), fields, origin))
        return made

    def _precision(self, model: Any) -> Any:
        device = next(model.parameters()).device
        return autocast_body(choose_precision(self.settings.train.precision, device), device)

    def _prompt(self, record: Record) -> list[int]:
        if is_plain(record):
            return [self._first]
        text = render_chat(self.tokenizer, record.messages[:-1], add_generation_prompt=True)
        return list(self._tokens(text)["input_ids"])

    def _tokens(self, text: str, **more: Any) -> Any:
        """Return a text's tokens; texts longer than a student reads are cut by the caller."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False, **more)

    def _encode(self, record: Record) -> EncodedConversation:
        limit = self.settings.max_tokens
        if not is_plain(record):
            found = encode_record(self.tokenizer, record, max_tokens=limit)
            return _drop_end(found, self._last) if record.fields.get(TRUNCATED) else found
        text = record.messages[0].content
        ids = [self._first, *self._tokens(text)["input_ids"]]
        if not record.fields.get(TRUNCATED):
            ids.append(self._last)
        marks = (False, *[True] * (len(ids) - 1))
        return EncodedConversation(tuple(ids[:limit]), marks[:limit], max(len(ids) - limit, 0))

    @property
    def _first(self) -> int:
        known = self.tokenizer.bos_token_id
        return int(known if known is not None else self._last)

    @property
    def _last(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def _folder(self, seed: int) -> Path:
        if not self.is_fresh:
            seed = 0
        if seed not in self._folders:
            self._folders[seed] = self._make_folder(seed)
        return self._folders[seed]

    def _make_folder(self, seed: int) -> Path:
        settings = self.settings
        if not self.is_fresh:
            return Checkpoint.open(resolve_checkpoint(settings.start, say=self._job.say)).folder
        return write_random_checkpoint(
            self._job.scratch / f"start-{seed}",
            self._texts,
            seed=seed,
            layers=settings.layers,
            hidden=settings.hidden,
            intermediate=4 * settings.hidden,
            vocabulary=settings.vocabulary,
            context_length=max(settings.max_tokens, 64),
        )


def is_plain(record: Record) -> bool:
    """Return whether a record is plain text and no conversation."""
    return len(record.messages) == 1 and record.messages[0].role == "assistant"


def _drop_end(encoded: EncodedConversation, last: int) -> EncodedConversation:
    marks = list(encoded.is_assistant)
    if encoded.targets and encoded.ids[encoded.targets[-1]] == last:
        marks[encoded.targets[-1]] = False
    return EncodedConversation(encoded.ids, tuple(marks), encoded.truncated)


def _load(records: Sequence[EncodedConversation]) -> _StudentBatch:
    width = max(len(one.ids) for one in records)
    ids = np.zeros((len(records), width), dtype=np.int64)
    flat, labels = [], []
    for row, one in enumerate(records):
        ids[row, : len(one.ids)] = one.ids
        targets = np.asarray(one.targets)
        flat.append(row * width + targets - 1)
        labels.append(ids[row, targets])
    return _StudentBatch(
        torch.from_numpy(ids),
        torch.from_numpy(np.concatenate(flat)),
        torch.from_numpy(np.concatenate(labels)),
        tuple(digest_json(one.ids)[:12] for one in records),
        sum(len(one.ids) for one in records),
    )


def _compute_loss(model: nn.Module, lesson: _StudentBatch) -> Loss:
    """Return the summed cross-entropy of a micro-batch; padding stands right and is never seen."""
    whole: Any = model
    body = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
    device = next(model.parameters()).device
    inner = getattr(body, body.base_model_prefix)
    hidden = inner(input_ids=lesson.ids.to(device), use_cache=False).last_hidden_state  # (B, T, D)
    picked = hidden.reshape(-1, hidden.shape[-1])[lesson.flat.to(device)]  # (N, D)
    logits = body.get_output_embeddings()(picked).float()  # (N, V)
    labels = lesson.labels.to(device)
    return Loss(nn.functional.cross_entropy(logits, labels, reduction="sum"))


_RECIPES = (".yaml", ".yml")
_MIN_RECORDS = 8


@dataclass(frozen=True, slots=True)
class HumanSplit:
    """Records to learn from, and those kept aside."""

    train: list[Record]
    held_out: list[Record]


def read_human_records(path: Path) -> list[Record]:
    """Return the records that a path names.

    Args:
        path: A file of records or of text (a line a record), an artifact of records, an index, a
            file of passages, or a recipe of kind synth, whose passages are taken.

    Raises:
        DataError: If there is nothing in it, or it cannot be read.
        RecipeError: If it is a recipe of another kind.
    """
    if path.suffix in _RECIPES:
        return _read_recipe(path)
    try:
        records = list(read_records(path))
    except DataError as error:
        if path.is_file() and error.problems[0].code == "data.missing":
            raise
        return _passages(str(path))
    useful = [record for record in records if record.messages[-1].content.strip()]
    return [record for record in useful if record.messages[-1].role == "assistant"]


def split_human_records(records: Sequence[Record], share: float, seed: int) -> HumanSplit:
    """Return the records in two, a document whole on one side, with its copies.

    Where records name their split, ``held_out`` and ``test`` are kept aside and the rest learned
    from; else a share of the documents is kept aside, by hash.

    Raises:
        DataError: If a side has too few records for an experiment.
    """
    if any(record.fields.get("split") in {"held_out", "test"} for record in records):
        held = [one for one in records if one.fields.get("split") in {"held_out", "test"}]
        train = [one for one in records if one.fields.get("split") not in {"held_out", "test"}]
    else:
        names = [str(one.fields.get("document_id") or one.id) for one in records]
        pairs = list(zip(records, names, strict=True))
        parts: dict[str, list[Record]] = {}
        for one, name in pairs:
            parts.setdefault(name, []).append(one)
        sides = split_documents(parts, share, seed, find_duplicate_documents(parts))
        train = [one for one, name in pairs if sides[name] == "train"]
        held = [one for one, name in pairs if sides[name] == "held_out"]
    if min(len(train), len(held)) < _MIN_RECORDS:
        raise DataError(
            f"{len(train)} records to learn from, {len(held)} kept aside",
            code="synth.too-few",
            expected=f"{_MIN_RECORDS} or more on each side",
            next="give more records, or more documents",
        )
    return HumanSplit(train, held)


def sample_records(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """Return so many records, or all, chosen and ordered by hash."""
    order = sorted(
        range(len(records)), key=lambda at: (digest_json([seed, records[at].id, at]), at)
    )
    return [records[at] for at in order[:count]]


def describe_origins(records: Sequence[Record]) -> str:
    """Return a sentence where not all records are known to be written by people, else nothing."""
    kinds = Counter(record.origin.kind for record in records)
    odd = ", ".join(f"{kinds[kind]} {kind}" for kind in ("unknown", "synthetic") if kinds[kind])
    if not odd:
        return ""
    return f"Of {len(records)} records taken as human, by their origin {odd}."


def _passages(reference: str) -> list[Record]:
    return [
        Record(
            (Message("assistant", passage.text),),
            {"document_id": passage.document_id, "passage_id": passage.id},
            passage.origin,
        )
        for passage in read_seed_passages(reference).passages
    ]


def _read_recipe(path: Path) -> list[Record]:
    """Return what a recipe starts from: its passages, or its records of seeds."""
    from stillroom.errors import RecipeError
    from stillroom.recipes import load_recipe
    from stillroom.synth.recipe import SynthRecipe

    recipe = load_recipe(path)
    if isinstance(recipe, SynthRecipe) and recipe.index:
        return _passages(recipe.index)
    if isinstance(recipe, SynthRecipe) and recipe.seeds:
        return read_human_records(resolve_local(recipe.seeds))
    raise RecipeError(
        f"this recipe of kind {recipe.kind} starts from no passages and no records",
        code="recipe.wrong-kind",
        where=str(path),
        expected="kind: synth, with index or seeds",
        next="name a file of records, or such a recipe",
    )


def count_student_parameters(settings: StudentSettings) -> int:
    """Return how many numbers a student has, without making it."""
    if settings.start != "fresh":
        from stillroom.checkpoints import Checkpoint
        from stillroom.models import resolve_checkpoint

        return Checkpoint.open(resolve_checkpoint(settings.start)).parameters
    width = settings.hidden
    layer = 3 * width * width + 3 * 4 * width * width
    return settings.vocabulary * width + settings.layers * layer
