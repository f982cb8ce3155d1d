"""Late chunking: passages pooled from the states of the whole text, against a float64 reference."""

import numpy as np
import pytest
from tests.unit.models.test_sentence import WORDS, encoder, reference, unit

from stillroom.errors import CheckpointError, DataError
from stillroom.models import SpanEmbedder, open_embedder
from stillroom.models.encoders.text_encoder import split_windows, token_ranges

__all__ = ["encoder"]
TEXT = "the river mill ground corn . the sugar and lemon of the north"
SPANS = [(0, 26), (29, len(TEXT))]


def test_one_passage_that_is_the_whole_text_has_the_vector_it_has_alone(encoder):
    for prompts in ({}, {"passage": "query : "}):
        embedder = open_embedder(str(encoder(prompts=prompts, longest=32)))
        assert isinstance(embedder, SpanEmbedder)
        alone = embedder.embed([TEXT], kind="passage")
        late = embedder.embed_spans(f"  {TEXT}\n", [(2, 2 + len(TEXT))], kind="passage")
        np.testing.assert_allclose(late, alone, atol=1e-6)
        embedder.close()


def test_passages_are_means_of_the_states_of_the_whole_text(encoder):
    folder = encoder(longest=32)
    states = reference(folder, TEXT).astype(np.float64)
    words = TEXT.split()
    first = TEXT[:26].count(" ") + 1
    late = open_embedder(str(folder)).embed_spans(TEXT, SPANS, kind="passage")
    assert len(states) == len(words) + 2
    np.testing.assert_allclose(late[0], unit(states[: 1 + first].mean(0)), atol=1e-5)
    np.testing.assert_allclose(late[1], unit(states[2 + first :].mean(0)), atol=1e-5)
    alone = open_embedder(str(folder)).embed([TEXT[a:b] for a, b in SPANS], kind="passage")
    assert np.abs(late - alone).max() > 1e-3


def test_a_text_of_many_windows_gives_every_token_once(encoder):
    folder = encoder(longest=16)
    rng = np.random.default_rng(0)
    words = [str(one) for one in rng.choice(WORDS[:9], 100)]
    text = " ".join(words)
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    spans = [
        (int(starts[a]), int(starts[b]) - 1) for a, b in [(0, 7), (7, 30), (30, 31), (31, 100)]
    ]
    late = open_embedder(str(folder), num_threads=2).embed_spans(text, spans, kind="passage")
    lead, own, tail = [], {}, []
    for window in split_windows(100, 14, 3):
        states = reference(folder, " ".join(words[window.first : window.last])).astype(np.float64)
        lead = lead or [states[0]]
        tail = [states[-1]]
        own |= {at: states[1 + at - window.first] for at in range(window.begin, window.end)}
    assert sorted(own) == list(range(100))
    parts = [
        [*lead, *(own[at] for at in range(7))],
        [own[at] for at in range(7, 30)],
        [own[30]],
        [*(own[at] for at in range(31, 100)), *tail],
    ]
    for row, part in zip(late, parts, strict=True):
        np.testing.assert_allclose(row, unit(np.mean(part, axis=0)), atol=1e-5)


@pytest.mark.parametrize(
    ("total", "room", "overlap"), [(0, 8, 2), (8, 8, 2), (9, 8, 2), (99, 8, 3)]
)
def test_windows_share_tokens_and_give_each_once(total, room, overlap):
    windows = list(split_windows(total, room, overlap))
    given = [at for window in windows for at in range(window.begin, window.end)]
    assert given == list(range(total))
    assert all(window.last - window.first <= room for window in windows)
    for window in windows[1:]:
        assert window.begin > window.first


def test_a_passage_without_a_token_of_its_own_takes_the_one_it_is_part_of():
    assert token_ranges([2, 5, 9], [(0, 3), (3, 4), (4, 10)]) == [(0, 1), (0, 1), (1, 3)]


def test_other_poolings_are_refused(encoder):
    embedder = open_embedder(str(encoder(pooling=("pooling_mode_cls_token",))))
    with pytest.raises(CheckpointError) as caught:
        embedder.embed_spans(TEXT, SPANS, kind="passage")
    assert caught.value.code == "checkpoint.not-mean-pooling"


def test_empty_passages_are_refused_and_none_give_none(encoder):
    embedder = open_embedder(str(encoder()))
    assert embedder.embed_spans(TEXT, [], kind="passage").shape == (0, 32)
    with pytest.raises(DataError):
        embedder.embed_spans(TEXT, [(3, 4)], kind="passage")
    assert not isinstance(open_embedder("static"), SpanEmbedder)
