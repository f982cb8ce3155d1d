"""Learning a detector: faces split by person, pairs forged on the fly, chances fitted, bounds set.

No fake leaves memory. Test faces are touched once, at the end, for the figures of the card.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional

from stillroom.errors import DataError
from stillroom.forensics.audits import Audit, audit_pairs
from stillroom.forensics.bases import Bases, choose_split, open_bases
from stillroom.forensics.calibrating import Calibrator, fit_calibrator
from stillroom.forensics.detecting import About, TrainedDetector, write_detector
from stillroom.forensics.detector_card import write_detector_card
from stillroom.forensics.detector_settings import DetectorSettings
from stillroom.forensics.domain import Domain
from stillroom.forensics.domain_learning import (
    Sample,
    change_pictures,
    know_faces,
    learn_domain,
    name_set,
    pick,
    tell_domain,
)
from stillroom.forensics.extras import need
from stillroom.forensics.face import Face
from stillroom.forensics.known import KnownPairs, open_known
from stillroom.forensics.looks import is_grey
from stillroom.forensics.measures import brier_score, calibration_gap
from stillroom.forensics.method import Forgery
from stillroom.forensics.networks import Network
from stillroom.forensics.pairs import PairBatch, PairSource
from stillroom.forensics.proving import (
    CONDITIONS,
    Trial,
    apply_change,
    find_bounds,
    make_trial,
    measure_conditions,
)
from stillroom.forensics.recipe import ForensicsRecipe
from stillroom.jobs import Job
from stillroom.models.causal import choose_device
from stillroom.provenance import Artifact, Parent, make_parent
from stillroom.records import Link, Origin
from stillroom.train.loop import Loss, train
from stillroom.train.precision import fixed_threads

__all__ = [
    "Faces",
    "learn",
    "measure_chances",
    "prove",
    "split_faces",
    "split_identities",
    "start_from",
    "teach",
]

_VALIDATION_REPEATS = 2


@dataclass(frozen=True)
class Faces:
    """All faces, and the numbers of those to learn from, to calibrate on, and to test on.

    ``name`` is the set's; ``audit`` that of its files, None where fakes are made here.
    """

    every: tuple[Face, ...]
    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    name: str
    audit: Audit | None = None

    def of(self, numbers: Sequence[int]) -> list[Face]:
        """Return faces by number."""
        return [self.every[number] for number in numbers]


def learn(recipe: ForensicsRecipe, job: Job) -> Artifact:
    """Learn the recipe's detector and publish its checkpoint.

    Raises:
        DataError: If there are too few faces, or no consent for them.
        MissingExtraError: If the detector's packages are not here.
        Cancelled: If the user stopped it; ``--resume`` goes on to the same bytes.
    """
    settings = _settings_of(recipe)
    if recipe.sound is not None:
        from stillroom.forensics.sound_learning import learn_sounds

        return learn_sounds(recipe, recipe.sound, job)
    need("cv2", "PIL", "av")
    forgeries, faces, whose = _open(recipe, job)
    job.say(
        f"{len(faces.train)} faces to learn from, {len(faces.validation)} to calibrate on, "
        f"{len(faces.test)} to test on; no person is in two of these"
    )
    with fixed_threads(settings.train.threads):
        network, trained = teach(recipe, faces, forgeries, job)
        detector, figures = prove(recipe, network, faces, forgeries, str(whose["faces"]), job)
        fingerprint = write_detector(job.output, network, detector.about)
    write_detector_card(job.output, detector.about, figures, recipe.faces)
    _tell(figures, detector.about, job)
    parents = _parents(recipe, job)
    return job.finish(
        "checkpoint",
        parents=parents,
        origin=Origin("synthetic")
        .then(Link(f"forensics.detectors.{settings.model.method_name()}"))
        .to_json(),
        details={
            "detector": detector.about.to_json(),
            "train": trained,
            "fingerprint": fingerprint,
            **whose,
        },
    )


def _open(recipe: ForensicsRecipe, job: Job) -> tuple[list[Forgery], Faces, dict[str, str | int]]:
    """Return how fakes come about, the faces, and what is recorded of whose they are."""
    settings = _settings_of(recipe)
    if settings.known is not None:
        known = open_known(Path(settings.known.manifest), recipe.size, recipe.faces.margin, job.say)
        parts = known.splits
        faces = Faces(
            *(known.faces, parts["train"], parts["validation"], parts["test"]),
            known.name,
            known.audit,
        )
        origin = f"a benchmark's, {settings.known.basis}"
        return [known.pairs], faces, {"faces": origin, "consent": "", "left_out": known.left_out}
    forgeries = [recipe.method, *settings.also]
    bases = open_bases(
        recipe.faces,
        [method.method_name() for method in forgeries],
        seed=recipe.seed,
        count=max(recipe.count, 2),
        size=recipe.size,
        say=job.say,
    )
    whose: dict[str, str | int] = {
        "faces": bases.origin,
        "consent": bases.consent,
        "left_out": bases.left_out,
    }
    return forgeries, split_faces(bases, recipe), whose


def split_faces(bases: Bases, recipe: ForensicsRecipe) -> Faces:
    """Return the faces, each person in one split by the digest of their name.

    Raises:
        DataError: If a split is empty.
    """
    every = tuple(bases[number] for number in range(len(bases)))
    places = split_identities([face.identity for face in every], recipe, "faces")
    train, validation, test = (tuple(places[part]) for part in ("train", "validation", "test"))
    folder = recipe.faces.folder
    name = Path(folder).resolve().name if folder else "drawn faces"
    return Faces(every, train, validation, test, name)


def split_identities(
    identities: Sequence[str], recipe: ForensicsRecipe, what: str
) -> dict[str, list[int]]:
    """Return numbers by split, each person in one by the digest of their name.

    Raises:
        DataError: If a split is empty.
    """
    places: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for number, identity in enumerate(identities):
        places[choose_split(identity, recipe.seed, recipe.split)].append(number)
    empty = [name for name, numbers in places.items() if not numbers]
    if empty:
        raise DataError(
            f"of {len(identities)} {what} none is left for {' and '.join(empty)}",
            code="forensics.too-few-faces",
            where="split",
            expected="people enough for learning, validation and test, apart",
            next=f"raise count, give more people's {what}, or change split and seed",
        )
    return places


def teach(
    recipe: ForensicsRecipe, faces: Faces, forgeries: Sequence[Forgery], job: Job
) -> tuple[Network, dict[str, Any]]:
    """Return the trained network, and what the training came to."""
    settings = _settings_of(recipe)
    device = choose_device("auto")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = settings.model.build(settings.pixels)
    start_from(settings, network)
    network.to(device)
    teacher = TrainedDetector.open(Path(settings.teacher)) if settings.teacher else None
    source = PairSource(faces.of(faces.train), forgeries, settings, seed=recipe.seed, device=device)

    def objective(model: nn.Module, batch: PairBatch) -> Loss:
        if not isinstance(model, Network):
            raise TypeError("a detector is a Network")
        judged = model.judge(batch.images)
        total, parts = model.loss(judged, batch.labels, batch.masks)
        if teacher is None:
            return Loss(total, parts)
        wanted = _ask(teacher, batch)
        gap = functional.binary_cross_entropy_with_logits(judged.logits, wanted, reduction="sum")
        share = settings.teacher_share
        return Loss((1 - share) * total + share * gap, {**parts, "teacher": float(gap.detach())})

    fit = settings.train.model_copy(
        update={"batch_size": min(settings.train.batch_size, len(faces.train))}
    )
    summary = train(network, source, objective, fit.to_train(), job, seed=recipe.seed)
    return network.eval(), asdict(summary)


def start_from(settings: DetectorSettings, network: Network) -> None:
    """Fill a new network with the weights of ``settings.start``, where one is named.

    Raises:
        DataError: If that is of another make or size.
    """
    if settings.start is None:
        return
    start = TrainedDetector.open(Path(settings.start), device="cpu")
    given, own = start.network.state_dict(), network.state_dict()
    shapes = {name: value.shape for name, value in given.items()}
    is_alike = shapes == {name: value.shape for name, value in own.items()}
    if start.about.method.method_name() != settings.model.method_name() or not is_alike:
        raise _other_make(settings, start)
    network.load_state_dict(given)


def prove(
    recipe: ForensicsRecipe,
    network: Network,
    faces: Faces,
    forgeries: Sequence[Forgery],
    origin: str,
    job: Job,
) -> tuple[TrainedDetector, dict[str, Any]]:
    """Calibrate and bound a network on validation faces, then measure it once on test faces."""
    settings = _settings_of(recipe)
    frames = settings.model.looks_at
    about = About(
        settings.model,
        settings.pixels,
        recipe.size,
        recipe.faces.margin,
        Calibrator("none"),
        _names(forgeries),
        origin,
    )
    with job.phase("prove", 4, "steps") as progress:
        detector = TrainedDetector(network, about)
        # Second faces of swaps come from the same split: no one is in two.
        known = make_trial(
            faces.of(faces.validation),
            forgeries,
            seed=recipe.seed,
            repeats=_VALIDATION_REPEATS,
            frames=frames,
        )
        calibrator = fit_calibrator(
            settings.calibration, known.labels, detector.logits(known.images)
        )
        progress.advance()
        least_face, least_quality, works = find_bounds(detector, known)
        progress.advance()
        test = make_trial(faces.of(faces.test), forgeries, seed=recipe.seed + 1, frames=frames)
        figures = {"auc": measure_conditions(detector, test)}
        figures |= measure_chances(detector.logits(test.images), calibrator, test.labels)
        figures["faces"] = {
            "train": len(faces.train),
            "validation": len(faces.validation),
            "test": len(faces.test),
        }
        progress.advance()
        about = replace(
            about,
            calibrator=calibrator,
            least_face=least_face,
            least_quality=least_quality,
            is_shown=works and not settings.shuffle_labels,
            figures=figures,
            kept=network.kept,
            learned=name_set(faces.name, faces.every),
        )
        taught = make_trial(
            faces.of(pick(faces.train)), forgeries, seed=recipe.seed + 2, frames=frames
        )
        trials = {"train": taught, "validation": known, "test": test}
        domain = _bound(TrainedDetector(network, about), trials, faces, settings, recipe.seed)
        about = replace(about, domain=domain, audit=_audit(faces, taught, recipe.seed))
        progress.advance()
    return TrainedDetector(network, about), figures


def _bound(
    detector: TrainedDetector,
    trials: Mapping[str, Trial],
    faces: Faces,
    settings: DetectorSettings,
    seed: int,
) -> Domain:
    """Return what tells strangers from what the detector learned."""
    about, train = detector.about, trials["train"]
    fakes = [image for image, label in zip(train.images, train.labels, strict=True) if label]
    works = (about.figures["auc"]["h264"]["low"] or 0) > 0.5
    return learn_domain(
        detector,
        {name: Sample(one.images, one.labels, one.groups) for name, one in trials.items()},
        know_faces(faces.of(faces.train), fakes, jpeg=settings.views.jpeg),
        change_pictures(about.least_quality, about.least_face / about.size),
        code=(lambda image, _: apply_change(CONDITIONS["h264"], image)) if works else None,
        seed=seed,
    )


def _audit(faces: Faces, taught: Trial, seed: int) -> dict[str, Any]:
    """Return the figures of the audit: of a benchmark's files, else of the pairs made here."""
    if faces.audit is not None:
        return {"of": "files", **faces.audit.summary()}
    traits = [
        {"size": str(image.shape), "colours": "grey" if is_grey(image) else "colour"}
        for image in taught.images
    ]
    return {
        "of": "pairs made in memory",
        **audit_pairs(traits, taught.labels, taught.groups, seed=seed).summary(),
    }


