"""``stillroom forensics benchmark stress``: curves of robustness."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


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
def command(
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
    from stillroom.forensics.stressing import draw_stress_page, stress_manifest
    from stillroom.jobs import atomic_write

    found = stress_manifest(
        manifest, scorer, treatments=treatment, split=split, seed=seed, allow_code=allow_code
    )
    if html is not None:
        with atomic_write(html) as file:
            file.write(draw_stress_page(found))
    if as_json:
        print_json(found.to_json())
        return
    for line in found.lines():
        click.echo(line)
