"""One lab for all tests of the room, away from the user's own."""

import os
from dataclasses import replace

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_lab(tmp_path_factory):
    before = os.environ.get("STILLROOM_LAB")
    os.environ["STILLROOM_LAB"] = str(tmp_path_factory.mktemp("lab"))
    yield
    if before is None:
        os.environ.pop("STILLROOM_LAB", None)
    else:
        os.environ["STILLROOM_LAB"] = before


@pytest.fixture(scope="session")
def lab(_own_lab):
    from stillroom.forensics.labeling.lab import open_lab

    return open_lab()


@pytest.fixture(scope="session")
def faces():
    from stillroom.forensics.synthesis.faces import draw_face

    return [draw_face(7, number, 160) for number in range(6)]


def widen(about):
    """Return what is known of a detector as if nothing were strange to it."""
    from stillroom.forensics.inference.domain import FileTraits

    far = dict.fromkeys(about.domain.clouds, 1e9)
    limits = {"still": far, "video": far}
    return replace(about, domain=replace(about.domain, limits=limits, known=FileTraits()), audit={})
