"""``stillroom distill align``: what a student can learn from a teacher with another tokenizer."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "align",
    epilog="""
\b
Examples:
  stillroom distill align hub:HuggingFaceTB/SmolLM2-135M-Instruct ./student notes.txt
  stillroom distill align ./teacher ./student/tokenizer.json records.jsonl --json
""",
)
@click.argument("teacher")
@click.argument("student")
@click.argument("files", type=existing_path, nargs=-1, required=True, metavar="FILE...")
@json_option
@debug_option
def command(teacher: str, student: str, files: tuple[Path, ...], as_json: bool) -> None:
    """Show how well two tokenizers align on your texts.

    TEACHER and STUDENT are checkpoints or tokenizer.json files. A FILE of records (.jsonl,
    .parquet) is rendered with both chat templates; any other is read as one UTF-8 text.
    """
    from stillroom.distill.align_files import align_files, open_tokenizer

    def say(line: str) -> None:
        click.echo(line, err=True)

    sides = [open_tokenizer(reference, say=say) for reference in (teacher, student)]
    report, missed = align_files(sides[0], sides[1], files)
    if as_json:
        print_json(report.to_json() | {"messages_missed": missed})
        return
    click.echo(str(report))
    if missed:
        click.echo(f"{missed} messages stand in one rendering only and were left out")
