"""Whether a picture shows signs of a camera, held against the claim that nobody is in it.

Who names a generator for a folder answers for it alone, without anyone's consent. A program cannot
know a person from a drawing, but it can read what cameras write: the make, the exposure, or
credentials that say the picture was captured. Their absence proves nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

from stillroom.errors import DataError
from stillroom.forensics.credentials import read_credentials
from stillroom.forensics.kinds import kind_of
from stillroom.forensics.pictures import open_picture, too_many_pixels

__all__ = ["is_captured", "refuse_photographs", "says_of_camera"]

_IFD, _GPS = 0x8769, 0x8825
_TAGS = {0x010F: "the camera's make", 0x0110: "the camera's model"}
_EXPOSURE = {0x829A: "an exposure time", 0x829D: "an aperture", 0x8827: "a sensitivity"}
_CAPTURED = ("digitalCapture", "negativeFilm", "positiveFilm", "print")


def says_of_camera(path: Path) -> str:
    """Return what in a file says that a camera took it, empty if nothing does.

    Raises:
        DataError: If it asks for more pixels than are read.
    """
    from PIL import Image as Pictures

    data = path.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the bound on pixels is load_picture's
            with open_picture(data) as picture:
                exif = picture.getexif()
    except Pictures.DecompressionBombError as error:
        raise too_many_pixels(path) from error
    except (OSError, ValueError, SyntaxError):
        return ""  # what cannot be read is left out, with its reason, where faces are looked for
    found = [said for tag, said in _TAGS.items() if str(exif.get(tag) or "").strip()]
    inner = exif.get_ifd(_IFD)
    found += [said for tag, said in _EXPOSURE.items() if inner.get(tag)]
    if exif.get_ifd(_GPS):
        found.append("where it was taken")
    if not found and is_captured(path, data):
        found.append("credentials of a captured picture")
    return found[0] if found else ""


def is_captured(path: Path, data: bytes) -> bool:
    """Return whether a file's credentials say that its content was captured, not made."""
    kind = kind_of(path)
    if kind is None or not kind.mime or b"jumb" not in data:
        return False
    found = read_credentials(data, kind.mime).source_types
    kinds = {name.rsplit("/", 1)[-1] for name in found}
    return bool(kinds & set(_CAPTURED))


def refuse_photographs(pictures: Iterable[Path], generator: str) -> None:
    """Refuse pictures that are said to show nobody, and were taken by a camera.

    Raises:
        DataError: With the first that says so.
    """
    for path in pictures:
        said = says_of_camera(path)
        if said:
            raise DataError(
                f"{path.name} is said to be made by {generator}, and holds {said}",
                code="forensics.photograph",
                where=str(path),
                expected="pictures that no camera took, or the consent of who they show",
                next="stillroom forensics consent --help, and faces.consent instead of "
                "faces.synthetic_source",
            )
