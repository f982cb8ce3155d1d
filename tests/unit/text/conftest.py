"""Small documents of every format, built in code."""

import pytest

from stillroom.text import PARSERS, SourceFile


@pytest.fixture
def parse():
    """Parse bytes in this process by the parser of a name."""

    def parse(name, data, path=None):
        chosen = PARSERS.build(name)
        source = SourceFile(path or f"folder/file{chosen.suffixes[0]}", "0" * 64, chosen.media_type)
        return chosen.parse(data if isinstance(data, bytes) else data.encode(), source)

    return parse


@pytest.fixture
def bytes_of():
    """Return the bytes that a document says a piece of its text stands on."""

    def bytes_of(document, data, piece):
        start = document.text.index(piece)
        place = document.locate(start, start + len(piece))
        return data[place.byte_start : place.byte_end], place

    return bytes_of
