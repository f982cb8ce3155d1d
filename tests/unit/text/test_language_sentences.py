import pytest

from stillroom.text import split_sentences


@pytest.mark.parametrize(
    "sentences",
    [
        ["One is here.", "Two is there!", "Is three?", "Yes…", "Done."],
        ["Dr. Smith met Mr. J. R. Jones at 3.14 p.m. in St. Louis.", "They left."],
        ["See e.g. Fig. 3 or i.e. the U.S. Senate.", "It costs $1.50 vs. $2."],
        ["Repeat it up to 6 times (i.e. -vvvvvv).", "Use a flag, e.g. --fast."],
        ["He lives in the U.S.", "The house is old."],
        ["“Stop!” she said.", "(He did.)", "Then he left."],
        ["Version 2.0.1 of example.com is out.", "Use node.js now."],
        ["春眠不觉晓。", "处处闻啼鸟！", "夜来风雨声？"],
        ["「行こう。」", "彼は言った。"],
        ["यह एक वाक्य है।", "दूसरा वाक्य।"],
        ["Zahlbar bis zum 31. März.", "Im 19. Jahrhundert galt das nicht.", "Es waren 31.", "Alle"],
        ["Peat covers a tenth.¹", "It was drained.[2][3]", "See e.g. “moss.”⁴", "It grows."],
        ["A heading without a stop", "A paragraph follows it."],
    ],
)
def test_sentences_end_where_a_reader_ends_them(sentences):
    joint = "" if ord(sentences[0][0]) > 0x3000 else " "
    joint = "\n\n" if sentences[0].startswith("A heading") else joint
    text = joint.join(sentences)
    assert [text[start:end] for start, end in split_sentences(text)] == sentences


def test_a_line_end_alone_does_not_end_a_sentence_but_an_empty_line_does():
    text = "A sentence over\ntwo lines. Next\r\n\r\nlast"
    assert [text[a:b] for a, b in split_sentences(text)] == [
        "A sentence over\ntwo lines.",
        "Next",
        "last",
    ]


def test_numbered_items_keep_their_number():
    text = "1. First item. 2. is odd.\n2. Second item."
    assert split_sentences(text)[0] == (0, len("1. First item."))


def test_nothing_has_no_sentences():
    assert split_sentences("") == split_sentences(" \n\t ") == []


def test_a_long_run_of_stops_is_read_once():
    for run in ("." * 200_000, '."' * 100_000):  # by the square of its length it takes an hour
        assert split_sentences(run + "x") == [(0, 200_001)]
        assert split_sentences(run + " X.") == [(0, 200_000), (200_001, 200_003)]
