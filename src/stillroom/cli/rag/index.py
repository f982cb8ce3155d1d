"""``stillroom rag index`` and what keeps an index: calls of ``rag.maintenance``."""

from __future__ import annotations

import os
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stillroom.cli.completion import complete_stores
from stillroom.cli.options import (
    access_options,
    build_access,
    command,
    count_option,
    existing_path,
    flag_option,
    out_folder_option,
    output_options,
    overwrite_option,
    path_option,
    qrels_options,
    quiet_option,
    refuse_idle_options,
    resolve_qrels,
    run_job_recipe,
    run_options,
)
from stillroom.cli.output import align_columns, print_json, print_text
from stillroom.errors import count_noun

if TYPE_CHECKING:
    from stillroom.recipes import Recipe

__all__ = [
    "compact_command",
    "delete_command",
    "index_command",
    "log_command",
    "migrate_command",
    "rebuild_command",
    "unpack_command",
    "update_command",
    "verify_command",
]


@command(
    "index",
    "stillroom rag index ./documents --out index",
    "stillroom rag index ./documents --out index chunker.size=120",
)
@click.argument("folder")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@out_folder_option
@run_options
def index_command(
    folder: str,
    overrides: tuple[str, ...],
    out: Path,
    as_json: bool,
    **options: bool,
) -> None:
    """Parse and index a folder of documents."""
    from stillroom.cli.results import print_run
    from stillroom.objects import is_address
    from stillroom.recipes import parse_recipe

    documents = folder if is_address(folder) else str(Path(folder).absolute())
    text = f"version: 1\nkind: rag.index\ndocuments: {documents!r}\n"
    recipe = parse_recipe(text, "rag index", overrides, folder=Path.cwd())
    artifact = run_job_recipe(recipe, out, options)
    if as_json:
        print_json({"out": str(out), "digest": artifact.digest, "details": dict(artifact.details)})
    else:
        print_run(out, artifact)


def _warn_of_signature(index: Path, *, is_changed: bool = True) -> None:
    """Warn that a signature of a changed index, or of the run that it is a step of, is outdated."""
    if not is_changed:
        return
    from stillroom.jobs import choose_reporter
    from stillroom.provenance.signing import KEY_VARIABLE, SIGNATURE_FILE
    from stillroom.rag.maintenance.update import locate_index

    home = locate_index(index)[0].absolute()
    outdated = [home.parent.parent, *([] if os.environ.get(KEY_VARIABLE) else [home])]
    signed = next((folder for folder in outdated if (folder / SIGNATURE_FILE).is_file()), None)
    if signed is not None:
        folder = index if index.absolute() == signed else signed
        choose_reporter().warn(
            f"{folder} was changed after it was signed, so its signature no longer holds; sign it "
            f"again: stillroom sign {shlex.quote(str(folder))} --key YOUR.key (an index signs "
            f"itself with {KEY_VARIABLE})"
        )


@command(
    "update",
    "stillroom rag update index",
    "stillroom rag update index ./documents --json",
    "stillroom rag update index max_failed=1",
)
@click.argument("index", type=existing_path)
@click.argument("folder", type=existing_path, required=False)
@click.argument("overrides", nargs=-1, metavar="[max_failed=SHARE]")
@quiet_option
@output_options
def update_command(
    index: Path, folder: Path | None, overrides: tuple[str, ...], quiet: bool, as_json: bool
) -> None:
    """Update an index to the current state of its folder of documents.

    Processes that have the index open keep reading the old state. An interrupted update continues
    when it is run again; the index changes once, at the end.

    max_failed is the maximum share of documents that may be left out, by default that of the
    index's recipe.
    """
    from stillroom.jobs import choose_reporter
    from stillroom.rag.maintenance.update import locate_index, update_index

    if folder and str(folder).startswith("max_failed="):
        folder, overrides = None, (str(folder), *overrides)
    if any(not override.startswith("max_failed=") for override in overrides):
        raise click.UsageError(
            "an update takes max_failed=SHARE alone; other settings belong to a new index: "
            f"stillroom rag rebuild {index} {shlex.join(overrides)}"
        )
    recipe = _override_recipe(locate_index(index)[0] / "recipe.yaml", overrides)
    done = update_index(
        index,
        folder.absolute() if folder else None,
        max_failed=recipe.model_dump().get("max_failed"),
        reporter=choose_reporter(quiet=quiet),
    )
    _warn_of_signature(index)
    if as_json:
        print_json(done.to_json())
        return
    print_text(str(done))
    print_text(f"{index}: snapshot {done.snapshot}, snapshot digest {done.digest[:16]}")


