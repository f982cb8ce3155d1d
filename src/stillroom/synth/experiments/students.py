"""Small student models trained to evaluate their training data.

A student starts from random weights with its own tokenizer, or from a checkpoint with LoRA
adapters; it is trained with the shared training loop and evaluated on held-out records. Two
students of one seed start from the same weights and see the same number of records in each step,
whatever they train on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.random_init import write_random_checkpoint
from stillroom.evaluate.lm.loss import encoded_loss
from stillroom.jobs import Job
from stillroom.models import load_model_only, resolve_checkpoint
from stillroom.models.hub import find_config
from stillroom.models.tokenization.assistant_mask import EncodedConversation, encode_conversation
from stillroom.provenance import digest_json
from stillroom.records import Record
from stillroom.synth.experiments.ablations import is_plain
from stillroom.synth.settings import CheckpointStudent, FreshStudent
from stillroom.train import Loss, RecordSource, add_lora, train
from stillroom.train.loop import STATE_FILE
from stillroom.train.lora import check_lora_config
from stillroom.train.precision import autocast_body, choose_precision

__all__ = ["StudentTrainer"]


@dataclass(frozen=True, slots=True)
class _StudentBatch:
    """Records padded to one width, and the positions of their targets."""

    ids: Tensor  # (B, T)
    flat: Tensor  # (N,), into B * T
    labels: Tensor  # (N,)
    record_ids: tuple[str, ...]
    tokens: int

    @property
    def valid(self) -> int:
        """Number of positions that contribute to the loss."""
        return int(self.flat.shape[0])


class StudentTrainer:
    """Trainer and evaluator of students with the same settings.

    Use within ``limit_threads``, so that sums are split the same way each time.
    """

    def __init__(
        self, settings: FreshStudent | CheckpointStudent, texts: Iterable[str], job: Job
    ) -> None:
        self.settings, self._job = settings, job
        self._texts = texts
        self._folders: dict[int, Path] = {}
        if isinstance(settings, CheckpointStudent):
            config = find_config(settings.checkpoint, fetch=True)
            if warning := check_lora_config(settings.train.lora, config):
                job.warn(warning)

    @property
    def is_fresh(self) -> bool:
        """Whether students start from random weights."""
        return isinstance(self.settings, FreshStudent)

    @cached_property
    def tokenizer(self) -> Any:
        """Tokenizer of all students."""
        from stillroom.models.local.causal_lm import load_tokenizer

        return load_tokenizer(self._folder(0))

    @cached_property
    def parameters(self) -> int:
        """Number of parameters of a student."""
        return Checkpoint.open(self._folder(0)).parameters

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the initial weights of seed 0."""
        return Checkpoint.open(self._folder(0)).fingerprint

    def encode(self, records: Sequence[Record]) -> list[EncodedConversation]:
        """Tokenize records and mark the targets.

        Plain text is enclosed in the tokenizer's first and last token; a truncated one has no last.
        """
        return [self._encode(record) for record in records]

    def fits(self, record: Record) -> bool:
        """Return whether a conversation fits the token limit and has targets."""
        encoded = self._encode(record)
        return not encoded.truncated and bool(encoded.targets)

    def train(self, encoded: Sequence[EncodedConversation], seed: int, name: str) -> Any:
        """Train and return a student.

        Args:
            encoded: Result of ``encode``; at least one record with targets.
            seed: Seed of the weights, if fresh, and of the order of records.
            name: Name of the training; a resumed job continues the one of the same name.
        """
        model = self.create(seed)
        settings = self.settings.train
        if settings.lora is not None:
            model = add_lora(model, settings.lora, seed)
        trainable = [conversation for conversation in encoded if conversation.targets]
        source = RecordSource(
            trainable,
            ids=[digest_json(conversation.ids) for conversation in trainable],
            lengths=[len(conversation.ids) for conversation in trainable],
            valid=[len(conversation.targets) for conversation in trainable],
            load=_load,
            batch_size=settings.batch_size,
            micro_tokens=settings.micro_tokens,
            seed=seed,
        )
        train(model, source, _compute_loss, settings, self._job, seed=seed, name=name)
        model.eval()
        return model

    def forget(self, name: str) -> None:
        """Remove the saved state of a training whose result is journaled."""
        (self._job.scratch / f"{name}-{STATE_FILE}").unlink(missing_ok=True)

    def create(self, seed: int) -> Any:
        """Return the untrained student of a seed."""
        return load_model_only(self._folder(seed), dtype="float32")

    def losses(self, model: Any, encoded: Sequence[EncodedConversation]) -> list[tuple[float, int]]:
        """Return (nats, tokens) of each record under a student."""
        with self._precision(model):
            return encoded_loss(model, encoded, batch_tokens=self.settings.train.micro_tokens * 4)

    def _precision(self, model: Any) -> Any:
        device = next(model.parameters()).device
        return autocast_body(choose_precision(self.settings.train.precision, device), device)

    def _encode(self, record: Record) -> EncodedConversation:
        limit, tokenizer = self.settings.max_tokens, self.tokenizer
        if not is_plain(record):
            return encode_conversation(tokenizer, record, max_tokens=limit)
        text, last = record.messages[0].content, tokenizer.eos_token_id
        known = tokenizer.bos_token_id
        tokens = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        ids = [last if known is None else known, *tokens, last]
        marks = (False, *[True] * (len(ids) - 1))
        return EncodedConversation(tuple(ids[:limit]), marks[:limit], max(len(ids) - limit, 0))

    def _folder(self, seed: int) -> Path:
        if not self.is_fresh:
            seed = 0
        if seed not in self._folders:
            self._folders[seed] = self._make_folder(seed)
        return self._folders[seed]

    def _make_folder(self, seed: int) -> Path:
        settings = self.settings
        if isinstance(settings, CheckpointStudent):
            return Checkpoint.open(
                resolve_checkpoint(settings.checkpoint, say=self._job.say)
            ).folder
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


def _load(records: Sequence[EncodedConversation]) -> _StudentBatch:
    width = max(len(conversation.ids) for conversation in records)
    ids = np.zeros((len(records), width), dtype=np.int64)
    flat, labels = [], []
    for row, conversation in enumerate(records):
        ids[row, : len(conversation.ids)] = conversation.ids
        targets = np.asarray(conversation.targets)
        flat.append(row * width + targets - 1)
        labels.append(ids[row, targets])
    return _StudentBatch(
        torch.from_numpy(ids),
        torch.from_numpy(np.concatenate(flat)),
        torch.from_numpy(np.concatenate(labels)),
        tuple(digest_json(conversation.ids)[:12] for conversation in records),
        sum(len(conversation.ids) for conversation in records),
    )


def _compute_loss(model: nn.Module, batch: _StudentBatch) -> Loss:
    """Return the summed cross-entropy of a micro-batch; padding is on the right and masked."""
    wrapped: Any = model
    body = wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped
    device = next(model.parameters()).device
    inner = getattr(body, body.base_model_prefix)
    hidden = inner(input_ids=batch.ids.to(device), use_cache=False).last_hidden_state  # (B, T, D)
    picked = hidden.reshape(-1, hidden.shape[-1])[batch.flat.to(device)]  # (N, D)
    logits = body.get_output_embeddings()(picked).float()  # (N, V)
    labels = batch.labels.to(device)
    return Loss(nn.functional.cross_entropy(logits, labels, reduction="sum"))
