"""The formats by name, and writing them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from stillroom.errors import DataError
from stillroom.flow.papers.cyclonedx import write_cyclonedx
from stillroom.flow.papers.datasheet import write_croissant
from stillroom.flow.papers.eu import write_documentation_form, write_training_summary
from stillroom.flow.papers.facts import FieldSheet, Paper
from stillroom.flow.papers.graph import ProvenanceGraph
from stillroom.flow.papers.model_card import fill_card, render_card
from stillroom.flow.papers.spdx import write_spdx
from stillroom.jobs import atomic_write

__all__ = ["FORMATS", "save_papers", "write_all", "write_card"]


def write_card(graph: ProvenanceGraph) -> Paper:
    """Return the model card as a paper.

    Raises:
        DataError: If the subject is no checkpoint.
    """
    text = render_card(graph)
    sheet = FieldSheet()
    for name, value in fill_card(graph).items():
        sheet.fill(name, value)
    return sheet.make_paper("card", "model-card.md", "Model card", text)


FORMATS: Mapping[str, Callable[[ProvenanceGraph], Paper]] = {
    "cyclonedx": write_cyclonedx,
    "spdx": write_spdx,
    "croissant": write_croissant,
    "eu-summary": write_training_summary,
    "eu-form": write_documentation_form,
    "card": write_card,
}


def write_all(graph: ProvenanceGraph) -> tuple[list[Paper], dict[str, str]]:
    """Return every paper that fits the subject, and why the others do not, by format."""
    papers, left_out = [], {}
    for name, write in FORMATS.items():
        try:
            papers.append(write(graph))
        except DataError as error:
            if error.problems[0].code not in ("data.wrong-kind", "attest.no-records"):
                raise
            left_out[name] = error.problems[0].what
    return papers, left_out


def save_papers(papers: list[Paper], out: Path, *, overwrite: bool = False) -> None:
    """Write papers into a folder, each under its own name; none if one of them is there already.

    Raises:
        DataError: If a file exists and is not to be replaced.
    """
    taken = [paper.file for paper in papers if (out / paper.file).exists()]
    if taken and not overwrite:
        raise DataError(
            f"{out / taken[0]} exists already",
            code="data.exists",
            where=str(out),
            expected="a folder without these files",
            next="give another --out, or --overwrite",
        )
    out.mkdir(parents=True, exist_ok=True)
    for paper in papers:
        with atomic_write(out / paper.file) as file:
            file.write(paper.text)
