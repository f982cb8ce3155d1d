"""What a graph will cost before it is made: calls, tokens and time, from a sample that is asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from stillroom.provenance import ARTIFACT_FILE, digest_json
from stillroom.rag.graphs.files import EXTRACTIONS, read_rows
from stillroom.rag.graphs.graph import Graph
from stillroom.rag.index import Index
from stillroom.rag.metering import Meter

if TYPE_CHECKING:
    from stillroom.models import TextModel
    from stillroom.rag.graphs.job import GraphPlan
    from stillroom.records import Completion, Prompt, Sampling

__all__ = ["GraphCost", "estimate_graph"]

_SAMPLE = 3


@dataclass(frozen=True, slots=True)
class GraphCost:
    """What extraction will take. ``passages`` are those that no graph at the place knows yet.

    Tokens are those of prompts and of answers; ``seconds`` is what the sample took, scaled. Reports
    and summaries come on top: one call for each community, and for each entity that many passages
    describe, which is not known before extraction.
    """

    passages: int
    known: int
    calls: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    sampled: int

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        """Return the estimate as one or two lines for people."""
        first = f"{self.passages} passages to read, {self.known} known already"
        if not self.calls:
            return f"{first}; no model is asked; about {self.seconds:.0f} s"
        return (
            f"{first}\n{self.calls} calls of a model to find entities, about "
            f"{self.prompt_tokens} tokens to read and {self.completion_tokens} to write, about "
            f"{self.seconds:.0f} s (from {self.sampled} passages that were asked); "
            "reports and summaries come on top, one call each"
        )


def estimate_graph(plan: GraphPlan, out: Path, *, model: TextModel | None = None) -> GraphCost:
    """Return what bringing the graph at ``out`` up to date will take.

    A few passages, evenly chosen, are really extracted to time it; nothing is kept of that.

    Raises:
        DataError: If the extractor needs a model and has none.
    """
    from stillroom.rag.graphs.job import opened_model

    with (
        Index.open(plan.index, access=plan.access) as index,
        opened_model(plan.model, model) as asked,
    ):
        known = _known(out)
        mark = plan.extractor.fingerprint(asked)
        rows: dict[str, int] = {}
        for row in range(len(index)):
            passage = index.passage_at(row)
            rows.setdefault(digest_json([mark, passage.text, passage.language])[:32], row)
        missing = [row for key, row in rows.items() if key not in known]
        step = max(len(missing) // _SAMPLE, 1)
        sample = [index.passage_at(row) for row in missing[::step][:_SAMPLE]]
        meter = _TokenMeter(asked) if asked is not None else None
        begun = time.perf_counter()
        for passage in sample:
            plan.extractor.extract([passage], meter)
        share = len(missing) / max(len(sample), 1)
        return GraphCost(
            len(missing),
            len(rows) - len(missing),
            round((meter.calls if meter else 0) * share),
            round((meter.prompt_tokens if meter else 0) * share),
            round((meter.completion_tokens if meter else 0) * share),
            round((time.perf_counter() - begun) * share, 1),
            len(sample),
        )


def _known(out: Path) -> set[str]:
    if not (out / ARTIFACT_FILE).is_file():
        return set()
    graph = Graph.open(out)
    return {key for key, _ in read_rows(graph.folder / EXTRACTIONS)}


class _TokenMeter(Meter):
    """A Meter that counts tokens too."""

    def __init__(self, model: TextModel) -> None:
        super().__init__(model)
        self.prompt_tokens = self.completion_tokens = 0

    @override
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling],
        *,
        on_done: Callable[[int, Completion], None] | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> list[Completion]:
        done = super().generate(prompts, sampling, on_done=on_done, is_cancelled=is_cancelled)
        self.prompt_tokens += sum(one.prompt_tokens for one in done)
        self.completion_tokens += sum(one.completion_tokens for one in done)
        return done
