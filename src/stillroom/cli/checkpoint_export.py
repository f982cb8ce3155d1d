"""``stillroom checkpoint export``: a checkpoint as one file for other engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

if TYPE_CHECKING:
    from stillroom.models.gguf_check import GgufComparison
    from stillroom.models.gguf_export import GgufExport, GgufType

__all__ = ["command"]


@click.command(
    "export",
    epilog="""
\b
Examples:
  stillroom checkpoint export run --to gguf --out student.gguf
  stillroom checkpoint export ./merged --to gguf --type q8_0 --out merged.gguf --check
""",
)
@click.argument("checkpoint")
@click.option("--to", "target", type=click.Choice(["gguf"]), required=True, help="The format.")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["f32", "bf16", "f16", "q8_0"]),
    help="Of the matrices; by default as they are stored.",
)
@click.option("--name", default="", help="What the file calls the model; by default its own name.")
@click.option("--check", is_flag=True, help="Run it in llama.cpp beside transformers.")
@click.option("--out", type=existing_path, required=True, help="The file to write.")
@click.option("--overwrite", is_flag=True, help="Replace what lies at --out.")
@json_option
@debug_option
def command(
    checkpoint: str,
    target: str,
    kind: GgufType | None,
    name: str,
    check: bool,
    out: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a checkpoint as a GGUF file that llama.cpp runs.

    CHECKPOINT is a run (its model is meant), a job's or a Hugging Face folder, or hub:NAME; its
    tokenizer, chat template, license and origin go into the file. With --check, texts are cut and
    written on by both engines, and a file that is not computed alike is an error, which leaves what
    was at --out.
    """
    from stillroom.flow.opening import find_checkpoint
    from stillroom.models.gguf_check import compare_gguf
    from stillroom.models.gguf_export import export_gguf

    folder, artifact = find_checkpoint(checkpoint, say=lambda line: click.echo(line, err=True))
    compared: list[GgufComparison] = []

    def prove(path: Path, stored: GgufType) -> None:
        compared.append(compare_gguf(folder, path, stored, name=out))

    told = export_gguf(
        folder,
        out,
        type=kind,
        name=name,
        artifact=artifact,
        overwrite=overwrite,
        prove=prove if check else None,
    )
    found = compared[0] if compared else None
    if as_json:
        print_json({**told.to_json(), "compared": found.to_json() if found else None})
    else:
        _tell(told, found)


def _tell(told: GgufExport, found: GgufComparison | None) -> None:
    tensors = ", ".join(f"{count} {kind}" for kind, count in sorted(told.tensors.items()))
    click.echo(f"{told.path}: {told.architecture}, {told.size_bytes / 1e6:.1f} MB, {tensors}")
    for name, why in told.left_out.items():
        click.echo(f"left out: {name}: {why}")
    for note in told.notes:
        click.echo(f"note: {note}")
    click.echo(f"compared: {found}" if found else "not compared with transformers: --check does")
