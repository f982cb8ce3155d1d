"""Read and copy files of a downloaded folder, which may be hostile."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from stillroom.errors import CheckpointError
from stillroom.provenance.digests import load_json

__all__ = [
    "copy_file",
    "find_file",
    "make_config_error",
    "open_config",
    "read_config",
    "read_end_tokens",
]

_MAX_BYTES = 10_000_000


def read_config(path: Path, kind: type = dict) -> Any:
    """Return the JSON object, or list, in a file; links are followed, as caches of the hub need.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is a pipe or a device, over 10 MB, or not JSON of this kind.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError("it is not a regular file")
    if size > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES} bytes")
    config = load_json(path.read_text(encoding="utf-8-sig"))
    if not isinstance(config, kind):
        raise ValueError(f"it is not a {'mapping' if kind is dict else kind.__name__}")
    return config


def open_config(path: Path, expected: str = "a JSON object") -> dict[str, Any]:
    """Do as ``read_config``, with an error for the user.

    Raises:
        CheckpointError: If the file cannot be read.
    """
    try:
        config: dict[str, Any] = read_config(path)
    except (OSError, ValueError) as error:
        raise make_config_error(path, f"{error!s:.200}", expected) from error
    return config


def make_config_error(path: Path, problem: str, expected: str) -> CheckpointError:
    """Return the error for a config of a checkpoint that cannot be used."""
    return CheckpointError(
        f"{path.name} cannot be read: {problem}",
        code="checkpoint.config",
        where=str(path.parent),
        expected=expected,
        next="check that the download is complete",
    )


def read_end_tokens(folder: Path, *names: str) -> list[int]:
    """Return the ids of end tokens (EOS) in the configs of a checkpoint that it has.

    Raises:
        CheckpointError: If a config cannot be read, or states something else than ids.
    """
    ends: list[int] = []
    for path in (folder / name for name in names if (folder / name).exists()):
        value = open_config(path).get("eos_token_id")
        ids = value if isinstance(value, list) else [value]
        if not all(end is None or (isinstance(end, int) and abs(end) < 2**31) for end in ids):
            problem = f"its eos_token_id is {value!r:.80}"
            raise make_config_error(path, problem, "the id of a token, or a list of them")
        ends += [end for end in ids if end is not None]
    return ends


def find_file(name: str, folder: Path) -> Path | None:
    """Return the path without links of a checkpoint's file; None if there is none.

    A link may lead to a file of the folder, or to the blobs of the same repository in the hub's
    cache. Others could carry any file of this machine into a checkpoint that is published.

    Raises:
        CheckpointError: If it is a link to something else.
    """
    file = folder / name
    if not file.is_file():
        return None
    home, target = folder.resolve(), file.resolve()
    blobs = target.parent
    is_cached = blobs.name == "blobs" and blobs.parent / "snapshots" in home.parents
    if home not in target.parents and not is_cached:
        raise CheckpointError(
            f"{name} is a link to {target}, outside of the checkpoint",
            code="checkpoint.link",
            where=str(file),
            expected="a file, or a link within the checkpoint or to blobs of its hub cache",
            next="if you trust that file, put a copy of it in the place of the link",
        )
    return target


def copy_file(name: str, from_folder: Path, to_folder: Path) -> bool:
    """Copy a file of a checkpoint to another; return whether there is one.

    Raises:
        CheckpointError: If it is a link that leads out of the checkpoint; see ``find_file``.
    """
    file = find_file(name, from_folder)
    if file is not None:
        shutil.copyfile(file, to_folder / name)
    return file is not None
