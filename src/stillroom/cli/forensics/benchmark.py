"""``stillroom forensics benchmark``: detectors scored, stressed, attacked and compared."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from stillroom.cli.app import LazyGroup
from stillroom.cli.options import debug_option, existing_path, json_option
from stillroom.cli.output import print_json

if TYPE_CHECKING:
    from stillroom.forensics.benchmark.adversarial import Attack

__all__ = [
    "attack_command",
    "benchmark_group",
    "compare_command",
    "score_command",
    "stress_command",
]


@click.group(
    "benchmark",
    cls=LazyGroup,
    lazy={
        "attack": (
            "stillroom.cli.forensics.benchmark:attack_command",
            "Measure what is left of a detector under adversarial noise and search.",
        ),
        "audit": (
            "stillroom.cli.forensics.manifests:audit_command",
            "Look for leaks, near duplicates, and files that tell fake from real by themselves.",
        ),
        "compare": (
            "stillroom.cli.forensics.benchmark:compare_command",
            "Compare two detectors that were measured under one protocol.",
        ),
        "import": (
            "stillroom.cli.forensics.manifests:import_command",
            "Read DeepfakeBench's or FaceForensics++'s lists into a manifest.",
        ),
        "score": (
            "stillroom.cli.forensics.benchmark:score_command",
            "Measure a table of scores, with intervals, under a protocol with a digest.",
        ),
        "split": (
            "stillroom.cli.forensics.manifests:split_command",
            "Split a manifest so that no person, recording or generator is on both sides.",
        ),
        "stress": (
            "stillroom.cli.forensics.benchmark:stress_command",
            "Draw curves of a detector under JPEG, blur, crops and eight other treatments.",
        ),
    },
    epilog="""
\b
Examples:
  stillroom forensics benchmark audit run/output
  stillroom forensics benchmark score run/output scores.csv --out standing.json
""",
)
def benchmark_group() -> None:
    """Measure detectors so that the figures hold: manifests, splits, audits, one protocol."""


@click.command(
    "attack",
    epilog="""
\b
Examples:
  stillroom forensics benchmark attack run/output --detector runs/sbi
  stillroom forensics benchmark attack run/output --detector runs/sbi --attack pgd --strength 2
""",
)
@click.argument("manifest", type=existing_path)
@click.option("--detector", type=existing_path, required=True, help="A trained detector's folder.")
@click.option(
    "--attack",
    "attacks",
    type=click.Choice(["fgsm", "pgd", "square", "eot_jpeg"]),
    multiple=True,
    help="Which; default all; may be repeated.",
)
@click.option(
    "--strength",
    "strengths",
    type=click.IntRange(1, 64),
    multiple=True,
    help="The most that a value of 0 to 255 may change; default 1, 2 and 4.",
)
@click.option("--steps", type=click.IntRange(1, 1000), default=20, show_default=True, help="Steps.")
@click.option(
    "--queries",
    type=click.IntRange(1, 100_000),
    default=200,
    show_default=True,
    help="How often the square attack may ask for scores.",
)
@click.option("--split", default="test", show_default=True, help="What is tested; '' for all.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of what is drawn by lot.",
)
@json_option
@debug_option
def attack_command(
    manifest: Path,
    detector: Path,
    attacks: tuple[str, ...],
    strengths: tuple[int, ...],
    steps: int,
    queries: int,
    split: str,
    seed: int,
    as_json: bool,
) -> None:
    """Measure what is left of a detector under adversarial noise and search.

    Forged pictures are changed within a bound until they pass for real: along the network's
    gradient (fgsm, pgd), by search over scores alone (square), or so that JPEG does not take it
    away (eot_jpeg). What counts as found is decided on the manifest's validation rows, else by the
    detector's own calibration; the first line says which. Nothing is written.
    """
    from stillroom.forensics.benchmark.adversarial import ATTACKS, attack_manifest
    from stillroom.forensics.inference.trained_detector import TrainedDetector

    found = attack_manifest(
        manifest,
        TrainedDetector.open(detector),
        attacks=cast("tuple[Attack, ...]", attacks) or ATTACKS,
        strengths=strengths or (1, 2, 4),
        steps=steps,
        queries=queries,
        split=split,
        seed=seed,
    )
    if as_json:
        print_json({"detector": str(detector), **found.to_json()})
        return
    for line in found.lines():
        click.echo(line)


@click.command(
    "compare",
    epilog="""
\b
Examples:
  stillroom forensics benchmark compare ours.json theirs.json
  stillroom forensics benchmark compare ours.json theirs.json --json
""",
)
@click.argument("ours", type=existing_path)
@click.argument("theirs", type=existing_path)
@json_option
@debug_option
def compare_command(ours: Path, theirs: Path, as_json: bool) -> None:
    """Compare two detectors that were measured under one protocol.

    Areas on the same items by DeLong's test, and the difference's interval over groups. Figures of
    different protocols are refused, and what differs is named.
    """
    from stillroom.forensics.benchmark.evaluation import compare_evaluations, read_evaluation

    first, second = read_evaluation(ours), read_evaluation(theirs)
    found = compare_evaluations(first, second)
    if as_json:
        names = {"ours": first.detector, "theirs": second.detector}
        protocol = {"protocol_digest": first.protocol.digest}
        print_json({**names, **protocol, **dataclasses.asdict(found)})
        return
    click.echo(f"{first.detector} against {second.detector}: {found.line()}")


@click.command(
    "score",
    epilog="""
