import itertools
from functools import partial

import pytest

from stillroom.errors import DataError
from stillroom.rag.generation import answer as answers
from stillroom.rag.generation.prompt import ABSTENTION
from stillroom.rag.generation.refusals import REFUSAL, is_declined
from stillroom.records import Answer, Sampling
from stillroom.testing import scripted_model
from stillroom.text import language

# These tests script what the model writes.
ask = partial(answers.ask, answering="generate")
ask_stream = partial(answers.ask_stream, answering="generate")

QUESTION = "What is the capital of France?"


def answer(index, text, **settings):
    return ask(index, scripted_model(lambda prompt: text), QUESTION, **settings)


def statuses(found):
    return [statement["status"] for statement in found.details["statements"]]


def test_a_citation_opens_to_the_source(index, built):
    found = answer(index, "The capital of France is Paris [1].")
    assert found.completion.text == "The capital of France is Paris [1]."
    (citation,) = found.citations
    assert citation.number == 1
    assert citation.location.path == "places/paris.txt"
    source = (built.parent / "documents" / citation.location.path).read_bytes()
    place = citation.location
    assert source[place.byte_start : place.byte_end].decode() == citation.text
    assert statuses(found) == ["supported"]
    assert found.details["index"] == index.digest
    assert found.details["prompt_tokens"] > 0


def test_passages_are_numbered_as_the_answer_cites_them(index):
    before = answer(index, "It lies on the moon.", k=3).hits
    text = "Mars is red [3]. It is old [1][3]."
    found = answer(index, text, k=3)
    assert found.completion.text == "Mars is red [1]. It is old [2][1]."
    ids = [before[place].passage.id for place in (2, 0, 1)]
    assert [source["passage_id"] for source in found.details["sources"]] == ids
    assert [(one.number, one.passage_id) for one in found.citations] == [(1, ids[0]), (2, ids[1])]
    assert [one["cited"] for one in found.details["statements"]] == [[1], [2, 1]]


def test_the_nearest_passages_are_numbered_without_gaps(index):
    found = answer(index, ABSTENTION, k=3, best_at_ends=True)
    nearest = [one.passage_id for one in found.citations]
    assert [one.number for one in found.citations] == [1, 2]
    assert sorted(nearest) == sorted(found.details["nearest"])
    assert "[1] and [2]" in found.completion.text


def test_a_citation_that_was_left_out_is_added_where_a_passage_supports(index):
    found = answer(index, "The capital of France is Paris. It lies on the moon.")
    assert found.completion.text == "The capital of France is Paris. [1] It lies on the moon."
    assert statuses(found) == ["supported", "unsupported"]
    assert [citation.number for citation in found.citations] == [1]


def test_no_citation_is_added_when_told_so(index):
    found = answer(index, "The capital of France is Paris.", cite=False)
    assert found.completion.text == "The capital of France is Paris."
    assert found.citations == ()


def test_numbers_of_no_passage_are_removed_and_counted(index):
    found = answer(index, "The capital of France is Paris [1][77].")
    assert found.completion.text == "The capital of France is Paris [1]."
    assert found.details["removed_citations"] == 1


def test_a_citation_that_does_not_bear_the_sentence_is_told(index):
    found = answer(index, "Bananas are yellow fruits [1].")
    assert statuses(found) == ["unverified"]


def test_code_is_left_alone(index):
    text = "Use this:\n\n```\nrows[9] = rows[1]\n```\n\nThe capital of France is Paris [1]."
    found = answer(index, text, sampling=Sampling())
    assert found.completion.text == text
    assert found.details["removed_citations"] == 0


def test_an_answer_is_one_paragraph_unless_told_otherwise(index):
    text = "The capital of France is Paris [1].\n\nParis is the capital of France [1]."
    assert answer(index, text).completion.text == "The capital of France is Paris [1]."
    assert answer(index, text, sampling=Sampling()).completion.text == text


def test_what_a_model_repeats_is_left_out(index):
    circles = "The capital of France is Paris. It is old. The capital of  France is Paris. It is"
    found = answer(index, f"Question: {QUESTION}\nAnswer: {circles}")
    assert found.completion.text == "The capital of France is Paris. [1] It is old. It is"
    assert found.details["repeated_sentences"] == 1
    assert next(one["status"] for one in found.details["statements"]) == "supported"
    streamed = list(
        ask_stream(index, scripted_model(lambda prompt: f"A: {circles}"), QUESTION, k=2)
    )
    assert "".join(streamed[:-1]) == found.completion.text


