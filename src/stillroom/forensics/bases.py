"""The faces that a set starts from: drawn ones, or those of a folder for which someone answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from stillroom.errors import DataError
from stillroom.forensics.camera_traces import refuse_photographs
from stillroom.forensics.casting import name_person
from stillroom.forensics.consent import answer_for
from stillroom.forensics.drawing import draw_face, name_face
from stillroom.forensics.face import Face
from stillroom.forensics.listing import list_files
from stillroom.forensics.recipe import FacesSettings, SplitSettings
from stillroom.provenance import digest_file, digest_text

__all__ = ["Bases", "choose_split", "list_pictures", "open_bases"]

_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".pgm"})


class Bases(Protocol):
    """Faces by number."""

    @property
    def origin(self) -> str:
        """Whose they are: ``drawn``, ``synthetic: GENERATOR`` or ``person``."""

    @property
    def consent(self) -> str:
        """Id of the consent record, empty where no person is shown."""

    @property
    def left_out(self) -> int:
        """How many pictures could not be used."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __getitem__(self, number: int) -> Face:
        """Return one face."""

    def identity(self, number: int) -> str:
        """Return whose face it is."""

    def path(self, number: int) -> Path | None:
        """Return the picture a face comes from; None where it is drawn."""


@dataclass(frozen=True)
class _Drawn:
    seed: int
    count: int
    size: int
    origin: str = "drawn"
    consent: str = ""
    left_out: int = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Face:
        return draw_face(self.seed, number, self.size)

    def identity(self, number: int) -> str:
        return name_face(self.seed, number)

    def path(self, number: int) -> Path | None:
        return None


@dataclass(frozen=True)
class _Folder:
    faces: tuple[Face, ...]
    paths: tuple[Path, ...]
    origin: str
    consent: str
    left_out: int

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, number: int) -> Face:
        return self.faces[number]

    def identity(self, number: int) -> str:
        return self.faces[number].identity

    def path(self, number: int) -> Path | None:
        return self.paths[number]


def open_bases(
    settings: FacesSettings,
    uses: Sequence[str],
    *,
    seed: int,
    count: int,
    size: int,
    say: Callable[[str], None],
) -> Bases:
    """Return the faces to start from.

    Args:
        settings: Whose faces.
        uses: Names of the methods they are used for, which a consent has to cover.
        seed: Of drawn faces.
        count: How many faces are wanted at most.
        size: Their width and height.
        say: Told of pictures that are left out.

    Raises:
        DataError: If the folder has no face, the consent does not cover the use, or pictures of
            nobody were taken by a camera.
    """
    if settings.folder is None:
        return _Drawn(seed, count, size)
    folder = Path(settings.folder)
    pictures = list_pictures(folder)[:count]
    whose, consent = answer_for(settings, pictures, uses, refuse=refuse_photographs, say=say)
    faces, paths = _find_faces(pictures, folder, size, settings.margin, say)
    left_out = len(pictures) - len(faces)
    if left_out:
        say(f"{left_out} of {len(pictures)} pictures were left out")
    return _Folder(tuple(faces), tuple(paths), whose, consent, left_out)


def list_pictures(path: Path) -> list[Path]:
    """Return the pictures below a folder, sorted, or the one that is named.

    Raises:
        DataError: If there is none.
    """
    found = list_files(path, _ENDINGS)
    if not found:
        raise DataError(
            f"{path} holds no picture",
            code="forensics.no-faces",
            where=str(path),
            expected=f"files ending in {' '.join(sorted(_ENDINGS))}",
            next="check the path, or leave faces.folder out: faces are then drawn",
        )
    return found


def choose_split(block: str, seed: int, split: SplitSettings) -> str:
    """Return the split of a person, or of a block of people, by the digest of their name alone."""
    place = int(digest_text(f"{seed} {block}")[:12], 16) / 16**12
    if place < split.held_out:
        return "test"
    return "validation" if place < split.held_out + split.validation else "train"


def _find_faces(
    pictures: Sequence[Path], folder: Path, size: int, margin: float, say: Callable[[str], None]
) -> tuple[list[Face], list[Path]]:
    from stillroom.forensics.faces import FaceFinder, crop_square, square_side
    from stillroom.forensics.pictures import load_picture

    finder = FaceFinder()
    faces, paths = [], []
    for path in pictures:
        name = path.name if path == folder else path.relative_to(folder).as_posix()
        try:
            picture = load_picture(path)
        except DataError as error:
            say(f"left out: {error.problems[0].what}")
            continue
        found = finder.find(picture.image)
        if not found:
            say(f"left out: {name} shows no face")
            continue
        marks = finder.landmarks(picture.image, found[0])
        image, points = crop_square(picture.image, marks, size, margin=margin)
        digest, person = digest_file(path), name_person(path, folder)
        wide, codings = square_side(marks, margin), (picture.coding,)
        source = finder.landmark_source
        faces.append(Face(image, points, name, person, digest, source, wide, codings))
        paths.append(path)
    if not faces:
        raise DataError(
            f"none of {len(pictures)} pictures in {folder} shows a face",
            code="forensics.no-faces",
            where=str(folder),
            expected="pictures with a face of 64 pixels or more",
            next="look at the lines above; they name each picture",
        )
    return faces, paths
