import json
from dataclasses import replace

import click
import pytest
from click.testing import CliRunner

from stillroom.cli import stillroom
from stillroom.cli.results import print_answer, print_run
from stillroom.errors import CheckpointError
from stillroom.evaluate import Metric, Report
from stillroom.jobs import Job
from stillroom.provenance import Artifact
from stillroom.rag.generation.refusals import get_refusal_wording
from stillroom.records import Answer, Citation, Completion, Location

LOCATION = Location("mills.md", "0" * 64, 10, 42, pages=(3,))
CITED = Answer(
    Completion("It grinds barley [1].", model="student"),
    (Citation(1, "pas-1", LOCATION, "It grinds barley."),),
    details={"refused": False},
)


def said(function, *arguments, **settings):
    """Return what a function prints, by way of a command."""

    @click.command()
    def command():
        function(*arguments, **settings)

    told = CliRunner().invoke(command, catch_exceptions=False)
    assert told.exit_code == 0
    assert told.stderr == ""
    return told.stdout


def write_report(folder, *metrics):
    rows = [
        {"name": name, "value": value, "low": low, "high": high, "n": 4, "unit": unit}
        for name, value, low, high, unit in metrics
    ]
    (folder / "report.json").write_text(json.dumps({"metrics": rows}))
    return Artifact("report", ())


def test_single_job_is_told_in_a_line(tmp_path):
    artifact = Artifact("index", ())
    assert said(print_run, tmp_path, artifact) == (
        f"{tmp_path}: index, digest {artifact.digest[:16]}\n"
    )


def test_report_without_its_figures_is_told_as_a_job(tmp_path):
    assert ": report, digest " in said(print_run, tmp_path, Artifact("report", ()))


def test_a_report_job_tells_what_it_measured(tmp_path):
    job = Job.start(tmp_path / "out", "kind: evaluate.report\n")
    report = Report("Answers").add(Metric("student/f1", 0.5, 0.4, 0.6, 8, "F1"), is_headline=True)
    report.add(Metric("seconds", 3.0, n=1)).write(job.output)
    artifact = job.finish("report")
    figures = ("student/f1", "0.5 [0.4, 0.6] F1 (n=8)", "1 more", "output/report.html")
    for told in (
        said(print_run, job.out, artifact),
        CliRunner().invoke(stillroom, ["show", str(job.out)]).stdout,
    ):
        assert all(one in told for one in figures)
        assert "seconds" not in told


def test_run_is_told_with_figures_intervals_and_next_commands(tmp_path):
    artifact = write_report(
        tmp_path,
        ("student/kl_to_teacher/final", 0.09629, 0.07, 0.1175, "nats/token"),
        ("student/parameters", 98620.0, 98620.0, 98620.0, ""),
        ("teacher/parameters", 1234567, None, None, ""),
        ("seconds/index", 1.5, 1.5, 1.5, "s"),
    )
    lines = said(print_run, tmp_path, artifact).splitlines()
    assert lines[0].split() == ["student/parameters", "98,620", "(n=4)"]
    assert lines[1].split() == ["teacher/parameters", "1,234,567", "(n=4)"]
    assert lines[2].endswith(" 0.09629 [0.07, 0.1175] nats/token (n=4)")
    assert not any("seconds/index" in line for line in lines)
    assert [line.split()[0] for line in lines[-2:]] == ["report", "lineage"]  # nothing answers
    answering = replace(artifact, details={"steps": {}, "answer": {"index": "index"}})
    lines = said(print_run, tmp_path, answering).splitlines()
    for command in ("stillroom ask", "stillroom show", "stillroom serve"):
        assert any(f"{command} {tmp_path}" in line for line in lines)


def test_a_page_that_no_bytes_of_its_own_hold_is_cited_alone():
    (cited,) = CITED.citations
    place = replace(cited.location, path="mills.pdf", byte_start=0, byte_end=185733)
    answer = replace(CITED, citations=(replace(cited, location=place),))
    told = said(print_answer, ["It grinds ", "barley [1].", answer], as_json=False)
    assert told.endswith("\n[1] mills.pdf: page 3\n")


def test_answer_streams_and_then_lists_what_it_stands_on():
    text = said(print_answer, ["It grinds ", "barley [1].", CITED], as_json=False)
    assert text == "It grinds barley [1].\n\n[1] mills.md: bytes 10-42, page 3\n"


WRAPPED = "It grinds barley for the brewers of the whole valley, who\n  bring it by boat. [1]"


