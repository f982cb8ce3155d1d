"""Adversarial attacks on image detectors: FGSM, PGD, Square, and JPEG-robust EOT.

Attacks change forgeries until they pass as real; real images stay unchanged. White-box attacks use
the network's gradient; ``square`` uses scores only; ``eot_jpeg`` is optimized to survive
compression. Attacked images are not written.

Source: Goodfellow et al. 2015, arXiv:1412.6572 (FGSM); Madry et al. 2018, arXiv:1706.06083 (PGD);
Andriushchenko et al. 2020, arXiv:1912.00049, algorithms 1 and 2 (square attack, L-infinity);
Athalye et al. 2018, arXiv:1707.07397 and arXiv:1802.00420 (expectation over transformations, and
straight-through gradients where there are none).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stillroom.errors import DataError
from stillroom.evaluate import Metric
from stillroom.forensics.benchmark.manifest import ManifestItem, find_manifest, read_items
from stillroom.forensics.benchmark.metrics import bootstrap_auc, select_threshold
from stillroom.forensics.inference.trained_detector import TrainedDetector
from stillroom.forensics.media.images import load_image
from stillroom.forensics.media.transforms import compress_jpeg
from stillroom.forensics.modalities.image import ImageModality, to_channels_first
from stillroom.forensics.settings import AttackSettings

__all__ = ["AttackReport", "AttackResult", "attack_manifest", "attack_planes"]

Floats = npt.NDArray[np.float64]
_VALIDATION = "validation"
_BATCH_SIZE = 16
_QUALITIES = (60, 75, 90)


@dataclass(frozen=True)
class AttackResult:
    """Result of one attack: the area, and the share of detected forgeries that then pass.

    ``strength`` is the maximum change of a value from 0 to 255; 0 is without an attack. ``known``
    is the share of forgeries detected before; ``turned`` is None where none was.
    """

    attack: str
    strength: int
    area: Metric
    known: float
    turned: float | None
    n: int

    def line(self) -> str:
        """Format as one line."""
        interval = f"[{self.area.low:.3f}, {self.area.high:.3f}]"
        if not self.strength:
            return f"no attack: auc {self.area.value:.3f} {interval}, {self.known:.0%} found"
        prefix = f"{self.attack} by {self.strength}/255: auc {self.area.value:.3f} {interval}, "
        if self.turned is None:
            return f"{prefix}no forgery was detected before the attack"
        return f"{prefix}{self.turned:.0%} of the detected forgeries pass"

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
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
    """Results of all attacks on a detector, and the data that its threshold was chosen on.

    The first row is without an attack.
    """

    threshold_from: str
    rows: tuple[AttackResult, ...]

    def lines(self) -> list[str]:
        """Format the results as lines."""
        return [f"threshold: {self.threshold_from}", *(row.line() for row in self.rows)]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON-compatible values."""
        rows = [row.to_json() for row in self.rows]
        return {"threshold_from": self.threshold_from, "attacks": rows}


def attack_manifest(
    manifest: Path,
    detector: TrainedDetector,
    *,
    attacks: Sequence[AttackSettings],
    strengths: Sequence[int] = (1, 2, 4),
    split: str = "test",
    seed: int = 0,
) -> AttackReport:
    """Attack the forged images of a manifest, and measure the detector's robustness.

    The threshold is chosen on images that are not attacked: on the manifest's validation rows, else
    by the detector's own calibration at even odds.

    Args:
        manifest: The file, or its folder; images are face crops, as in the lab's data sets.
        detector: An image detector; attacks apply to its network's input.
        attacks: Attacks to run.
        strengths: Maximum changes of a value from 0 to 255; integers, as files hold integers.
        split: Split of the rows; empty for all.
        seed: Random seed.

    Raises:
        DataError: If rows, strengths or the detector are unsuitable, or no threshold can be
            determined.
    """
    read = detector.metadata.modality
    if not isinstance(read, ImageModality):
        raise _refused(f"{detector.name} is not an image detector", "an image detector")
    for strength in strengths:
        if strength != int(strength) or strength < 1:
            raise _refused(
                f"a strength of {strength} cannot be stored in 8-bit images", "integers from 1"
            )
    file = find_manifest(manifest)
    all_items = read_items(file)
    items = [item for item in all_items if not split or item.split == split]
    if len({item.label for item in items}) < 2:
        raise _refused("all rows are of one class", f"real and fake rows of the split {split!r}")
    is_apart = split not in {"", _VALIDATION}
    validation = [item for item in all_items if is_apart and item.split == _VALIDATION]
    finds, threshold_from = _choose_threshold(file, detector, validation)
    labels = [item.label for item in items]
    groups = [f"{item.dataset}/{item.source or item.clip or item.id}" for item in items]
    fakes = np.array(labels) == 1
    plain = _score_items(file, detector, items)
    known = finds(plain[fakes])
    share, count = float(known.mean()), len(items)
    rows = [AttackResult("none", 0, bootstrap_auc(labels, plain, groups), share, None, count)]
    plan = [(attack, strength) for attack in attacks for strength in strengths]
    fake_items = [item for item in items if item.label]
    attacked_scores = _attack_items(file, detector, fake_items, plan, seed)
    for (attack, strength), attacked in zip(plan, attacked_scores, strict=True):
        scores = plain.copy()
        scores[fakes] = attacked
        passed = known & ~finds(attacked)
        turned = float(passed.sum() / known.sum()) if known.any() else None
        area = bootstrap_auc(labels, scores, groups)
        rows.append(AttackResult(attack.name, int(strength), area, share, turned, count))
    return AttackReport(threshold_from, tuple(rows))


