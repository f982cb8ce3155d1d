import copy

import pytest
import torch
from pydantic import ValidationError
from tests.unit.distill.conftest import make_records

from stillroom.distill.data.preparation import add_context, attach_teacher_context
from stillroom.distill.data.tokenized import make_batch, tokenize_records
from stillroom.distill.interfaces import METHODS
from stillroom.distill.settings import TeacherContextSettings
from stillroom.distill.trainers.loss import DistillationLoss
from stillroom.errors import DataError
from stillroom.records import Message, Record


def with_passages(count=4):
    return [
        Record(record.messages, {**record.fields, "passage": f"Passage {n} says it."})
        for n, record in enumerate(make_records(count))
    ]


SETTINGS = TeacherContextSettings(field="passage", text="Read this: {context}\n\n")


def test_only_the_teacher_reads_the_context():
    record = with_passages(1)[0]
    heard = add_context(SETTINGS, record)
    assert heard.messages[0].content.startswith("Read this: Passage 0 says it.\n\nQuestion 0?")
    assert heard.messages[1:] == record.messages[1:]
    assert add_context(SETTINGS, make_records(1)[0]) is None
    plain = Record((Message("assistant", "A text."),), {"passage": "p"})
    assert add_context(SETTINGS, plain) is None


def test_the_answers_tokens_are_the_same_at_other_places(loaded):
    records = with_passages()
    lessons, _ = tokenize_records(loaded[1], records, max_tokens=256, include_prompt=False)
    found, counts = attach_teacher_context(SETTINGS, loaded[1], records, lessons)
    assert counts == {"without_context": 0, "too_long": 0, "other_tokens": 0}
    for lesson in found:
        assert (lesson.teacher_record.labels == lesson.labels).all()
        assert len(lesson.teacher_record.ids) > len(lesson.ids)
        assert lesson.teacher_record.positions[0] > lesson.positions[0]


def test_what_cannot_be_read_in_context_is_counted(loaded):
    records = with_passages(3)
    bare = make_records(6)[5]
    lessons, _ = tokenize_records(loaded[1], [*records, bare], max_tokens=256, include_prompt=False)
    found, counts = attach_teacher_context(SETTINGS, loaded[1], [*records, bare], lessons)
    assert counts["without_context"] == 1
    assert len(found) == 3
    short = TeacherContextSettings(field="passage", max_tokens=8)
    with pytest.raises(DataError) as caught:
        attach_teacher_context(short, loaded[1], records, lessons[:3])
    assert caught.value.code == "distill.no-context"


def test_the_loss_is_that_against_the_teacher_in_context(loaded, job, make_cache):
    teacher, tokenizer = loaded
    student = copy.deepcopy(teacher).requires_grad_(True)
    records = with_passages()
    lessons, _ = tokenize_records(tokenizer, records, max_tokens=256, include_prompt=False)
    lessons, _ = attach_teacher_context(SETTINGS, tokenizer, records, lessons)
    rows = teacher.config.vocab_size
    live = DistillationLoss(METHODS.build("forward_kl"), rows=rows, teacher=teacher)
    wanted = 0.0
    for lesson in lessons:
        sides = [
            torch.log_softmax(
                model(input_ids=torch.tensor(view.ids)[None]).logits[0, view.positions], -1
            ).detach()
            for model, view in ((student, lesson), (teacher, lesson.teacher_record))
        ]
        wanted += float((sides[1].exp() * (sides[1] - sides[0])).sum())
    loss = live(student, make_batch(lessons, None)).total
    assert wanted > 0.01
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-3)
    alone = live(student, make_batch([lesson.teacher_view for lesson in lessons], None)).total
    assert float(alone.detach()) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("bad", [{"field": "passage", "text": "no place"}, {"text": " "}, {}])
def test_refuses_what_says_nothing(bad):
    with pytest.raises(ValidationError):
        TeacherContextSettings.model_validate(bad)
