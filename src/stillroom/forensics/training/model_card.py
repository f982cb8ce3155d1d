"""Model card of a detector: training data, metrics, and known limits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stillroom.checkpoints.card import write_card
from stillroom.forensics.inference.trained_detector import DetectorMetadata
from stillroom.forensics.recipe import AudioSettings, FacesSettings

__all__ = ["write_audio_model_card", "write_image_model_card"]

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


def write_image_model_card(
    folder: Path, meta: DetectorMetadata, figures: Mapping[str, Any], faces: FacesSettings
) -> None:
    """Write README.md beside the weights.

    Args:
        folder: Folder of the checkpoint.
        meta: Metadata of the detector.
        figures: Metrics on test faces.
        faces: Source of the training faces.
    """
    name = meta.method.method_name()
    write_card(
        folder,
        f"Detector {name} of {', '.join(meta.trained_on)}",
        "\n".join(_body(meta, figures, faces)),
        tags=["forgery-detection", name],
        fields={"library_name": "stillroom", "pipeline_tag": "image-classification"},
    )


def write_audio_model_card(
    folder: Path, meta: DetectorMetadata, figures: Mapping[str, Any], sound: AudioSettings
) -> None:
    """Write README.md beside the weights of an audio detector; arguments as for images."""
    name, count = meta.method.method_name(), figures["faces"]
    source = sound.basis or meta.faces
    lines = [
        f"Paper: {meta.method.paper}. A higher score is forged. It hears "
        f"{meta.pixels / meta.size:.2f} s at {meta.size} samples a second.",
        "",
        "## What it learned",
        "",
        f"Sounds forged on the fly by {', '.join(meta.trained_on)} from {count['train']} sounds "
        f"({source}); calibrated on {count['validation']}, tested on {count['test']}. No speaker "
        "is in two of these.",
        *_describe_training_domain(meta),
        "",
        "## Where it is blind",
        "",
        *[f"- {line}" for line in [*meta.limitations, *_describe_blind_spots(figures)]],
    ]
    if not meta.is_validated:
        lines.append(
            "- On validation speakers the interval of its area under the curve reaches 0.5: it was "
            "not shown to tell forged from real, and all it says is called inconclusive."
        )
    if meta.faces.startswith("drawn"):
        lines.append("- It learned from drawn voices: of recordings its scores say nothing.")
    lines += [
        *("", "## What was measured", ""),
        "Area under the curve on test speakers, with a 95 % interval over speakers; what is done "
        "to sounds is done to real and forged alike.",
        *("", "| sounds | area | interval | n |", "|---|---|---|---|"),
        *[
            _row(_CONDITION_LABELS[condition], metric)
            for condition, metric in figures["auc"].items()
        ],
        "",
        f"Calibration ({meta.calibrator.method}, {meta.calibrator.n} validation sounds), error "
        f"and Brier score on test sounds: {_chances(figures['calibration']['before'])} before, "
        f"{_chances(figures['calibration']['after'])} after.",
    ]
    write_card(
        folder,
        f"Detector {name} of {', '.join(meta.trained_on)}",
        "\n".join(lines),
        tags=["forgery-detection", name],
        fields={"library_name": "stillroom", "pipeline_tag": "audio-classification"},
    )


def _body(meta: DetectorMetadata, figures: Mapping[str, Any], faces: FacesSettings) -> list[str]:
    count = figures["faces"]
    source = faces.basis or meta.faces
    lines = [
        f"Paper: {meta.method.paper}. A higher score is forged. It looks at {meta.pixels} x "
        f"{meta.pixels} pixels of a square about each face.",
        "",
        "## What it learned",
        "",
        f"Forgeries made on the fly by {', '.join(meta.trained_on)} from {count['train']} faces "
        f"({source}); calibrated on {count['validation']}, tested on {count['test']}. No person is "
        "in two of these.",
        *_describe_training_domain(meta),
        "",
        "## Where it is blind",
        "",
        *[f"- {line}" for line in [*meta.limitations, *_describe_blind_spots(figures)]],
    ]
    if not meta.is_validated:
        lines.append(
            "- On validation faces the interval of its area under the curve reaches 0.5: it was "
            "not shown to tell forged from real, and all it says is called inconclusive."
        )
    if meta.faces.startswith("drawn"):
        lines.append("- It learned from drawn faces: of photographs its scores say nothing.")
    lines += [
        "",
        "## What was measured",
        "",
        "Area under the curve on test faces, with a 95 % interval over people; what is done to "
        "pictures is done to real and forged alike.",
        "",
        "| pictures | area | interval | n |",
        "|---|---|---|---|",
        *[_row(_CONDITION_LABELS[name], metric) for name, metric in figures["auc"].items()],
        "",
        f"Calibration ({meta.calibrator.method}, {meta.calibrator.n} validation pictures), error "
        f"and Brier score on test faces: {_chances(figures['calibration']['before'])} before, "
        f"{_chances(figures['calibration']['after'])} after.",
        "",
        f"Judgements are withheld below {meta.least_face / meta.margin:.0f} pixels of face and "
        f"below JPEG quality {meta.least_quality}: further down less than 70 % of what it has "
        "above chance was left on validation faces.",
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
        "What is unlike what it learned from is called inconclusive: by colours, size and coding "
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


def _describe_blind_spots(figures: Mapping[str, Any]) -> list[str]:
    return [
        f"Measured: {_CONDITION_LABELS[name]} its area is {metric['value']:.2f}, which is "
        "little or nothing."
        for name, metric in figures["auc"].items()
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
