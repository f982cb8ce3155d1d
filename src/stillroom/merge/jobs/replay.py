"""Replay of merges: drawn tensors are computed again from the merged models.

If all are drawn, or scores chose what was merged, the job is repeated with every file it writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

from stillroom.jobs.replay import JournalReplayer
from stillroom.jobs.segments import ReplayRequest, SegmentOutcome

if TYPE_CHECKING:
    from stillroom.merge.jobs.recipe import MergeJobRecipe

__all__ = ["MERGE_REPLAYER", "SELECTION_REPLAYER", "MergeReplayer"]


class MergeReplayer(JournalReplayer):
    """Replays tensors by themselves where not all are drawn."""

    def replay(self, request: ReplayRequest, names: frozenset[str]) -> Iterator[SegmentOutcome]:
        """Recompute the named tensors, and compare the fingerprints of the merged models.

        Files beside the tensors (configuration, tokenizer, card) are compared if all are named.
        """
        committed = {segment.name: segment.result for segment in self.list_segments(request)}
        if len(names) == len(committed):
            yield from super().replay(request, names)
            return
        from stillroom.checkpoints import Checkpoint
        from stillroom.merge.jobs.publication import TENSORS
        from stillroom.merge.verification import verify_merge

        tensors = frozenset(name.removeprefix(TENSORS) for name in names)
        recipe = cast("MergeJobRecipe", request.recipe)
        verification = verify_merge(
            request.folder, tensors=tensors, recipe=recipe, say=request.reporter.say
        )
        differing = {mismatch.name: str(mismatch) for mismatch in verification.differences}
        digests = Checkpoint.open(request.folder).digests
        for name in sorted(tensors | differing.keys()):
            segment = f"{TENSORS}{name}"
            digest = "" if name in differing else digests.get(name, "")
            what = differing.get(name, "")
            yield SegmentOutcome(segment, committed.get(segment, ""), digest, what)


MERGE_REPLAYER = MergeReplayer()
SELECTION_REPLAYER = JournalReplayer(("scores", "trials"), timed=frozenset({"spent"}))