def test_statements_name_their_place_in_the_answer(index):
    found = answer(index, "The capital of France is Paris. It lies on the moon [9].")
    spans = [(one["start"], one["end"]) for one in found.details["statements"]]
    parts = [found.completion.text[start:end] for start, end in spans]
    assert parts == ["The capital of France is Paris. [1]", "It lies on the moon."]


def test_without_any_hit_the_model_is_not_asked(index):
    model = scripted_model(lambda prompt: "invented")
    found = ask(index, model, "quokka", retriever="keyword")
    assert found.completion.text == REFUSAL
    assert found.details["abstained"]
    assert model.asked == []
    assert next(ask_stream(index, model, "quokka", retriever="keyword")) == REFUSAL


@pytest.mark.parametrize("opening", [ABSTENTION, REFUSAL])
def test_a_refusal_is_known_in_a_stored_answer_of_either_wording(opening):
    assert is_declined(f"{opening} The nearest passage, [1], does not support an answer.")
    assert not is_declined(f"Paris [1]. {opening}")


@pytest.mark.parametrize(
    ("question", "refusal", "abstention", "reason"),
    [
        (
            "Wie hoch ist der Eiffelturm in Paris?",
            "Keine gefundene Textstelle beantwortet das. Die nächstliegende Textstelle, [1],",
            "Die Dokumente beantworten das nicht. Die nächstliegende Textstelle, [1],",
            "das Modell hat in den Textstellen keine Antwort gefunden",
        ),
        (
            "Quelle est la hauteur de la tour Eiffel à Paris ?",
            "Aucun passage trouvé ne répond à cette question. Le passage le plus proche, [1],",
            "Les documents ne répondent pas à cette question. Le passage le plus proche, [1],",
            "le modèle n'a pas trouvé de réponse dans les passages",
        ),
        (
            "¿Cuál es la altura de la torre Eiffel de París?",
            "Ningún pasaje encontrado responde a esta pregunta. El pasaje más cercano, [1],",
            "Los documentos no responden a esta pregunta. El pasaje más cercano, [1],",
            "el modelo no encontró una respuesta en los pasajes",
        ),
        (
            "What is the height of the Eiffel tower in Paris?",
            "No passage found answers this. The nearest passage, [1],",
            "The documents do not answer this. The nearest passage, [1],",
            "the model found no answer in the passages",
        ),
        (
            "Quanto è alta la torre Eiffel di Parigi?",
            "No passage found answers this. The nearest passage, [1],",
            "The documents do not answer this. The nearest passage, [1],",
            "the model found no answer in the passages",
        ),
    ],
)
def test_a_refusal_is_in_the_language_of_the_question(index, question, refusal, abstention, reason):
    empty = ask(index, scripted_model(lambda prompt: ""), question, k=1)
    assert empty.completion.text.startswith(refusal)
    for unsupported in ("mark", "drop", "refuse"):
        model = scripted_model(lambda prompt: ABSTENTION)
        pieces = list(ask_stream(index, model, question, k=1, unsupported=unsupported))
        found = pieces.pop()
        assert "".join(pieces) == found.completion.text
        assert found.completion.text.startswith(
            abstention if unsupported == "mark" else (abstention, refusal)
        )
        assert is_declined(found.completion.text)
        assert found.details["abstained"]
    found = ask(index, scripted_model(lambda prompt: ABSTENTION), question, k=1)
    assert (found.details["refusal"], found.details["refusal_note"]) == ("model", reason)


def test_an_answer_does_not_load_the_language_identifier(index, monkeypatch):
    monkeypatch.setattr(language, "_load_identifier", None)
    text = "The capital of France is Paris [1]."
    for answering in (
        "generate",
        {"name": "quote", "reader": "builtin:overlap", "min_probability": 0},
    ):
        question = "What is the capital of France?"
        found = ask(index, scripted_model(lambda prompt: text), question, answering=answering)
        assert not found.details["abstained"]


def test_an_answer_that_begins_as_an_abstention_is_not_translated(index):
    text = f"{ABSTENTION} The capital of France is Paris [1]."
    found = ask(index, scripted_model(lambda prompt: text), "Wie heißt die Hauptstadt?")
    assert found.completion.text == text


def test_an_abstention_of_the_model_is_recognized(index):
    assert answer(index, ABSTENTION).details["abstained"]
    assert not answer(index, "Paris.").details["abstained"]


