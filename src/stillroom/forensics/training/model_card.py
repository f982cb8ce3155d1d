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
    folder: Path, about: DetectorMetadata, figures: Mapping[str, Any], faces: FacesSettings
) -> None:
    """Write README.md beside the weights.

    Args:
        folder: The checkpoint's.
        about: The detector.
        figures: What was measured on test faces.
        faces: Whose faces it learned from.
    """
    name = about.method.method_name()
    write_card(
        folder,
        f"Detector {name} of {', '.join(about.learned_from)}",
        "\n".join(_body(about, figures, faces)),
        tags=["forgery-detection", name],
        fields={"library_name": "stillroom", "pipeline_tag": "image-classification"},
    )


def write_audio_model_card(
    folder: Path, about: DetectorMetadata, figures: Mapping[str, Any], sound: AudioSettings
) -> None:
    """Write README.md beside the weights of a detector of sounds; arguments as for faces."""
    name, count = about.method.method_name(), figures["faces"]
    whose = sound.basis or about.faces
    lines = [
        f"Paper: {about.method.paper}. A higher score is forged. It hears "
        f"{about.pixels / about.size:.2f} s at {about.size} samples a second.",
        "",
        "## What it learned",
        "",
        f"Sounds forged on the fly by {', '.join(about.learned_from)} from {count['train']} sounds "
        f"({whose}); calibrated on {count['validation']}, tested on {count['test']}. No speaker is "
        "in two of these.",
        *_describe_training_domain(about),
        "",
        "## Where it is blind",
        "",
        *[f"- {line}" for line in [*about.blind, *_describe_blind_spots(figures)]],
    ]
    if not about.is_shown:
        lines.append(
            "- On validation speakers the interval of its area under the curve reaches 0.5: it was "
            "not shown to tell forged from real, and all it says is called inconclusive."
        )
    if about.faces.startswith("drawn"):
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
        f"Calibration ({about.calibrator.method}, {about.calibrator.n} validation sounds), error "
        f"and Brier score on test sounds: {_chances(figures['calibration']['before'])} before, "
        f"{_chances(figures['calibration']['after'])} after.",
    ]
    write_card(
        folder,
        f"Detector {name} of {', '.join(about.learned_from)}",
        "\n".join(lines),
        tags=["forgery-detection", name],
        fields={"library_name": "stillroom", "pipeline_tag": "audio-classification"},
    )


def _body(about: DetectorMetadata, figures: Mapping[str, Any], faces: FacesSettings) -> list[str]:
    count = figures["faces"]
    whose = faces.basis or about.faces
    lines = [
        f"Paper: {about.method.paper}. A higher score is forged. It looks at {about.pixels} x "
        f"{about.pixels} pixels of a square about each face.",
        "",
        "## What it learned",
        "",
        f"Forgeries made on the fly by {', '.join(about.learned_from)} from {count['train']} faces "
        f"({whose}); calibrated on {count['validation']}, tested on {count['test']}. No person is "
        "in two of these.",
        *_describe_training_domain(about),
        "",
        "## Where it is blind",
        "",
        *[f"- {line}" for line in [*about.blind, *_describe_blind_spots(figures)]],
    ]
    if not about.is_shown:
        lines.append(
            "- On validation faces the interval of its area under the curve reaches 0.5: it was "
            "not shown to tell forged from real, and all it says is called inconclusive."
        )
    if about.faces.startswith("drawn"):
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
        f"Calibration ({about.calibrator.method}, {about.calibrator.n} validation pictures), error "
        f"and Brier score on test faces: {_chances(figures['calibration']['before'])} before, "
        f"{_chances(figures['calibration']['after'])} after.",
        "",
        f"Judgements are withheld below {about.least_face / about.margin:.0f} pixels of face and "
        f"below JPEG quality {about.least_quality}: further down less than 70 % of what it has "
        "above chance was left on validation faces.",
    ]
    return lines


def _describe_training_domain(about: DetectorMetadata) -> list[str]:
    """Return what set it learned from, what the audit found of it, and how strangers are known."""
    lines = ["", f"The set: {about.learned.line()} (of {about.learned.digest})."]
    audit = about.audit
    if audit:
        by = audit["by_file"]
        said = audit["leak"] or "what is no trace of a forgery does not tell fake from real"
        lines += [
            "",
            f"Audit of the {audit['of']}: {said}; area {_number(by['value'])}, 95 % "
            f"{_number(by['low'])} to {_number(by['high'])}, n {by['n']}; "
            f"{audit['near_duplicates']} near duplicates in two splits, {audit['unread']} files "
            "not read.",
        ]
        if audit["leak"]:
            lines += ["", "**The set leaks. All that this detector says is called inconclusive.**"]
    if about.domain is None:
        return lines
    tried = about.domain.tried
    lines += [
        "",
        "## What it knows",
        "",
        "What is unlike what it learned from is called inconclusive: by colours, size and coding "
        f"of the file, and by distances in: {', '.join(about.domain.clouds)}. "
        f"Limits are set on {about.domain.people} validation people for {about.domain.rate:.0%} "
        "of what known people show. Of what test people show, within the limits are:",
        *("", "| seen | within | interval over people | real | forged |", "|---|---|---|---|---|"),
        *[
            f"| {name} | {one['value']:.3f} | {_number(one['low'])} to {_number(one['high'])} | "
            f"{one['real']:.3f} | {one['forged']:.3f} |"
            for name, one in tried.items()
        ],
    ]
    known = about.domain.known
    if known.codings:
        lines += ["", f"Its files were coded as: {', '.join(known.codings)}."]
    if known.colours:
        lines += ["", f"Its pictures were: {' and '.join(known.colours)}."]
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


def _row(said: str, metric: Mapping[str, Any]) -> str:
    if metric["low"] is None:
        return (
            f"| {said} | {metric['value']:.3f} | none: {metric.get('note', '')} | {metric['n']} |"
        )
    return (
        f"| {said} | {metric['value']:.3f} | {metric['low']:.3f} to {metric['high']:.3f} | "
        f"{metric['n']} |"
    )


def _chances(values: Mapping[str, float]) -> str:
    return f"{values['calibration_error']:.3f} and {values['brier']:.3f}"