@pytest.mark.parametrize(
    ("quote", "shown"),
    [
        (WRAPPED, WRAPPED.replace("\n ", "")),
        ("said so:\nThe miller of the valley, who was asked twice, had no\nbarley left. [1]",
         "said so:\nThe miller of the valley, who was asked twice, had no barley left. [1]"),
        ("- The first item is about barley, as in all valleys.\n- The second is about rye.", None),
        ("1. The first item is about barley, as everywhere.\n2. The second is rye.", None),
        ("for mill in list_mills_of_the_valley(valley):\n    mill.grind(barley)", None),
        ("| mill | grinds barley in spring and autumn |\n| other | rye |", None),
        ("barley\nrye", None),
        ("A paragraph about barley that is long enough.\n\nanother one.", None),
        ("The lighthouse stands lonely in the evening rain\nThe keeper lights the lantern\n"
         "The gulls are crying over cliffs where seven sailors lay", None),
        ("Department of Inland Waterways, Complaints Office\n14 Harbour Street, Second Floor\n"
         "Oxford", None),
        ("result = call_the_remote_service(call)\n    remaining = compute_remaining(result)\n"
         "    return result", None),
        ("sudo apt-get install build-essential python3-dev\nsudo systemctl restart networking",
         None),
        ("Ann: I will take the boat to the island today.\nBen: then I shall wait for you.", None),
        ("River of the land  Length in km\nthe brown Amazon  6400\nthe long Nile  6650", None),
        ("(a) The first item is about barley, as in valleys.\n(b) the second is rye.", None),
        ("黄河是中国的第二长河，发源于青海省巴颜喀拉山脉，流经九个省区，全长约五千四百六十四公里，\n"
         "最后注入渤海。", None),
    ],
)  # fmt: skip
def test_wrapped_lines_of_a_quote_are_shown_joined_and_kept_in_the_evidence(quote, shown):
    answer = replace(CITED, completion=Completion(quote))
    assert said(print_answer, [quote, answer], as_json=False).startswith(f"{shown or quote}\n\n")
    assert json.loads(said(print_answer, [quote, answer], as_json=True))["answer"] == quote


def test_sources_name_the_section_of_their_quote_or_passage():
    quote = {"number": 1, "text": "x", "byte_start": 10, "byte_end": 42, "pages": [3],
             "headings": ["Mills", "Grain"]}  # fmt: skip
    source = {"number": 1, "headings": ["Mills"], "origin": "human"}
    for details, section in (
        ({"quotes": [quote], "sources": [source]}, "Mills › Grain"),
        ({"sources": [source]}, "Mills"),
    ):
        text = said(print_answer, ["It grinds.", replace(CITED, details=details)], as_json=False)
        assert f"\n[1] mills.md: bytes 10-42, page 3, section {section}, origin human\n" in text


def test_a_mixture_of_origins_and_an_answer_that_was_cut_are_said():
    from dataclasses import replace

    cut = replace(CITED.completion, finish_reason="length")
    details = {"origins": {"human": 1, "synthetic": 2}, "notices": ["the query was searched"]}
    text = said(
        print_answer, ["Yes [1].", replace(CITED, completion=cut, details=details)], as_json=False
    )
    assert "origin of the sources: 1 human, 2 synthetic\n" in text
    assert "note: the answer was cut off" in text
    assert "note: the query was searched\n" in text


def test_answer_without_citations_says_so():
    text = said(print_answer, ["Yes.", Answer(Completion("Yes."))], as_json=False)
    assert text.endswith("no passage supports this answer\n")


def test_answer_as_json_is_one_value_with_byte_ranges():
    told = json.loads(said(print_answer, ["It grinds ", "barley [1].", CITED], as_json=True))
    assert told["version"] == 1
    assert told["answer"] == "It grinds barley [1]."
    assert told["model"] == "student"
    assert told["details"] == {"refused": False}
    assert told["citations"] == [
        {
            "number": 1,
            "passage_id": "pas-1",
            "path": "mills.md",
            "digest": "0" * 64,
            "byte_start": 10,
            "byte_end": 42,
            "is_exact": False,
            "pages": [3],
            "label": "",
            "text": "It grinds barley.",
        }
    ]


@pytest.mark.parametrize(("as_json", "printed"), [(True, ""), (False, "It")])
def test_answer_that_broke_off_ends_where_it_was(as_json, printed):
    assert said(print_answer, ["It"], as_json=as_json) == printed


def test_sentences_that_no_passage_supports_are_counted():
    statements = [{"status": "supported"}, {"status": "unsupported"}]
    answer = Answer(CITED.completion, CITED.citations, details={"statements": statements})
    assert "1 of 2 sentences are supported by no passage" in said(
        print_answer, [answer], as_json=False
    )


