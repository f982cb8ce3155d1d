"""``stillroom forensics export`` and ``import``: ``forensics.inference.conversion``."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import (
    command,
    existing_path,
    out_folder_option,
    output_options,
    path_option,
)
from stillroom.cli.output import print_json, print_text

__all__ = [
    "export_command",
    "import_command",
]


@command(
    "export",
    "stillroom forensics export runs/sbi --out sbi.onnx",
    "stillroom forensics export runs/sbi --out sbi.onnx --json",
)
@click.argument("detector", type=existing_path)
@path_option("--out", required=True, help="Output file (ONNX).")
@output_options
def export_command(detector: Path, out: Path, as_json: bool) -> None:
    """Export a detector as an ONNX file.

    The network takes images (N, 3, P, P) in [0, 1] and returns logits, higher for forged. The file
    is run and compared with the detector before it is kept. Calibration, limits and blind spots are
    in its metadata.
    """
    from stillroom.forensics.inference.conversion import export_onnx
    from stillroom.forensics.inference.trained_detector import TrainedDetector
    from stillroom.jobs.job import write_artifact
    from stillroom.provenance import trace_sources

    opened = TrainedDetector.open(detector, device="cpu")
    gap = export_onnx(opened, out)
    source = ("detector", detector, opened.fingerprint, "")
    parents, origin = trace_sources("forensics.export", [source], out)
    details = {"detector": opened.name, "largest_difference": gap}
    write_artifact(out, "checkpoint", parents=parents, origin=origin, details=details)
    if as_json:
        print_json({"file": str(out), "largest_difference": gap})
        return
    print_text(f"{out}: logits differ from the detector's by {gap:.1g} at most")


@command(
    "import",
    "stillroom forensics import meso4 Meso4_DF.h5 --out meso4",
    "stillroom forensics import aasist AASIST-L.pth --out aasist",
)
@click.argument("kind", type=click.Choice(["aasist", "meso4"]))
@click.argument("weights", type=existing_path)
@out_folder_option
@output_options
def import_command(kind: str, weights: Path, out: Path, as_json: bool) -> None:
    """Convert the weights of a published detector.

    Meso4's output is 1 for real, and AASIST's second output is bona fide; here a higher score means
    forged, so the last layer is inverted. The detector is not validated here, so check reports all
    its findings as inconclusive.
    """
    from stillroom.forensics.inference.conversion import import_aasist, import_meso4
    from stillroom.objects.disk import require_file

    artifact = (import_meso4 if kind == "meso4" else import_aasist)(require_file(weights), out)
    if as_json:
        print_json({"out": str(out), "digest": artifact.digest})
        return
    print_text(f"{out}: {artifact.kind} of {kind}, digest {artifact.digest[:16]}")
    print_text("its scores are raw: neither calibrated nor validated here", err=True)
