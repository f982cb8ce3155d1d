"""A corpus of JSON lines as a folder of documents, and back from a document to its id.

Judged collections keep all their texts in one file; an index is built of documents. Every row
becomes a text file whose name is its id, percent-encoded, so that no id can leave the folder or
collide with another; ids too long for a file name are refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

from stillroom.errors import DataError
from stillroom.evaluate.collections import CorpusRow

__all__ = ["SUFFIX", "collection_id", "unpack_corpus"]

SUFFIX = ".txt"
_LONGEST_NAME = 250
_FOLDERS = 1000


def unpack_corpus(rows: Iterable[CorpusRow], out: Path, *, overwrite: bool = False) -> int:
    """Write each row of a corpus as a document, its title on a line of its own; return how many.

    The folder appears at once, when all of it is written.

    Args:
        rows: What ``read_corpus`` yields.
        out: The folder to make.
        overwrite: Replace what is there.

    Raises:
        DataError: If the folder is there already, or an id cannot name a file.
    """
    if out.exists() and not overwrite:
        raise DataError(
            f"{out} is there already",
            code="data.exists",
            where=str(out),
            expected="a folder that is not there yet",
            next="give another --out, or --overwrite",
        )
    draft = out.with_name(f".{out.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    count = 0
    for count, row in enumerate(rows, 1):
        name = quote(row.id, safe="")
        if not name or len(name) > _LONGEST_NAME:
            raise DataError(
                f"the id {row.id!r:.60} cannot name a file",
                code="data.collection",
                where=f"row {count}",
                expected=f"1 to {_LONGEST_NAME} characters once percent-encoded",
                next="give the corpus shorter ids",
            )
        folder = draft / f"{(count - 1) // _FOLDERS:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        text = f"{row.title.strip()}\n\n{row.text}" if row.title.strip() else row.text
        (folder / f"{name.replace('.', '%2E')}{SUFFIX}").write_text(
            text, encoding="utf-8", newline="", errors="replace"
        )
    if overwrite:
        shutil.rmtree(out, ignore_errors=True)
    draft.mkdir(parents=True, exist_ok=True)
    draft.rename(out)
    return count


def collection_id(path: str) -> str:
    """Return the id of the corpus row that a document's path was made of."""
    return unquote(PurePosixPath(path).name.removesuffix(SUFFIX))
