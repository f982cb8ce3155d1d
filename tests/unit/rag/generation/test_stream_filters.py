import time

import pytest

from stillroom.rag.generation.stream_filters import PromptEchoStripper, PromptLeakFilter

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
        ("The answer is: The answer is: One.", "One."),
        ("The answer to the question is: The answer to the question is:", ""),
        ("The answer to the sum is: one.", "The answer to the sum is: one."),
        ("The answer is one.", "The answer is one."),
        ("Answer in one sentence.", ""),
        (f"{QUESTION}\nAnswer in one sentence. One.", "One."),
        ("Answer in one word.", "Answer in one word."),
        ("", ""),
    ],
)
def test_only_an_echo_is_taken_out_however_the_stream_is_cut(said, left):
    for size in (1, 2, 3, 7, 100):
        echoes = PromptEchoStripper(QUESTION, "Answer in one sentence.")
        pieces = [echoes.feed(said[at : at + size]) for at in range(0, len(said), size)]
        assert "".join(pieces) + echoes.finish() == left


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("It uses one. <passage-276ad5>", "It uses one. "),
        ("<passage-276ad5>\nIt uses one.\n</passage-276ad5>\nMore", "\nIt uses one.\n"),
        ("</passage-276ad5> It uses one.", " It uses one."),
        ("It uses <passage-27", "It uses "),
        ("It uses one.\nQuestion: Which two?\nAnswer: Two.", "It uses one.\n"),
        ("It uses one. [3] Question: Which two?", "It uses one. [3] "),
        ("It uses one.\n  Question: Which", "It uses one.\n  "),
        ("It is one.\n\n**Question:** Which?\n**Answer:** Two.", "It is one.\n\n"),
        ("It is one. **Question**: Which?", "It is one. "),
        ("It is one.\n### Question: Which?", "It is one.\n"),
        ("It is one.\n## Question\nWhich?\n## Answer\nTwo.", "It is one.\n"),
        ("It is one.\n\n**Q: Which?**", "It is one.\n\n"),
        ("It is one.\n**Quite** so.\n## Questions\n***Question:", None),
        ("Of the form **Question:** it is.\n* **", None),
        ("It is in Question: a form.", "It is in Question: a form."),
        ("Questions are many. Question", "Questions are many. Question"),
        ("Question: Which? One.", "Question: Which? One."),
        ("Use <p> and <passage> and <<b>.", "Use <p> and <passage> and <<b>."),
        ("a < b", "a < b"),
        ("", ""),
    ],
)
def test_what_goes_on_with_the_prompt_is_cut_however_the_stream_is_cut(said, left):
    for size in (1, 2, 3, 7, 100):
        own = PromptLeakFilter()
        pieces = [own.feed(said[at : at + size]) for at in range(0, len(said), size)]
        assert "".join(pieces) + own.finish() == (said if left is None else left)


@pytest.mark.parametrize("label", ["Question:", "QUESTION:", "Q:"])
def test_an_answer_ends_where_the_model_asks_itself(label):
    text = f"Paris is the capital.\n{label} What of Spain?\nA: Madrid"
    for size in (1, 3, len(text)):
        leak = PromptLeakFilter()
        pieces = [leak.feed(text[at : at + size]) for at in range(0, len(text), size)]
        assert "".join([*pieces, leak.finish()]).strip() == "Paris is the capital."
    leak = PromptLeakFilter()
    assert leak.feed("The FAQ: Q1 and Quito.") + leak.finish() == "The FAQ: Q1 and Quito."


def test_long_echo_costs_little() -> None:
    question = "The pump  stopped at NOON. " * 150
    echoes = PromptEchoStripper(question, "Answer in one sentence.")
    said = f"{question}It leaked."
    start = time.process_time()
    pieces = [echoes.feed(said[at : at + 4]) for at in range(0, len(said), 4)]
    assert "".join(pieces) + echoes.finish() == "It leaked."
    assert time.process_time() - start < 5