def _choose_threshold(
    file: Path, detector: TrainedDetector, validation: Sequence[ManifestItem]
) -> tuple[Callable[[Floats], npt.NDArray[np.bool_]], str]:
    """Return a predicate on scores for detected forgeries, and the data it was chosen on."""
    if len({item.label for item in validation}) == 2:
        scores = _score_items(file, detector, validation)
        least = select_threshold([item.label for item in validation], scores.tolist())
        if least is not None:
            source = f"best balanced accuracy on the {len(validation)} validation rows"
            return lambda scores_to_test: np.asarray(scores_to_test >= least), source
    calibrator = detector.metadata.calibrator
    if calibrator.n:
        source = f"even odds by the detector's own calibration on {calibrator.n} pictures"
        return lambda scores_to_test: np.asarray(
            calibrator.chances(scores_to_test, 0.5) >= 0.5
        ), source
    raise _refused(
        f"no threshold can be determined for {detector.name}: it has no calibration, and the "
        "manifest has no validation rows other than the attacked ones on which its scores are "
        "better than chance",
        "real and fake rows of the split 'validation'",
    )


def _score_items(file: Path, detector: TrainedDetector, items: Sequence[ManifestItem]) -> Floats:
    parts = _load(file, detector, items)
    return np.concatenate([_scores(detector, planes) for _, planes in parts])


def _attack_items(
    file: Path,
    detector: TrainedDetector,
    items: Sequence[ManifestItem],
    plan: Sequence[tuple[AttackSettings, int]],
    seed: int,
) -> Floats:
    """Return the scores after each attack at a strength, (attacks, N)."""
    parts = [
        [
            _scores(
                detector,
                attack_planes(detector, planes, attack, strength / 255, seed=seed + start),
            )
            for attack, strength in plan
        ]
        for start, planes in _load(file, detector, items)
    ]
    return np.concatenate(parts, axis=1)


def _load(
    file: Path, detector: TrainedDetector, items: Sequence[ManifestItem]
) -> Iterator[tuple[int, Tensor]]:
    """Yield the network's inputs for some rows in batches, (n, 3, P, P), and the first row's index.

    A whole split at once is some 20 GB.
    """
    for start in range(0, len(items), _BATCH_SIZE):
        planes = [
            detector.image_input.prepare([load_image(file.parent / item.path).image])
            for item in items[start : start + _BATCH_SIZE]
        ]
        yield start, torch.from_numpy(np.concatenate(planes))


def attack_planes(
    detector: TrainedDetector,
    planes: Tensor,
    attack: AttackSettings,
    bound: float,
    *,
    seed: int = 0,
) -> Tensor:
    """Attack images (N, 3, P, P) in [0, 1], each within ``bound`` of the original.

    No value changes by more; results are multiples of 1/255, as a file would store them.
    """

    def change(part: Tensor, rng: torch.Generator) -> Tensor:
        if attack.name == "square":
            return _attack_square(detector, part, bound, attack.queries, rng)
        if attack.name == "fgsm":
            return _attack_gradient(detector, part, bound, bound, 1, rng, starts=False)
        through_jpeg = attack.name == "eot_jpeg"
        step, steps = bound / 4, attack.steps
        return _attack_gradient(detector, part, bound, step, steps, rng, through_jpeg=through_jpeg)

    out = []
    for start in range(0, len(planes), _BATCH_SIZE):
        rng = torch.Generator().manual_seed(seed + start)
        changed = change(planes[start : start + _BATCH_SIZE], rng)
        out.append(_round_to_bytes(changed, planes, start, bound))
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
    """Descend along the sign of the score's gradient, within the bound."""
    moved = plain.clone()
    if starts:
        moved = moved + (torch.rand(plain.shape, generator=rng) * 2 - 1) * bound
    for _ in range(steps):
        current = moved.clamp(0, 1).detach()
        slope = torch.zeros_like(current)
        for view in _compress_views(current) if through_jpeg else [current]:
            inputs = view.to(detector.device).requires_grad_()
            with torch.enable_grad():
                total = detector.network.forward_features(inputs).logits.sum()
            (gradient,) = torch.autograd.grad(total, inputs)
            slope += gradient.cpu()
        moved = (current - step * slope.sign()).clamp(plain - bound, plain + bound)
    return moved


def _compress_views(batch: Tensor) -> list[Tensor]:
    """Return images after JPEG at several qualities, for a straight-through gradient."""
    images = [
        np.asarray((image.permute(1, 2, 0) * 255).round().numpy(), dtype=np.uint8)
        for image in batch
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
    """Random search with squares of one color; keep those that lower the score."""
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
    scores = []
    for start in range(0, len(planes), _BATCH_SIZE):
        with torch.inference_mode():
            judged = detector.network.forward_features(
                planes[start : start + _BATCH_SIZE].to(detector.device)
            )
        scores.append(judged.logits.double().cpu().numpy())
    return np.concatenate(scores)


def _refused(problem: str, expected: str) -> DataError:
    return DataError(
        problem,
        code="forensics.stress",
        expected=expected,
        next="stillroom new forensics.benchmark",
    )
