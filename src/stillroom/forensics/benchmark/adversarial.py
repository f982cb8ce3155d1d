"""Adversarial attacks on image detectors: FGSM, PGD, Square, and JPEG-robust EOT.

Who attacks changes forgeries until they pass for real; real pictures stay as they are. White-box
attacks follow the network's gradient; ``square`` sees scores alone; ``eot_jpeg`` keeps what
survives compression. Attacked pictures stay in memory: this measures, and makes nothing.

Source: Goodfellow et al. 2015, arXiv:1412.6572 (FGSM); Madry et al. 2018, arXiv:1706.06083 (PGD);
Andriushchenko et al. 2020, arXiv:1912.00049, algorithms 1 and 2 (square attack, L-infinity);
Athalye et al. 2018, arXiv:1707.07397 and arXiv:1802.00420 (expectation over transformations, and
gradients straight through what has none).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stillroom.errors import DataError
from stillroom.evaluate import Metric
from stillroom.forensics.benchmark.manifest import ManifestItem, find_manifest, read_items
from stillroom.forensics.benchmark.metrics import bootstrap_auc, select_threshold
from stillroom.forensics.inference.trained_detector import TrainedDetector
from stillroom.forensics.media.augmentation import to_channels_first
from stillroom.forensics.media.images import load_image
from stillroom.forensics.media.transforms import compress_jpeg

__all__ = ["ATTACKS", "Attack", "AttackReport", "AttackResult", "attack_manifest", "attack_planes"]

Attack = Literal["fgsm", "pgd", "square", "eot_jpeg"]
ATTACKS: tuple[Attack, ...] = get_args(Attack)
Floats = npt.NDArray[np.float64]
_VALIDATION = "validation"
_BATCH_SIZE = 16
_QUALITIES = (60, 75, 90)


@dataclass(frozen=True)
class AttackResult:
    """What is left of a detector: the area, and the share of forgeries found before and not after.

    ``strength`` is the most that a value of 0 to 255 may change; 0 is without an attack. ``known``
    is the share of forgeries that were found before; ``turned`` is None where none was.
    """

    attack: str
    strength: int
    area: Metric
    known: float
    turned: float | None
    n: int

    def line(self) -> str:
        """Return the finding as one line."""
        interval = f"[{self.area.low:.3f}, {self.area.high:.3f}]"
        if not self.strength:
            return f"no attack: auc {self.area.value:.3f} {interval}, {self.known:.0%} found"
        said = f"{self.attack} by {self.strength}/255: auc {self.area.value:.3f} {interval}, "
        if self.turned is None:
            return f"{said}no forgery was found before, so none can pass"
        return f"{said}{self.turned:.0%} of the forgeries that were found pass"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "attack": self.attack,
            "strength": self.strength,
            "auc": self.area.to_json(),
            "found": self.known,
            "turned": self.turned,
            "n": self.n,
        }


@dataclass(frozen=True)
class AttackReport:
    """All attacks on a detector, and on what the threshold was chosen, which is not what they hit.

    The first row is without an attack.
    """

    threshold_from: str
    rows: tuple[AttackResult, ...]

    def lines(self) -> list[str]:
        """Return the findings as a user reads them."""
        return [f"threshold: {self.threshold_from}", *(row.line() for row in self.rows)]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        rows = [row.to_json() for row in self.rows]
        return {"threshold_from": self.threshold_from, "attacks": rows}


def attack_manifest(
    manifest: Path,
    detector: TrainedDetector,
    *,
    attacks: Sequence[Attack] = ATTACKS,
    strengths: Sequence[int] = (1, 2, 4),
    steps: int = 20,
    queries: int = 200,
    split: str = "test",
    seed: int = 0,
) -> AttackReport:
    """Attack the forged pictures of a manifest, and measure what is left.

    What counts as found is decided on other pictures than those attacked: on the manifest's
    validation rows, else by the detector's own calibration at even odds.

    Args:
        manifest: The file, or its folder; pictures are squares about faces, as the lab's sets are.
        detector: Of single pictures; attacks are made on what its network is given.
        attacks: Which.
        strengths: The most that a value of 0 to 255 may change; whole, as files hold values.
        steps: Of ``pgd`` and ``eot_jpeg``.
        queries: Of ``square``: how often scores are asked for.
        split: Which rows; empty for all.
        seed: Of what is drawn by lot.

    Raises:
        DataError: If rows, strengths or the detector are not as they have to be, or nothing says
            from which score on a picture counts as forged.
    """
    if detector.about.method.hears or detector.about.method.looks_at > 1:
        raise _refused(f"{detector.name} judges no single pictures", "a detector of pictures")
    for strength in strengths:
        if strength != int(strength) or strength < 1:
            raise _refused(
                f"a strength of {strength} cannot be kept in pictures of 8 bits", "whole numbers"
            )
    file = find_manifest(manifest)
    every = read_items(file)
    items = [item for item in every if not split or item.split == split]
    if len({item.label for item in items}) < 2:
        raise _refused("the rows are of one class", f"real and fake rows of the split {split!r}")
    is_apart = split not in {"", _VALIDATION}
    aside = [item for item in every if is_apart and item.split == _VALIDATION]
    finds, threshold_from = _choose_threshold(file, detector, aside)
    planes = _load(file, detector, items)
    labels = [item.label for item in items]
    groups = [_group(item) for item in items]
    plain, fakes = _scores(detector, planes), torch.tensor(labels) == 1
    known = finds(plain[fakes.numpy()])
    share, count = float(known.mean()), len(items)
    rows = [AttackResult("none", 0, bootstrap_auc(labels, plain, groups), share, None, count)]
    for attack in attacks:
        for strength in strengths:
            changed = planes.clone()
            changed[fakes] = attack_planes(
                *(detector, planes[fakes], attack, strength / 255),
                steps=steps,
                queries=queries,
                seed=seed,
            )
            scores = _scores(detector, changed)
            passed = known & ~finds(scores[fakes.numpy()])
            turned = float(passed.sum() / known.sum()) if known.any() else None
            area = bootstrap_auc(labels, scores, groups)
            rows.append(AttackResult(attack, int(strength), area, share, turned, count))
    return AttackReport(threshold_from, tuple(rows))


def _choose_threshold(
    file: Path, detector: TrainedDetector, aside: Sequence[ManifestItem]
) -> tuple[Callable[[Floats], npt.NDArray[np.bool_]], str]:
    """Return what finds forgeries by their scores, and on what that was chosen."""
    if len({item.label for item in aside}) == 2:
        scores = _scores(detector, _load(file, detector, aside))
        least = select_threshold([item.label for item in aside], scores.tolist())
        if least is not None:
            found = f"best balanced accuracy on the {len(aside)} validation rows"
            return lambda given: np.asarray(given >= least), found
    calibrator = detector.about.calibrator
    if calibrator.n:
        found = f"even odds by the detector's own calibration on {calibrator.n} pictures"
        return lambda given: np.asarray(calibrator.chances(given, 0.5) >= 0.5), found
    raise _refused(
        f"nothing says from which score on {detector.name} finds a forgery: it has no calibration, "
        "and the manifest no validation rows beside those that are attacked",
        "real and fake rows of the split 'validation'",
    )


def _load(file: Path, detector: TrainedDetector, items: Sequence[ManifestItem]) -> Tensor:
    """Return what the network is given of some rows, (N, 3, P, P)."""
    shown = [detector.show(load_image(file.parent / item.path).image) for item in items]
    return torch.from_numpy(to_channels_first(shown))


def attack_planes(
    detector: TrainedDetector,
    planes: Tensor,
    attack: Attack,
    bound: float,
    *,
    steps: int = 20,
    queries: int = 200,
    seed: int = 0,
) -> Tensor:
    """Return pictures (N, 3, P, P) in [0, 1], each within ``bound`` of what it was.

    No value differs by more; each is whole in 8 bits, as a file would hold it.
    """
    run: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
        "fgsm": lambda part, rng: _attack_gradient(
            detector, part, bound, bound, 1, rng, starts=False
        ),
        "pgd": lambda part, rng: _attack_gradient(detector, part, bound, bound / 4, steps, rng),
        "square": lambda part, rng: _attack_square(detector, part, bound, queries, rng),
        "eot_jpeg": lambda part, rng: _attack_gradient(
            detector, part, bound, bound / 4, steps, rng, through_jpeg=True
        ),
    }
    out = []
    for start in range(0, len(planes), _BATCH_SIZE):
        rng = torch.Generator().manual_seed(seed + start)
        out.append(
            _round_to_bytes(
                run[attack](planes[start : start + _BATCH_SIZE], rng), planes, start, bound
            )
        )
    return torch.cat(out)


def _attack_gradient(
    detector: TrainedDetector,
    plain: Tensor,
    bound: float,
    step: float,
    steps: int,
    rng: torch.Generator,
    *,
    starts: bool = True,
    through_jpeg: bool = False,
) -> Tensor:
    """Go down the score's gradient, sign by sign, within the bound."""
    moved = plain.clone()
    if starts:
        moved = moved + (torch.rand(plain.shape, generator=rng) * 2 - 1) * bound
    for _ in range(steps):
        given = moved.clamp(0, 1).detach()
        slope = torch.zeros_like(given)
        for seen in _compress_views(given) if through_jpeg else [given]:
            asked = seen.to(detector.device).requires_grad_()
            with torch.enable_grad():
                total = detector.network.judge(asked).logits.sum()
            (gradient,) = torch.autograd.grad(total, asked)
            slope += gradient.cpu()
        moved = (given - step * slope.sign()).clamp(plain - bound, plain + bound)
    return moved


