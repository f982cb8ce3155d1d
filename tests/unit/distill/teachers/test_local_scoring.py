import copy

import numpy as np
import pytest
import torch

from stillroom.distill.teachers.local import ModelScorer, TeacherScorer
from stillroom.errors import DataError


def test_scores_are_those_of_the_whole_model_whatever_stands_beside(loaded, lessons):
    model, _ = loaded
    scorer = ModelScorer(model)
    assert isinstance(scorer, TeacherScorer)
    together = scorer.score_tokens(lessons)
    for lesson, found in zip(lessons, together, strict=True):
        logits = model(input_ids=torch.from_numpy(lesson.ids)[None]).logits[0].double()
        wanted = torch.log_softmax(logits, -1)[lesson.positions, lesson.labels]
        np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)
        assert found.tobytes() == scorer.score_tokens([lesson])[0].tobytes()


def test_padding_rows_of_the_vocabulary_take_no_part(loaded, lessons):
    model, tokenizer = loaded
    few = ModelScorer(model, rows=len(tokenizer) - 3).score_tokens(lessons[:1])[0]
    assert (few > ModelScorer(model).score_tokens(lessons[:1])[0]).all()


def test_names_the_record_that_gets_no_finite_number(loaded, lessons):
    broken = copy.deepcopy(loaded[0])
    with torch.no_grad():
        broken.get_output_embeddings().weight[3] = float("nan")
    with pytest.raises(DataError) as caught:
        ModelScorer(broken).score_tokens(lessons[1:2])
    assert caught.value.code == "distill.teacher-not-finite"
    assert lessons[1].record_id in str(caught.value)
