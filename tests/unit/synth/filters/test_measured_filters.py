"""Filters that measure with a model: what they measure, what they drop, what they never guess."""

import math

import pytest
from tests.unit.synth.conftest import make_passages
from tests.unit.synth.filters.test_filters import QUESTION, QUOTE, make_record

from stillroom.errors import BackendError, DataError, RecipeError
from stillroom.models.interfaces import Score
from stillroom.records import Link, Message, Origin, Prompt, Record, write_records
from stillroom.synth.filters.perplexity import measure_perplexity
from stillroom.synth.interfaces import FILTERS, UNMEASURED, FilterContext
from stillroom.synth.model_pool import ModelPool
from stillroom.synth.pipeline.filter_chain import FilterChain
from stillroom.testing import scripted_model

PASSAGES = make_passages()


class Scorer:
    """A model that scores by a rule: nats a token, from prompt and completion."""

    name, context_length, fingerprint = "scorer", 4096, "scorer"

    def __init__(self, nats):
        self._nats = nats
        self.asked = 0

    def score(self, prompts, completions):
        found = []
        for prompt, text in zip(prompts, completions, strict=True):
            self.asked += 1
            found.append(Score(tuple(-self._nats(prompt, text) for _ in text.split())))
        return found

    def count_tokens(self, text):
        return len(text.split())

    def close(self):
        pass


def lend(**models):
    lent = {}
    for name, model in models.items():
        kind, _, reference = name.partition("__")
        lent[kind, reference or "m"] = model
    context = {passage.id: passage for passage in PASSAGES}
    return FilterContext(context, models=ModelPool(models=lent))


def judge(name, record, context, **settings):
    return FILTERS.build({"name": name, **settings}).start(context).judge(record)


def test_perplexity_counts_over_all_and_by_window():
    def nats(prompt, text):
        return 9.0 if "zq" in text else 3.0

    calm = "word " * 60
    context = lend(text__m=Scorer(nats))
    settings = {"model": "m", "window": 20}
    assert judge("perplexity", make_record(answer=calm), context, **settings).score == (
        pytest.approx(math.exp(3))
    )
    noisy = calm + "zq " * 20
    verdict = judge("perplexity", make_record(answer=noisy), context, **settings)
    assert verdict.reason == "a stretch is too surprising"
    assert verdict.score == pytest.approx(math.exp(9))
    verdict = judge("perplexity", make_record(answer="zq " * 20), context, **settings)
    assert verdict.reason == "too surprising"
    plain = lend(text__m=Scorer(lambda prompt, text: 0.1))
    assert judge("perplexity", make_record(), plain, **settings).reason == "too predictable"


def test_windows_add_up_to_the_text_and_each_sees_the_one_before():
    seen = []

    def nats(prompt, text):
        seen.append((prompt.text, text))
        return 1.0

    text = " ".join(f"w{number}" for number in range(50)) + "  \n"
    found = measure_perplexity(Scorer(nats), text, window=20)
    assert "".join(piece for _, piece in dict(seen).items()) == text
    assert [before for before, _ in dict.fromkeys(seen)][1:] == [
        piece for _, piece in dict.fromkeys(seen)
    ][:-1]
    assert found.tokens == 50
    assert found.nats == pytest.approx(50.0)


class Spelled(Scorer):
    """A model for which every character is a token."""

    def score(self, prompts, completions):
        return [
            Score(tuple(-self._nats(prompt, one) for one in text))
            for prompt, text in zip(prompts, completions, strict=True)
        ]

    def count_tokens(self, text):
        return len(text)


@pytest.mark.parametrize(
    "text",
    [
        "露重飛難進風多響易沈" * 20,
        "The poem is " + "露重飛難進風多響易沈" * 12 + " and it goes on  \n",
    ],
)
def test_text_without_spaces_is_read_in_windows_too(text):
    read = []

    def nats(prompt, one):
        read.append((prompt.text, one))
        return 9.0 if one == "沈" and len(read) > 100 else 1.0

    found = measure_perplexity(Spelled(nats), text, window=30)
    assert "".join(one for _, one in read) == text
    assert found.tokens == len(text)
    assert max(len(before) for before, _ in read) <= 30
    noisy = text[:60] + "龘" * 30 + text[60:]
    worst = measure_perplexity(
        Spelled(lambda _, one: 9.0 if one == "龘" else 1.0), noisy, window=30
    ).worst
    assert worst > 4


