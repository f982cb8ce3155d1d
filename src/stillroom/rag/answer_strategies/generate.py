"""Plain RAG: retrieve once and let the model write from the retrieved passages.

Source: Lewis et al. 2020, "Retrieval-Augmented Generation for Knowledge-Intensive NLP Tasks",
arXiv:2005.11401. Differs from the paper: retriever and model are independent and not trained
jointly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from stillroom.rag.interfaces import AnswerStrategy

if TYPE_CHECKING:
    from stillroom.rag.generation.session import AnswerSession

__all__ = ["Generate"]


class Generate(AnswerStrategy):
    """One search and one generated answer; abstains only if nothing is found."""

    paper: ClassVar[str] = "arXiv:2005.11401"

    @override
    def answer(self, inquiry: AnswerSession) -> Iterator[str]:
        hits = inquiry.retrieve()[: inquiry.asking.k]
        if not hits:
            inquiry.abstain("nothing-found")
            return
        yield from inquiry.read(hits)
