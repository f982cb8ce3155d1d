"""``stillroom forensics benchmark score``: a table of scores, measured."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


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
def command(
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
    from stillroom.forensics.items import read_items
    from stillroom.forensics.standing import read_scores, score_folds, score_items, write_standing

    items, table = read_items(manifest), read_scores(scores, column=column)
    standing = score_items(
        items,
        table,
        detector=detector or scores.stem,
        split=split,
        unit=unit,
        aggregation=aggregation,
        no_score=no_score,
    )
    folds = score_folds(items, table, leave_out) if leave_out else {}
    if out is not None:
        write_standing(out, standing)
    if as_json:
        held = {name: metric.to_json() for name, metric in folds.items()}
        print_json({**standing.to_json(), "left_out": held})
        return
    for line in standing.lines():
        click.echo(line)
    for name, metric in folds.items():
        said = f"{metric.value:.4f} [{metric.low:.4f}, {metric.high:.4f}], n {metric.n}"
        click.echo(f"  auc with {leave_out} {name} left out: {said}")
