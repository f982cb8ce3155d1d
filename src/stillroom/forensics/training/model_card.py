"""Model card of a detector: training data, metrics, and known limits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from stillroom.checkpoints.card import write_card
from stillroom.forensics.inference.trained_detector import DetectorMetadata
from stillroom.forensics.modalities.audio import AudioModality
from stillroom.forensics.modalities.image import ImageModality

__all__ = ["write_model_card"]

_CONDITION_LABELS = {
    "clean": "as they are",
    "jpeg70": "after JPEG 70",
    "jpeg40": "after JPEG 40",
    "half": "at half their size and back",
    "noise8": "with noise of deviation 8",
    "h264": "after H.264 at a rate factor of 28",
    "mp3_64": "after MP3 at 64 kbit/s",
    "aac_64": "after AAC at 64 kbit/s",
    "noise20": "with noise 20 dB below",
    "telephone": "in a telephone's band, below 4 kHz",
    "blur": "blurred (sigma 1.5 at 224 pixels)",
}
_BLIND_BELOW = 0.6


class _Words(NamedTuple):
    """Words of one modality; ``tested`` are what intervals are over."""

    forged: str
    samples: str
    person: str
    tested: str
    people: str
    media: str
    scored: str
    real: str


_WORDS = {
    "image": _Words(
        *("Forgeries made on the fly", "faces", "person", "faces", "people", "pictures", "faces"),
        "photographs",
    ),
    "audio": _Words(
        *("Sounds forged on the fly", "sounds", "speaker", "speakers", "speakers", "sounds"),
        *("sounds", "recordings"),
    ),
}


def write_model_card(folder: Path, meta: DetectorMetadata, basis: str = "") -> None:
    """Write README.md beside the weights.

    Args:
        folder: Folder of the checkpoint.
        meta: Metadata of the detector.
        basis: License or agreement on which people's files were used.
    """
    name, modality = meta.method.method_name(), meta.modality
    write_card(
        folder,
        f"Detector {name} of {', '.join(meta.trained_on)}",
        "\n".join([*_describe_training(meta, basis), *_describe_metrics(meta)]),
        tags=["forgery-detection", name],
        fields={
            "library_name": "stillroom",
            "pipeline_tag": f"{modality.name}-classification",
        },
    )


def _describe_training(meta: DetectorMetadata, basis: str) -> list[str]:
    """Return lines on training data and known limits."""
    words, modality = _WORDS[meta.modality.name], meta.modality
    count = meta.metrics[modality.subject]
    lines = [
        f"Paper: {meta.method.paper}. A higher score is forged. {_describe_input(meta)}",
        "",
        "## What it learned",
        "",
        f"{words.forged} by {', '.join(meta.trained_on)} from {count['train']} {words.samples} "
        f"({basis or meta.source}); calibrated on {count['validation']}, tested on "
        f"{count['test']}. No {words.person} is in two of these.",
        *_describe_training_domain(meta),
        "",
        "## Where it is blind",
        "",
        *[f"- {line}" for line in [*meta.limitations, *_describe_blind_spots(meta.metrics)]],
    ]
    if not meta.is_validated:
        lines.append(
            f"- On validation {words.tested} the interval of its area under the curve reaches 0.5: "
            "it was not shown to tell forged from real, and all it says is called inconclusive."
        )
    if meta.source.startswith("drawn"):
        lines.append(
            f"- It learned from drawn {modality.subject}: of {words.real} its scores say nothing."
        )
    return lines


def _describe_input(meta: DetectorMetadata) -> str:
    if isinstance(meta.modality, AudioModality):
        rate = meta.modality.sample_rate
        return f"It hears {meta.modality.seconds:.2f} s at {rate} samples a second."
    side = meta.modality.input_size
    return f"It looks at {side} x {side} pixels of a square about each face."


def _describe_metrics(meta: DetectorMetadata) -> list[str]:
    """Return lines on the metrics of test people, and on the validated conditions."""
    words, modality, metrics = _WORDS[meta.modality.name], meta.modality, meta.metrics
    lines = [
        *("", "## What was measured", ""),
        f"Area under the curve on test {words.tested}, with a 95 % interval over {words.people}; "
        f"what is done to {words.media} is done to real and forged alike.",
        *("", f"| {words.media} | area | interval | n |", "|---|---|---|---|"),
        *[_row(_CONDITION_LABELS[name], metric) for name, metric in metrics["auc"].items()],
        "",
        f"Calibration ({meta.calibrator.method}, {meta.calibrator.n} validation {words.media}), "
        f"error and Brier score on test {words.scored}: "
        f"{_chances(metrics['calibration']['before'])} before, "
        f"{_chances(metrics['calibration']['after'])} after.",
    ]
    if isinstance(modality, ImageModality):
        lines += [
            "",
            f"Judgements are withheld below {modality.min_face_size / modality.face_margin:.0f} "
            f"pixels of face and below JPEG quality {modality.min_jpeg_quality}: further down less "
            "than 70 % of what it has above chance was left on validation faces.",
        ]
    return lines


def _describe_training_domain(meta: DetectorMetadata) -> list[str]:
    """Return lines on the training set, its audit, and out-of-domain detection."""
    lines = ["", f"The set: {meta.training_set.line()} (of {meta.training_set.digest})."]
    audit = meta.audit
    if audit:
        metric = audit["by_file"]
        finding = audit["leak"] or "what is no trace of a forgery does not tell fake from real"
        lines += [
            "",
            f"Audit of the {audit['of']}: {finding}; area {_number(metric['value'])}, 95 % "
            f"{_number(metric['low'])} to {_number(metric['high'])}, n {metric['n']}; "
            f"{audit['near_duplicates']} near duplicates in two splits, {audit['unread']} files "
            "not read.",
        ]
        if audit["leak"]:
            lines += ["", "**The set leaks. All that this detector says is called inconclusive.**"]
    if meta.domain is None:
        return lines
    tried = meta.domain.tried
    lines += [
        "",
        "## What it knows",
        "",
        "What is unlike what it learned from is called inconclusive: by colors, size and coding "
        f"of the file, and by distances in: {', '.join(meta.domain.clouds)}. "
        f"Limits are set on {meta.domain.people} validation people for {meta.domain.rate:.0%} "
        "of what known people show. Of what test people show, within the limits are:",
        *("", "| seen | within | interval over people | real | forged |", "|---|---|---|---|---|"),
        *[
            f"| {name} | {row['value']:.3f} | {_number(row['low'])} to {_number(row['high'])} | "
            f"{row['real']:.3f} | {row['forged']:.3f} |"
            for name, row in tried.items()
        ],
    ]
    known = meta.domain.known
    if known.codings:
        lines += ["", f"Its files were coded as: {', '.join(known.codings)}."]
    if known.colors:
        lines += ["", f"Its pictures were: {' and '.join(known.colors)}."]
    return lines


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _describe_blind_spots(metrics: Mapping[str, Any]) -> list[str]:
    return [
        f"Measured: {_CONDITION_LABELS[name]} its area is {metric['value']:.2f}, which is "
        "little or nothing."
        for name, metric in metrics["auc"].items()
        if metric["value"] is not None and metric["value"] < _BLIND_BELOW
    ]


def _row(name: str, metric: Mapping[str, Any]) -> str:
    if metric["low"] is None:
        return (
            f"| {name} | {metric['value']:.3f} | none: {metric.get('note', '')} | {metric['n']} |"
        )
    return (
        f"| {name} | {metric['value']:.3f} | {metric['low']:.3f} to {metric['high']:.3f} | "
        f"{metric['n']} |"
    )


def _chances(values: Mapping[str, float]) -> str:
    return f"{values['calibration_error']:.3f} and {values['brier']:.3f}"