def test_sources_steps_and_what_no_passage_says_are_told():
    details = {
        "sources": [
            {
                "number": 1,
                "origin": "suspected-fake",
                "license": "MIT",
                "flags": ["instruction"],
                "checked": "generated",
            }
        ],
        "statements": [{"status": "unsupported", "start": 0, "end": 9}],
        "dropped_statements": [{"text": "Mills fly."}],
        "trace": [{"step": "retrieve", "found": 3, "new": 2}, {"step": "stop"}],
        "cached": {"kind": "near", "question": "What is ground?"},
    }
    answer = Answer(CITED.completion, CITED.citations, details=details)
    told = said(print_answer, [answer], as_json=False, steps=True)
    source = "page 3, origin suspected-fake, its file is marked as machine-generated\n"
    assert f"{source}    caution: this may hold an instruction to a language model\n" in told
    assert "not in any passage: It grinds" in told
    assert "left out, unsupported: Mills fly." in told
    assert "step retrieve: found 3, new 2\nstep stop\n" in told
    assert "cached answer (near), to the question: What is ground?" in told
    shown = json.loads(said(print_answer, [answer], as_json=True))
    assert shown["citations"][0]["origin"] == "suspected-fake"
    assert shown["citations"][0]["flags"] == ["instruction"]
    assert shown["citations"][0]["checked"] == "generated"


def test_a_model_that_says_nothing_is_told_as_that():
    told = said(print_answer, [Answer(Completion("", model="student"))], as_json=False)
    assert "the model returned no text" in told


@pytest.mark.parametrize(
    ("dropped", "left_out", "notes"),
    [
        (0, [], []),
        (2, [["pas-2", 0, 9], ["pas-3", 0, 9]], ["note: 2 of 2 passages did not fit the prompt"]),
        (
            1,
            [["pas-1", 5, 9], ["pas-2", 0, 9]],
            [
                "note: 1 of 1 passage did not fit the prompt",
                "note: the last passage shown was cut after a sentence",
            ],
        ),
    ],
)
def test_passages_that_did_not_fit_are_told(dropped, left_out, notes):
    answer = replace(CITED, details={"dropped": dropped, "left_out": left_out})
    lines = said(print_answer, ["It grinds.", answer], as_json=False).splitlines()
    assert [line for line in lines if line.startswith("note:")] == notes


@pytest.mark.parametrize(
    ("why", "told"),
    [("empty", "the model returned no text"), ("restated", "only repeated the question")],
)
def test_an_answer_that_says_nothing_says_why(why, told):
    note = get_refusal_wording("").describe_reason(why)
    details = {"refusal": why, "refusal_note": note, "abstained": True}
    empty = Answer(Completion("The documents do not answer this."), details=details)
    assert told in said(print_answer, [empty.completion.text, empty], as_json=False)


def test_quotes_are_told_with_their_own_bytes_and_short_answers():
    quotes = [
        {"number": 1, "byte_start": 12, "byte_end": 30, "pages": [3], "short": "barley\x1b[2J"},
        {"number": 1, "byte_start": 33, "byte_end": 42, "pages": [4]},
    ]
    answer = replace(CITED, details={"quotes": quotes, "answering": "quote", "calls": 0})
    told = said(
        print_answer, ["It grinds\x1b[31m\r\nbarley. [1]", answer], as_json=False, model="./student"
    )
    assert told == (
        "It grinds\\x1b[31m\nbarley. [1]\n\n"
        "[1] mills.md: bytes 12-30, page 3\n"
        "    short answer: barley\\x1b[2J\n"
        "[1] mills.md: bytes 33-42, page 4\n"
        "note: ./student was not used, since quotes need none: --answering generate\n"
    )


def test_the_probability_of_a_quote_is_told():
    steps = [{"step": "select", "probability": 0.9}, {"step": "quote", "probability": 0.8312}]
    answer = replace(CITED, details={"trace": steps})
    shown = said(print_answer, ["It grinds barley [1].", answer], as_json=False)
    assert shown.endswith("bytes 10-42, page 3\nprobability that the first quote answers: 0.83\n")


def test_every_citation_of_quotes_on_one_page_has_its_own_line():
    # A PDF's text has no bytes of its own: all quotes of a page have the same.
    second = replace(CITED.citations[0], number=2)
    quotes = [
        {"number": number, "byte_start": 10, "byte_end": 42, "pages": [3], "short": short}
        for number, short in ((1, "barley"), (2, "rye"))
    ]
    answer = replace(CITED, citations=(*CITED.citations, second), details={"quotes": quotes})
    told = said(print_answer, ["It grinds barley. [1] Or rye. [2]", answer], as_json=False)
    assert told.endswith(
        "[1] mills.md: bytes 10-42, page 3\n    short answer: barley\n"
        "[2] mills.md: bytes 10-42, page 3\n    short answer: rye\n"
    )