def measure_chances(
    logits: npt.NDArray[np.float64], calibrator: Calibrator, labels: Sequence[int]
) -> dict[str, Any]:
    """Return calibration error and Brier score of test scores, before and after."""
    found = {}
    for name, one in (("before", Calibrator("none")), ("after", calibrator)):
        chances = one.chances(logits)
        found[name] = {
            "calibration_error": calibration_gap(labels, chances, equal_mass=True),
            "brier": brier_score(labels, chances),
        }
    return {"calibration": found}


def _names(forgeries: Sequence[Forgery]) -> tuple[str, ...]:
    """Return what fakes are made by: the methods, or a benchmark's generators."""
    found: list[str] = []
    for method in forgeries:
        found += method.names if isinstance(method, KnownPairs) else [method.method_name()]
    return tuple(dict.fromkeys(found))


def _ask(teacher: TrainedDetector, batch: PairBatch) -> torch.Tensor:
    """Return the teacher's chances for a batch, (B,); it looks at pictures of its own size."""
    pixels = teacher.about.pixels
    images = batch.images
    if images.shape[-1] != pixels:
        images = functional.interpolate(
            images, size=(pixels, pixels), mode="bilinear", antialias=True
        )
    with torch.no_grad():
        logits = teacher.network(images)
    chances = teacher.about.calibrator.chances(np.asarray(logits.double().cpu().numpy()))
    return torch.from_numpy(chances).to(logits)


