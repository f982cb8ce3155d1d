"""``stillroom forensics export``: a detector as an ONNX file."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "export",
    epilog="""
\b
Examples:
  stillroom forensics export runs/sbi --out sbi.onnx
  stillroom forensics export runs/sbi --out sbi.onnx --json
""",
)
@click.argument("detector", type=existing_path)
@click.option("--out", type=existing_path, required=True, help="The ONNX file to write.")
@json_option
@debug_option
def command(detector: Path, out: Path, as_json: bool) -> None:
    """Write a detector as an ONNX file.

    It takes pictures (N, 3, P, P) in [0, 1] and gives logits, higher for forged. The file is run
    and compared with the detector before it is kept. Calibration, bounds and what it cannot see are
    in its metadata.
    """
    from stillroom.forensics.detecting import TrainedDetector
    from stillroom.forensics.exporting import export_onnx

    gap = export_onnx(TrainedDetector.open(detector, device="cpu"), out)
    if as_json:
        print_json({"file": str(out), "largest_difference": gap})
        return
    click.echo(f"{out}: logits differ from the detector's by {gap:.1g} at most")