@command(
    "delete",
    "stillroom rag delete index notes/2019.md",
    'stillroom rag delete index drafts/ "*.tmp.md"',
)
@click.argument("index", type=existing_path)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@output_options
def delete_command(index: Path, paths: tuple[str, ...], as_json: bool) -> None:
    """Delete documents from an index, by path, folder/ or pattern.

    Files are not touched: one that still exists in the folder returns with the next update.
    """
    from stillroom.rag.maintenance.update import delete_documents

    snapshot = delete_documents(index, paths)
    _warn_of_signature(index)
    if as_json:
        print_json({"snapshot": snapshot.number, "digest": snapshot.digest, **snapshot.counts})
        return
    print_text(
        f"{index}: snapshot {snapshot.number}, {count_noun(snapshot.documents, 'document')}, "
        f"snapshot digest {snapshot.digest[:16]}"
    )


@command(
    "unpack",
    "stillroom rag unpack scifact/corpus.jsonl --out documents",
    "stillroom rag unpack corpus.jsonl --out documents --overwrite",
)
@click.argument("corpus", type=existing_path)
@out_folder_option
@overwrite_option
@output_options
def unpack_command(corpus: Path, out: Path, overwrite: bool, as_json: bool) -> None:
    """Write each row of a corpus (id, title, text) as a document to be indexed."""
    from stillroom.evaluate.qa.collections import read_corpus
    from stillroom.rag.evaluation.retrieval import unpack_corpus

    count = unpack_corpus(read_corpus(corpus), out, source=corpus, overwrite=overwrite)
    if as_json:
        print_json({"out": str(out), "documents": count})
    else:
        print_text(f"{out}: {count_noun(count, 'document')}")


@command("log", "stillroom rag log index", "stillroom rag log index --json")
@click.argument("index", type=existing_path)
@output_options
def log_command(index: Path, as_json: bool) -> None:
    """List the snapshots of an index that can be queried, newest first."""
    from stillroom.rag.maintenance.update import list_snapshots

    known = list_snapshots(index)[::-1]
    if as_json:
        print_json({"snapshots": [asdict(snapshot) for snapshot in known]})
        return
    for snapshot in known:
        print_text(
            f"{snapshot.number:>5}  snapshot digest {snapshot.digest[:16]}  {snapshot.made[:19]}  "
            f"{snapshot.documents:>7} documents {snapshot.passages:>8} passages  {snapshot.reason}"
        )


@command("compact", "stillroom rag compact index", "stillroom rag compact index --json")
@click.argument("index", type=existing_path)
@output_options
def compact_command(index: Path, as_json: bool) -> None:
    """Merge an index's segments and remove data of older snapshots."""
    from stillroom.rag.maintenance.update import compact_index

    done = compact_index(index)
    _warn_of_signature(index)
    if as_json:
        print_json(asdict(done))
        return
    print_text(
        f"{index}: {done.bytes_before / 1e6:.1f} MB in "
        f"{count_noun(done.segments_before, 'segment')} before, "
        f"{done.bytes_after / 1e6:.1f} MB in {done.segments_after} after"
    )
    if done.held:
        print_text(
            f"{done.held} older snapshots remain while one is being read; the next change after "
            "that removes them."
        )


@command("verify", "stillroom rag verify index", "stillroom rag verify index --repair")
@click.argument("index", type=existing_path)
@flag_option("--repair", help="Rebuild derived files from the catalog.")
@output_options
def verify_command(index: Path, repair: bool, as_json: bool) -> None:
    """Check an index's segments, counts and texts against its catalog.

    --repair rebuilds damaged segments (their vectors are embedded again), index.json and
    artifact.json, and approximate search until its recall is sufficient. The catalog itself
    (ledger.sqlite) cannot be rebuilt.
    """
    from stillroom.errors import IntegrityError, Problem
    from stillroom.provenance.sources import LEDGER
    from stillroom.rag.index.ann_recall import check_recall, describe_recall, refresh_recall
    from stillroom.rag.maintenance.update import check_index, repair_index

    findings = repair_index(index) if repair else check_index(index)
    remaining = check_index(index) if repair else findings
    recall: dict[str, Any] | None = None
    if all(finding.is_derived and finding.path == LEDGER for finding in remaining):
        recall, doubts = check_recall(index)
        if doubts and repair:
            refresh_recall(index)
            recall, rest = check_recall(index)
            findings, remaining = [*findings, *doubts], [*remaining, *rest]
        elif doubts:
            findings = remaining = [*findings, *doubts]
    if as_json:
        print_json(
            {
                "findings": [finding.to_json() for finding in findings],
                "left": [finding.to_json() for finding in remaining],
                **({"approximate": recall} if recall else {}),
            }
        )
    elif repair:
        for finding in findings:
            print_text(f"found: {finding}")
    _warn_of_signature(index, is_changed=repair and bool(findings))
    if remaining:
        raise IntegrityError(
            [
                Problem(
                    str(finding),
                    "rag.index-damaged",
                    str(index),
                    "the content recorded in the catalog",
                    "add --repair"
                    if finding.is_derived and not repair
                    else "build the index again with --overwrite",
                )
                for finding in remaining
            ]
        )
    if not as_json:
        print_text(f"{index}: catalog, segments and texts agree")
        if recall is not None:
            print_text(describe_recall(recall))