\b
Examples:
  stillroom forensics benchmark score run/output scores.csv --out standing.json
  stillroom forensics benchmark score ff.csv scores.csv --unit clip --leave-out generator
""",
)
@click.argument("manifest", type=existing_path)
@click.argument("scores", type=existing_path)
@click.option("--column", default="score", show_default=True, help="The scores' column.")
@click.option("--detector", default="", help="Its name; default the table's.")
@click.option("--split", default="test", show_default=True, help="What is tested; '' for all.")
@click.option(
    "--unit",
    type=click.Choice(["frame", "clip"]),
    default="frame",
    show_default=True,
    help="Whether files or whole clips are judged.",
)
@click.option(
    "--aggregation",
    type=click.Choice(["mean", "max", "top"]),
    default="mean",
    show_default=True,
    help="How a clip's score follows from its frames'.",
)
@click.option(
    "--no-score",
    type=click.Choice(["refuse", "drop", "half"]),
    default="refuse",
    show_default=True,
    help="What an item without a score is: an error, left out, or 0.5.",
)
@click.option(
    "--leave-out",
    type=click.Choice(["generator", "source"]),
    help="Also the figures on each held-out generator or source: of scores of a detector that was "
    "trained without it.",
)
@click.option("--out", type=existing_path, help="Keep figures, protocol and scores as JSON.")
@json_option
@debug_option
def score_command(
    manifest: Path,
    scores: Path,
    column: str,
    detector: str,
    split: str,
    unit: str,
    aggregation: str,
    no_score: str,
    leave_out: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure a table of scores, with intervals, under a protocol with a digest.

    Intervals draw whole recordings. The threshold comes from the validation split, where there is
    one, never from what is tested.
    """
    from stillroom.forensics.benchmark.evaluation import (
        evaluate_folds,
        evaluate_scores,
        read_scores,
        write_evaluation,
    )
    from stillroom.forensics.benchmark.manifest import read_items

    items, table = read_items(manifest), read_scores(scores, column=column)
    standing = evaluate_scores(
        items,
        table,
        detector=detector or scores.stem,
        split=split,
        unit=unit,
        aggregation=aggregation,
        no_score=no_score,
    )
    folds = evaluate_folds(items, table, leave_out) if leave_out else {}
    if out is not None:
        write_evaluation(out, standing)
    if as_json:
        held = {name: metric.to_json() for name, metric in folds.items()}
        print_json({**standing.to_json(), "left_out": held})
        return
    for line in standing.lines():
        click.echo(line)
    for name, metric in folds.items():
        said = f"{metric.value:.4f} [{metric.low:.4f}, {metric.high:.4f}], n {metric.n}"
        click.echo(f"  auc with {leave_out} {name} left out: {said}")


@click.command(
    "stress",
    epilog="""
\b
Examples:
  stillroom forensics benchmark stress run/output --scorer runs/sbi
  stillroom forensics benchmark stress run/output --scorer mine.py:score --allow-code \\
    --treatment jpeg --treatment blur --html curves.html
""",
)
@click.argument("manifest", type=existing_path)
@click.option(
    "--scorer",
    required=True,
    help="A trained detector's folder (pictures are squares about faces, as the lab's sets hold "
    "them), or FILE.py:NAME of a function that takes a list of RGB images (H, W, 3), 8 bits, and "
    "returns a score each, higher for fake.",
)
@click.option("--allow-code", is_flag=True, help="Run that file.")
@click.option("--treatment", multiple=True, help="Of the suite; default all; may be repeated.")
@click.option("--split", default="test", show_default=True, help="What is tested; '' for all.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of what is drawn by lot.",
)
@click.option("--html", type=existing_path, help="Write the curves as a page.")
@json_option
@debug_option
def stress_command(
    manifest: Path,
    scorer: str,
    allow_code: bool,
    treatment: tuple[str, ...],
    split: str,
    seed: int,
    html: Path | None,
    as_json: bool,
) -> None:
    """Draw curves of a detector under JPEG, blur, crops and eight other treatments.

    Real and fake files are treated alike. The threshold of flips is chosen on the validation split,
    or, where there is none, on what is tested as it is, and the output says so.
    """
    from stillroom.forensics.benchmark.robustness import measure_robustness, render_robustness_page
    from stillroom.jobs import atomic_write

    found = measure_robustness(
        manifest, scorer, treatments=treatment, split=split, seed=seed, allow_code=allow_code
    )
    if html is not None:
        with atomic_write(html) as file:
            file.write(render_robustness_page(found))
    if as_json:
        print_json(found.to_json())
        return
    for line in found.lines():
        click.echo(line)
