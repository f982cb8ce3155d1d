"""Mounts: artifacts under names that clients ask for.

``NAME=PATH`` mounts what lies at a path under a name, ``PATH`` alone under the folder's own name,
``NAME=INDEX+MODEL`` an index with the model that answers from it. What a path is says itself: a
run, an index, a checkpoint of any backend (diffusion too), an embedder, a reranker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.errors import RecipeError
from stillroom.models import open_text_model, resolve_checkpoint
from stillroom.provenance import ARTIFACT_FILE, find_output, read_artifact
from stillroom.serve.served import Served, open_run

if TYPE_CHECKING:
    from stillroom.rag.access import Access
    from stillroom.rag.asking import AskSettings

__all__ = ["Mount", "open_mount", "open_mounts", "parse_mount"]

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._/-]{0,127})=(.+)", re.DOTALL)
_ADDRESS = re.compile(r"[a-z][a-z0-9.-]+:")


@dataclass(frozen=True, slots=True)
class Mount:
    """What is mounted: a reference, a name for it, and the model that answers from an index."""

    name: str
    reference: str
    model: str = ""


def parse_mount(text: str, model: str = "") -> Mount:
    """Read ``[NAME=]PATH[+MODEL]``; a path that exists is never taken apart.

    Args:
        text: What the command line says.
        model: For an index without a model of its own.

    Raises:
        RecipeError: If no name is given and the path has none.
    """
    named = None if Path(text).exists() else _NAMED.fullmatch(text)
    name, reference = (named[1], named[2]) if named else ("", text)
    if not Path(reference).exists() and not _ADDRESS.match(reference):
        path, plus, own = reference.partition("+")
        reference, model = (path, own) if plus else (reference, model)
    if not name:
        name = reference.rpartition("#")[2] if "#" in reference else Path(reference).resolve().name
        name = name.removesuffix(".gguf")
    if not name:
        raise RecipeError(
            f"{text!r:.80} has no name that clients could ask for",
            code="serve.mount",
            where="stillroom serve",
            expected="NAME=PATH",
            next=f"stillroom serve NAME={text}",
        )
    return Mount(name, reference, model)


@contextmanager
def open_mounts(
    mounts: Sequence[Mount],
    *,
    settings: AskSettings | None = None,
    access: Access | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[list[Served]]:
    """Open all until the body ends.

    Args:
        mounts: What is mounted; names differ.
        settings: How questions are answered where a client does not say.
        access: As whom is asked where a client does not say, of an index with tenants.
        say: Told what a ``hub:`` reference was resolved to.

    Raises:
        RecipeError: If two would have one name.
        DataError: If a run is unfinished, or an index has no model.
        CheckpointError: If a checkpoint cannot be found or opened.
    """
    with ExitStack() as opened:
        found: list[Served] = []
        for mount in mounts:
            served = opened.enter_context(
                open_mount(mount, settings=settings, access=access, say=say)
            )
            if len(mounts) > 1 and served.embedder is not None and served.model is not None:
                served = replace(served, embedder_name=f"{served.name}-embedder")
            found.append(served)
        names = [name for served in found for name in served.names]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise RecipeError(
                f"{twice[0]!r} is the name of two mounts",
                code="serve.mount",
                where="stillroom serve",
                expected="a name for each",
                next=f"stillroom serve {twice[0]}=PATH other-name=PATH",
            )
        yield found


@contextmanager
def open_mount(
    mount: Mount,
    *,
    settings: AskSettings | None = None,
    access: Access | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[Served]:
    """Open one until the body ends, as what it is.

    Args:
        mount: What is mounted.
        settings: How questions are answered where a client does not say.
        access: As whom is asked where a client does not say, of an index with tenants.
        say: Told what a ``hub:`` reference was resolved to.

    Raises:
        RecipeError: If another model is named and nothing has documents.
        DataError: If a run is unfinished, or an index has no model.
        CheckpointError: If a checkpoint cannot be found or opened.
    """
    path = Path(mount.reference)
    kind = read_artifact(path).kind if (path / ARTIFACT_FILE).is_file() else ""
    if kind in {"report", "index"}:
        with open_run(
            path, name=mount.name, model=mount.model, settings=settings, access=access, say=say
        ) as served:
            yield served
        return
    if mount.model:
        raise RecipeError(
            f"{mount.reference} is no index, so no other model answers from it",
            code="serve.mount",
            where="stillroom serve",
            expected="a model with an index or a run alone",
            next=f"stillroom serve {mount.name}={mount.reference}",
        )
    folder = find_output(path, "checkpoint") if kind else path
    with _open_checkpoint(mount, folder, say) as served:
        yield served


@contextmanager
def _open_checkpoint(
    mount: Mount, folder: Path, say: Callable[[str], None] | None
) -> Iterator[Served]:
    """Open a checkpoint as what it is; references that are no folders are models that write."""
    from stillroom.models import open_embedder
    from stillroom.models.opening import open_reranker

    if mount.reference.startswith("hub:"):
        folder = resolve_checkpoint(mount.reference, say=say)
    what = _look_at(folder)
    if what == "embedder":
        embedder = open_embedder(str(folder), say=say)
        yield Served(mount.name, embedder=embedder, embedder_name=mount.name)
        return
    if what == "reranker":
        reranker = open_reranker(str(folder), say=say)
        try:
            yield Served(mount.name, reranker=reranker)
        finally:
            reranker.close()
        return
    is_said = folder != Path(mount.reference)
    model = open_text_model(mount.reference, say=None if is_said else say)
    try:
        yield Served(mount.name, model)
    finally:
        model.close()


def _look_at(folder: Path) -> str:
    if (folder / "modules.json").is_file():
        return "embedder"
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        heads = config.get("architectures") or []
    except (OSError, ValueError, AttributeError):
        return "model"
    is_judge = any("ForSequenceClassification" in str(head) for head in heads)
    return "reranker" if is_judge else "model"