@pytest.mark.parametrize(
    "text",
    [
        "The capital of France is Paris. It has 2.1 million inhabitants. Dogs bark.",
        "Paris [1]. `x[9]` and [9] more.\n\n- Dogs bark at strangers\n- Cats purr [2, 1]\n",
        "  \n Leading space, e.g. here. And [",
        "",
        "[1]",
        "<passage-0a1b2c>Paris [1].</passage-0a1b2c>",
        "Paris [1].\nQuestion: Which river?\nAnswer: The Seine runs through it.",
        "The capital of France is the capital of France.",
    ],
)
def test_streamed_and_whole_answers_are_equal(index, text):
    model = scripted_model(lambda prompt: text)
    whole = ask(index, model, QUESTION)
    *pieces, last = ask_stream(index, model, QUESTION)
    assert isinstance(last, Answer)
    assert "".join(pieces) == whole.completion.text == last.completion.text
    assert last.citations == whole.citations
    told = [{**one.details, "stage_ms": {}} for one in (last, whole)]  # times differ
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("[1]", "empty"),
        ("Answer:", "empty"),
        ("The answer is: [1] [2]", "empty"),
        ("The answer is: " * 20, "empty"),
        ("<passage-0a1b2c>", "empty"),
        ("The capital of France is the capital of France [1].", "restated"),
        (QUESTION, "restated"),
        ("The capital of France is Paris.", ""),
        ("There is no capital of France [1].", ""),
    ],
)
def test_what_says_nothing_is_an_abstention_with_its_reason(index, text, why):
    found = answer(index, text)
    assert found.details["refusal"] == why
    assert found.details["abstained"] == bool(why)
    assert (REFUSAL in found.completion.text) == bool(why)
    assert not why or "supported" not in statuses(found)


@pytest.mark.parametrize(
    ("request_", "text", "why"),
    [
        ("Name the capital of France.", "The capital of France is the capital of France.", True),
        ("Name the capital of France.", "The capital of France is Paris.", False),
        ("Please list Paris's inhabitants", "Inhabitants of Paris are in Paris. [1]", True),
        ("Paris: name its inhabitants", "The name of Paris is Paris.", False),
    ],
)
def test_a_request_restated_is_no_answer(index, request_, text, why):
    found = ask(index, scripted_model(lambda prompt: text), request_)
    assert found.details["refusal"] == ("restated" if why else "")


def test_the_prompts_own_marks_and_its_next_question_are_no_answer(index):
    text = (
        "<passage-0a1b2c>\nThe capital of France is Paris. [1]\nQuestion: And the river?\n"
        "Answer: The Seine runs through it."
    )
    found = answer(index, text)
    assert found.completion.text == "The capital of France is Paris. [1]"
    model = scripted_model(lambda prompt: text)
    *pieces, last = ask_stream(index, model, QUESTION)
    assert "".join(pieces) == last.completion.text == "The capital of France is Paris. [1]"


def test_pieces_come_before_the_end(index):
    model = scripted_model(lambda prompt: "The capital of France is Paris and more words here.")
    assert len(list(ask_stream(index, model, QUESTION))) > 3


def test_the_prompt_shows_k_passages_and_counts_what_does_not_fit(index):
    model = scripted_model(lambda prompt: "x", context_length=215)
    found = ask(index, model, "cat dog Paris Python", k=4, sampling=Sampling(max_new_tokens=8))
    assert found.details["dropped"] > 0
    assert len(found.hits) + found.details["dropped"] == 4
    numbers = [f"[{number}]" in model.asked[0].messages[-1].content for number in range(1, 5)]
    assert numbers == [number <= len(found.hits) for number in range(1, 5)]


def test_repeated_passages_are_shown_once(build, folder, tmp_path):
    from stillroom.rag.index.searcher import Index

    (folder / "copy.txt").write_text((folder / "places/paris.txt").read_text())
    build()
    with Index.open(tmp_path / "index") as index:
        found = answer(index, "Paris.", k=2)
    assert len({hit.passage.text for hit in found.hits}) == len(found.hits)
    assert found.details["repeats"] >= 1


def test_closing_the_stream_stops_the_model(index):
    given = itertools.count()

    class Endless:
        name = fingerprint = "endless"
        context_length = 4096

        def count_tokens(self, text):
            return len(text.split())

        def stream(self, prompt, sampling):
            while True:
                yield f"word{next(given)} "

    stream = ask_stream(index, Endless(), QUESTION)
    next(stream)
    stream.close()
    assert next(given) < 5


def test_a_depth_below_one_is_refused(index):
    with pytest.raises(DataError):
        answer(index, "x", k=0)
