"""``stillroom checkpoint``: GGUF export by ``models.gguf.export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from stillroom.cli.app import command_group
from stillroom.cli.options import (
    existing_path,
    flag_option,
    output_options,
    overwrite_option,
    path_option,
)
from stillroom.cli.output import print_json, print_text

if TYPE_CHECKING:
    from stillroom.models.gguf.agreement import FormComparison
    from stillroom.models.gguf.comparison import GgufComparison
    from stillroom.models.gguf.export import GgufExport, GgufType

__all__ = [
    "checkpoint_group",
    "export_command",
]


@command_group(
    "checkpoint",
    "stillroom checkpoint export run --to gguf --out student.gguf",
    "stillroom checkpoint export run --to gguf --type q8_0 --out student.gguf --check",
)
def checkpoint_group() -> None:
    """Checkpoints: export GGUF files."""


@checkpoint_group.subcommand(
    "export",
    "stillroom checkpoint export run --to gguf --out student.gguf",
    "stillroom checkpoint export ./merged --to gguf --type q8_0 --out merged.gguf --check",
    "stillroom checkpoint export run --to gguf --type q8_0 --out s.gguf --questions asked.jsonl",
)
@click.argument("checkpoint")
@click.option("--to", "target", type=click.Choice(["gguf"]), required=True, help="Output format.")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["f32", "bf16", "f16", "q8_0"]),
    help="Type of the matrices; by default as stored.",
)
@click.option("--name", default="", help="Model name in the file; by default its own name.")
@flag_option("--check", help="Compare the file in llama.cpp with transformers.")
@click.option(
    "--questions",
    type=existing_path,
    help="Write the file only if it answers these questions as the checkpoint does: records, or "
    "questions of people.",
)
@click.option(
    "--base", default="", help="Base of the checkpoint's adapter; by default as the adapter names."
)
@path_option("--out", required=True, help="Output file.")
@overwrite_option
@output_options
def export_command(
    checkpoint: str,
    target: str,
    kind: GgufType | None,
    name: str,
    check: bool,
    questions: Path | None,
    base: str,
    out: Path,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a checkpoint as a GGUF file that llama.cpp runs.

    CHECKPOINT is a run (its model is used), the folder of a job, a Hugging Face folder, or
    hub:NAME; tokenizer, chat template, license and origin are written to the file. With --check,
    both tokenize and continue the same texts; a mismatch is an error, and an existing --out
    is then kept. With --questions, the checkpoint, its adapter (where a training kept it), the file
    and, for q8_0, a file of float16 give greedy answers and next-token distributions: adapter and
    full precision must agree (99 % of the answers, 0.001 nats), and the cost of q8_0 is reported.
    """
    from stillroom.checkpoints import Checkpoint
    from stillroom.evaluate.qa.questions import read_question_set
    from stillroom.flow.opening import find_checkpoint
    from stillroom.jobs import choose_reporter
    from stillroom.jobs.job import write_artifact
    from stillroom.models.gguf.agreement import compare_export, find_adapter
    from stillroom.models.gguf.comparison import compare_gguf
    from stillroom.models.gguf.export import export_gguf
    from stillroom.provenance import ARTIFACT_FILE, trace_sources

    folder, artifact = find_checkpoint(checkpoint, say=lambda line: print_text(line, err=True))
    if artifact is None and (Path(checkpoint) / ARTIFACT_FILE).is_file():
        choose_reporter().warn(
            f"{checkpoint} trained no language model: {folder} is written as it was before"
        )
    if base and (questions is None or find_adapter(folder, base)[0] is None):
        raise click.UsageError(
            "--base is for comparing an adapter that the training kept: give --questions, and a "
            "checkpoint with a folder `adapter`"
        )
    asked = [one.text for one in read_question_set(questions)] if questions else []
    compared: list[GgufComparison] = []
    agreed: list[FormComparison] = []

    def prove(path: Path, stored: GgufType) -> None:
        if check:
            compared.append(compare_gguf(folder, path, stored, name=out))
        if questions is not None:
            agreed.append(compare_export(folder, path, stored, asked, base=base))
            agreed[0].require_equal(out)

    export = export_gguf(
        folder, out, type=kind, name=name, artifact=artifact, overwrite=overwrite, prove=prove
    )
    card = export.to_json() | {"checked": check, "questions": str(questions or "")}
    source = ("model", folder, export.fingerprint, Checkpoint.open(folder).license)
    parents, origin = trace_sources("checkpoint.export", [source], out)
    write_artifact(out, "checkpoint", parents=parents, origin=origin, details=card)
    comparison = compared[0] if compared else None
    agreement = agreed[0] if agreed else None
    if as_json:
        parts = {"compared": comparison, "agreement": agreement}
        results = {key: part.to_json() if part else None for key, part in parts.items()}
        print_json({**export.to_json(), **results})
    else:
        _print_export(export, comparison, agreement)


def _print_export(
    export: GgufExport, comparison: GgufComparison | None, agreement: FormComparison | None
) -> None:
    tensors = ", ".join(f"{count} {kind}" for kind, count in sorted(export.tensors.items()))
    print_text(f"{export.path}: {export.architecture}, {export.size_bytes / 1e6:.1f} MB, {tensors}")
    for name, why in export.left_out.items():
        print_text(f"left out: {name}: {why}")
    for note in export.notes:
        print_text(f"note: {note}")
    if agreement:
        print_text(f"answers: {agreement.describe(export.path.name)}")
    if comparison:
        print_text(f"compared: {comparison}")
    if not comparison and not agreement:
        print_text("not compared with transformers: add --check or --questions")
