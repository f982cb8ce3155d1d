"""Rows of a table that was cut are found and read with the table's header, and cited without it."""

from functools import partial

import pytest

from stillroom import rag
from stillroom.rag.index.searcher import Index
from stillroom.rag.retrieval.pipeline import retrieve
from stillroom.testing import scripted_model

# These tests script what the model writes.
ask = partial(rag.ask, answering="generate")

ROWS = "\n".join(f"| Q{at} | {at * 7} | {at % 5} |" for at in range(90))


@pytest.fixture
def stock(build, folder, tmp_path):
    text = f"# Parts\n\n| part | price in marks | shelf |\n|---|---|---|\n{ROWS}\n"
    (folder / "parts.md").write_text(text)
    build(chunker={"name": "heading", "size": 80})
    with Index.open(tmp_path / "index") as opened:
        yield opened


def test_rows_are_found_by_the_names_of_their_columns(stock):
    hits = retrieve(stock, "price in marks of part Q70", 3, retriever="keyword")
    assert "| Q70 |" in hits[0].passage.text
    assert "price in marks" not in hits[0].passage.text
    near = retrieve(stock, "price in marks", 3, retriever="dense")
    assert {hit.passage.location.path for hit in near} == {"parts.md"}
    assert sum(bool(hit.passage.table_header) for hit in near) >= 2


def test_rows_are_read_with_the_header_and_cited_without(stock):
    prompts = []

    def reply(prompt):
        prompts.append(prompt.messages[-1].content)
        return "The price in marks of part Q70 is 490 [1]."

    answer = ask(
        stock, scripted_model(reply), "price in marks of part Q70?", k=1, retriever="keyword"
    )
    assert prompts[0].count("| part | price in marks | shelf |") == 1
    document = stock.document(answer.hits[0].passage.document_id)
    passage = answer.hits[0].passage
    assert answer.citations[0].text == passage.text == document.text[passage.start : passage.end]
    assert answer.details["support"] == {"supported": 1}