def _compress_views(given: Tensor) -> list[Tensor]:
    """Return pictures after JPEG of several qualities; their gradient stands for the picture's."""
    images = [
        np.asarray((one.permute(1, 2, 0) * 255).round().numpy(), dtype=np.uint8) for one in given
    ]
    return [
        torch.from_numpy(
            to_channels_first([compress_jpeg(np.ascontiguousarray(i), quality) for i in images])
        )
        for quality in _QUALITIES
    ]


def _attack_square(
    detector: TrainedDetector, plain: Tensor, bound: float, queries: int, rng: torch.Generator
) -> Tensor:
    """Try squares of one color at random places, and keep those that lower the score."""
    count, channels, side = plain.shape[0], plain.shape[1], plain.shape[-1]
    stripes = torch.randint(0, 2, (count, channels, 1, side), generator=rng) * 2 - 1
    best = (plain + bound * stripes).clamp(0, 1)
    scores = torch.from_numpy(_scores(detector, best))
    for query in range(queries):
        share = 0.3 * 0.5 ** (6 * query / max(queries, 1))
        wide = max(round(side * share**0.5), 1)
        top, left = (int(torch.randint(0, side - wide + 1, (1,), generator=rng)) for _ in range(2))
        signs = torch.randint(0, 2, (count, channels, 1, 1), generator=rng) * 2 - 1
        tried = best.clone()
        part = plain[..., top : top + wide, left : left + wide]
        tried[..., top : top + wide, left : left + wide] = (part + bound * signs).clamp(0, 1)
        again = torch.from_numpy(_scores(detector, tried))
        better = again < scores
        best[better], scores[better] = tried[better], again[better]
    return best


def _round_to_bytes(changed: Tensor, planes: Tensor, start: int, bound: float) -> Tensor:
    """Round to 8 bits within the bound."""
    plain = planes[start : start + len(changed)]
    most = int(bound * 255 + 1e-6)
    steps = ((changed.clamp(0, 1) - plain) * 255).round().clamp(-most, most)
    return (plain + steps / 255).clamp(0, 1)


def _scores(detector: TrainedDetector, planes: Tensor) -> Floats:
    found = []
    for start in range(0, len(planes), _BATCH_SIZE):
        with torch.inference_mode():
            judged = detector.network.judge(planes[start : start + _BATCH_SIZE].to(detector.device))
        found.append(judged.logits.double().cpu().numpy())
    return np.concatenate(found)


def _group(item: ManifestItem) -> str:
    return f"{item.dataset}/{item.source or item.clip or item.id}"


def _refused(what: str, expected: str) -> DataError:
    return DataError(
        what,
        code="forensics.stress",
        expected=expected,
        next="stillroom forensics benchmark attack --help",
    )
