import pytest
from pydantic import ValidationError
from tests.unit.synth.generators.hostile import HOSTILE, SUM, draft_of, reasons, survives

from stillroom.records import Message, Record
from stillroom.synth.generators.rejection_sampling import RejectionSampling
from stillroom.synth.interfaces import GENERATORS, FilterContext
from stillroom.synth.pipeline.filter_chain import FilterChain
from stillroom.synth.pipeline.steps import GeneratorPipeline
from stillroom.synth.types import WorkItem

RIGHT = ["3 + 4 = 7. The answer is 7.", "He has three and four, so seven. The answer is 7."]
OPEN = Record((Message("user", "How many?"),))


def script(*answers):
    said = iter(answers)
    return lambda prompt: next(said)


def test_best_keeps_one_and_says_how_many_passed():
    made, _ = draft_of(
        RejectionSampling(), SUM, script(RIGHT[0], "The answer is 8.", RIGHT[1], "No.")
    )
    assert len(made.records) == 1
    assert made.records[0].fields["pass_rate"] == 0.5
    assert made.counts == {"samples": 4, "samples that pass": 2}
    assert sorted(reasons(made)) == ["another answer", "another answer"]


def test_distinct_keeps_reasoning_that_is_unlike():
    method = RejectionSampling(keep="distinct", samples=3)
    made, _ = draft_of(method, SUM, script(RIGHT[0], RIGHT[0], RIGHT[1]))
    assert [one.messages[1].content for one in made.records] == RIGHT
    assert reasons(made) == ["reasoning like one kept"]
    for generator in (method, {"name": "rejection_sampling", "keep": "distinct"}):
        chain = FilterChain(GeneratorPipeline(generator=generator).filters, FilterContext())
        for record in made.records:
            assert chain.judge(record)[1].keep
            chain.on_accept(record)


def test_too_easy_and_too_hard_are_left_out():
    made, _ = draft_of(RejectionSampling(samples=2, max_pass=0.9), SUM, script(*RIGHT))
    assert reasons(made) == ["question too easy or too hard"]


def test_the_plurality_stands_in_for_an_answer():
    said = [RIGHT[0], "The answer is 7.0.", "The answer is 9."]
    made, _ = draft_of(RejectionSampling(samples=3, vote=True), OPEN, script(*said))
    assert made.records[0].fields["final_answer"] == "7"
    assert made.records[0].fields["answer_by"] == "plurality"
    method = RejectionSampling(samples=2, vote=True)
    made, _ = draft_of(method, OPEN, script("The answer is 1.", "The answer is 2."))
    assert reasons(made) == ["no plurality among the answers"]
    made, _ = draft_of(RejectionSampling(samples=1), OPEN, script("The answer is 1."))
    assert reasons(made) == ["a record without what its answer is checked by"]


def test_the_final_answer_is_told_and_not_the_solution_it_stands_in():
    solved = Record(SUM.messages, {"answer": "3 + 4 is seven.\n#### 7"})
    made, _ = draft_of(RejectionSampling(samples=1), solved, script(RIGHT[0]))
    assert made.records[0].fields["final_answer"] == "7"


def test_code_is_run_against_its_tests():
    task = Record((Message("user", "Write double(n)."),), {"tests": ["assert double(2) == 4"]})
    good, bad = "```python\ndef double(n): return 2 * n\n```", "def double(n): return n"
    method = RejectionSampling(samples=2, verifier={"name": "code"})
    made, _ = draft_of(method, task, script(bad, good))
    assert made.records[0].messages[1].content == good
    assert reasons(made) == ["fails its tests: AssertionError"]


@pytest.mark.parametrize("said", HOSTILE)
def test_hostile_answers_are_counted_failures(said):
    survives(lambda model: RejectionSampling().generate([WorkItem(SUM, "train")], model), said)


@pytest.mark.parametrize("name", ["rejection_sampling", "pivotal_tokens"])
def test_greedy_samples_that_would_all_be_the_same_are_refused(name):
    with pytest.raises(ValidationError, match="temperature 0 gives identical samples"):
        GENERATORS.build({"name": name, "temperature": 0})
