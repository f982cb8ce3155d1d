"""Record pages: browsing, review, generator comparison, and the lineage of an artifact.

Works without JavaScript: a decision is a form that leads back to the record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from stillroom.console.page_context import PageContext
from stillroom.errors import DataError
from stillroom.serve.access import RequestLimits
from stillroom.serve.middleware.concurrency import FairQueue
from stillroom.serve.views.folder import read_folder_artifact, resolve_name
from stillroom.serve.views.lineage import layout_lineage_graph, trace_lineage
from stillroom.serve.views.proof import examine_proof
from stillroom.serve.views.records import (
    RecordsQuery,
    compare_generators,
    list_record_sets,
    list_records,
    open_record_set,
)
from stillroom.serve.views.reviews import write_reviewed_records
from stillroom.serve.views.sources import Sources

if TYPE_CHECKING:
    from stillroom.provenance.signing import Trust

__all__ = [
    "lineage_routes",
    "proof_routes",
    "record_routes",
]


_MAX_COMPARED = 6


def record_routes(context: PageContext) -> list[Route]:
    """Return the routes of the page."""

    async def page(request: Request) -> Response:
        query = request.query_params
        sets = await context.run_in_thread(list_record_sets, context.sources)
        name = query.get("at") or (sets[0].name if sets else "")
        if not name:
            return context.page(request, "records_none.html", title="Records")
        query_settings = _parse_query(query)
        review = await context.run_in_thread(context.review_of, name)
        shown = await context.run_in_thread(
            list_records, context.sources, name, query_settings, review
        )
        return context.page(
            request,
            "records.html",
            title="Records",
            sets=sets,
            at=name,
            wanted=query_settings,
            shown=shown,
            link=lambda **more: _build_link(name, query_settings, **more),
            can_decide=context.can_write,
        )

    async def decide(request: Request) -> Response:
        form = await _read_form(request)
        name = form.get("at", "")
        context.check_writable()
        shown = await context.run_in_thread(_make_visibility_filter, context.sources, name)
        review = await context.run_in_thread(context.review_of, name)
        action, key = form.get("action", ""), form.get("key", "")
        if not shown(key):
            raise DataError(
                f"there is no record {key!r:.80}",
                code="data.missing",
                expected="a visible record",
                next="reload the page",
            )
        count = int(form["turns"][:9]) if form.get("turns", "").isdecimal() else 0
        turns = [
            (form.get(f"role{n}", ""), form.get(f"text{n}", "").replace("\r\n", "\n"))
            for n in range(min(count, 100))
        ]
        await context.run_in_thread(
            review.decide,
            key,
            action,
            seen=int(form["seen"][:18]) if form.get("seen", "").isdecimal() else -1,
            messages=turns if action == "edit" else (),
            note=form.get("note", ""),
        )
        back = urlencode({"at": name}) + ("&" + form["back"] if form.get("back") else "")
        return RedirectResponse(f"/records?{back}#{key}", 303)

    return [
        Route("/records", page),
        Route("/records/decide", decide, methods=["POST"]),
        *_list_more_routes(context),
    ]


def _list_more_routes(context: PageContext) -> list[Route]:
    async def trail(request: Request) -> Response:
        name = request.query_params.get("at", "")
        shown = await context.run_in_thread(_make_visibility_filter, context.sources, name)
        review = await context.run_in_thread(context.review_of, name)
        rows = [
            decision
            for decision in reversed(await context.run_in_thread(review.trail))
            if shown(decision.key)
        ]
        return context.page(
            request, "records_trail.html", title="Trail", at=name, rows=rows[:500], total=len(rows)
        )

    async def write(request: Request) -> Response:
        form = await _read_form(request)
        source = form.get("at", "")
        context.check_writable()
        shown = await context.run_in_thread(_make_visibility_filter, context.sources, source)
        folder = resolve_name(context.root, source)
        review = await context.run_in_thread(context.review_of, source)
        name = context.free_name("reviewed", source)
        await context.run_in_thread(
            write_reviewed_records, folder, review, context.root / name, source, shown=shown
        )
        return RedirectResponse(f"/records?{urlencode({'at': name})}", 303)

    async def generators(request: Request) -> Response:
        sets = await context.run_in_thread(list_record_sets, context.sources)
        names = request.query_params.getlist("m")[:_MAX_COMPARED]
        names = names or [artifact.name for artifact in sets[:_MAX_COMPARED]]
        rows = []
        for name in names:
            review = await context.run_in_thread(context.review_of, name)
            rows += await context.run_in_thread(compare_generators, context.sources, name, review)
        return context.page(
            request, "generators.html", title="Generators", sets=sets, names=names, rows=rows
        )

    return [
        Route("/records/trail", trail),
        Route("/records/write", write, methods=["POST"]),
        Route("/records/generators", generators),
    ]


def _make_visibility_filter(sources: Sources, name: str) -> Callable[[str], bool]:
    """Return a predicate that tests, by its key, whether a record is visible.

    Raises:
        DataError: If the name is not an artifact of records, or not visible.
    """
    with open_record_set(sources, name) as opened:
        return opened.keys().__contains__ if opened.is_guarded else lambda key: True


def _parse_query(parameters: Mapping[str, str]) -> RecordsQuery:
    show = parameters.get("show", "kept")
    number = parameters.get("page", "1")
    return RecordsQuery(
        show if show in {"kept", "dropped"} else "kept",
        parameters.get("words", "")[:500],
        parameters.get("origin", "")[:40],
        parameters.get("reason", "")[:500],
        parameters.get("decision", "")[:20],
        int(number) if number.isdecimal() and len(number) < 20 else 1,
    )


def _build_link(name: str, query: RecordsQuery, **more: str | int) -> str:
    """Return the address of the list with changed parameters; a new filter starts at page 1."""
    parameters: dict[str, str | int] = {
        "at": name,
        "show": query.show,
        "words": query.words,
        "origin": query.origin,
        "reason": query.reason,
        "decision": query.decision,
        **more,
    }
    return "/records?" + urlencode({key: value for key, value in parameters.items() if value})


async def _read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form; the last value of a repeated field wins."""
    body = (await request.body()).decode("utf-8", "replace")
    return {key: values[-1] for key, values in parse_qs(body, keep_blank_values=True).items()}


