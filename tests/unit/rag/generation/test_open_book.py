"""Records in the served prompt: what is shown, what is answered, and why it is refused."""

import json

import numpy as np
import pytest

from stillroom.errors import DataError
from stillroom.jobs import Job
from stillroom.models import open_embedder
from stillroom.provenance import read_artifact
from stillroom.rag import Index
from stillroom.rag.generation.open_book import REFUSAL_KINDS, make_near_miss
from stillroom.rag.generation.prompt import ABSTENTION, PROMPT_DIGEST, render_prompt
from stillroom.rag.jobs.index import IndexRecipe
from stillroom.rag.jobs.index import run as build_index
from stillroom.rag.jobs.open_book import OpenBookRecipe, run
from stillroom.records import read_records

KINDS = ("answer", *REFUSAL_KINDS)
FACTS = {
    f"{name}.txt": f"The {thing} of {name} weighs {at}0 kilograms. It was built for {name} fair.\n"
    for at, (name, thing) in enumerate(
        [("Alder", "bell"), ("Birch", "anvil"), ("Cedar", "loom"), ("Elm", "plough"),
         ("Fir", "kettle"), ("Hazel", "barrel"), ("Larch", "saddle"), ("Maple", "mast")], 3)
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("open")
    (place / "documents").mkdir()
    rows = []
    for name, text in FACTS.items():
        (place / "documents" / name).write_text(text, encoding="utf-8")
        sentence = text.partition(". ")[0] + "."
        thing, town = sentence.split()[1], sentence.split()[3]
        asked = f"How heavy is the {thing} that stands in {town} today?"
        weight = sentence.split()[5]
        rows.append({"question": asked, "answers": [weight], "evidence": [{"quote": sentence}]})
    rows.append({"question": "Who?", "answers": ["Nobody"], "evidence": [{"quote": "Not here."}]})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (place / "questions.jsonl").write_text(text, encoding="utf-8")
    recipe = IndexRecipe(documents=str(place / "documents"), embedder="static")
    build_index(recipe, Job.start(place / "index", "recipe\n"), embedder=open_embedder("static"))
    return place


def render(place, out, **settings):
    recipe = OpenBookRecipe(
        index=str(place / "index"), questions=[str(place / "questions.jsonl")], **settings
    )
    run(recipe, Job.start(out, "recipe\n"))
    return list(read_records(out / "output"))


def test_records_are_what_ask_would_send(place, tmp_path):
    records = render(place, tmp_path / "out", renderings=4, refusals=0)
    assert len(records) == 4 * len(FACTS)
    sizes = set()
    with Index.open(place / "index") as index:
        hits = {hit.passage.id: hit for hit in index.hits([(row, 1.0) for row in range(8)])}
    for record in records:
        *asked, answer = record.messages
        shown = [hits[name] for name in record.fields["passages"]]
        assert tuple(asked) == render_prompt(record.fields["question"], shown).messages
        sentence, _, number = answer.content.rpartition(" [")
        assert sentence in shown[int(number.rstrip("]")) - 1].passage.text
        assert record.origin.chain[-1].prompt == PROMPT_DIGEST
        sizes.add(len(shown))
    assert sizes == {1, 2, 3, 4, 5}
    places = [record.messages[-1].content[-2] for record in records]
    assert len(set(places)) > 2  # the answering passage stands anywhere
    details = read_artifact(tmp_path / "out").details
    assert (details["lost"], details["answer"]) == (1, len(records))


def test_a_refusal_is_one_whose_passages_do_not_answer(place, tmp_path):
    records = render(place, tmp_path / "out", renderings=8, refusals=0.6)
    kinds = {record.fields["kind"] for record in records}
    assert kinds == {"answer", "removed", "near_miss", "foreign"}
    refused = [record for record in records if record.fields["kind"] != "answer"]
    assert 0.45 < len(refused) / len(records) < 0.75
    for record in refused:
        prompt, question = record.messages[1].content, record.fields["question"]
        passages = prompt.partition("\n\nQuestion: ")[0]
        assert record.messages[-1].content == record.fields["answer"] == ABSTENTION
        thing, town = question.split()[4], question.split()[8]
        assert f"The {thing} of {town} weighs" not in passages
    near = [record for record in refused if record.fields["kind"] == "near_miss"]
    for record in near:  # what is asked about is shown, and the rest of the question is not
        assert record.fields["question"].split()[4] in record.messages[1].content.split("Quest")[0]


def test_a_quote_has_no_marks_and_no_refusal_shows_the_answer_elsewhere(tmp_path):
    documents = tmp_path / "documents"
    documents.mkdir()
    said = "Set the valve to 41 degrees in winter."
    (documents / "manual.html").write_text(
        f"<title>Boiler</title><p>About the boiler.</p><ul><li>{said}</li><li>Drain it.</li></ul>"
    )
    (documents / "forum.txt").write_text("The boiler runs at 41 in the cold season, friends say.\n")
    (documents / "other.txt").write_text("The boiler has a red door. It stands in the cellar.\n")
    row = {
        "question": "How hot is the boiler valve when it is cold?",
        "answers": ["41"],
        "evidence": [{"quote": said}],
    }
    (tmp_path / "questions.jsonl").write_text(json.dumps(row) + "\n")
    recipe = IndexRecipe(documents=str(documents), embedder="static")
    job = Job.start(tmp_path / "index", "recipe\n")
    build_index(recipe, job, embedder=open_embedder("static"))
    records = render(tmp_path, tmp_path / "out", renderings=12, refusals=0.6)
    kinds = {kind: [one for one in records if one.fields["kind"] == kind] for kind in KINDS}
    assert {one.fields["answer"][:-4] for one in kinds["answer"]} == {said}
    assert kinds["removed"]
    for record in kinds["removed"]:
        assert "41" not in record.messages[1].content.partition("\n\nQuestion: ")[0]


def test_questions_that_copy_their_sentence_are_left_out(place, tmp_path):
    with pytest.raises(DataError, match="copy their sentence") as caught:
        render(place, tmp_path / "out", max_copied=0.1)
    assert caught.value.code == "rag.no-evidence"


def test_the_same_seed_renders_the_same_bytes(place, tmp_path):
    for name in ("a", "b"):
        render(place, tmp_path / name)
    first, second = (tmp_path / name / "output/records.jsonl" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_a_near_miss_asks_for_what_no_passage_has():
    rng = np.random.default_rng(0)
    others = ["Who lives in Oslo since 1990?", "What did Ada write in 1843?"]
    made = {make_near_miss("What did Ada write in 1843?", others, [], rng) for _ in range(40)}
    assert made == {"What did Oslo write in 1843?", "What did Ada write in 1990?"}
    assert make_near_miss("What is this?", others, [], rng) == ""
