"""Setting what a detector knows: from one part's people, limits by another's, tried on a third's.

Things are seen as they are, and changed at random within what the detector was shown to hold
under, so that what it still works on is not called strange.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from stillroom.evaluate import bootstrap
from stillroom.forensics.detecting import About, Seen, TrainedDetector
from stillroom.forensics.domain import RATE, Domain, FileTraits, find_limit, fit_cloud
from stillroom.forensics.face import Face, Image
from stillroom.forensics.findings import Learned
from stillroom.forensics.looks import PICTURE_LOOKS, SOUND_LOOKS, band_of, is_grey
from stillroom.forensics.treatments import compress, rescale
from stillroom.forensics.waves import Wave, Waves
from stillroom.provenance import digest_json

__all__ = [
    "MOST_LEARNED",
    "Sample",
    "change_pictures",
    "know_faces",
    "know_waves",
    "learn_domain",
    "name_set",
    "pick",
    "tell_domain",
]

MOST_LEARNED = 300
"""Faces, or sounds, of those learned from that a domain is fitted on."""
_CLIP = 4  # dimensions of a clip, (T, H, W, 3)
Floats = npt.NDArray[np.float64]
Things = Sequence[Image] | Sequence[Waves]
Change = Callable[[Any, np.random.Generator], Any]


@dataclass(frozen=True, eq=False)
class Sample:
    """Pictures or sounds, 1 for each that is forged, and whose each is."""

    things: Sequence[Any]
    labels: Sequence[int]
    groups: Sequence[str]


def learn_domain(
    detector: TrainedDetector,
    parts: Mapping[str, Sample],
    known: FileTraits,
    change: Change,
    *,
    code: Change | None = None,
    seed: int = 0,
) -> Domain:
    """Return a detector's domain.

    Args:
        detector: Calibrated and bounded.
        parts: ``train`` is learned from, ``validation`` sets the limits, ``test`` tries them.
        known: What the files were.
        change: Does to a thing what the detector holds under, drawn by lot.
        code: Codes a thing as video, where the detector was shown to work on it.
        seed: Of the lots.
    """
    rng = np.random.default_rng([seed, 0xD0])
    first, labels = _see(detector, parts["train"], [_keep, change, change], rng)
    clouds = {name: fit_cloud(rows, labels) for name, rows in first.measures.items()}
    names = SOUND_LOOKS if detector.about.method.hears else PICTURE_LOOKS
    domain = Domain(clouds, names, known=known)
    kinds: dict[str, list[Change]] = {"still": [_keep, change, change]}
    if code is not None:
        kinds["video"] = [code]
    people = parts["validation"].groups
    limits: dict[str, dict[str, float]] = {}
    for kind, changes in kinds.items():
        seen, _ = _see(detector, parts["validation"], changes, rng)
        whose, share = [*people] * len(changes), RATE / len(clouds)
        limits[kind] = {
            name: find_limit(far, whose, share)
            for name, far in domain.measure(seen.measures).items()
        }
    domain = replace(domain, limits=limits, people=len(set(people)))
    return replace(domain, tried=_try(detector, domain, parts["test"], kinds, rng))


def _try(
    detector: TrainedDetector,
    domain: Domain,
    test: Sample,
    kinds: Mapping[str, Sequence[Change]],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Return the share of test people's things that are not called unlike, with intervals."""
    found: dict[str, Any] = {}
    for kind, changes in {"as they are": [_keep], **kinds}.items():
        seen, labels = _see(detector, test, changes, rng)
        within = domain.is_within(seen.measures, is_video=kind == "video")
        whose = np.array([*test.groups] * len(changes))
        shares = [float(within[whose == one].mean()) for one in dict.fromkeys(test.groups)]
        metric = bootstrap(shares, name=f"within, {kind}").to_json()
        truth = np.array(labels)
        found[kind] = {
            **metric,
            "real": float(within[truth == 0].mean()),
            "forged": float(within[truth == 1].mean()),
        }
    return found


def _see(
    detector: TrainedDetector, part: Sample, changes: Sequence[Change], rng: np.random.Generator
) -> tuple[Seen, list[int]]:
    """Return what a detector makes of every thing after each change, one change after another."""
    seen = [detector.see([change(thing, rng) for thing in part.things]) for change in changes]
    logits = np.concatenate([one.logits for one in seen])
    measures = {
        name: np.concatenate([one.measures[name] for one in seen]) for name in seen[0].measures
    }
    return Seen(logits, measures), [*part.labels] * len(changes)


def _keep(thing: Any, rng: np.random.Generator) -> Any:
    return thing


def change_pictures(least_quality: int, least_share: float) -> Change:
    """Return what saves a picture or clip as JPEG, or reduces it, within bounds, by lot.

    Args:
        least_quality: Of JPEG.
        least_share: Of its size.
    """

    def change(image: Image, rng: np.random.Generator) -> Image:
        is_saved, at = bool(rng.random() < 0.5), float(rng.random())
        quality = round(least_quality + (100 - least_quality) * at)
        share = least_share + (1 - least_share) * at

        def one(frame: Image) -> Image:
            return compress(frame, quality) if is_saved else rescale(frame, share)

        return np.stack([one(frame) for frame in image]) if image.ndim == _CLIP else one(image)

    return change


def know_faces(faces: Sequence[Face], fakes: Sequence[Image], *, jpeg: float) -> FileTraits:
    """Return what the files of faces were.

    Args:
        faces: Those learned from.
        fakes: Forged of them.
        jpeg: Share of views that were saved as JPEG while learning.
    """
    images = [*(face.image for face in faces), *fakes]
    colours = sorted({"grey" if is_grey(image) else "colour" for image in images})
    codings = {coding for face in faces for coding in face.codings}
    if codings and jpeg:
        codings.add("JPEG")
    wide = [min(face.wide, face.image.shape[0]) for face in faces]
    return FileTraits(tuple(colours), max(wide) if min(wide) else 0.0, tuple(sorted(codings)))


def know_waves(waves: Sequence[Wave], *, coded: float) -> FileTraits:
    """Return what the files of sounds were; ``coded`` is the share that learning coded."""
    codings = {coding for wave in waves for coding in wave.codings}
    if codings and coded:
        codings |= {"mp3", "aac"}
    return FileTraits((), max(band_of(wave.values) for wave in waves), tuple(sorted(codings)))


def name_set(name: str, things: Sequence[Face] | Sequence[Wave]) -> Learned:
    """Return the name and digest of a set: of its files' names and digests, in any order."""
    rows = sorted([thing.name, thing.digest] for thing in things)
    return Learned(name, digest_json(rows), len(rows))


def pick(numbers: Sequence[int]) -> list[int]:
    """Return at most ``MOST_LEARNED`` numbers, evenly over all."""
    step = max(len(numbers) / MOST_LEARNED, 1.0)
    return [numbers[int(at * step)] for at in range(min(len(numbers), MOST_LEARNED))]


def tell_domain(about: About, say: Callable[[str], None]) -> None:
    """Say what the detector knows, and loudly what is wrong with the set it learned from."""
    if about.domain is not None:
        kept = about.domain.tried["as they are"]
        say(
            f"knows {kept['value']:.1%} of what test people show for like what it learned from; "
            "strangers are called inconclusive"
        )
    if leak := about.audit.get("leak"):
        say(
            f"the set it learned from leaks: {leak}: it measures that, and check calls all that "
            "this detector says inconclusive"
        )