def lineage_routes(context: PageContext) -> list[Route]:
    """Return the routes of the page."""

    async def page(request: Request) -> Response:
        query = request.query_params
        if "at" not in query:
            artifacts = await context.found()
            kind = query.get("kind", "")
            kinds = sorted({artifact.kind for artifact in artifacts})
            rows = [artifact for artifact in artifacts if kind in {"", artifact.kind}]
            return context.page(
                request, "lineage.html", title="Lineage", rows=rows, kinds=kinds, kind=kind
            )
        name, record = query["at"], query.get("record", "").strip()
        tree = await context.run_in_thread(trace_lineage, context.root, name, record=record)
        artifact_row = await context.run_in_thread(read_folder_artifact, context.root, name)
        title = f"Lineage of {record or (name if name != '.' else context.root.name)}"
        return context.page(
            request,
            "lineage_of.html",
            title=title,
            tree=tree,
            at=name,
            record=record,
            one=artifact_row,
        )

    return [Route("/lineage", page)]


_NODE_HEIGHT = 62


def proof_routes(context: PageContext, trust: Trust | None) -> list[Route]:
    """Return the routes of the page."""
    limits = RequestLimits()
    queue = FairQueue(limits, 1, most_waiting=limits.checks)

    async def page(request: Request) -> Response:
        found = await context.found()
        rows = [row for row in found if row.digest]
        runs = [row for row in rows if row.details.get("steps")] or rows
        name = request.query_params.get("at") or (runs[0].name if runs else "")
        if not name:
            return context.page(request, "proof.html", title="Proof", rows=rows, at="", proof=None)
        async with queue.turn(request):
            proof = await context.run_in_thread(examine_proof, context.root, name, trust)
        graph = await context.run_in_thread(
            layout_lineage_graph, context.root, [proof.name], node_height=_NODE_HEIGHT
        )
        return context.page(
            request,
            "proof.html",
            title="Proof",
            rows=rows,
            at=proof.name,
            proof=proof,
            graph=graph,
            given={one.name: one.digest for one in proof.inputs if one.role != "document"},
            states={folder.name: folder for folder in proof.folders},
            has_trust=trust is not None,
        )

    return [Route("/proof", page)]
