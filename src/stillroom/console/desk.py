"""The desk: what every page needs, and how a page is drawn.

Templates escape whatever they are given; a value that is missing is an error, never an empty place.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from stillroom.console.showing import FILTERS
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
from stillroom.serve.hiding import hider
from stillroom.serve.refusals import Refusal
from stillroom.serve.reviews import Review
from stillroom.serve.shelf import Shelf
from stillroom.serve.slots import Slots, Work
from stillroom.serve.views.found import Found, is_artifact, list_found, read_found
from stillroom.serve.views.models import list_references
from stillroom.serve.views.sources import Sources

if TYPE_CHECKING:
    from stillroom.rag.access import Access

__all__ = ["Desk", "PageLink"]

P = ParamSpec("P")
T = TypeVar("T")
_LOG = logging.getLogger("stillroom.console")
_NOT_FOUND = frozenset({"data.missing", "data.not-an-artifact", "rag.no-such-passage"})


@dataclass(frozen=True, slots=True)
class PageLink:
    """A page of the navigation: its address, its word, and what it is for."""

    path: str
    word: str
    what: str


class Desk:
    """The folder, what is open of it, and the templates."""

    def __init__(
        self,
        root: Path,
        *,
        token: str,
        pages: tuple[PageLink, ...],
        access: Access | None = None,
    ) -> None:
        """Stand over a folder; ``close`` closes what was opened."""
        self.root, self.token = root, token
        self.sources = Sources(root, access)
        self._reviews: dict[str, Review] = {}
        self._lock = threading.Lock()
        self.shelf = Shelf(root, access, references=partial(list_references, root))
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

    def review_of(self, name: str) -> Review:
        """Return the review of an artifact, one for all who look."""
        digest = read_found(self.root, name).digest
        with self._lock:
            if digest not in self._reviews:
                self._reviews[digest] = Review(self.root / ".stillroom" / "reviews", digest)
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

    async def collect(self, slots: Slots, work: Work[T], request: Request) -> list[T]:
        """Return all that some long work yields; it stops when the browser leaves.

        Raises:
            Refusal: If too many stand in line, or the time is over.
            StillroomError: What the work raised, as it is: who asks is at home here.
        """
        items = slots.stream(work, request)
        try:
            async with aclosing(items) as opened:  # type: ignore[type-var]  # a generator
                return [one async for one in opened]
        except Refusal as refusal:
            if isinstance(refusal.__cause__, StillroomError):
                raise refusal.__cause__ from None
            raise

    async def found(self) -> list[Found]:
        """Return what lies in the folder."""
        return await self.work(list_found, self.root)

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
        if isinstance(error, Refusal):
            told = Problem(error.message, error.code)
            return self.page(request, "problem.html", status=error.status, problems=[told])
        if isinstance(error, StillroomError):
            hide = hider({self.root: ""})
            problems = [Problem(**hide(asdict(one))) for one in error.problems]
            return self.page(
                request, "problem.html", status=_status_of(error), problems=problems
            )  # fmt: skip
        number = uuid.uuid4().hex[:12]
        _LOG.error("error %s", number, exc_info=error)
        told = Problem(
            f"the console failed; its log says why under {number}",
            "internal",
            next="look at the terminal that runs it",
        )
        return self.page(request, "problem.html", status=500, problems=[told])


def _status_of(error: StillroomError) -> int:
    """Return the HTTP status of an error."""
    if error.code in _NOT_FOUND:
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