def test_windowed_surprise_is_that_of_a_plain_loop(tmp_path):
    """Against transformers itself: the same tokens in the same order, one forward pass."""
    import torch

    from stillroom.models import open_text_model
    from stillroom.testing import tiny_checkpoint

    model = open_text_model(str(tiny_checkpoint(tmp_path / "m")), backend="transformers")
    text = "Worker bees produce wax from glands below the abdomen."
    found = measure_perplexity(model, text, window=1000)
    before = model._encode(Prompt(text=""))
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        logits = model.model(torch.tensor([before + ids])).logits.float().log_softmax(-1)[0]
    places = range(len(before) - 1, len(before) + len(ids) - 1)
    wanted = -sum(float(logits[at, token]) for at, token in zip(places, ids, strict=True))
    assert found.nats == pytest.approx(wanted, abs=1e-4)
    assert found.tokens == len(ids)
    model.close()


def test_ifd_is_the_ratio_with_and_without_the_question():
    def nats(prompt, text):
        return 2.0 if prompt.messages else 2.5

    context = lend(text__m=Scorer(nats))
    verdict = judge("ifd", make_record(), context, model="m")
    assert verdict.score == pytest.approx(math.exp(-0.5))
    verdict = judge("ifd", make_record(), context, model="m", ratio="loss")
    assert verdict.score == pytest.approx(0.8)
    worse = lend(text__m=Scorer(lambda prompt, text: 2.0 + bool(prompt.messages)))
    verdict = judge("ifd", make_record(), worse, model="m")
    assert verdict.reason == "the question does not help"
    assert judge("ifd", make_record(), context, model="m", min_ifd=0.9).reason == "too easy"
    assert judge("ifd", Record(()), context, model="m").reason == UNMEASURED


def prefer(mark, chance=0.9):
    """Return a scorer that finds one mark likeliest, whatever is asked."""
    return Scorer(lambda prompt, text: -math.log(chance if text == mark else (1 - chance) / 5))


def test_deita_says_who_scored():
    context = lend(text__c=prefer("5"), text__q=prefer("2"))
    settings = {"complexity_scorer": "c", "quality_scorer": "q"}
    verdict = judge("deita", make_record(), context, **settings)
    assert verdict.keep
    assert verdict.details["complexity_by"] == "scorer, logprob"
    assert 4.5 < verdict.details["complexity"] < 5
    assert verdict.score == pytest.approx(
        verdict.details["complexity"] * verdict.details["quality"]
    )
    verdict = judge("deita", make_record(), context, **settings, min_quality=3)
    assert verdict.reason == "quality too low"
    judged = lend(text__m=prefer("3"))
    verdict = judge("deita", make_record(), judged, judge_model="m")
    assert verdict.details["quality_by"] == "judge, logprob"
    with pytest.raises(RecipeError, match="deita has no scorer"):
        judge("deita", make_record(), context, complexity_scorer="c")


def test_deita_adds_up_the_exchanges_of_a_talk():
    turns = ("Name a bee.", "The honey bee.", "And a wasp?", "The hornet.")
    roles = ("user", "assistant") * 2
    record = Record(tuple(map(Message, roles, turns)))

    def nats(prompt, text):
        marks = {"Name a bee.": "2", "And a wasp?": "4"}
        mark = next(mark for asked, mark in marks.items() if asked in prompt.text)
        return 0.0 if text == mark else 800.0

    context = lend(text__c=Scorer(nats), text__q=Scorer(nats))
    verdict = judge("deita", record, context, complexity_scorer="c", quality_scorer="q")
    assert verdict.score == pytest.approx(2 * 2 + 4 * 4)
    assert verdict.details["complexity"] == pytest.approx(3)
    settings = {"complexity_scorer": "c", "quality_scorer": "q", "min_quality": 3.5}
    assert judge("deita", record, context, **settings).reason == "quality too low"