@command(
    "rebuild",
    "stillroom rag rebuild index --recipe new.yaml",
    "stillroom rag rebuild index chunker.size=120 --queries queries.tsv --qrels qrels.tsv",
    "stillroom rag rebuild index --rollback",
)
@click.argument("index", type=existing_path)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@path_option("--recipe", help="New recipe; default the index's own.")
@qrels_options
@click.option(
    "--pipeline", default="convex", show_default=True, help="Retrieval pipeline of both indexes."
)
@click.option(
    "--measure",
    "measures",
    multiple=True,
    help="Measure, such as ndcg@10; the first one decides. May be repeated.",
)
@flag_option(
    "--anyway",
    help="Switch even if the new index is significantly worse; with --rollback, skip the update.",
)
@flag_option(
    "--rollback",
    help="Switch back to the index before the last rebuild, after updating it to the current "
    "documents.",
)
@flag_option("--drop-previous", help="Remove the index that the last rebuild replaced.")
@access_options
@quiet_option
@output_options
def rebuild_command(index: Path, as_json: bool, **options: Any) -> None:
    """Build an index anew beside the active one, measure both, and switch.

    Both are measured on judged queries; without them, on queries made of words of sampled
    passages, whose documents must be found. An interrupted rebuild continues when it is run again.
    """
    from stillroom.jobs import choose_reporter
    from stillroom.rag.maintenance.rebuild import drop_previous, roll_back

    if options["rollback"] or options["drop_previous"]:
        if options["rollback"] and options["drop_previous"]:
            raise click.UsageError("give either --rollback or --drop-previous")
        if options["overrides"]:
            raise click.UsageError(f"{options['overrides'][0]} applies to a new index only")
        used = {"rollback", "drop_previous", "overrides", "quiet"}
        used |= {"anyway"} if options["rollback"] else set()
        refuse_idle_options(options.keys() - used, "applies to a new index only")
    if options["rollback"]:
        reporter = choose_reporter(quiet=options["quiet"])
        done = roll_back(index, anyway=options["anyway"], reporter=reporter)
        _warn_of_signature(index)
        if as_json:
            print_json({"rolled_back": True, "update": done.to_json() if done else None})
            return
        since = "as it was before the last rebuild" if done is None else str(done)
        print_text(f"{index}: rolled back; {since}")
        return
    if options["drop_previous"]:
        dropped = drop_previous(index)
        if as_json:
            print_json({"dropped": dropped})
            return
        print_text(f"{index}: " + ("the previous one is removed" if dropped else "none is kept"))
        return
    _rebuild_index(index, as_json, options)


def _override_recipe(source: Path, overrides: tuple[str, ...]) -> Recipe:
    """Return the recipe of an index, with its paths unchanged, and the overrides of a command."""
    from stillroom.rag.maintenance.update import read_stored_recipe
    from stillroom.recipes import parse_recipe

    recipe = read_stored_recipe(source.parent)
    text = source.read_text(encoding="utf-8")
    changed = parse_recipe(text, str(source), overrides, folder=Path.cwd())
    named = {override.partition("=")[0].partition(".")[0] for override in overrides}
    return recipe.model_copy(update={name: getattr(changed, name) for name in named})


