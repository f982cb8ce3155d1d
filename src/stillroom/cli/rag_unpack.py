"""``stillroom rag unpack``: a corpus of JSON lines as a folder of documents."""

from __future__ import annotations

from pathlib import Path

import click

from stillroom.cli.options import debug_option, existing_path, json_option, print_json

__all__ = ["command"]


@click.command(
    "unpack",
    epilog="""
\b
Examples:
  stillroom rag unpack scifact/corpus.jsonl --out documents
  stillroom rag unpack corpus.jsonl --out documents --overwrite
""",
)
@click.argument("corpus", type=existing_path)
@click.option("--out", type=existing_path, required=True, help="The folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace what lies at --out.")
@json_option
@debug_option
def command(corpus: Path, out: Path, overwrite: bool, as_json: bool) -> None:
    """Write each row of a corpus (id, title, text) as a document to be indexed."""
    from stillroom.evaluate.collections import read_corpus
    from stillroom.rag.measuring.collection import unpack_corpus

    count = unpack_corpus(read_corpus(corpus), out, overwrite=overwrite)
    if as_json:
        print_json({"out": str(out), "documents": count})
    else:
        click.echo(f"{out}: {count} documents")
