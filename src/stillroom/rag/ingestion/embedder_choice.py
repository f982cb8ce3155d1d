"""Choice of an index's embedder by the language of its documents (``embedder: builtin:auto``).

all-MiniLM-L6-v2 reads English, and so does all-mpnet-base-v2, which finds more and takes twice the
time in 8-bit integers. multilingual-e5-small reads a hundred languages, and English less well. The
lab notebook has the figures ("An embedder for other languages", "A larger embedder").
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stillroom.errors import CheckpointError, StillroomError
from stillroom.models.encoders.int8_layers import can_quantize
from stillroom.models.hub import (
    DEFAULT_EMBEDDER,
    LARGE_EMBEDDER,
    LARGE_EMBEDDER_BASE,
    MULTILINGUAL_EMBEDDER,
    is_local,
    resolve_checkpoint,
)
from stillroom.rag.index_settings import AUTO_EMBEDDER
from stillroom.rag.ingestion.preparation import DocumentFile, read_document
from stillroom.text.parser_process import ParserProcess

if TYPE_CHECKING:
    from stillroom.jobs import Job
    from stillroom.provenance import Artifact
    from stillroom.rag.index_settings import IndexSettings

__all__ = [
    "choose_embedder",
    "find_chosen_embedder",
    "has_large_embedder",
    "list_installed_embedders",
]

_SAMPLE = 9


def choose_embedder(
    recipe: IndexSettings, root: Path, files: Sequence[DocumentFile], job: Job
) -> str:
    """Return the embedder of a recipe, chosen by up to nine documents if it is ``builtin:auto``.

    The multilingual one if most of the documents whose language is recognized are not English,
    and it can be had; if it cannot, the job warns. Else the large one if it is on this machine.

    Args:
        recipe: Settings of the index.
        root: The folder that paths are relative to.
        files: Its files, in order of path.
        job: Job whose log names the choice.
    """
    if recipe.embedder != AUTO_EMBEDDER:
        return recipe.embedder
    languages = _find_languages(recipe, root, files[:: -(-len(files) // _SAMPLE) or 1])
    foreign = [language for language in languages if language != "en"]
    if 2 * len(foreign) <= len(languages):
        english = len(languages) - len(foreign)
        reason = f"{_count_documents(english, len(languages))} in English"
        if not languages:
            reason = "no language was recognized in the documents looked at"
        chosen = LARGE_EMBEDDER if has_large_embedder() else DEFAULT_EMBEDDER
        is_here = "is" if chosen == LARGE_EMBEDDER else "is not"
        job.say(
            f"embedder {chosen}: {reason}, and {LARGE_EMBEDDER} {is_here} installed", kind="choice"
        )
        return chosen
    reason = (
        f"{_count_documents(len(foreign), len(languages))} not in English "
        f"({', '.join(sorted(set(foreign)))})"
    )
    try:
        resolve_checkpoint(MULTILINGUAL_EMBEDDER)
    except CheckpointError as error:
        job.warn(
            f"{reason}, which {DEFAULT_EMBEDDER} does not know; {MULTILINGUAL_EMBEDDER} does: "
            f"{error.problems[0].next}"
        )
        return DEFAULT_EMBEDDER
    job.say(f"embedder {MULTILINGUAL_EMBEDDER}: {reason}", kind="choice")
    return MULTILINGUAL_EMBEDDER


def _count_documents(count: int, total: int) -> str:
    """Return the beginning of a sentence about some of the documents looked at."""
    if total == 1:
        return "the document is"
    return f"{count} of {total} documents looked at {'is' if count == 1 else 'are'}"


def find_chosen_embedder(artifact: Artifact) -> str:
    """Return the embedder that was chosen for an index; ``builtin:auto`` if it names none such."""
    choices = {LARGE_EMBEDDER_BASE: LARGE_EMBEDDER}
    choices |= {reference: reference for reference in (DEFAULT_EMBEDDER, MULTILINGUAL_EMBEDDER)}
    named = [parent.path for parent in artifact.parents if parent.role == "embedder"]
    return next((choices[path] for path in named if path in choices), AUTO_EMBEDDER)


def list_installed_embedders() -> list[str]:
    """Return the embedders on this machine that may be chosen in place of the default."""
    has_multilingual = is_local(MULTILINGUAL_EMBEDDER)
    return [MULTILINGUAL_EMBEDDER] * has_multilingual + [LARGE_EMBEDDER] * has_large_embedder()


def has_large_embedder() -> bool:
    """Return whether ``builtin:mpnet-int8`` can be opened without a download."""
    return can_quantize() and is_local(LARGE_EMBEDDER_BASE)


def _find_languages(recipe: IndexSettings, root: Path, files: Sequence[DocumentFile]) -> list[str]:
    """Return the languages of documents, without those that cannot be read or recognized."""
    found = []
    with ParserProcess() as worker:
        for file in files:
            try:
                found.append(read_document(recipe, root, file, worker).language)
            except StillroomError:
                continue  # the index names it
    return [language for language in found if language]
