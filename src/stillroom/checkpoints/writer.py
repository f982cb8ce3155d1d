"""Checkpoint writer: tensor by tensor, in bounded memory, with reproducible bytes.

With a plan (names, types and shapes known beforehand) every block of rows goes straight to its
place in its shard. Without one, tensors go to one scratch file first and are moved to their shards
at the end. Both give the same bytes. The folder appears under its name only when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from stillroom.checkpoints.card import write_card
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
from stillroom.jobs import atomic_write, replace_folder, sync_folder
from stillroom.jobs.files import full_disk_as_error

if TYPE_CHECKING:
    import torch

__all__ = ["TOKENIZER_FILES", "CheckpointWriter", "plan_tensors"]

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


class CheckpointWriter:
    """Writes config, weights, tokenizer and card of one checkpoint.

    Use as a context manager; ``add`` each tensor once, in any order. An exception in the body
    leaves nothing behind, except with ``in_place``, where the caller owns the folder.
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
            folder: Where the checkpoint will stand; an old one there is replaced at the end.
            config: What config.json will say; its dtype follows from the weights.
            shard_size: Most bytes of tensors in one file.
            dtype: Floating-point tensors are stored as this; default each as it comes.
            plan: Types and shapes of all tensors by name, where they are known; see
                ``plan_tensors``. With it nothing is written twice.
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
        self._plan: dict[str, TensorShape] = {}
        self._planned = plan is not None
        self._layout: ShardLayout | None = None
        self._files: dict[str, int] = {}
        self._spots: dict[str, int] = {}
        self._end = 0
        self._work = folder if in_place else folder.with_name(f".{folder.name}.writing")
        if plan is not None:
            self._plan = {name: (self._stored(kind), shape) for name, (kind, shape) in plan.items()}
            self._layout = plan_shards(self._plan, shard_size)

    def __enter__(self) -> CheckpointWriter:
        """Make the working folder and, with a plan, the shards at their final size."""
        with full_disk_as_error(self.folder):
            if not self._in_place and self._work.exists():
                shutil.rmtree(self._work)
            self._work.mkdir(parents=True, exist_ok=True)
            if self._layout is not None:
                self._lay_shards(self._layout)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Finish and publish the folder, or remove it if the body failed."""
        try:
            if kind is None:
                with full_disk_as_error(self._work):
                    self._finish()
        finally:
            for descriptor in self._files.values():
                os.close(descriptor)
            self._files = {}
            if not self._in_place and self._work.exists():
                shutil.rmtree(self._work)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor, (any shape), cast to the stored type.

        Raises:
            CheckpointError: If the name came before, or the plan says otherwise.
            ResourceError: If the disk is full.
        """
        self.begin(name, (_name_dtype(tensor.dtype), tuple(tensor.shape)))
        row = 0
        for block in _split(tensor):
            self.write_rows(name, row, block)
            row += block.shape[0] if block.dim() else 1
        self.end(name)

    def begin(self, name: str, shape: TensorShape) -> None:
        """Begin a tensor that comes in blocks of rows, from the first to the last.

        Raises:
            CheckpointError: If the name came before, or the plan says otherwise.
        """
        shape = (self._stored(shape[0]), shape[1])
        if name in self.digests or name in self._spots:
            raise _unplanned(name, "was written before", "each tensor once")
        if self._planned and self._plan.get(name) != shape:
            raise _unplanned(name, f"comes as {shape}", f"{self._plan.get(name, 'no such name')}")
        self._plan[name] = shape
        self._hash = Hasher()
        if self._layout is None:
            place = TensorLocation(_SCRATCH, self._end, *shape)
            self._spots[name] = self._end
            self._end += place.size_bytes
        else:
            place = self._layout.places[name]
        self._place = place

    def write_rows(self, name: str, start: int, rows: torch.Tensor) -> None:
        """Write the next rows of the begun tensor, (rows, ...), at row ``start``.

        Raises:
            ResourceError: If the disk is full.
        """
        data = as_bytes(rows.to(torch_dtype(self._plan[name][0])))
        self.place_rows(name, start, data)
        self.note_rows(data)

    def place_rows(self, name: str, start: int, data: memoryview) -> None:
        """Write rows of the begun tensor, as bytes, at row ``start``; any thread, any order.

        ``note_rows`` must get the same bytes too.

        Raises:
            ResourceError: If the disk is full.
        """
        with full_disk_as_error(self._work):
            _write_at(
                self._descriptor(self._place.file),
                data,
                self._place.start + start * self._place.row_bytes,
            )

    def note_rows(self, data: memoryview) -> None:
        """Take the begun tensor's next bytes into its digest, from the first row to the last."""
        self._hash.update(data)

    def end(self, name: str) -> str:
        """End the begun tensor and return the digest of its bytes."""
        self.digests[name] = self._hash.hexdigest()
        return self.digests[name]

    def keep(self, name: str, digest: str) -> bool:
        """Take over a tensor that a killed run wrote in place, if its bytes are what they were.

        Args:
            name: The tensor.
            digest: What ``end`` returned then.

        Returns:
            Whether it stands; if not, it has to be written again.
        """
        if self._layout is None or name not in self._layout.places:
            return False
        place = self._layout.places[name]
        found, offset = Hasher(), place.start
        stop = place.start + place.size_bytes
        while offset < stop:
            data = os.pread(self._descriptor(place.file), min(1 << 22, stop - offset), offset)
            if not data:
                return False
            found.update(data)
            offset += len(data)
        if found.hexdigest() != digest:
            return False
        self.digests[name] = digest
        return True

    def copy_tokenizer(self, from_folder: Path) -> list[str]:
        """Copy tokenizer files, chat template and generation config; return their names."""
        copied = []
        with full_disk_as_error(self._work):
            for name in TOKENIZER_FILES:
                if (from_folder / name).is_file():
                    shutil.copyfile(from_folder / name, self._work / name)
                    copied.append(name)
        return copied

    def write_card(
        self,
        title: str,
        body: str,
        *,
        license: str = "",
        base_models: Sequence[str] = (),
        relation: str = "",
        tags: Sequence[str] = (),
    ) -> None:
        """Write README.md: front matter for hubs, and the lineage in words."""
        write_card(
            self._work,
            title,
            body,
            license=license,
            base_models=base_models,
            relation=relation,
            tags=tags,
        )

    @property
    def work(self) -> Path:
        """The folder that is written to until all is whole; files put there come along."""
        return self._work

    @property
    def fingerprint(self) -> str:
        """The checkpoint's fingerprint, once every tensor is written."""
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
        if not self._in_place:
            sync_folder(self._work)
            replace_folder(self._work, self.folder)

    def _move_scratch(self, layout: ShardLayout) -> None:
        scratch = self._descriptor(_SCRATCH)
        for name, place in layout.places.items():
            done = 0
            while done < place.size_bytes:
                data = os.pread(
                    scratch, min(1 << 22, place.size_bytes - done), self._spots[name] + done
                )
                _write_at(self._descriptor(place.file), memoryview(data), place.start + done)
                done += len(data)
        os.close(self._files.pop(_SCRATCH))
        (self._work / _SCRATCH).unlink()

    def _final_config(self) -> dict[str, Any]:
        """Return the config with the dtype that most of the weights have."""
        counts: dict[str, int] = {}
        for name, (dtype, _) in sorted(self._plan.items()):
            if dtype in FLOATS and self._layout is not None:
                counts[dtype] = counts.get(dtype, 0) + self._layout.places[name].size_bytes
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
    """Return the plan of tensors that are in memory, for ``CheckpointWriter(plan=...)``."""
    return {
        name: (_name_dtype(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()
    }


def _split(tensor: torch.Tensor, block_bytes: int = 16 << 20) -> Sequence[torch.Tensor]:
    """Split a tensor into blocks of rows, so that a cast never copies the whole."""
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


def _unplanned(name: str, what: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"tensor '{name:.120}' {what}",
        code="checkpoint.plan",
        where=name,
        expected=expected,
        next="give the writer the tensors that its plan names",
    )


def _name_dtype(dtype: torch.dtype) -> str:
    """Return the safetensors name of a torch type."""
    names = {long: short for short, long in LONG_NAMES.items()}
    return names[str(dtype).removeprefix("torch.")]
