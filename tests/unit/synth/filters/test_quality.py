"""The learned filter tells questions that stand alone from those that need their page."""

import numpy as np
import pytest
from tests.unit.synth.conftest import make_passage

from stillroom.records import Message, Record
from stillroom.synth.filters.quality import Quality
from stillroom.synth.generators.grounded_qa import GroundedQa
from stillroom.synth.interfaces import FilterContext
from stillroom.synth.model_pool import ModelPool

TERM = '"Derivative Works" means any work that is based on the Licensed Material of the author.'
TALE = "She said that Harriet had business at the shop, and he thought it prudent to go with her."
PASSAGES = {
    name: make_passage(name, text)
    for name, text in (("license", TERM), ("tale", TALE), ("bees", "Bees make wax in spring."))
}
PASSAGES = {passage.id: passage for passage in PASSAGES.values()}


class Blind:
    """An embedder to which all questions are the same."""

    fingerprint = "blind"

    def embed(self, texts, *, kind):
        return np.zeros((len(texts), 384), dtype=np.float32)


@pytest.fixture
def context():
    pool = ModelPool()
    pool.embedder = lambda reference: Blind()
    return FilterContext(PASSAGES, models=pool)


def make_record(question, answer):
    passage = next(one for one in PASSAGES.values() if answer in one.text)
    evidence = {"passage_id": passage.id, "quote": answer, "start": 0, "end": len(answer)}
    fields = {"question": question, "answer": answer, "evidence": evidence}
    return Record((Message("user", question), Message("assistant", answer)), fields)


def test_a_defined_term_is_worth_more_than_a_question_about_a_page(context):
    records = [
        make_record('What does "Derivative Works" mean?', TERM),
        make_record("What did she have?", TALE),
    ]
    term, tale = Quality().start(context).score(records)
    assert term > 0.5 > tale


def test_what_is_probably_poor_is_dropped_with_its_score_and_the_limit(context):
    state = Quality(min_quality=0.5).start(context)
    verdict = state.judge(make_record("What did she have?", TALE))
    assert (verdict.keep, verdict.reason, verdict.limit) == (False, "probably a poor question", 0.5)
    assert verdict.score < 0.5


def test_a_record_that_quotes_no_passage_is_not_judged(context):
    record = Record((Message("user", "What is wax?"), Message("assistant", "Wax is soft.")), {})
    assert Quality().start(context).judge(record).keep


def test_grounded_questions_are_filtered_by_it_instead_of_by_rules():
    assert "quality" in GroundedQa.default_filters
    assert "standalone" not in GroundedQa.default_filters


def test_what_the_subject_of_the_whole_folder_does_is_not_asked(context):
    pages = [make_passage(f"page{n}", f"HiveBook page {n}. {TERM}") for n in range(300)]
    pages.append(make_passage("trap", "HiveBook opens the moth trap. The moth trap kills larvae."))
    context = FilterContext({page.id: page for page in pages}, models=context.models)

    def judge(question):
        evidence = {"passage_id": pages[-1].id}
        record = make_record("", "")
        return (
            Quality(min_quality=0.01)
            .start(context)
            .judge(
                Record(
                    record.messages,
                    {"question": question, "answer": "It opens it.", "evidence": evidence},
                )
            )
        )

    assert judge("Trap: What does HiveBook open?").reason.startswith("asks what the subject")
    assert judge("Trap: What does HiveBook attempt to open?").keep is False
    assert judge("Trap: What does the moth trap kill?").keep
