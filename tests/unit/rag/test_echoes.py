import pytest

from stillroom.rag.echoes import EchoFilter

QUESTION = "Which model does it use?"


@pytest.mark.parametrize(
    ("said", "left"),
    [
        (f"Question: {QUESTION}\nAnswer: It uses one. [3]", "It uses one. [3]"),
        ("Answer: It uses one.", "It uses one."),
        ("Q: which model does  it use?\nA: One.", "One."),
        (f"{QUESTION} It uses one.", "It uses one."),
        (QUESTION, QUESTION),
        ("Question: Another one?\nAnswer: x", "Question: Another one?\nAnswer: x"),
        ("Answers are many.", "Answers are many."),
        ("Which models are there?", "Which models are there?"),
        ("Answer:", ""),
        ("Answer in one sentence.", ""),
        (f"{QUESTION}\nAnswer in one sentence. One.", "One."),
        ("Answer in one word.", "Answer in one word."),
        ("", ""),
    ],
)
def test_only_an_echo_is_taken_out_however_the_stream_is_cut(said, left):
    for size in (1, 2, 3, 7, 100):
        echoes = EchoFilter(QUESTION, "Answer in one sentence.")
        pieces = [echoes.feed(said[at : at + size]) for at in range(0, len(said), size)]
        assert "".join(pieces) + echoes.finish() == left
