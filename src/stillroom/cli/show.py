"""``stillroom show``: one screen about a run, an artifact or a method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from stillroom.cli.naming import complete_shown
from stillroom.cli.options import debug_option, existing_path, hang, json_option, print_json
from stillroom.cli.rows import print_rows

__all__ = ["command"]


@click.command(
    "show",
    epilog="""
\b
Examples:
  stillroom show run --lineage
  stillroom show ties
  stillroom show answer.json --lineage --within run
""",
)
@click.argument("what", metavar="PATH|METHOD", shell_complete=complete_shown)
@click.option("--lineage", is_flag=True, help="Walk back to documents and their byte ranges.")
@click.option(
    "--examples",
    default=3,
    type=click.IntRange(min=0),
    show_default=True,
    help="How many records to walk from.",
)
@click.option("--record", default="", help="Walk from one record, by its id.")
@click.option(
    "--within",
    type=existing_path,
    help="Of an answer that was served: the run or index that it was asked of.",
)
@json_option
@debug_option
def command(
    what: str, lineage: bool, examples: int, record: str, within: Path | None, as_json: bool
) -> None:
    """Show a run, an artifact, an answer, a teacher cache or a method; --lineage walks back.

    An answer is a file of what 'ask --json' prints or the server replies.
    """
    path = Path(what)
    if (path / "header.json").is_file() and not (path / "artifact.json").exists():
        _show_cache(path, as_json)
    elif path.exists():
        if lineage or record:
            _show_lineage(path, examples, record, within, as_json)
        else:
            _show_artifact(path, as_json)
    else:
        _show_method(what, as_json)


def _show_lineage(
    path: Path, examples: int, record: str, within: Path | None, as_json: bool
) -> None:
    from stillroom.provenance import (
        read_answer,
        render_tree,
        walk_answer,
        walk_lineage,
        walk_record,
    )

    answer = read_answer(path) if path.is_file() and not record else None
    if answer is not None:
        node = walk_answer(answer, within or _asked_of(answer.asked_of, path))
    else:
        node = walk_record(path, record) if record else walk_lineage(path, examples=examples)
    if as_json:
        print_json({"lineage": node.to_json()})
    else:
        click.echo(render_tree(node))


def _asked_of(named: str, answer: Path) -> Path:
    """Return the folder that an answer names.

    Raises:
        DataError: If it names none.
    """
    from stillroom.errors import DataError

    if named:
        return Path(named)
    raise DataError(
        "the answer does not say what it was asked of",
        code="data.answer",
        where=str(answer),
        expected="the run or index that was served",
        next=f"stillroom show {answer} --lineage --within RUN",
    )


def _show_artifact(path: Path, as_json: bool) -> None:
    from stillroom.jobs import count_seconds
    from stillroom.provenance import read_artifact

    artifact = read_artifact(path)
    if as_json:
        print_json(artifact.to_json())
        return
    size = sum(entry.size_bytes for entry in artifact.files)
    click.echo(f"{path}  {artifact.kind}  {artifact.digest[:16]}")
    rows: list[tuple[str, object]] = [
        ("made", f"{artifact.created}, seed {artifact.seed}"),
        ("files", f"{len(artifact.files)}, {size / 1e6:.1f} MB"),
    ]
    if seconds := count_seconds(path):
        rows.append(("took", f"{seconds:.1f} s"))
    if artifact.origin:
        rows.append(("origin", _describe_origin(artifact.origin)))
    rows += [(one.role, f"{one.path}  {one.digest[:16]}") for one in artifact.parents]
    print_rows([*rows, *artifact.details.items()])


def _describe_origin(origin: Mapping[str, Any]) -> str:
    told = [str(origin.get("kind", "unknown")), f"license {origin.get('license') or 'unsaid'}"]
    steps = [str(link.get("method")) for link in origin.get("chain") or () if link.get("method")]
    return ", ".join([*told, *([f"by {' > '.join(steps)}"] if steps else [])])


def _show_cache(path: Path, as_json: bool) -> None:
    from stillroom.distill import TeacherCache
    from stillroom.distill.cache import describe_cache

    with TeacherCache.open(path) as cache:
        found = describe_cache(cache)
    if as_json:
        print_json({"cache": found})
        return
    click.echo(
        f"{path}  teacher cache, {found['records']} records, {found['positions']} positions, "
        f"{found['size_bytes'] / 1e6:.1f} MB ({found['bytes_per_position']} bytes a position)"
    )
    print_rows([(name, value) for name, value in found["header"].items() if value not in ("", {})])


def _show_method(name: str, as_json: bool) -> None:
    from stillroom.errors import DataError
    from stillroom.registry.listing import list_methods, read_docstring, read_settings, suggest

    known = list(list_methods())
    found = [row for row in known if row.name == name]
    if not found:
        raise DataError(
            f"{name} is neither a path nor a method",
            code="data.missing",
            expected="the folder of an artifact, or a name that `stillroom list methods` shows",
            next=suggest(name, [row.name for row in known]) or "stillroom list methods",
        )
    if as_json:
        told = [
            {
                "name": row.name,
                "seam": row.seam,
                "settings": [asdict(one) for one in read_settings(row.path)],
            }
            for row in found
        ]
        print_json({"methods": told})
        return
    for row in found:
        click.echo(f"{row.name}  ({row.seam.removeprefix('stillroom.')}, {row.status})")
        click.echo(read_docstring(row.path))
        settings = read_settings(row.path)
        if settings:
            click.echo("\nsettings")
        names = max((len(one.name) for one in settings), default=0) + 2
        values = max((len(one.default) for one in settings), default=0) + 2
        for one in settings:
            click.echo(hang(f"  {one.name:{names}}{one.default:{values}}", one.description))
        click.echo("")