def _rebuild_index(index: Path, as_json: bool, options: dict[str, Any]) -> None:
    from stillroom.jobs import choose_reporter
    from stillroom.provenance import read_artifact
    from stillroom.rag.jobs.index import IndexRecipe
    from stillroom.rag.maintenance.rebuild import RecallCheck, rebuild_index
    from stillroom.recipes import load_recipe

    read_artifact(index)
    source = Path(options["recipe"] or index / "recipe.yaml")
    if options["recipe"]:
        recipe = load_recipe(source, options["overrides"])
    else:
        recipe = _override_recipe(source, options["overrides"])
    if not isinstance(recipe, IndexRecipe):
        raise click.UsageError(f"{source} is not a recipe of kind rag.index")
    queries = qrels = None
    if options["collection"] or options["queries"] or options["qrels"]:
        sources = (options[name] for name in ("collection", "split", "queries", "qrels"))
        queries, qrels = resolve_qrels(*sources)
    access = build_access(options["tenant"], options["principals"])
    questions = RecallCheck(queries, qrels, options["pipeline"], access=access)
    if options["measures"]:
        questions = RecallCheck(queries, qrels, options["pipeline"], options["measures"], access)
    done = rebuild_index(
        index,
        recipe,
        questions,
        anyway=options["anyway"],
        reporter=choose_reporter(quiet=options["quiet"]),
    )
    _warn_of_signature(index)
    result = done.to_json()
    if as_json:
        print_json(result)
        return
    rows = [["measure", "before", "after", "difference", "p"]]
    for name, measured in result["measures"].items():
        gap = measured["difference"]
        within = "no interval" if gap["low"] is None else f"{gap['low']:+.4f} to {gap['high']:+.4f}"
        rows.append(
            [
                name,
                f"{measured['before']['value']:.4f}",
                f"{measured['after']['value']:.4f}",
                f"{gap['value']:+.4f} ({within})",
                f"{measured['p']:.3g}",
            ]
        )
    print_text(f"{done.queries} {done.kind} questions")
    print_text(align_columns(rows))
    print_text(f"{index}: switched; stillroom rag rebuild {index} --rollback goes back")


@command(
    "migrate",
    "stillroom rag migrate index --to postgres",
    "stillroom rag migrate index --to postgres prefix=archive",
    "stillroom rag migrate index --to folder",
    "stillroom rag migrate index --drop-source",
)
@click.argument("index", type=existing_path)
@click.argument("settings", nargs=-1, metavar="[KEY=VALUE]...")
@click.option(
    "--to",
    "store",
    default="",
    shell_complete=complete_stores,
    help="Target store; see 'stillroom list methods rag.stores'.",
)
@flag_option("--drop-source", help="Remove the data in the previous store.")
@count_option(
    "--queries",
    default=64,
    show_default=True,
    least=0,
    help="Number of keyword queries, and of vector queries, that must match in both stores.",
)
@quiet_option
@output_options
def migrate_command(
    index: Path,
    settings: tuple[str, ...],
    store: str,
    drop_source: bool,
    queries: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Move an index to another store after comparing both.

    Counts, digests, vectors and the scores of sampled queries are compared before the switch.

    An interrupted migration continues when it is run again. The source is kept, in INDEX/source or
    on its server, until --drop-source.
    """
    from stillroom.jobs import choose_reporter
    from stillroom.rag.interfaces import STORES
    from stillroom.rag.maintenance.migration import drop_source as drop
    from stillroom.rag.maintenance.migration import migrate_index

    if bool(store) == drop_source:
        raise click.UsageError("give either --to STORE or --drop-source")
    if drop_source:
        if settings:
            raise click.UsageError(f"{settings[0]} applies to --to STORE only")
        refuse_idle_options({"queries"}, "applies to --to STORE only")
        was_there = drop(index)
        if as_json:
            print_json({"dropped": was_there})
        else:
            print_text("the source was removed" if was_there else "no source is kept")
        return
    store_settings = dict(setting.partition("=")[::2] for setting in settings)
    if "name" in store_settings:
        raise click.UsageError("--to names the store: leave out name=")
    method = STORES.build({"name": store, **store_settings})
    done = migrate_index(index, method, queries=queries, reporter=choose_reporter(quiet=quiet))
    _warn_of_signature(index)
    if as_json:
        print_json(done.to_json())
        return
    compared = done.comparison
    print_text(
        f"{count_noun(done.copied, 'document')} copied from {done.before} to {done.after}; "
        f"{count_noun(compared.documents, 'document')} and "
        f"{count_noun(compared.passages, 'passage')}, snapshot digest "
        f"{compared.digest[:16]}, both equal"
    )
    print_text(
        f"{2 * compared.queries} queries return the same in both; the largest difference of a "
        f"score is {compared.difference:g}"
    )
    print_text(f"the source is kept: stillroom rag migrate {index} --drop-source removes it")
