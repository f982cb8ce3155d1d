"""Log of queries on a disk that fills up."""

import os
from pathlib import Path

import pytest

from stillroom.errors import ResourceError
from stillroom.rag.index.view import AuditLog


def test_line_written_in_part_is_refused_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(tmp_path, None)
    log.note("query", "first", 1, "d", ["a"])
    before = log.path.read_bytes()
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda file, data: write(file, data[:40]))
        with pytest.raises(ResourceError, match="not answered: No space left"):
            log.note("query", "second", 1, "d", ["b"])
    assert log.path.read_bytes() == before