def test_deita_asks_its_scorers_in_the_form_that_they_were_trained_on():
    asked = []

    def nats(prompt, text):
        asked.append(prompt.text)
        return 1.0

    context = lend(text__c=Scorer(nats), text__q=Scorer(nats))
    record = Record((Message("user", "Why {this}?"), Message("assistant", "So.")))
    judge("deita", record, context, complexity_scorer="c", quality_scorer="q")
    complexity = (
        "You are a helpful assistant. Please identify the complexity score of the following user "
        "query. \n##Query: Why {this}?  \n##Complexity: "
    )
    quality = (
        "You are a helpful assistant. Please identify the quality score of the Response "
        "corresponding to the Question. \n #Question#:\nWhy {this}?\n#Response#:\nSo. \n##Quality: "
    )
    assert set(asked) == {complexity, quality}


def test_a_judge_sees_what_was_said_before_the_question():
    record = Record(
        (
            Message("user", "Who keeps bees?"),
            Message("assistant", "A beekeeper does."),
            Message("user", "And what does she wear?"),
            Message("assistant", "A veil."),
        )
    )
    seen = []

    def nats(prompt, text):
        seen.append(prompt.messages[-1].content)
        return 1.0

    context = lend(text__m=Scorer(nats))
    judge("judge", record, context, judges=["m"])
    assert all("Talk so far:" in one and "A beekeeper does." in one for one in seen)
    seen.clear()
    judge("judge", make_record(), context, judges=["m"])
    assert seen
    assert not any("Talk so far:" in one for one in seen)


def test_deita_never_gives_a_middling_mark():
    mute = scripted_model({"*": "no idea"})
    mute.score = _refuse
    verdict = judge("deita", make_record(), lend(text__m=mute), judge_model="m")
    assert verdict.reason == UNMEASURED


def _refuse(*_):
    raise BackendError("no chances", code="backend.no-score")


def test_a_judges_score_is_expected_under_its_chances():
    verdict = judge("judge", make_record(), lend(text__m=prefer("4", 0.6)), judges=["m"])
    chances = {mark: 0.08 / 0.92 if mark != 4 else 0.6 / 0.92 for mark in range(1, 6)}
    assert verdict.score == pytest.approx(sum(mark * p for mark, p in chances.items()))
    poor = judge("judge", make_record(), lend(text__m=prefer("1")), judges=["m"])
    assert (poor.reason, poor.limit) == ("judged poor", 3.0)
    assert poor.details["judges"][0]["way"] == "logprob"


def test_a_judge_without_chances_draws_and_says_so():
    model = scripted_model({"*": '{"answer": "4"}'})
    model.score = _refuse
    verdict = judge("judge", make_record(), lend(text__m=model), judges=["m"])
    assert verdict.score == 4.0
    assert verdict.details["judges"][0]["way"] == "drawn"


def pair(chosen="A long answer.", rejected="A short one."):
    turns = (Message("user", QUESTION), Message("assistant", chosen))
    return Record(turns, {"rejected": rejected})


def test_pairs_win_only_in_both_orders():
    fair = Scorer(lambda prompt, text: 0.1 if _letter_of(prompt, "long") == text else 3.0)
    biased = Scorer(lambda prompt, text: 0.1 if text == "A" else 3.0)
    assert judge("judge", pair(), lend(text__m=fair), judges=["m"]).keep
    verdict = judge("judge", pair(), lend(text__m=biased), judges=["m"])
    assert verdict.reason == "the chosen answer is not better"
    assert verdict.details["judges"][0]["flipped"]
    swapped = pair("A short one.", "A long answer.")
    assert not judge("judge", swapped, lend(text__m=fair), judges=["m"]).keep


def _letter_of(prompt, wanted):
    text = prompt.messages[-1].content
    first = text.split('name="A">')[1].split("</answer>")[0]
    return "A" if wanted in first else "B"