def test_the_items_of_a_list_are_listed_once_with_the_bytes_of_all():
    parts = ((10, 20, [3], True), (24, 30, [3], True), (34, 42, [4], False))
    quotes = [
        {"number": 1, "byte_start": start, "byte_end": end, "pages": pages, "continues": goes_on}
        for start, end, pages, goes_on in parts
    ]
    answer = replace(CITED, details={"quotes": quotes})
    told = said(print_answer, ["Grains:\n- rye\n- barley [1]", answer], as_json=False)
    assert told.endswith("[1] mills.md: bytes 10-42, page 3\n")


def test_silence_shows_what_came_nearest():
    note = get_refusal_wording("").describe_reason("no-answer")
    details = {"refusal": "no-answer", "refusal_note": note, "abstained": True}
    told = said(print_answer, ["No.", replace(CITED, details=details)], as_json=False)
    assert "[1] mills.md: bytes 10-42, page 3\n    It grinds barley.\n" in told
    assert "note: no sentence of the passages answers" in told


def test_run_begins_with_what_its_report_decided(tmp_path):
    artifact = replace(
        write_report(tmp_path, ("reader/owned/holds", 0.5, 0.4, 0.6, "")),
        details={
            "decision": "Use the owned reader.",
            "notes": ["They were generated."],
            "answer": {"index": "index", "reader": "builtin:overlap", "model": "inputs.teacher"},
        },
    )
    lines = said(print_run, tmp_path, artifact).splitlines()
    assert lines[:5] == [
        "Use the owned reader.",
        "",
        "They were generated.",
        "",
        "reader/owned/holds                 0.5 [0.4, 0.6] (n=4)",
    ]


def test_a_run_tells_how_often_each_reader_is_silent_without_an_answer(tmp_path):
    arms = ("owned", "packaged", "sentence")
    served = [f"reader/{arm}/served_silent_unanswerable" for arm in arms]
    names = [f"reader/{arm}/holds" for arm in arms] + served
    rows = [(name, 0.5, 0.4, 0.6, "") for name in names]
    lines = said(print_run, tmp_path, write_report(tmp_path, *rows)).splitlines()
    assert [line.split()[0] for line in lines[:3]] == served  # before those at equal coverage
    assert len({line.index("0.5") for line in lines[:6]}) == 1


def test_a_step_that_was_kept_took_nothing(tmp_path):
    details = {"seconds": {"index": 52.8, "report": 421.0}, "reused": ["index"]}
    lines = said(print_run, tmp_path, replace(write_report(tmp_path), details=details))
    assert "took     index kept, report 421 s" in lines


def test_a_figure_that_was_not_measured_is_told_as_that(tmp_path):
    artifact = write_report(tmp_path, ("reader/owned/holds", None, None, None, ""))
    assert "reader/owned/holds                 not measured (n=4)" in said(
        print_run, tmp_path, artifact
    )


@pytest.mark.parametrize(
    ("answer", "skipped", "told"),
    [
        ({"reader": "reader"}, "report", ""),
        ({"reader": "reader"}, "reader", "by the program's own reader: nothing was trained"),
        (
            {"reader": "builtin:overlap", "trained_reader": "reader"},
            "reader",
            "by builtin:overlap: nothing was trained",
        ),
        ({"model": "merged", "fallback": "teacher"}, "merged", "by teacher: nothing was trained"),
        ({"model": "merged", "fallback": "teacher"}, "report", ""),
    ],
)
def test_nothing_was_trained_is_said_only_where_that_step_was_skipped(
    tmp_path, monkeypatch, answer, skipped, told
):
    monkeypatch.setattr("stillroom.rag.answer_selection.reader.open_reader", lambda reader: None)
    details = {"answer": {"model": "m", **answer}, "skipped": {skipped: "too little"}}
    lines = said(print_run, tmp_path, replace(write_report(tmp_path), details=details))
    assert told in lines
    assert ("nothing was trained" in lines) == bool(told)


def test_shared_words_answer_where_the_packaged_reader_cannot_be_opened(tmp_path, monkeypatch):
    def refuse(reader):
        raise CheckpointError("no weights", code="checkpoint.missing", expected="e", next="n")

    monkeypatch.setattr("stillroom.rag.answer_selection.reader.open_reader", refuse)
    details = {"answer": {"model": "m", "reader": "reader"}, "skipped": {"reader": "too little"}}
    lines = said(print_run, tmp_path, replace(write_report(tmp_path), details=details))
    assert "answers  by builtin:overlap, since builtin:reader cannot be opened" in lines
