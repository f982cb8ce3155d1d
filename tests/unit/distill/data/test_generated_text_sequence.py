import pytest

from stillroom.distill.data.generated_text import generate_sequences
from stillroom.distill.settings import SequenceSettings
from stillroom.errors import DataError
from stillroom.jobs import Job
from stillroom.models.interfaces import Score
from stillroom.records import Completion, Message, Origin, Record
from stillroom.testing import scripted_model


def ask(question, answer):
    return Record(
        (Message("user", question), Message("assistant", answer)),
        {"split": "train"},
        Origin("human", license="CC0-1.0"),
    )


class Drawing:
    """A writer whose completions follow from prompt and seed, as a real one's do."""

    def __init__(self, texts, likelihood=None):
        self.texts, self.likelihood = texts, likelihood or {}
        self.fingerprint, self.name, self.context_length = "drawing", "drawing", 512
        self.seeds, self.asked = [], []

    def generate(self, prompts, sampling, *, on_done=None, is_cancelled=None):
        found = []
        for prompt, one in zip(prompts, sampling, strict=True):
            self.asked.append(prompt)
            self.seeds.append(one.seed)
            text = self.texts[len(self.asked) % len(self.texts)]
            reason = "length" if text.endswith("...") else "stop"
            found.append(Completion(text, reason, 4, len(text.split()), self.fingerprint))
        return found

    def score(self, prompts, completions):
        return [Score((self.likelihood.get(text, -5.0),)) for text in completions]


def test_the_best_of_several_takes_the_answers_place(job):
    writer = Drawing(["the answer is 5", "the answer is 4", "cut off ..."], {"the answer is 5": -1})
    settings = SequenceSettings(attempts=3, scorers=("answer", "likelihood"))
    kept = generate_sequences(settings, [ask("2 + 3?", "5")], writer, job, seed=1)
    (record,) = kept.records
    assert [message.content for message in record.messages] == ["2 + 3?", "the answer is 5"]
    assert record.origin.kind == "synthetic"
    assert record.origin.license == "CC0-1.0"
    assert record.origin.chain[-1].parents == (ask("2 + 3?", "5").id,)
    assert record.origin.chain[-1].model == "drawing"
    assert kept.to_json()["rejected"] == {"unfinished": 1, "answer: another answer": 1}
    assert len(set(writer.seeds)) == 3


def test_ranks_by_the_last_verifier_and_keeps_as_many_as_asked(job):
    texts = ["one", "two", "three", "two"]
    writer = Drawing(texts, {"one": -3.0, "two": -1.0, "three": -2.0})
    settings = SequenceSettings(attempts=4, keep=2)
    kept = generate_sequences(settings, [ask("which?", "none")], writer, job, seed=0)
    assert [record.messages[-1].content for record in kept.records] == ["two", "three"]
    assert kept.reasons == {"repeated": 1, "not the best": 1}


def test_self_consistency_needs_no_answer(job):
    writer = Drawing(["it is 7, answer: 7", "answer: 9", "so answer: 7.0"])
    asked = Record((Message("user", "3 + 4?"),), {"split": "train"})
    settings = SequenceSettings(attempts=3, keep=3, scorers=("agreement",))
    kept = generate_sequences(settings, [asked], writer, job, seed=0)
    assert sorted(one.messages[-1].content for one in kept.records) == [
        "it is 7, answer: 7",
        "so answer: 7.0",
    ]
    settings = SequenceSettings(scorers=("overlap",))
    with pytest.raises(DataError, match="has no answer") as caught:
        generate_sequences(settings, [asked], writer, job, seed=0)
    assert caught.value.code == "distill.no-answer"


def test_the_instruction_is_asked_and_not_learned(job):
    writer = Drawing(["a", "b"])
    settings = SequenceSettings(attempts=1, instruction="Think first.", scorers=())
    kept = generate_sequences(settings, [ask("why?", "so")], writer, job, seed=0)
    assert writer.asked[0].messages[-1].content == "why?\n\nThink first."
    assert kept.records[0].messages[0].content == "why?"


def test_plain_texts_stay_and_too_many_lost_prompts_stop_the_job(job):
    plain = Record((Message("assistant", "Only a text."),))
    writer = Drawing(["", "  "])
    settings = SequenceSettings(attempts=2, scorers=(), max_lost_share=1.0)
    kept = generate_sequences(settings, [plain, ask("x?", "y")], writer, job, seed=0)
    assert kept.records == [plain]
    assert (kept.plain, kept.lost) == (1, 1)
    strict = settings.model_copy(update={"max_lost_share": 0.5})
    with pytest.raises(DataError, match="kept no completion: 2 empty") as caught:
        generate_sequences(strict, [ask("x?", "y")], writer, job, seed=0)
    assert caught.value.code == "distill.sequences-lost"


def test_a_stopped_job_asks_only_what_is_missing(tmp_path):
    records = [ask(f"question {n}?", f"answer {n}") for n in range(20)]
    settings = SequenceSettings(attempts=1, temperature=0, scorers=())

    def write(job):
        writer = scripted_model(lambda prompt: prompt.messages[-1].content.upper())
        kept = generate_sequences(settings, records, writer, job, seed=0)
        return kept.records, len(writer.asked)

    job = Job.start(tmp_path / "whole", "kind: test\n")
    whole, asked = write(job)
    job.close()
    assert asked == 20
    half = Job.start(tmp_path / "half", "kind: test\n")
    writer = scripted_model(lambda prompt: prompt.messages[-1].content.upper())
    generate_sequences(settings, records[:8], writer, half, seed=0)
    again, asked = write(half)
    half.close()
    assert asked == 12
    assert again == whole


def test_a_greedy_completion_is_asked_for_once():
    assert SequenceSettings(temperature=0).num_completions == 1