def test_judges_are_compared_and_a_judge_of_its_own_is_told():
    fair = Scorer(lambda prompt, text: 0.1 if _letter_of(prompt, "long") == text else 3.0)
    biased = Scorer(lambda prompt, text: 0.1 if text == "A" else 3.0)
    context = lend(text__a=fair, text__b=biased)
    filters = [FILTERS.build({"name": "judge", "judges": ["a", "b"]})]
    panel = FilterChain(filters, context)
    values = []
    for record in (pair(), pair("A short one.", "A long answer.")):
        panel.judge(record)
        values += [value for _, value in panel.measured]
    told = panel.summarize({"judge": values})["judge"]
    assert told["turned with the order"] == 0.5
    assert told["pair alpha"] is not None
    own = Record(make_record().messages, {}, Origin("synthetic", (Link("g", "scorer"),)))
    panel = FilterChain(
        [FILTERS.build({"name": "judge", "judges": ["m"]})], lend(text__m=prefer("4"))
    )
    panel.judge(own)
    told = panel.summarize({name: [value] for name, value in panel.measured})
    assert told["judge"]["judged by their own writer"] == 1


def test_scores_are_fitted_to_peoples(tmp_path):
    """A judge that is two marks too kind is held against people's scale."""
    marks = {f"answer {number}": number for number in range(1, 6)}

    def nats(prompt, text):
        mark = next(m for name, m in marks.items() if name in prompt.messages[-1].content)
        return 0.01 if text == str(min(mark + 2, 5)) else 6.0

    scored = [
        Record(make_record(answer=name).messages, {"human_score": mark})
        for name, mark in marks.items()
    ]
    write_records(tmp_path / "people.jsonl", scored)
    context = lend(text__m=Scorer(nats))
    settings = {"judges": ["m"], "min_score": 2.5}
    record = make_record(answer="answer 2")
    assert (
        FilterChain([FILTERS.build({"name": "judge", **settings})], context).judge(record)[1].keep
    )
    settings["labels"] = str(tmp_path / "people.jsonl")
    panel = FilterChain([FILTERS.build({"name": "judge", **settings})], context)
    name, verdict = panel.judge(record)
    assert (name, verdict.reason) == ("judge", "judged poor")
    assert verdict.score == pytest.approx(2.0)
    told = panel.summarize({name: [value] for name, value in panel.measured})
    assert told["judge"]["fitted to"] == 5
    write_records(tmp_path / "few.jsonl", scored[:2])
    with pytest.raises(DataError) as caught:
        FilterChain(
            [
                FILTERS.build(
                    {"name": "judge", "judges": ["m"], "labels": str(tmp_path / "few.jsonl")}
                )
            ],
            context,
        )
    assert caught.value.code == "synth.labels"


class Reader:
    """Says that what stands in the premise follows."""

    fingerprint = "reader"

    def entail(self, premises, hypotheses):
        return [
            0.9 if said in source else 0.1
            for source, said in zip(premises, hypotheses, strict=True)
        ]


def test_every_sentence_must_follow():
    context = lend(entailment__m=Reader())
    settings = {"checkpoint": "m", "window": 2}
    assert judge("entailment", make_record(), context, **settings).keep
    verdict = judge("entailment", make_record(answer=f"{QUOTE} Bees can fly."), context, **settings)
    assert verdict.reason == "does not follow from the passage"
    assert verdict.details["sentence"] == "Bees can fly."
    bare = Record(make_record().messages)
    assert judge("entailment", bare, context, **settings).reason == UNMEASURED


def test_round_trips_ask_with_and_without_the_passage():
    def answer(prompt):
        text = prompt.messages[-1].content
        if "<text>" in text:
            return QUOTE if "glands" in text else "unknown"
        return "unknown" if "wax" in text else QUOTE

    context = lend(text__m=scripted_model(answer))
    settings = {"model": "m", "max_without": 0.5}
    assert not judge("round_trip", make_record("What do bees make?"), context, **settings).keep
    easy = make_record("What do bees make of wax?")
    assert judge("round_trip", easy, context, **settings).keep
    hard = make_record("What do bees make of wax?", place=3)
    verdict = judge("round_trip", hard, context, model="m")
    assert verdict.reason == "a model answers otherwise from the passage"
    assert verdict.details["answer"] == "unknown"


class Classes:
    labels, fingerprint = ("toxic", "neutral"), "classes"

    def find_labels(self, wanted):
        return tuple(wanted)

    def classify(self, texts):
        return [{"toxic": 0.8 if "slow" in text else 0.1, "neutral": 0.2} for text in texts]


