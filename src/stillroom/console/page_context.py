"""Context that all pages share, template rendering, and number formats of the templates.

Templates escape all values; a missing value is an error, not an empty string.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from stillroom.errors import (
    BackendError,
    CheckpointError,
    DataError,
    MissingExtraError,
    Problem,
    RecipeError,
    ResourceError,
    ShapeError,
    StillroomError,
    count_noun,
)
from stillroom.serve.app import ModelCache
from stillroom.serve.errors import ApiError, find_missing_extra
from stillroom.serve.middleware.concurrency import Work, WorkerSlots
from stillroom.serve.views.folder import (
    FolderArtifact,
    is_artifact,
    list_folder_artifacts,
    read_folder_artifact,
)
from stillroom.serve.views.models import list_references
from stillroom.serve.views.reviews import ReviewLog
from stillroom.serve.views.sources import Sources
from stillroom.serve.workspace import make_path_redactor

if TYPE_CHECKING:
    from stillroom.rag.index.view import AccessContext

__all__ = [
    "FILTERS",
    "PageContext",
    "PageLink",
    "format_count",
    "format_digest",
    "format_number",
    "format_size",
    "format_time",
]

P = ParamSpec("P")
T = TypeVar("T")
_LOG = logging.getLogger("stillroom.console")
_NOT_FOUND_CODES = frozenset({"data.missing", "data.not-an-artifact", "rag.no-such-passage"})


@dataclass(frozen=True, slots=True)
class PageLink:
    """Page of the navigation: address, label, and description."""

    path: str
    word: str
    what: str


class PageContext:
    """Served folder, its open models and indexes, and the templates."""

    def __init__(
        self,
        root: Path,
        *,
        token: str,
        pages: tuple[PageLink, ...],
        access: AccessContext | None = None,
    ) -> None:
        """Open no model and no index yet; ``close`` closes those opened later."""
        self.root, self.token = root, token
        self.sources = Sources(root, access)
        self._reviews: dict[str, ReviewLog] = {}
        self._lock = threading.Lock()
        self.models = ModelCache(root, access, references=partial(list_references, root))
        self.templates = Environment(
            loader=PackageLoader("stillroom.console"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.templates.filters.update(FILTERS)
        self.templates.globals.update(
            pages=pages,
            folder=root.resolve().name or str(root),
            tenant=access.tenant if access else "",
        )

    def close(self) -> None:
        """Close models and indexes."""
        self.models.close()
        self.sources.close()

    @property
    def can_write(self) -> bool:
        """Whether decisions and new artifacts can be written: not inside an artifact."""
        return not is_artifact(self.root)

    def check_writable(self) -> None:
        """Refuse to write inside an artifact.

        Raises:
            DataError: If the folder is an artifact.
        """
        if not self.can_write:
            raise DataError(
                "the served folder is an artifact, which is not modified",
                code="console.read-only",
                expected="a folder that holds artifacts",
                next="start the console on its parent folder",
            )

    def review_of(self, name: str) -> ReviewLog:
        """Return the review log of an artifact, shared by all requests."""
        digest = read_folder_artifact(self.root, name).digest
        with self._lock:
            if digest not in self._reviews:
                self._reviews[digest] = ReviewLog(self.root / ".stillroom" / "reviews", digest)
            return self._reviews[digest]

    def free_name(self, folder: str, name: str) -> str:
        """Return an unused name below a folder, from the last part of another name."""
        last = name.rstrip("/").rpartition("/")[2] or "records"
        number = 1
        while (self.root / folder / f"{last}-{number}").exists():
            number += 1
        return f"{folder}/{last}-{number}"

    async def run_in_thread(self, call: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
        """Run a blocking function in a thread."""
        return await asyncio.to_thread(partial(call, *args, **more))

    async def collect(self, slots: WorkerSlots, work: Work[T], request: Request) -> list[T]:
        """Return all items of a long task; it stops when the browser disconnects.

        Raises:
            ApiError: If the queue is full, or the time is over.
            StillroomError: Raised by the task, unchanged.
        """
        items = slots.stream(work, request)
        try:
            async with aclosing(items) as opened:  # type: ignore[type-var]  # a generator
                return [item async for item in opened]
        except ApiError as refusal:
            if isinstance(refusal.__cause__, StillroomError):
                raise refusal.__cause__ from None
            raise

    async def found(self) -> list[FolderArtifact]:
        """Return the artifacts of the folder."""
        return await self.run_in_thread(list_folder_artifacts, self.root)

    def page(
        self, request: Request, template: str, *, status: int = 200, **values: Any
    ) -> HTMLResponse:
        """Render a page."""
        variables = {"here": request.url.path, "token": self.token, "is_inside": True, **values}
        return HTMLResponse(self.templates.get_template(template).render(variables), status)

    async def refuse(self, request: Request, status: int, message: str) -> Response:
        """Render the page of a refusal; without a session, the page that requests the key."""
        if status == 401:
            return self.page(request, "enter.html", status=401, message=message, is_inside=False)
        return self.page(
            request, "problem.html", status=status, problems=[Problem(message, "console.refused")],
            is_inside=False,
        )  # fmt: skip

    def explain(self, request: Request, error: Exception) -> Response:
        """Render the page of an error; unexpected errors are logged under a number."""
        if isinstance(error, ApiError):
            problem = Problem(error.message, error.code)
            return self.page(request, "problem.html", status=error.status, problems=[problem])
        error = find_missing_extra(error) or error
        if isinstance(error, StillroomError):
            hide = make_path_redactor({self.root: ""})
            problems = [Problem(**hide(asdict(problem))) for problem in error.problems]
            return self.page(
                request, "problem.html", status=_find_status(error), problems=problems
            )  # fmt: skip
        number = uuid.uuid4().hex[:12]
        _LOG.error("error %s", number, exc_info=error)
        problem = Problem(
            f"the console failed; its log has the reason under {number}",
            "internal",
            next="look at the terminal that runs it",
        )
        return self.page(request, "problem.html", status=500, problems=[problem])


def _find_status(error: StillroomError) -> int:
    if error.code in _NOT_FOUND_CODES:
        return 404
    if error.code in {"rag.access-needed", "console.read-only"}:
        return 403
    if error.code == "console.decided":
        return 409
    kinds: Mapping[type[StillroomError], int] = {
        ResourceError: 503,
        BackendError: 503,
        MissingExtraError: 501,
        DataError: 400,
        RecipeError: 400,
        CheckpointError: 400,
        ShapeError: 400,
    }
    return next((status for kind, status in kinds.items() if isinstance(error, kind)), 500)


_UNITS = ("B", "kB", "MB", "GB", "TB")
_DIGEST_DIGITS = 12


def format_size(size_bytes: float | None) -> str:
    """Format a size in decimal units."""
    if size_bytes is None:
        return "–"
    value, unit = float(size_bytes), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return (
        f"{value:.0f} {_UNITS[unit]}"
        if unit == 0 or value >= 100
        else f"{value:.3g} {_UNITS[unit]}"
    )


def format_digest(digest: str) -> str:
    """Return the first characters of a digest."""
    return digest[:_DIGEST_DIGITS]


def format_time(moment: str) -> str:
    """Format an ISO time as date and minute in the local time zone."""
    try:
        return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return moment


def format_number(value: Any) -> str:
    """Format a number with four digits, integers with thousands separators."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–" if value is None else str(value)
    if not abs(value) <= sys.float_info.max:  # or NaN
        return f"{value!s:.30}"
    is_whole = isinstance(value, int) or (value.is_integer() and abs(value) < 1e15)
    return f"{value:,.0f}" if is_whole else f"{value:,.4g}"


def format_count(count: int, noun: str, plural: str = "") -> str:
    """Format a count with its noun."""
    return count_noun(f"{count:,}", noun, plural)


FILTERS: dict[str, Callable[..., Any]] = {
    "size": format_size,
    "digest": format_digest,
    "moment": format_time,
    "figure": format_number,
    "count_of": format_count,
}
