"""One process for the files of a module that are read in a process."""

from contextlib import nullcontext

import pytest

from stillroom.text import reader


@pytest.fixture(scope="module", autouse=True)
def _one_process():
    with reader.ParserProcess() as process, pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "ParserProcess", lambda: nullcontext(process))
        yield