def test_a_classifier_hears_what_words_do_not():
    context = lend(classifier__m=Classes())
    cruel = make_record(answer="People like you are too slow to matter to anyone.")
    assert judge("toxicity", cruel, FilterContext()).keep
    verdict = judge("toxicity", cruel, context, checkpoint="m")
    assert (verdict.reason, verdict.score) == ("toxic: toxic", 0.8)
    assert judge("toxicity", make_record(), context, checkpoint="m").keep


def test_a_panel_measures_each_record_once_and_remembers(tmp_path):
    model = Scorer(lambda prompt, text: 3.0)
    shelf = {}

    class Shelf:
        def get(self, key, default=None):
            return shelf.get(key, default)

        def put(self, key, value):
            shelf[key] = value

    filters = [
        FILTERS.build({"name": "shape"}),
        FILTERS.build({"name": "perplexity", "model": "m"}),
    ]
    records = [make_record(), make_record(answer=""), make_record(answer="Wax is soft and warm.")]
    panel = FilterChain(filters, lend(text__m=model), Shelf())
    panel.prefetch(records)
    assert model.asked == 2  # one is empty and falls before
    assert [panel.judge(record)[0] for record in records] == ["", "shape", ""]
    assert model.asked == 2
    again = FilterChain(filters, lend(text__m=model), Shelf())
    assert [again.judge(record)[0] for record in records] == ["", "shape", ""]
    assert model.asked == 2
    forgetful = FilterChain(filters, lend(text__m=model))
    forgetful.prefetch(records)
    for record in records:
        forgetful.judge(record)
    assert model.asked == 4
    assert not forgetful._prefetched


def test_what_was_masked_goes_on_masked():
    filters = [FILTERS.build({"name": "personal", "action": "mask"}), FILTERS.build("duplicate")]
    panel = FilterChain(filters, FilterContext())
    name, verdict = panel.judge(make_record(answer="Write to anna.berg@posteo.de about wax."))
    assert (name, verdict.keep) == ("", True)
    panel.on_accept(verdict.changed)
    other = make_record("Whom to ask?", answer="Write to Anna.Berg@posteo.de about wax.")
    assert panel.judge(other)[0] == "duplicate"


def test_a_model_that_fails_as_a_whole_ends_the_job_and_one_records_fault_does_not():
    def too_long(prompt, text):
        raise BackendError("too long", code="backend.context")

    verdict = judge("ifd", make_record(), lend(text__m=Scorer(too_long)), model="m")
    assert verdict.reason == UNMEASURED
    assert verdict.details["why"] == "too long"

    def down(prompt, text):
        raise BackendError("gone", code="backend.down")

    with pytest.raises(BackendError, match="gone"):
        judge("ifd", make_record(), lend(text__m=Scorer(down)), model="m")


def test_a_server_that_does_not_answer_for_a_record_is_asked_again_by_the_next_run():
    ill = True

    def nats(prompt, text):
        if ill and "number 3" in text:
            raise BackendError("HTTP 500: oops", code="backend.unavailable")
        return 1.0

    class Shelf(dict):
        put = dict.__setitem__

    context, shelf = lend(text__m=Scorer(nats)), Shelf()
    build = lambda: FilterChain([FILTERS.build({"name": "ifd", "model": "m"})], context, shelf)  # noqa: E731
    records = [make_record(answer=f"It is number {number}.") for number in range(5)]
    verdicts = [build().judge(record)[1] for record in records]
    assert [one.keep for one in verdicts] == [number != 3 for number in range(5)]
    assert verdicts[3].reason == UNMEASURED
    assert verdicts[3].details["why"] == "HTTP 500: oops"
    assert len(shelf) == 4
    ill = False
    assert build().judge(records[3])[1].keep


def test_a_server_that_answers_for_no_record_ends_the_job():
    def nats(prompt, text):
        raise BackendError("HTTP 503: maintenance", code="backend.unavailable")

    panel = FilterChain([FILTERS.build({"name": "ifd", "model": "m"})], lend(text__m=Scorer(nats)))
    with pytest.raises(BackendError, match=r"10 consecutive records .* maintenance") as caught:
        panel.prefetch([make_record(answer=f"It is number {number}.") for number in range(12)])
    assert caught.value.code == "backend.unavailable"
