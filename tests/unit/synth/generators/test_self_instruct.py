import json

import pytest
from tests.unit.synth.conftest import Shelf, collect
from tests.unit.synth.generators.hostile import HOSTILE, survives

from stillroom.records import Message, Record
from stillroom.synth.generators.self_instruct import SelfInstruct
from stillroom.synth.lexical_overlap import NoveltyPool, rouge_l
from stillroom.synth.pipeline.inputs import iter_draws
from stillroom.synth.prompting.conversation import get_question
from stillroom.synth.types import GeneratorContext
from stillroom.testing import scripted_model

TASKS = [
    "Name three kinds of cheese from France.",
    "Translate this sentence into Spanish for me.",
    "Write a short poem about the sea in winter.",
]
SEEDS = tuple(Record((Message("user", task), Message("assistant", "Yes."))) for task in TASKS)


def script(lists):
    given = iter(lists)

    def answer(prompt):
        text = prompt.messages[-1].content
        if prompt.schema is None:
            return next(given, " Nothing new under the sun today.")
        keys = list(prompt.schema["properties"])
        if keys == ["classification"]:
            return json.dumps({"classification": "yes" if "Classify" in text else "no"})
        return json.dumps({key: f"some {key}" for key in keys})

    return scripted_model(answer)


def harvest(model, shelf=None, batch_size=3, draws=4, **settings):
    writer = SelfInstruct(**settings)
    more = {"shelf": shelf, "draws": draws, "batch_size": batch_size}
    return collect(model, writer, items=SEEDS, seed=1, **more)


def test_new_tasks_come_with_an_instance_and_join_the_pool():
    lists = [
        " Classify the animal by its number of legs.\n5. Explain how a lock on a canal works.",
        " List four rivers that flow into the Baltic.",
    ]
    model = script(lists)
    found = harvest(model, draws=2, asks_a_round=1)
    assert [one.fields["instruction"] for one in found.records] == [
        "Classify the animal by its number of legs.",
        "Explain how a lock on a canal works.",
        "List four rivers that flow into the Baltic.",
    ]
    first, second, _ = found.records
    assert first.fields["task_kind"] == "classification"
    assert first.messages[0].content == f"{first.fields['instruction']}\n\nsome input"
    assert get_question(first) == first.messages[0].content
    assert second.messages[1].content == "some output"
    lists_asked = [p.messages[-1].content for p in model.asked if p.schema is None]
    assert "canal" in lists_asked[1] or "animal" in lists_asked[1]
    assert not any("canal" in text for text in lists_asked[:1])


def test_tasks_are_shown_without_their_inputs():
    record = Record((Message("user", "How are these related?\n\nNight : Day"),))
    model = script([])
    writer = SelfInstruct().start(GeneratorContext("train", (record,), 1))
    list(writer.generate(list(iter_draws("train", seed=1, count=1)), model))
    assert "How are these related?" in model.asked[0].messages[-1].content
    assert "Night" not in model.asked[0].messages[-1].content


@pytest.mark.parametrize(
    ("kind", "given", "output", "reason"),
    [
        ("no", "Here is a sample JSON that fits.", "Two.", "instance that speaks of its prompt"),
        ("no", "The label is", "Yours.", "instance that speaks of its prompt"),
        ("no", "2023-12-01 18:10 and so on and on", "2023-12-01 18:10 and so on", "its input"),
        ("yes", "A cat.", "it may have four legs, but then " * 2 + "not all do", "a text"),
        ("yes", "A cat.", "2016-" * 16, "a text"),
    ],
)
def test_an_instance_that_is_none_is_dropped(kind, given, output, reason):
    def answer(prompt):
        if prompt.schema is None:
            return " Tell how many legs an animal has."
        if list(prompt.schema["properties"]) == ["classification"]:
            return json.dumps({"classification": kind})
        return json.dumps({"input": given, "output": output})

    found = harvest(scripted_model(answer), draws=1)
    assert not found.records
    assert [one.reason for one in found.rejected if reason in one.reason]


def test_classification_gives_its_output_first():
    model = script([" Classify the animal by its number of legs."])
    harvest(model, draws=1)
    orders = [list(p.schema["properties"]) for p in model.asked if p.schema]
    assert ["output", "input"] in orders


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("Name three kinds of cheese from Italy.", "task too like one of the pool"),
        ("Name it.", "task too short or too long"),
        ("word " * 151, "task too short or too long"),
        ("Describe the picture of a red house.", "task about what a text model cannot see or do"),
        ("Write a program that sorts five numbers.", "task of a form that is left out"),
        ("*Tell me about the moons of Mars.", "task of a form that is left out"),
    ],
)
def test_the_papers_heuristics_name_their_reasons(task, reason):
    found = harvest(script([" " + task]), draws=1)
    assert found.reasons == {f"generator: {reason}": 1}


def test_like_tasks_of_one_round_are_settled_in_order():
    same = " Explain how a lock on a canal works."
    found = harvest(script([same, same]), draws=2, asks_a_round=2)
    assert len(found.records) == 1
    assert found.reasons == {"generator: task too like one of the pool": 1}


def test_groups_and_kills_change_nothing():
    def model():
        def answer(prompt):
            if prompt.schema is None:
                text = prompt.messages[-1].content
                number = sum(map(ord, text)) % 997
                return f" Tell me all about the number {number} and its {number % 7} friends."
            return json.dumps(dict.fromkeys(prompt.schema["properties"], "no"))

        return scripted_model(answer)

    shelf = Shelf()
    whole = harvest(model(), shelf, batch_size=1, draws=8, asks_a_round=2)
    assert harvest(model(), batch_size=7, draws=8, asks_a_round=2) == whole
    for key in list(shelf)[3:]:
        del shelf[key]
    assert harvest(model(), shelf, draws=8, asks_a_round=2) == whole


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_answers_are_counted_failures(said):
    survives(lambda model: [harvest(model, draws=1)], said)


def test_the_pool_decides_as_a_comparison_with_every_text():
    pool = NoveltyPool(0.5)
    texts = ["a b c d", "a b x d e f", "the quick brown fox", "", "日本語の文章です", "c d a b"]
    for text in texts:
        nearest = max((rouge_l(text, other) for other in texts[: texts.index(text)]), default=0)
        assert pool.max_rouge_l(text) == pytest.approx(nearest if nearest > 0.5 else 0)
        pool.add(text)
    assert rouge_l("police killed the gunman", "police kill the gunman") == pytest.approx(0.75)
    assert rouge_l("日本語の文章", "日本語の本") == pytest.approx(8 / 11)
