"""Checkpoint writer: tensor by tensor, in bounded memory, with reproducible bytes.

With a plan (names, types and shapes known beforehand), every block of rows is written directly to
its position in its shard. Without one, tensors are first written to a scratch file and moved to
their shards at the end. Both give the same bytes. The folder appears under its name only when
complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from stillroom.checkpoints.card import CardFields, write_card
from stillroom.checkpoints.config_file import copy_file, find_file
from stillroom.checkpoints.digests import Hasher, as_bytes, fingerprint_of
from stillroom.checkpoints.safetensors_format import (
    FLOATS,
    LONG_NAMES,
    ShardLayout,
    TensorLocation,
    TensorShape,
    plan_shards,
)
from stillroom.checkpoints.store import INDEX_FILE, torch_dtype
from stillroom.errors import CheckpointError
from stillroom.jobs import atomic_write, sync_folder
from stillroom.jobs.files import draft_folder
from stillroom.jobs.job import write_artifact
from stillroom.objects.disk import full_disk_as_error

if TYPE_CHECKING:
    import torch

    from stillroom.provenance import Parent
    from stillroom.records import Origin

__all__ = ["TOKENIZER_FILES", "CheckpointWriter", "check_links", "plan_tensors"]

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
DEFAULT_SHARD_SIZE = 5_000_000_000
_SCRATCH = ".tensors.part"


def check_links(folder: Path) -> None:
    """Refuse a checkpoint whose tokenizer could not be copied after hours of training.

    Raises:
        CheckpointError: If a file is a link that leads out of the folder.
    """
    for name in TOKENIZER_FILES:
        find_file(name, folder)


class CheckpointWriter:
    """Writes config, weights, tokenizer and card of one checkpoint.

    Use as a context manager; ``add`` each tensor once, in any order. An exception in the body
    removes the output, except with ``in_place``, where the caller owns the folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: Mapping[str, Any],
        shard_size: int = DEFAULT_SHARD_SIZE,
        dtype: torch.dtype | None = None,
        plan: Mapping[str, TensorShape] | None = None,
        in_place: bool = False,
    ) -> None:
        """Prepare to write ``folder``.

        Args:
            folder: Output folder; an existing one is replaced at the end.
            config: Contents of config.json; its dtype is derived from the weights.
            shard_size: Maximum bytes of tensors per file.
            dtype: Storage type of floating-point tensors; default unchanged.
            plan: Types and shapes of all tensors by name, if known; see ``plan_tensors``. With it,
                nothing is written twice.
            in_place: Write into ``folder`` itself and keep it on failure, for jobs that resume.
                Needs a plan.
        """
        if in_place and plan is None:
            raise ValueError("in_place needs a plan")
        self.folder = folder
        self.config = dict(config)
        self.shard_size = shard_size
        self.dtype = dtype
        self.digests: dict[str, str] = {}
        self._in_place = in_place
        self._stated: dict[str, Any] = {}
        self._plan: dict[str, TensorShape] = {}
        self._planned = plan is not None
        self._layout: ShardLayout | None = None
        self._files: dict[str, int] = {}
        self._scratch_offsets: dict[str, int] = {}
        self._end = 0
        self._work = folder
        self._exits = ExitStack()
        if plan is not None:
            self._plan = {name: (self._stored(kind), shape) for name, (kind, shape) in plan.items()}
            self._layout = plan_shards(self._plan, shard_size)

    def __enter__(self) -> CheckpointWriter:
        """Create the working folder and, with a plan, the shards at their final size.

        Raises:
            ResourceError: If another process writes the folder, or the disk is full.
        """
        with ExitStack() as exits:
            if not self._in_place:
                self._work = exits.enter_context(draft_folder(self.folder))
            exits.push(self._close)
            with full_disk_as_error(self.folder):
                self._work.mkdir(parents=True, exist_ok=True)
                if self._layout is not None:
                    self._lay_shards(self._layout)
            self._exits = exits.pop_all()
        return self

    def __exit__(self, *details: Any) -> None:
        """Finish and publish the folder, or remove it if the body failed."""
        self._exits.__exit__(*details)

    def _close(self, kind: type[BaseException] | None, *details: object) -> None:
        try:
            if kind is None:
                with full_disk_as_error(self._work):
                    self._finish()
        finally:
            for descriptor in self._files.values():
                os.close(descriptor)
            self._files = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor, (any shape), cast to the storage type.

        Raises:
            CheckpointError: If the name was written before, or contradicts the plan.
            ResourceError: If the disk is full.
        """
        self.begin(name, (_name_dtype(tensor.dtype), tuple(tensor.shape)))
        row = 0
        for block in _split(tensor):
            self.write_rows(name, row, block)
            row += block.shape[0] if block.dim() else 1
        self.end(name)

    def begin(self, name: str, shape: TensorShape) -> None:
        """Start a tensor that is written in blocks of rows, in order.

        Raises:
            CheckpointError: If the name was written before, or contradicts the plan.
        """
        shape = (self._stored(shape[0]), shape[1])
        if name in self.digests or name in self._scratch_offsets:
            raise _unplanned(name, "was written before", "each tensor once")
        if self._planned and self._plan.get(name) != shape:
            raise _unplanned(name, f"is {shape}", f"{self._plan.get(name, 'no such name')}")
        self._plan[name] = shape
        self._hash = Hasher()
        if self._layout is None:
            location = TensorLocation(_SCRATCH, self._end, *shape)
            self._scratch_offsets[name] = self._end
            self._end += location.size_bytes
        else:
            location = self._layout.locations[name]
        self._location = location

    def write_rows(self, name: str, start: int, rows: torch.Tensor) -> None:
        """Write the next rows of the current tensor, (rows, ...), at row ``start``.

        Raises:
            ResourceError: If the disk is full.
        """
        data = as_bytes(rows.to(torch_dtype(self._plan[name][0])))
        self.place_rows(name, start, data)
        self.note_rows(data)

    def place_rows(self, name: str, start: int, data: memoryview) -> None:
        """Write rows of the current tensor, as bytes, at row ``start``; any thread, any order.

        The same bytes must be passed to ``note_rows``, too.

        Raises:
            ResourceError: If the disk is full.
        """
        with full_disk_as_error(self._work):
            _write_at(
                self._descriptor(self._location.file),
                data,
                self._location.start + start * self._location.row_bytes,
            )

    def note_rows(self, data: memoryview) -> None:
        """Add the current tensor's next bytes to its digest, in order of rows."""
        self._hash.update(data)

    def end(self, name: str) -> str:
        """Finish the current tensor and return the digest of its bytes."""
        self.digests[name] = self._hash.hexdigest()
        return self.digests[name]

    def keep(self, name: str, digest: str) -> bool:
        """Keep a tensor that an interrupted run wrote in place, if its bytes are unchanged.

        Args:
            name: Name of the tensor.
            digest: Result of ``end`` at that time.

        Returns:
            Whether it was kept; if not, it must be written again.
        """
        if self._layout is None or name not in self._layout.locations:
            return False
        location = self._layout.locations[name]
        hasher, offset = Hasher(), location.start
        stop = location.start + location.size_bytes
        while offset < stop:
            data = os.pread(self._descriptor(location.file), min(1 << 22, stop - offset), offset)
            if not data:
                return False
            hasher.update(data)
            offset += len(data)
        if hasher.hexdigest() != digest:
            return False
        self.digests[name] = digest
        return True

    def copy_tokenizer(self, from_folder: Path) -> list[str]:
        """Copy tokenizer files, chat template and generation config; return their names.

        Raises:
            CheckpointError: If one is a link that leads out of the folder.
        """
        with full_disk_as_error(self._work):
            return [name for name in TOKENIZER_FILES if copy_file(name, from_folder, self._work)]

    def write_card(self, title: str, body: str, **fields: Unpack[CardFields]) -> None:
        """Write README.md: front matter for the hub, and the lineage in words."""
        write_card(self._work, title, body, **fields)

    def state_artifact(
        self, parents: Sequence[Parent], origin: Origin, details: Mapping[str, Any]
    ) -> None:
        """State in an artifact.json what the folder was made from; for one of no job.

        Args:
            parents: The checkpoint's inputs; see ``provenance.trace_sources``.
            origin: The checkpoint's origin.
            details: The settings, and further metadata.
        """
        self._stated = {"parents": parents, "origin": origin, "details": details}

    @property
    def work(self) -> Path:
        """Working folder until publication; files added to it are published, too."""
        return self._work

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the checkpoint, after every tensor was written."""
        return fingerprint_of(
            (name, dtype, shape, self.digests[name]) for name, (dtype, shape) in self._plan.items()
        )

    def _stored(self, dtype: str) -> str:
        if self.dtype is None or dtype not in FLOATS:
            return dtype
        return _name_dtype(self.dtype)

    def _lay_shards(self, layout: ShardLayout) -> None:
        for stale in [*self._work.glob("*.safetensors"), self._work / INDEX_FILE]:
            if stale.name not in layout.sizes:
                stale.unlink(missing_ok=True)
        for file, header in layout.headers.items():
            descriptor = self._descriptor(file)
            os.ftruncate(descriptor, layout.sizes[file])
            _write_at(descriptor, memoryview(header), 0)

    def _finish(self) -> None:
        missing = sorted(set(self._plan) - set(self.digests))
        if missing or not self._plan:
            raise _unplanned(
                missing[0] if missing else "(any)", "was never written", "every planned tensor"
            )
        if self._layout is None:
            self._layout = plan_shards(self._plan, self.shard_size)
            self._lay_shards(self._layout)
            self._move_scratch(self._layout)
        if self._layout.index:
            with atomic_write(self._work / INDEX_FILE) as file:
                file.write(self._layout.index)
        with atomic_write(self._work / "config.json") as file:
            file.write(json.dumps(self._final_config(), indent=2, ensure_ascii=False) + "\n")
        for descriptor in self._files.values():
            os.fsync(descriptor)
        if self._stated:
            write_artifact(self._work, "checkpoint", name=self.folder.name, **self._stated)
        if not self._in_place:
            sync_folder(self._work)

    def _move_scratch(self, layout: ShardLayout) -> None:
        scratch = self._descriptor(_SCRATCH)
        for name, location in layout.locations.items():
            done = 0
            while done < location.size_bytes:
                data = os.pread(
                    scratch,
                    min(1 << 22, location.size_bytes - done),
                    self._scratch_offsets[name] + done,
                )
                _write_at(self._descriptor(location.file), memoryview(data), location.start + done)
                done += len(data)
        os.close(self._files.pop(_SCRATCH))
        (self._work / _SCRATCH).unlink()

    def _final_config(self) -> dict[str, Any]:
        """Return the config with the most common dtype of the weights."""
        counts: dict[str, int] = {}
        for name, (dtype, _) in sorted(self._plan.items()):
            if dtype in FLOATS and self._layout is not None:
                counts[dtype] = counts.get(dtype, 0) + self._layout.locations[name].size_bytes
        config = dict(self.config)
        if counts:
            key = "torch_dtype" if "torch_dtype" in config else "dtype"
            most = max(sorted(counts), key=lambda dtype: counts[dtype])
            config[key] = LONG_NAMES[most]
        return config

    def _descriptor(self, file: str) -> int:
        if file not in self._files:
            path = self._work / file
            self._files[file] = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        return self._files[file]


def plan_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorShape]:
    """Return the plan of tensors in memory, for ``CheckpointWriter(plan=...)``."""
    return {
        name: (_name_dtype(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()
    }


def _split(tensor: torch.Tensor, block_bytes: int = 16 << 20) -> Sequence[torch.Tensor]:
    """Split a tensor into blocks of rows, so that casting never copies the whole."""
    tensor = tensor.detach().cpu()
    if tensor.dim() == 0 or tensor.numel() == 0:
        return [tensor]
    row = tensor[0].numel() * tensor.element_size()
    step = max(1, block_bytes // max(row, 1))
    return [tensor[start : start + step] for start in range(0, len(tensor), step)]


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(descriptor, data[done:], offset + done)


def _unplanned(name: str, problem: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"tensor '{name:.120}' {problem}",
        code="checkpoint.plan",
        where=name,
        expected=expected,
        next="write the tensors of the plan",
    )


def _name_dtype(dtype: torch.dtype) -> str:
    """Return the safetensors name of a torch type."""
    names = {long: short for short, long in LONG_NAMES.items()}
    return names[str(dtype).removeprefix("torch.")]
