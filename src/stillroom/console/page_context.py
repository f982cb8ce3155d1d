"""Context that all pages share, template rendering, and number formats of the templates.

Templates escape whatever they are given; a value that is missing is an error, never an empty place.
"""

from __future__ import annotations

import asyncio
import logging
import math
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
)
from stillroom.serve.app import ModelCache
from stillroom.serve.errors import ApiError
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
    """A page of the navigation: its address, its word, and what it is for."""

    path: str
    word: str
    what: str


class PageContext:
    """The folder, what is open of it, and the templates."""

    def __init__(
        self,
        root: Path,
        *,
        token: str,
        pages: tuple[PageLink, ...],
        access: AccessContext | None = None,
    ) -> None:
        """Stand over a folder; ``close`` closes what was opened."""
        self.root, self.token = root, token
        self.sources = Sources(root, access)
        self._reviews: dict[str, ReviewLog] = {}
        self._lock = threading.Lock()
        self.shelf = ModelCache(root, access, references=partial(list_references, root))
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
        self.shelf.close()
        self.sources.close()

    @property
    def can_write(self) -> bool:
        """Whether decisions and new artifacts can be kept: not within an artifact itself."""
        return not is_artifact(self.root)

    def check_writable(self) -> None:
        """Refuse to keep anything within an artifact.

        Raises:
            DataError: If the folder is one.
        """
        if not self.can_write:
            raise DataError(
                "the served folder is an artifact itself, and stays as it is",
                code="console.read-only",
                expected="a folder that holds artifacts",
                next="start the console on the folder above it",
            )

    def review_of(self, name: str) -> ReviewLog:
        """Return the review of an artifact, one for all who look."""
        digest = read_folder_artifact(self.root, name).digest
        with self._lock:
            if digest not in self._reviews:
                self._reviews[digest] = ReviewLog(self.root / ".stillroom" / "reviews", digest)
            return self._reviews[digest]

    def free_name(self, folder: str, name: str) -> str:
        """Return a name below a folder that nothing has yet, made of another's last part."""
        last = name.rstrip("/").rpartition("/")[2] or "records"
        number = 1
        while (self.root / folder / f"{last}-{number}").exists():
            number += 1
        return f"{folder}/{last}-{number}"

    async def work(self, call: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
        """Run what may block beside the event loop."""
        return await asyncio.to_thread(partial(call, *args, **more))

    async def collect(self, slots: WorkerSlots, work: Work[T], request: Request) -> list[T]:
        """Return all that some long work yields; it stops when the browser leaves.

        Raises:
            Refusal: If too many stand in line, or the time is over.
            StillroomError: What the work raised, as it is: who asks is at home here.
        """
        items = slots.stream(work, request)
        try:
            async with aclosing(items) as opened:  # type: ignore[type-var]  # a generator
                return [one async for one in opened]
        except ApiError as refusal:
            if isinstance(refusal.__cause__, StillroomError):
                raise refusal.__cause__ from None
            raise

    async def found(self) -> list[FolderArtifact]:
        """Return what lies in the folder."""
        return await self.work(list_folder_artifacts, self.root)

    def page(
        self, request: Request, template: str, *, status: int = 200, **values: Any
    ) -> HTMLResponse:
        """Draw a page."""
        given = {"here": request.url.path, "token": self.token, "is_inside": True, **values}
        return HTMLResponse(self.templates.get_template(template).render(given), status)

    async def refuse(self, request: Request, status: int, said: str) -> Response:
        """Draw the page that says no: to somebody outside the one that asks for the key."""
        if status == 401:
            return self.page(request, "enter.html", status=401, said=said, is_inside=False)
        return self.page(
            request, "problem.html", status=status, problems=[Problem(said, "console.refused")],
            is_inside=False,
        )  # fmt: skip

    def explain(self, request: Request, error: Exception) -> Response:
        """Draw the page of an error; what was not foreseen goes into the log under a number."""
        if isinstance(error, ApiError):
            told = Problem(error.message, error.code)
            return self.page(request, "problem.html", status=error.status, problems=[told])
        if isinstance(error, StillroomError):
            hide = make_path_redactor({self.root: ""})
            problems = [Problem(**hide(asdict(one))) for one in error.problems]
            return self.page(
                request, "problem.html", status=_find_status(error), problems=problems
            )  # fmt: skip
        number = uuid.uuid4().hex[:12]
        _LOG.error("error %s", number, exc_info=error)
        told = Problem(
            f"the console failed; its log says why under {number}",
            "internal",
            next="look at the terminal that runs it",
        )
        return self.page(request, "problem.html", status=500, problems=[told])


def _find_status(error: StillroomError) -> int:
    """Return the HTTP status of an error."""
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
    """Return a size in units of a thousand."""
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
    """Return the first digits of a digest."""
    return digest[:_DIGEST_DIGITS]


def format_time(moment: str) -> str:
    """Return the day and the minute of an ISO moment, in this machine's time."""
    try:
        return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return moment


def format_number(value: Any) -> str:
    """Return a number in four digits, whole ones with their thousands."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "–" if value is None else str(value)
    if not math.isfinite(value):
        return str(value)
    is_whole = isinstance(value, int) or (value.is_integer() and abs(value) < 1e15)
    return f"{value:,.0f}" if is_whole else f"{value:,.4g}"


def format_count(count: int, word: str, plural: str = "") -> str:
    """Return a count with its word."""
    return f"{count:,} {word if count == 1 else plural or word + 's'}"


FILTERS: dict[str, Callable[..., Any]] = {
    "size": format_size,
    "digest": format_digest,
    "moment": format_time,
    "figure": format_number,
    "count_of": format_count,
}