def _settings_of(recipe: ForensicsRecipe) -> DetectorSettings:
    if recipe.detector is None:
        raise TypeError("the recipe trains no detector")
    return recipe.detector


def _parents(recipe: ForensicsRecipe, job: Job) -> list[Parent]:
    settings = _settings_of(recipe)
    places = {
        "faces": recipe.faces.folder,
        "start": settings.start,
        "teacher": settings.teacher,
        "benchmark": settings.known.manifest if settings.known else None,
    }
    return [make_parent(role, Path(path), job.out) for role, path in places.items() if path]


def _tell(figures: dict[str, Any], about: About, job: Job) -> None:
    clean = figures["auc"]["clean"]
    job.say(
        f"area under the curve on people it never saw: {clean['value']:.3f} "
        f"[{clean['low'] or 0:.3f}, {clean['high'] or 1:.3f}]; holds down to squares of "
        f"{about.least_face} pixels about a face and JPEG {about.least_quality}"
    )
    tell_domain(about, job.say)
    if not about.is_shown:
        job.say(
            "it was not shown to tell forged from real on validation faces: check will call all "
            "it says inconclusive"
        )


def _other_make(settings: DetectorSettings, start: TrainedDetector) -> DataError:
    return DataError(
        f"detector.start is a {start.about.method.method_name()}: "
        f"{start.about.method.model_dump_json()}",
        code="forensics.other-detector",
        where="detector.start",
        expected=f"a detector as detector.model: {settings.model.model_dump_json()}",
        next="name the same method with the same sizes, or use it as detector.teacher",
    )
