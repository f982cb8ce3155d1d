"""Record pages: browsing, review, generator comparison, and the lineage of an artifact.

Works without JavaScript: a decision is a form that leads back to the record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import parse_qs, urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from stillroom.console.page_context import PageContext
from stillroom.errors import DataError
from stillroom.serve.views.folder import read_folder_artifact, resolve_name
from stillroom.serve.views.lineage import trace_lineage
from stillroom.serve.views.records import (
    RecordsQuery,
    compare_generators,
    list_record_sets,
    list_records,
    open_record_set,
)
from stillroom.serve.views.reviews import write_reviewed_records
from stillroom.serve.views.sources import Sources

__all__ = [
    "lineage_routes",
    "record_routes",
]


_MAX_COMPARED = 6


def record_routes(desk: PageContext) -> list[Route]:
    """Return the routes of the page."""

    async def page(request: Request) -> Response:
        query = request.query_params
        sets = await desk.work(list_record_sets, desk.sources)
        at = query.get("at") or (sets[0].name if sets else "")
        if not at:
            return desk.page(request, "records_none.html", title="Records")
        wanted = _parse_query(query)
        review = await desk.work(desk.review_of, at)
        shown = await desk.work(list_records, desk.sources, at, wanted, review)
        return desk.page(
            request,
            "records.html",
            title="Records",
            sets=sets,
            at=at,
            wanted=wanted,
            shown=shown,
            link=lambda **more: _build_link(at, wanted, **more),
            can_decide=desk.can_write,
        )

    async def decide(request: Request) -> Response:
        form = await _read_form(request)
        at = form.get("at", "")
        desk.check_writable()
        shown = await desk.work(_make_visibility_filter, desk.sources, at)
        review = await desk.work(desk.review_of, at)
        action, key = form.get("action", ""), form.get("key", "")
        if not shown(key):
            raise DataError(
                f"there is no record {key!r:.80}",
                code="data.missing",
                expected="a visible record",
                next="reload the page",
            )
        count = int(form["turns"]) if form.get("turns", "").isdecimal() else 0
        turns = [
            (form.get(f"role{n}", ""), form.get(f"text{n}", "").replace("\r\n", "\n"))
            for n in range(min(count, 100))
        ]
        await desk.work(
            review.decide,
            key,
            action,
            seen=int(form["seen"]) if form.get("seen", "").isdecimal() else -1,
            messages=turns if action == "edit" else (),
            note=form.get("note", ""),
        )
        back = urlencode({"at": at}) + ("&" + form["back"] if form.get("back") else "")
        return RedirectResponse(f"/records?{back}#{key}", 303)

    return [
        Route("/records", page),
        Route("/records/decide", decide, methods=["POST"]),
        *_list_more_routes(desk),
    ]


def _list_more_routes(desk: PageContext) -> list[Route]:
    async def trail(request: Request) -> Response:
        at = request.query_params.get("at", "")
        shown = await desk.work(_make_visibility_filter, desk.sources, at)
        review = await desk.work(desk.review_of, at)
        rows = [one for one in reversed(await desk.work(review.trail)) if shown(one.key)]
        return desk.page(
            request, "records_trail.html", title="Trail", at=at, rows=rows[:500], total=len(rows)
        )

    async def write(request: Request) -> Response:
        form = await _read_form(request)
        at = form.get("at", "")
        desk.check_writable()
        shown = await desk.work(_make_visibility_filter, desk.sources, at)
        folder = resolve_name(desk.root, at)
        review = await desk.work(desk.review_of, at)
        name = desk.free_name("reviewed", at)
        await desk.work(write_reviewed_records, folder, review, desk.root / name, at, shown=shown)
        return RedirectResponse(f"/records?{urlencode({'at': name})}", 303)

    async def generators(request: Request) -> Response:
        sets = await desk.work(list_record_sets, desk.sources)
        names = request.query_params.getlist("m")[:_MAX_COMPARED]
        names = names or [one.name for one in sets[:_MAX_COMPARED]]
        rows = []
        for name in names:
            review = await desk.work(desk.review_of, name)
            rows += await desk.work(compare_generators, desk.sources, name, review)
        return desk.page(
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


def _parse_query(told: Mapping[str, str]) -> RecordsQuery:
    show = told.get("show", "kept")
    number = told.get("page", "1")
    return RecordsQuery(
        show if show in {"kept", "dropped"} else "kept",
        told.get("words", "")[:500],
        told.get("origin", "")[:40],
        told.get("reason", "")[:500],
        told.get("decision", "")[:20],
        int(number) if number.isdecimal() and len(number) < 20 else 1,
    )


def _build_link(name: str, wanted: RecordsQuery, **more: str | int) -> str:
    """Return the address of the list with changed parameters; a new filter starts at page 1."""
    told: dict[str, str | int] = {
        "at": name,
        "show": wanted.show,
        "words": wanted.words,
        "origin": wanted.origin,
        "reason": wanted.reason,
        "decision": wanted.decision,
        **more,
    }
    return "/records?" + urlencode({key: value for key, value in told.items() if value})


async def _read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form; the last value of a repeated field wins."""
    body = (await request.body()).decode("utf-8", "replace")
    return {key: values[-1] for key, values in parse_qs(body, keep_blank_values=True).items()}


def lineage_routes(desk: PageContext) -> list[Route]:
    """Return the routes of the page."""

    async def page(request: Request) -> Response:
        query = request.query_params
        if "at" not in query:
            found = await desk.found()
            kind = query.get("kind", "")
            kinds = sorted({one.kind for one in found})
            rows = [one for one in found if kind in {"", one.kind}]
            return desk.page(
                request, "lineage.html", title="Lineage", rows=rows, kinds=kinds, kind=kind
            )
        at, record = query["at"], query.get("record", "").strip()
        tree = await desk.work(trace_lineage, desk.root, at, record=record)
        found_one = await desk.work(read_folder_artifact, desk.root, at)
        title = f"Lineage of {record or (at if at != '.' else desk.root.name)}"
        return desk.page(
            request, "lineage_of.html", title=title, tree=tree, at=at, record=record, one=found_one
        )

    return [Route("/lineage", page)]
