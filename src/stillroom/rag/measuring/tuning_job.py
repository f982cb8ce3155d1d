"""Tuning of a fusion as a job: both lists of every judged query once, then every setting on them.

Leaves ``report.json`` and ``report.html``, and ``retriever.json``: the retriever to use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from stillroom.errors import RecipeError
from stillroom.evaluate import Report, Table, say_few
from stillroom.evaluate.retrieval import parse_measure
from stillroom.jobs import Job, Reporter, atomic_write
from stillroom.provenance import Artifact, Parent, digest_file, digest_json, make_parent
from stillroom.rag.fusion import Ranked
from stillroom.rag.index import Index
from stillroom.rag.measuring.evaluation import choose_unit, name_of, name_of_query
from stillroom.rag.measuring.evaluation_job import Plan, read_judged
from stillroom.rag.measuring.tuning import Tuned, cross_validate, list_settings, rank_names
from stillroom.rag.method import LegRetriever, make_query
from stillroom.rag.tuned import write_retriever
from stillroom.rag.ways import parse_way

__all__ = ["tune_fusion"]

_DEPTH = 100
_BEST = 10


def tune_fusion(
    plan: Plan,
    out: Path,
    *,
    folds: int = 5,
    is_written: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> tuple[Artifact, Report, Tuned]:
    """Choose on judged queries how keyword and dense lists are fused.

    Args:
        plan: The index and the judged queries; its first measure is what counts, and its ways what
            is tried, where it names any.
        out: The folder of the report.
        folds: Into how many parts the queries are dealt.
        is_written: Let the index be searched by what is chosen where nobody names a retriever.
        resume: Go on where a killed run stopped.
        overwrite: Replace what an earlier job left at ``out``.
        reporter: What draws progress; default nothing.

    Raises:
        DataError: If a file or the measure cannot be used, or the queries are too few.
        RecipeError: If a way is none that fuses two lists.
    """
    parse_measure(plan.measures[0])
    methods = {way: _fusing(way) for way in plan.ways or list_settings()}
    queries, qrels = read_judged(plan)
    job = Job.start(
        out,
        plan.to_text().replace("rag eval", "rag tune", 1) + f"folds: {folds}\n",
        seed=plan.seed,
        resume=resume,
        overwrite=overwrite,
        reporter=reporter,
    )
    try:
        with job.interruptible(), Index.open(plan.index, access=plan.access) as index:
            passages = [index.passage_at(row) for row in range(len(index))]
            unit, _ = choose_unit(passages, qrels)
            names = [name_of(passage, unit) for passage in passages]
            legs = _search(index, queries, job)
            runs = {
                way: {
                    query: rank_names(
                        method.fuse(both),
                        names,
                        plan.depth,
                        name_of_query(query, unit, qrels[query]),
                    )
                    for query, both in legs.items()
                }
                for way, method in methods.items()
            }
            tuned = cross_validate(
                runs, qrels, measure=plan.measures[0], folds=folds, seed=plan.seed
            )
            report = _report(tuned, plan.measures[0], len(queries), len(index))
            report.write(job.output)
            chosen = methods[tuned.chosen].model_dump(mode="json")
            with atomic_write(job.output / "retriever.json") as file:
                file.write(json.dumps({"way": tuned.chosen, "retriever": chosen}, indent=1) + "\n")
            artifact = job.finish(
                "report",
                parents=[
                    make_parent("index", plan.index, job.out),
                    Parent("queries", str(plan.queries), digest_file(plan.queries)),
                    Parent("qrels", str(plan.qrels), digest_file(plan.qrels)),
                ],
                details={"index": index.digest, "unit": unit, **report.to_json()},
            )
            if is_written:
                write_retriever(plan.index, tuned.chosen, chosen)
            return artifact, report, tuned
    finally:
        job.close()


def _fusing(way: str) -> LegRetriever:
    parsed = parse_way(way)
    method = parsed.retriever
    if not isinstance(method, LegRetriever) or parsed.reranker or parsed.transform:
        raise RecipeError(
            f"{way} does not fuse a keyword and a dense list",
            code="rag.not-a-fusion",
            expected="hybrid or convex with settings, without transform or reranker",
            next="compare other ways by 'stillroom rag eval'",
        )
    return method


def _search(index: Index, queries: Mapping[str, str], job: Job) -> dict[str, list[Ranked]]:
    """Return the keyword and the dense list of every query."""
    journal = job.journal("legs")
    legs: dict[str, list[Ranked]] = {}
    with job.phase("search", len(queries), "queries") as progress:
        for query, text in queries.items():
            key = digest_json([query, text, _DEPTH, index.digest])
            if key not in journal:
                job.check_cancelled()
                asked = make_query(text)
                both = (index.search_keyword(asked, _DEPTH), index.search_dense(asked, _DEPTH))
                journal.put(key, [list(map(list, leg)) for leg in both])
            legs[query] = [[(int(row), float(s)) for row, s in leg] for leg in journal[key]]
            progress.advance()
    return legs


def _why(tuned: Tuned) -> str:
    """Return why nothing is gained: an interval that holds 0, or too few queries."""
    few = say_few(tuned.difference.n, "queries").rstrip(".")
    return f": {few}" if few else " and its interval does not lie above 0"


def _report(tuned: Tuned, measure: str, queries: int, passages: int) -> Report:
    said = (
        f"Use {tuned.chosen}: on queries that had no part in choosing it gains "
        f"{tuned.difference.value:+.4f} over the default."
        if tuned.is_gain
        else "Nothing is gained: on queries that had no part in choosing, the difference from the "
        f"default is {tuned.difference.value:+.4f}{_why(tuned)}. Use {tuned.chosen}."
    )
    report = Report("Fusion", f"{queries} judged queries on {passages} passages. {said}")
    report.add(tuned.held_out, is_headline=True)
    for metric in (tuned.default, tuned.difference, tuned.seen):
        report.add(metric)
    rows = [
        (what, f"{metric.value:.4f}", f"{metric.low:.4f}", f"{metric.high:.4f}")
        for what, metric in (
            ("default", tuned.default),
            ("chosen fold by fold, on held-out queries", tuned.held_out),
            ("held-out less default", tuned.difference),
            (f"{tuned.best}, on the queries that chose it", tuned.seen),
        )
    ]
    report.section(
        "What may be expected",
        "The last row is too high: its queries chose it.",
        table=Table(
            f"{measure} with 95 % intervals", ("what", "value", "low", "high"), tuple(rows)
        ),
    )
    order = sorted(tuned.values, key=lambda way: -tuned.values[way])[:_BEST]
    report.section(
        "Best on all queries",
        "Differences of a hundredth mean little here. Chosen by fold: " + ", ".join(tuned.by_fold),
        table=Table(
            f"{measure} of {len(tuned.values)} settings, the best of them",
            ("way", "value"),
            tuple((way, f"{tuned.values[way]:.4f}") for way in order),
        ),
    )
    return report
