from stillroom.distill.completion_scorers.answer import Answer
from stillroom.records import Prompt, Record


def test_an_answer_in_a_sentence_is_held_against_the_record_s_own():
    record = Record((), {"answer": "34"})
    said = ["The largest n is 34.", "The largest n is not 34.", "The answer is 35.", " "]
    prompt = Prompt((), "")
    reasons = [one.reason for one in Answer().judge(record, prompt, said, None)]
    assert reasons == ["", "another answer", "another answer", "no answer found"]
