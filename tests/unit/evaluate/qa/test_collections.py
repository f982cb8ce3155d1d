import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stillroom.errors import DataError
from stillroom.evaluate.qa.collections import (
    CorpusRow,
    find_collection,
    read_corpus,
    read_qrels,
    read_queries,
    read_run,
    write_run,
)
from stillroom.evaluate.qa.questions import read_question_set


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_reads_beirs_layout(tmp_path):
    write(tmp_path / "corpus.jsonl", '{"_id": "d1", "title": "T", "text": "x"}\n\n')
    write(tmp_path / "queries.jsonl", '{"_id": 7, "text": "what?", "metadata": {}}\n')
    write(tmp_path / "qrels/test.tsv", "query-id\tcorpus-id\tscore\n7\td1\t2\n")
    found = find_collection(tmp_path)
    assert list(read_corpus(found.corpus)) == [CorpusRow("d1", "T", "x")]
    assert read_queries(found.queries) == {"7": "what?"}
    assert read_qrels(found.qrels) == {"7": {"d1": 2}}
    with pytest.raises(DataError, match=r"no dev\.tsv"):
        find_collection(tmp_path, "dev")


def test_other_line_ends_within_a_query_do_not_end_it(tmp_path):
    """JSON may hold U+2028 as it is."""
    text = "what\u2028is it?"
    row = json.dumps({"_id": "1", "text": text, "metadata": {"answer": "x"}}, ensure_ascii=False)
    write(tmp_path / "corpus.jsonl", '{"_id": "d1", "text": "x"}\n')
    write(tmp_path / "queries.jsonl", row + "\n")
    write(tmp_path / "qrels/test.tsv", "query-id\tcorpus-id\tscore\n1\td1\t1\n")
    assert read_queries(tmp_path / "queries.jsonl") == {"1": text}
    (question,) = read_question_set(tmp_path)
    assert (question.text, question.evidence[0].name) == (text, "d1")


def test_ids_with_spaces_are_kept_where_tabs_separate_the_columns(tmp_path):
    """BEIR's "1, my notes.md, 2" was read as TREC's judgment of "notes.md"."""
    beir = write(tmp_path / "beir.tsv", "query-id\tcorpus-id\tscore\n1\tmy notes.md\t2\n")
    assert read_qrels(beir) == {"1": {"my notes.md": 2}}
    trec = write(tmp_path / "trec.txt", "1 0\ta\t2\n2\t0\tb c\t1\n")
    assert read_qrels(trec) == {"1": {"a": 2}, "2": {"b c": 1}}
    aligned = write(tmp_path / "aligned.txt", "1\t0\ta\t2\t\n2\t\t0\tb\t1\n3\t0\tc 1\n")
    assert read_qrels(aligned) == {"1": {"a": 2}, "2": {"b": 1}, "3": {"c": 1}}
    mixed = write(tmp_path / "mixed.trec", "1\tQ0\ta\t1\t2.0\tx\t\n2\tQ0\tb 1 1.0 x\n")
    assert read_run(mixed) == {"1": [("a", 2.0)], "2": [("b", 1.0)]}
    run = {"1": [("my notes.md", 2.0), ("a", 1.0)]}
    write_run(tmp_path / "run.trec", run)
    assert read_run(tmp_path / "run.trec") == run
    write_run(tmp_path / "run.trec", run, tag="my run")
    assert read_run(tmp_path / "run.trec") == run


def test_reads_trecs_columns_and_plain_lines(tmp_path):
    assert read_qrels(write(tmp_path / "q.txt", "1 0 a 1\n1 0 b -1\n2 0 a 0\n")) == {
        "1": {"a": 1, "b": -1},
        "2": {"a": 0},
    }
    assert read_queries(write(tmp_path / "q.tsv", "1\tone two\n")) == {"1": "one two"}
    rows = write(tmp_path / "q.jsonl", '{"qid": "1", "path": "a/b.md"}\n')
    assert read_qrels(rows) == {"1": {"a/b.md": 1}}


@settings(deadline=None)  # it writes files
@given(
    st.dictionaries(
        st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True),
        st.lists(
            st.tuples(
                st.from_regex(r"[a-z0-9/#:.-]{1,12}", fullmatch=True),
                st.floats(allow_nan=False, allow_infinity=False),
            ),
            min_size=1,
            max_size=9,
        ),
        max_size=9,
    )
)
def test_a_run_reads_back_equal(tmp_path_factory, run):
    path = tmp_path_factory.mktemp("run") / "run.trec"
    write_run(path, run)
    assert read_run(path) == run


@pytest.mark.parametrize(
    ("read", "name", "text", "said"),
    [
        (read_qrels, "q.txt", "1 0 a 1\n1 0 a b c\n", "5 columns"),
        (read_qrels, "q.txt", "1 0 a high\n", "'high'"),
        (read_qrels, "q.txt", "1 0 a 1\n1 0 a 2\n", "judged 1 and 2"),
        (read_qrels, "q.txt", f"1 0 a {10**20}\n", "at most 10000"),
        (read_qrels, "q.txt", "", "no judgment"),
        (read_qrels, "q.jsonl", '{"qid": "1", "doc_id": "a", "score": "x"}\n', "relevance"),
        (read_qrels, "q.jsonl", '{"qid": "1", "doc_id": "a", "score": 99999}\n', "at most 10000"),
        (read_queries, "q.tsv", "only an id\n", "not a query"),
        (read_queries, "q.jsonl", "[1]\n", "not a JSON object"),
        (read_queries, "q.jsonl", '{"_id": "1"\n', "not valid JSON:"),
        (read_queries, "q.jsonl", '{"_id": "1", "text": "a"}\n{"_id": 1, "text": "b"}\n', "twice"),
        (read_queries, "q.jsonl", "", "no query"),
        (lambda path: list(read_corpus(path)), "c.jsonl", '{"_id": "1"}\n', "no text"),
        (read_run, "r.trec", "1 Q0 a 1 nan t\n", "score is nan"),
        (read_run, "r.trec", "1 Q0 a 1\n", "4 columns"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, read, name, text, said):
    with pytest.raises(DataError, match=said) as caught:
        read(write(tmp_path / name, text))
    assert caught.value.code == "data.collection"
    assert name in str(caught.value)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "q.tsv").write_bytes(b"1\t\xff\xfe\n")
    with pytest.raises(DataError, match="byte 2 is not UTF-8"):
        read_queries(tmp_path / "q.tsv")
