"""Faces from a folder: which files are taken for pictures."""

import pytest
from PIL import Image

from stillroom.errors import DataError
from stillroom.forensics.settings import SyntheticSource
from stillroom.forensics.synthesis.faces import open_faces


@pytest.mark.parametrize("name", ["a.jfif", "a.gif", "a.avif"])
def test_every_picture_that_is_read_elsewhere_is_read_here_too(name, tmp_path):
    kind = "JPEG" if name.endswith("jfif") else None
    Image.new("RGB", (96, 96), (90, 120, 90)).save(tmp_path / name, kind)
    said = []
    with pytest.raises(DataError, match="none of 1 images") as caught:
        open_faces(
            SyntheticSource(type="synthetic", folder=str(tmp_path), generator="nobody"),
            ["sbi"],
            seed=0,
            count=4,
            size=64,
            margin=1.3,
            warn=said.append,
        )
    assert caught.value.code == "forensics.no-faces"
    assert f"skipped: {name} shows no face" in said
