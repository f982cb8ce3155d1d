import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tests.processes import run_process
from tests.unit.models.tiny_encoders import config_of, make_encoder, write_tokenizer
from tests.unit.train.forgery import reseal
from transformers import AutoModel, BertConfig, BertModel, MPNetConfig, MPNetModel

from stillroom.errors import CheckpointError, DataError
from stillroom.evaluate.qa.judgments import AskedAnswer, Judgment, JudgmentStore
from stillroom.evaluate.qa.questions import EvidenceSpan, JudgedQuestion
from stillroom.flow import run_recipe
from stillroom.flow.replay import ReplayAmount, plan_replay
from stillroom.jobs import Job
from stillroom.models.encoders.numpy_bert import open_bert
from stillroom.models.hub import DEFAULT_EMBEDDER, MULTILINGUAL_EMBEDDER
from stillroom.provenance import Parent, read_artifact, verify_artifact
from stillroom.rag import Index, ask
from stillroom.rag.answer_selection import adapted_bert, reader, training_run
from stillroom.rag.answer_selection.adapted_bert import find_special_tokens
from stillroom.rag.answer_selection.encoding import encode_passages, find_rows, find_sentences
from stillroom.rag.answer_selection.examples import (
    ReaderExample,
    ReaderPassage,
    label_passages,
)
from stillroom.rag.answer_selection.judging import HeldOutScores
from stillroom.rag.answer_selection.overlap import ScoredSentence
from stillroom.rag.answer_selection.reader import (
    SentenceReader,
    _find_whole_words,
    _open_cached,
    choose_reader,
    find_reader,
    open_available_reader,
    open_reader,
)
from stillroom.rag.answer_selection.training import ReaderNetwork, build_source
from stillroom.rag.jobs.reader import ReaderTrainSettings, estimate
from stillroom.rag.jobs.reader import run as run_reader
from stillroom.recipes import dump_recipe, parse_recipe
from stillroom.testing import scripted_model, tiny_checkpoint
from stillroom.train.settings import LoraSettings

DOCUMENTS = {
    "mill.md": "# The mill\n\nThe mill ground corn. It rests at night. The river is north of it.\n",
    "cats.md": "# Cats\n\nThe cat sleeps at night. Cats purr when they rest.\n",
    "paris.md": "# Paris\n\nParis is the capital of France. The house is at the river.\n",
}
FEATURES = ("margin", "short", "no_answer", "cosine", "rank")
QUESTIONS = [
    ("What ground corn?", ["The mill"], "The mill ground corn."),
    ("When do cats purr?", ["when they rest"], "Cats purr when they rest."),
    ("What is the capital of France?", ["Paris"], "Paris is the capital of France."),
    ("What is north?", ["river"], "The river is north of it."),
]


class NoOverlap:
    """A question whose terms stand in no text."""

    total = 1.0

    def __call__(self, text: str) -> float:
        return 0.0


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(3)
    BertModel(config_of(write_tokenizer(folder)), add_pooling_layer=False).save_pretrained(folder)
    return folder


def make_mpnet(encoder: Path, folder: Path) -> Path:
    """Return a small MPNet with the tokenizer of a BERT."""
    shutil.copytree(encoder, folder)
    torch.manual_seed(3)
    bert = BertConfig.from_pretrained(encoder)
    config = MPNetConfig(
        vocab_size=bert.vocab_size,
        hidden_size=bert.hidden_size,
        num_hidden_layers=2,
        num_attention_heads=bert.num_attention_heads,
        intermediate_size=bert.intermediate_size,
        max_position_embeddings=bert.max_position_embeddings,
    )
    MPNetModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an index of three documents, and questions about them."""
    place = tmp_path_factory.mktemp("place")
    (place / "documents").mkdir()
    for name, text in DOCUMENTS.items():
        (place / "documents" / name).write_text(text, encoding="utf-8")
    recipe = "kind: rag.index\ndocuments: documents\nembedder: builtin:static\n"
    run_recipe(parse_recipe(recipe, folder=place), place / "index")
    rows = [
        {"question": question, "answers": answers, "evidence": [evidence]}
        for question, answers, evidence in QUESTIONS
    ]
    (place / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return place


def make_recipe(place: Path, encoder: Path, **changes):
    settings = {"train.steps": 3, "train.batch_size": 2, "train.threads": 1, **changes}
    text = (
        f"kind: rag.reader\nindex: index\nquestions: [questions.jsonl]\nbase: {encoder}\n"
        "validation: 0.4\n"
    )
    return parse_recipe(text, overrides=[f"{k}={v}" for k, v in settings.items()], folder=place)


@pytest.fixture(scope="module")
def trained(place: Path, encoder: Path) -> Path:
    run_recipe(make_recipe(place, encoder), place / "reader")
    return place / "reader"


KILLED = """
import itertools, os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from stillroom.flow import run_recipe
from stillroom.jobs import Job
from stillroom.recipes import parse_recipe
from stillroom.train import loop

clock, metric = itertools.count(0, 4), Job.metric
loop.time = SimpleNamespace(monotonic=lambda: float(next(clock)))  # 12 s and more a step

def kill(self, name, value, **fields):
    metric(self, name, value, **fields)
    if name == "loss" and fields["step"] == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

Job.metric = kill
text = Path(sys.argv[1]).read_text()
run_recipe(parse_recipe(text, folder=Path(sys.argv[1]).parent), Path(sys.argv[2]), resume=True)
"""


@pytest.mark.parametrize(
    "step", [2, *(pytest.param(one, marks=pytest.mark.slow) for one in (5, 8))]
)
def test_a_killed_training_goes_on_from_a_saved_state_to_the_same_bytes(
    place, encoder, tmp_path, monkeypatch, step
):
    recipe = make_recipe(place, encoder, **{"train.steps": 8, "train.log_every": 1})
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    run_recipe(recipe, tmp_path / "whole")
    files = (tmp_path / "recipe.yaml", tmp_path / "part", step)
    killed = run_process([sys.executable, "-c", KILLED, *map(str, files)])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    steps, metric = [], Job.metric

    def record(self, name, value, **fields):
        metric(self, name, value, **fields)
        steps.extend([fields["step"]] if name == "loss" else [])

    monkeypatch.setattr(Job, "metric", record)
    run_recipe(recipe, tmp_path / "part", resume=True)
    assert steps == list(range(step, 9))  # the step at which it was killed, and what follows
    first, second = (
        (tmp_path / folder / "output" / "reader.safetensors").read_bytes()
        for folder in ("whole", "part")
    )
    assert first == second


def test_a_validation_that_was_cut_off_reads_no_question_again(
    place, encoder, trained, tmp_path, monkeypatch
):
    recipe = make_recipe(place, encoder, start=str(trained))
    read, asked, left = SentenceReader.read, [], [10**6]

    def watch(self, question, *rest):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        asked.append(question)
        return read(self, question, *rest)

    monkeypatch.setattr(SentenceReader, "read", watch)
    run_recipe(recipe, tmp_path / "whole")
    each = len(asked)
    asked.clear()
    left[0] = each - 3  # in the last question of the second reader
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path / "part")
    left[0] = 10**6
    asked.clear()
    run_recipe(recipe, tmp_path / "part", resume=True)
    assert len(asked) == 3
    first, second = (read_artifact(tmp_path / name) for name in ("whole", "part"))
    assert first.digest == second.digest
    for name in ("comparison", "validation", "kept"):
        assert first.details[name] == second.details[name]


def test_headings_are_no_sentences():
    text = "# The mill\nThe mill ground corn. It rests.\n\nNight"
    spans = find_sentences(text, ["The mill", "Night"])
    assert [text[start:end] for start, end in spans] == ["The mill ground corn.", "It rests."]
    text = "## 8.3. Static libraries #\n\nIt is one.\n\n```\n# adduser user group\n```\n\n### End\n"
    spans = find_sentences(text, ["8.3. Static libraries"])
    assert [text[start:end] for start, end in spans] == [
        "It is one.",
        "```\n# adduser user group\n```",
    ]


@pytest.mark.parametrize(
    ("text", "is_table"),
    [
        ("sku;name;months\nK-01;Kettle, tall. Blue;24\nK-02;Kettle;36", True),
        ('sku,name,months\r\nK-01,"Kettle, tall",24\r\nK-02,Kettle,36', True),
        ("First, and then, a line\nof prose, which goes, on\nand on, again, so", False),
        ("let a = f(1);\nlet b = f(2);", False),
    ],
)
def test_the_lines_of_a_csv_table_are_a_sentence_each(text, is_table):
    found = [text[start:end] for start, end in find_sentences(text)]
    assert found == (text.splitlines() if is_table else [text])


LOGS = """\
2024-05-01 12:00:01,123 INFO root: server started
2024-05-01 12:00:01,456 WARNING root: cache is cold
2024-05-01 12:00:02,001 ERROR worker: job 17 failed

[2024-05-01 12:00:01,123] {taskinstance.py:1037} INFO - Dependencies all met
[2024-05-01 12:00:01,300] {taskinstance.py:1260} INFO - Starting attempt 1 of 2
[2024-05-01 12:00:03,800] {local_task_job.py:156} INFO - Task exited

INFO  [main] 2024-05-01 12:00:01,123 YamlConfigurationLoader.java:89 - Configuration location
WARN  [main] 2024-05-01 12:00:01,456 StartupChecks.java:143 - jemalloc not found
INFO  [main] 2024-05-01 12:00:02,000 CassandraDaemon.java:471 - Hostname: node1

12:00:01,123 |-INFO in ch.qos.logback.classic.LoggerContext[default] - Could NOT find resource
12:00:01,125 |-INFO in ch.qos.logback.classic.LoggerContext[default] - Found resource
12:00:01,200 |-WARN in ch.qos.logback.core - deprecated

2024-05-01T12:00:01,123 DEBUG [pool-1-thread-2] c.e.Service: request took 12 ms
2024-05-01T12:00:01,124 DEBUG [pool-1-thread-2] c.e.Service: response 200
2024-05-01T12:00:04,000 INFO [main] c.e.App: shutting down

INFO:2024-05-01 12:00:01,123:root:server started
INFO:2024-05-01 12:00:01,456:root:listening on 8080
ERROR:2024-05-01 12:00:02,001:worker:job failed

24/05/01 12:00:01,123 INFO mapreduce.Job:  map 0% reduce 0%
24/05/01 12:00:09,456 INFO mapreduce.Job:  map 100% reduce 0%
24/05/01 12:00:12,001 INFO mapreduce.Job:  map 100% reduce 100%

2024-05-01 12:00:01,123 INFO cache loaded 1,024 rows
2024-05-01 12:00:02,456 INFO cache loaded 2,048 rows
2024-05-01 12:00:03,001 INFO cache loaded 4,096 rows

[12:00:01,123][INFO][server] started
[12:00:01,456][WARN][server] slow disk
[12:00:02,001][INFO][server] stopped

[2024-05-01 12:00:01,123: INFO/MainProcess] Connected to redis
[2024-05-01 12:00:01,456: INFO/MainProcess] mingle: searching for neighbors
[2024-05-01 12:00:02,500: INFO/MainProcess] celery@host ready.

2024-05-01 12:00:01,123 UTC [88] LOG:  checkpoint starting: time
2024-05-01 12:00:06,456 UTC [88] LOG:  checkpoint complete
2024-05-01 12:01:01,001 UTC [90] ERROR:  relation does not exist""".split("\n\n")
OTHER_LOGS = """\
2024-05-01 12:00:01.123 INFO server started, port=8080
2024-05-01 12:00:02.456 INFO client joined, id=7
2024-05-01 12:00:03.001 INFO client left, id=7

May  1 12:00:01 host sshd[411]: Accepted publickey for ann
May  1 12:00:02 host sshd[411]: session opened
May  1 12:00:09 host cron[9]: job done

1.2.3.4 - - [01/May/2024:12:00:01 +0000] "GET / HTTP/1.1" 200 612 "-" "Mozilla/5 (KHTML, like Ge
1.2.3.4 - - [01/May/2024:12:00:02 +0000] "GET /a HTTP/1.1" 404 12 "-" "Mozilla/5 (KHTML, like Ge

2024-05-01 12:00:01.123 | INFO     | app:main:10 - started
2024-05-01 12:00:01.456 | WARNING  | app:main:12 - slow""".split("\n\n")
TABLES = """\
sku,name,months
K-01,Kettle,24
K-02,Pan,36

time,level,message
2024-05-01 12:00:01,INFO,server started
2024-05-01 12:00:02,ERROR,disk full

start,ms
12:00:01,123
12:00:02,456
12:00:03,789

2024-05-01 12:00:01,123\tINFO\tserver started
2024-05-01 12:00:02,001\tERROR\tdisk full

Zeit;Wert
12:00:01,123;4,5
12:00:02,456;4,6

K-01,Kettle,24
K-02,Pan,36
K-03,Lid,12

time,address
12:00:01,123 Main Street
12:00:02,456 Oak Avenue

time,value
"12:00:01,123",7
"12:00:02,456",8

at,host,status
2024-05-01T12:00:01Z,a,200
2024-05-01T12:00:02Z,b,500

gene\tstart\tend
BRCA1\t43044295\t43125364
TP53\t7668402\t7687550

2024-05-01 12:00:01 UTC,ok,5
2024-05-01 12:00:02 UTC,late,9

id|name|price
1|Kettle|24
2|Pan|36

12:00:01,123
12:00:02,456
12:00:03,789

12:00:01,123456,up
12:00:02,456789,down""".split("\n\n")


@pytest.mark.parametrize("text", LOGS)
def test_the_lines_of_a_log_are_sentences_and_no_rows(text):
    assert [text[start:end] for start, end in find_sentences(text)] == text.splitlines()
    assert find_rows(text) == []


@pytest.mark.parametrize("text", OTHER_LOGS)
def test_a_log_without_milliseconds_after_a_comma_has_no_rows(text):
    assert find_rows(text) == []


@pytest.mark.parametrize("text", TABLES)
def test_a_table_with_times_has_rows(text):
    assert [text[start:end] for start, end in find_sentences(text)] == text.splitlines()
    assert [text[start:end] for start, end in find_rows(text)] == text.splitlines()[1:]


@pytest.mark.parametrize(
    ("text", "records"),
    [
        (
            'sku,"size, color",months\r\nK-01,"tall.\r\nBlue, red",24\r\nK-02,small,36\r\n',
            ['sku,"size, color",months', 'K-01,"tall.\r\nBlue, red",24', "K-02,small,36"],
        ),
        (
            "| sku | size |\r\n| --- | --- |\r\n| K-01 | Tall. Blue |\r\n| K-02 | small |\r\n",
            ["| sku | size |", "| K-01 | Tall. Blue |", "| K-02 | small |"],
        ),
    ],
)
def test_a_row_with_line_breaks_in_quotes_and_rows_of_windows_are_a_sentence_each(text, records):
    assert [text[start:end] for start, end in find_sentences(text)] == records
    assert [text[start:end] for start, end in find_rows(text)] == records[1:]


def test_the_rows_of_a_table_that_began_in_another_passage_are_a_sentence_each():
    rows = ["| <delete-thread> | ^D | delete all messages |", "| <display> | @ | display it |"]
    text = "\n".join(rows)
    assert [text[start:end] for start, end in find_sentences(text)] == rows
    table = "| Name | Meaning |\n| --- | --- |\n"
    text = table + "| idle S | Ends a call. Default is 60. |\n| most N | Calls. |"
    found = [text[start:end] for start, end in find_sentences(text)]
    assert found[-2:] == ["| idle S | Ends a call. Default is 60. |", "| most N | Calls. |"]
    long = f"| a | {'Word. ' * 60}|\n| b | One. Two. |"
    found = [long[start:end] for start, end in find_sentences(long)]
    assert found[-2:] == ["Word.", "| b | One. Two. |"]
    code = "a |\n| b"
    assert [code[start:end] for start, end in find_sentences(code)] == [code]


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("To leave:\n- press q,\n  or\n- type exit. It asks.\n- Or wait\n\nEnd.",
         ["To leave:", "- press q,\n  or", "- type exit.", "It asks.", "- Or wait", "End."]),
        ("1. oak\n2. elm\n10. ash", ["1. oak", "2. elm", "10. ash"]),
        ("It was cold\n- and wet -\nthat day.", ["It was cold\n- and wet -\nthat day."]),
        ("/*\n * Opens the\n * weir\n */", ["/*\n * Opens the\n * weir\n */"]),
        ("```\n- oak: 1\n- elm: 2\n```", ["```\n- oak: 1\n- elm: 2\n```"]),
    ],
)  # fmt: skip
def test_the_items_of_a_list_are_sentences_of_their_own(text, sentences):
    assert [text[start:end] for start, end in find_sentences(text)] == sentences


def test_a_passage_that_does_not_fit_is_read_in_windows_of_whole_sentences(encoder):
    tokenizer = open_bert(encoder).tokenizer
    text = " ".join(["The mill ground corn."] * 9)
    sentences = find_sentences(text)
    windows = encode_passages(
        tokenizer,
        "What ground corn?",
        [("The mill", text, sentences)],
        special=find_special_tokens(tokenizer),
        max_tokens=24,
    )
    assert len(windows) > 1
    assert all(len(window.ids) == len(window.segments) <= 24 for window in windows)
    assert [span for window in windows for span in window.sentences] == sentences
    for window in windows:
        for (start, end), (first, last) in zip(window.sentences, window.tokens, strict=True):
            assert window.offsets[first][0] == start
            assert window.offsets[last - 1][1] == end


@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_a_trained_network_and_its_file_give_the_same_scores(encoder, tmp_path, kind):
    if kind == "mpnet":
        encoder = make_mpnet(encoder, tmp_path / "mpnet")
    network = ReaderNetwork(AutoModel.from_pretrained(encoder), LoraSettings(rank=4), seed=0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_" in name or not name.startswith("encoder"):
                parameter.copy_((torch.randn_like(parameter) * 0.2).half())  # as in the file
    save_file(network.export(), tmp_path / "reader.safetensors")
    config = {
        "base": str(encoder), "rank": 4, "alpha": 32.0, "threshold": 0.5,
        "weights": {"overlap": 0.0, "short": 0.0, "rank": 0.0},
        "calibration": dict.fromkeys([*FEATURES, "intercept"], 0.0),
    }  # fmt: skip
    (tmp_path / "reader.json").write_text(json.dumps(config), encoding="utf-8")
    reader = SentenceReader(tmp_path)
    passages = []
    for name in ("mill.md", "cats.md"):
        text = DOCUMENTS[name].split("\n\n")[1]
        spans = tuple(find_sentences(text))
        passages.append(ReaderPassage(name, text, spans, (True,) + (False,) * (len(spans) - 1)))
    reading = reader.read(
        "What ground corn?",
        [(part.title, part.text, part.sentences) for part in passages],
        NoOverlap(),
    )
    plain = open_bert(encoder)
    source = build_source(
        [ReaderExample("one", "What ground corn?", tuple(passages))],
        plain.tokenizer,
        special=find_special_tokens(plain.tokenizer),
        max_tokens=plain.max_positions,
        batch_size=1,
        micro_tokens=512,
        seed=0,
        device=torch.device("cpu"),
    )
    batch = source.load([0])
    with torch.no_grad():
        sentences, no_answer, ends = network(batch)
    expected = [
        float(logit)
        for row, part in zip(sentences, passages, strict=True)
        for logit in row[: len(part.sentences)]
    ]
    found = [
        sentence.logit
        for sentence in sorted(reading.sentences, key=lambda one: (one.passage, one.start))
    ]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert reading.no_answer == pytest.approx(float(no_answer.mean()), abs=1e-4)
    first = next(one for one in reading.sentences if one.short)  # none where it is the sentence
    window = encode_passages(
        plain.tokenizer,
        "What ground corn?",
        [(part.title, part.text, part.sentences) for part in passages],
        special=find_special_tokens(plain.tokenizer),
    )[first.passage]
    begin = next(
        p for p, span in enumerate(window.offsets) if span[0] == first.short[0] and span[1]
    )
    stop = next(p for p, span in enumerate(window.offsets) if span[1] == first.short[1])
    expected = float(ends[first.passage, begin, 0] + ends[first.passage, stop, 1])
    assert first.short_logit == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "reference", ["builtin:reader", "builtin:reader-large", "builtin:reader-multilingual"]
)
def test_a_packaged_reader_is_whole_and_has_a_card(reference):
    folder = find_reader(reference)
    config = json.loads((folder / "reader.json").read_bytes())
    tensors = load_file(folder / "reader.safetensors")
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if name.endswith("lora_A")}
    assert ranks == {config["rank"]}
    assert all(name.replace("lora_A", "lora_B") in tensors for name in tensors)
    assert config["base"].removeprefix("hub:") in (folder / "README.md").read_text()
    assert 0 < config["threshold"] < 1


def test_neither_a_whole_sentence_nor_a_full_stop_is_shown_as_a_short_answer():
    reading = open_reader("builtin:reader").read("Is it?", [("T", "Yes.", [(0, 4)])], NoOverlap())
    assert [one.short for one in reading.sentences] == [None]


@pytest.mark.parametrize(
    ("text", "found", "shown"),
    [
        ("The limit is 4096 bytes.", "4096 bytes", "4096 bytes"),
        ("The limit is 4096 bytes.", "409", None),
        ("It holds 2e+13 rows.", "13 rows", None),
        ("It holds 2e+13 rows.", "2e+13 rows", "2e+13 rows"),
        ("It came in version 3.45.0, then.", "3.45", None),
        ("It came in version 3.45.0, then.", "3.45.0", "3.45.0"),
        ("The size is -2000 pages.", "2000 pages", None),
        ("Take pages 3-5 of it.", "5", "5"),
        ("The mill burns oak.", "mil", None),
        ("SQLITE_DEFAULT_PAGE_SIZE=<bytes> sets it.", "<bytes", None),
        ("The list (of pages) is free.", "list (of", None),
        ('An internal "free-list" is used.', 'free-list"', "free-list"),
        ("Type B is an integer.", "B", None),
        ("Pin 5 is ground.", "5", "5"),
        ("首都は東京です。", "東京", "東京"),
        ("Er heizt mit Holz.", "Er heizt mit Holz", None),
        ("It is if a < b or c.", "a < b", "a < b"),
    ],
)
def test_a_short_answer_is_of_whole_words(text, found, shown):
    start = text.index(found)
    span = _find_whole_words(text, (start, start + len(found)), (0, len(text)))
    assert (None if span is None else text[slice(*span)]) == shown


def test_a_job_trains_calibrates_and_can_be_verified(trained):
    config = json.loads((trained / "output" / "reader.json").read_bytes())
    assert 0 < config["threshold"] < 1
    assert {*FEATURES, "intercept"} == config["calibration"].keys()
    assert not verify_artifact(trained)
    tensors = load_file(trained / "output" / "reader.safetensors")
    assert any(np.abs(tensor).max() > 0 for name, tensor in tensors.items() if "lora_B" in name)


def test_the_same_recipe_gives_the_same_bytes(place, encoder, trained, tmp_path):
    run_recipe(make_recipe(place, encoder), tmp_path / "again")
    for name in ("reader.json", "reader.safetensors"):
        again = (tmp_path / "again" / "output" / name).read_bytes()
        assert again == (trained / "output" / name).read_bytes()


def test_its_training_is_replayed_and_another_is_found(place, encoder, trained, tmp_path):
    def find(folder, amount):
        job = plan_replay(folder, ReplayAmount.parse(amount), seed=1).run().jobs[0]
        assert len(job.segments) == 4
        return {one.name for one in job.differences}

    assert find(trained, "1") == find(trained, "all") == set()
    forged = place / "forged"
    run_recipe(make_recipe(place, encoder, **{"train.learning_rate": 0.0011}), forged)
    reseal(forged, recipe=(trained / "recipe.yaml").read_text(encoding="utf-8"))
    assert {"train/start", "train/0-1"} <= find(forged, "all")


def test_a_reader_is_trained_further_and_another_base_is_refused(place, encoder, trained, tmp_path):
    start = trained / "output"
    artifact = run_recipe(make_recipe(place, encoder, start=start), tmp_path / "further")
    assert artifact.details["train"]["steps"] == 3
    # One or two held-out questions show nothing: the start is kept, and its figures told.
    assert artifact.details["kept"] == "start"
    for name in ("reader.json", "reader.safetensors"):
        kept = (tmp_path / "further" / "output" / name).read_bytes()
        assert kept == (start / name).read_bytes()
    config = json.loads((start / "reader.json").read_bytes())
    assert artifact.details["validation"]["threshold"] == config["threshold"]
    assert {parent.role for parent in artifact.parents} == {"index", "questions", "base", "start"}
    with pytest.raises(CheckpointError) as caught:
        run_recipe(
            make_recipe(place, encoder, start=start, **{"train.lora.alpha": 8}), tmp_path / "scaled"
        )
    assert caught.value.code == "checkpoint.other-base"
    with pytest.raises(CheckpointError) as caught:
        run_recipe(
            make_recipe(place, encoder, start=start, **{"train.lora.rank": 4}), tmp_path / "other"
        )
    assert caught.value.code == "checkpoint.other-base"


@pytest.mark.parametrize(
    ("count", "given", "silent", "kept"),
    [
        (30, True, True, "trained"),
        (6, True, True, "start"),  # too few questions for an interval
        (30, False, True, "start"),  # the same right sentences, but not one of them is given
        (30, True, False, "start"),  # as probable as what does not answer: silenced with it
    ],
)
def test_a_trained_reader_is_judged_by_the_answers_that_it_gives(
    trained, tmp_path, monkeypatch, count, given, silent, kept
):
    readings = [(read(1.0 if given else -1.0), read(), read(-1.0 if silent else 1.0))] * count
    before = [(read(-1.0), read(), read(-1.0))] * count
    chosen, told = choose(trained, tmp_path, monkeypatch, before, readings)
    assert chosen["kept"] == kept
    assert (tmp_path / "reader.safetensors").exists() == (kept == "start")
    assert chosen["comparison"]["shift"] == (0 if silent else -2)
    assert any("-2.00 was added to the logit" in text for text in told) == (not silent)
    assert not any("+0.00 was added" in text for text in told)


@pytest.mark.parametrize("shift", [-2.0, 0.0, 2.0])
def test_a_reader_whose_probabilities_moved_is_compared_and_served_at_equal_silence(
    trained, tmp_path, monkeypatch, shift
):
    # Of 25 questions without an answer two are answered before, and no more by what is kept.
    others = [-4 + 0.15 * number for number in range(23)] + [0.5, 0.7]
    before = [(read(-0.5), read(), read(margin)) for margin in others]
    after = [(read(1.0 + shift), read(), read(margin + shift)) for margin in others]
    chosen, _ = choose(trained, tmp_path, monkeypatch, before, after)
    assert chosen["kept"] == "trained"
    served = json.loads((tmp_path / "reader.json").read_bytes())
    assert (served["threshold"], served["alpha"]) == (CONFIG["threshold"], 8.0)
    intercept = served["calibration"].pop("intercept")
    assert served["calibration"].items() <= CONFIG["calibration"].items()
    assert chosen["comparison"]["shift"] == intercept
    assert sum(margin + shift + intercept >= 0 for margin in others) == 2
    assert chosen["validation"]["silent_foreign"] == 23 / 25
    assert chosen["validation"]["silent_answerable"] == 0


def test_a_kept_reader_is_written_with_its_shift_and_its_training_is_replayed(
    place, encoder, trained, tmp_path, monkeypatch
):
    rows = [
        {"question": f"{question[:-1]} {one}?", "answers": answers, "evidence": [evidence]}
        for question, answers, evidence in QUESTIONS
        for one in range(22)
    ]
    (tmp_path / "many.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    start = tmp_path / "start"
    shutil.copytree(trained / "output", start)
    config = json.loads((start / "reader.json").read_bytes()) | CONFIG
    (start / "reader.json").write_text(json.dumps(config), encoding="utf-8")
    better, before = (read(2.0), read(), read(1.0)), (read(-0.5), read(), read(-1.0))
    first = SentenceReader(start).fingerprint
    monkeypatch.setattr(
        training_run,
        "_read_held_out",
        lambda reader, _, held_out, *__: (
            [before if reader.fingerprint == first else better] * len(held_out)
        ),
    )
    recipe = make_recipe(place, encoder, questions=f"[{tmp_path / 'many.jsonl'}]", start=start)
    written = []
    for name in ("first", "again"):
        assert run_recipe(recipe, tmp_path / name).details["kept"] == "trained"
        written.append((tmp_path / name / "output" / "reader.json").read_bytes())
    assert written[0] == written[1]
    kept = json.loads(written[0])
    assert kept == config | {"calibration": config["calibration"] | {"intercept": -2.0}}
    assert not verify_artifact(tmp_path / "first")
    job = plan_replay(tmp_path / "first", ReplayAmount.parse("1"), seed=1).run().jobs[0]
    assert not job.differences


GERMAN = {
    "ofen.md": "# Der Ofen\n\nDer Ofen der Töpferei verbrennt nur trockenes Holz von Eichen.\n",
    "fluss.md": "# Der Fluss\n\nDer Fluss trennt die beiden alten Dörfer des Tals voneinander.\n",
}


def pack(monkeypatch, multilingual):
    """Let a folder be the packaged multilingual reader."""
    folders = {"builtin:reader": find_reader("builtin:reader")}
    monkeypatch.setattr(
        reader, "_BUILTIN_FOLDERS", folders | {"builtin:reader-multilingual": multilingual}
    )
    _open_cached.cache_clear()


@pytest.fixture
def german(tmp_path):
    """Return a folder with an index of German documents, questions, and a recipe."""
    (tmp_path / "documents").mkdir()
    for name, text in GERMAN.items():
        (tmp_path / "documents" / name).write_text(text, encoding="utf-8")
    recipe = "kind: rag.index\ndocuments: documents\nembedder: builtin:static\n"
    run_recipe(parse_recipe(recipe, folder=tmp_path), tmp_path / "index")
    rows = [
        {"question": f"Was ist {one}?", "answers": [one], "evidence": [text.split("\n")[2]]}
        for text in GERMAN.values()
        for one in re.findall(r"[A-Z]\w+", text.split("\n")[2])
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    yield tmp_path
    _open_cached.cache_clear()


def read_start(folder, **changes):
    """Return the recipe of a reader that begins as the packaged one, in a folder with an index."""
    settings = {"start": "builtin:reader", "train.steps": 2, "train.threads": 1, **changes}
    text = "kind: rag.reader\nindex: index\nquestions: [questions.jsonl]\n"
    return parse_recipe(text, overrides=[f"{k}={v}" for k, v in settings.items()], folder=folder)


def test_training_on_german_documents_begins_as_the_multilingual_reader(
    german, encoder, trained, monkeypatch
):
    pack(monkeypatch, trained / "output")
    artifact = run_recipe(read_start(german), german / "reader")
    taken = {parent.role: parent.path for parent in artifact.parents}
    assert (taken["start"], taken["base"]) == ("builtin:reader-multilingual", str(encoder))
    assert artifact.details["kept"] == "start"
    for name in ("reader.json", "reader.safetensors"):
        kept = (german / "reader" / "output" / name).read_bytes()
        assert kept == (trained / "output" / name).read_bytes()
    for amount in ("1", "all"):
        replayed = plan_replay(german / "reader", ReplayAmount.parse(amount), seed=1).run()
        assert not replayed.jobs[0].differences


def test_the_packaged_arm_on_german_documents_is_the_multilingual_reader(
    german, trained, monkeypatch
):
    pack(monkeypatch, trained / "output")
    text = """\
kind: rag.answer_evaluation
index: index
questions: questions.jsonl
model: "scripted:none"
pipelines: [keyword=>generate]
max_questions: 2
compare: {readers: {packaged: "builtin:reader"}, model_questions: 0}
"""
    artifact = run_recipe(parse_recipe(text, folder=german), german / "report")
    (parent,) = [parent for parent in artifact.parents if parent.role == "reader"]
    assert parent.path == "builtin:reader-multilingual"
    assert parent.digest == open_reader(str(trained / "output")).fingerprint


def test_a_base_that_is_not_that_of_the_multilingual_reader_is_refused(
    german, place, encoder, trained, monkeypatch
):
    pack(monkeypatch, trained / "output")
    other = make_encoder(german / "other")
    with pytest.raises(CheckpointError) as caught:
        run_recipe(read_start(german, base=other), german / "reader")
    assert caught.value.code == "checkpoint.other-base"


def test_the_packaged_reader_is_the_start_where_no_other_one_suits_or_can_be_opened(
    german, place, trained, monkeypatch, tmp_path
):
    monkeypatch.setattr(training_run, "train_reader", lambda recipe, job: recipe)
    for folder, multilingual, warned in (
        (german, german / "none", 1),
        (place, trained / "output", 0),
    ):
        pack(monkeypatch, multilingual)
        said: list[str] = []
        recipe = read_start(folder)
        assert run_reader(recipe, SimpleNamespace(warn=said.append)) == recipe
        assert len(said) == warned


@pytest.mark.parametrize("name", ["builtin:reader", "builtin:reader-multilingual"])
def test_the_settings_of_a_reader_fit_each_packaged_start(name):
    config = json.loads((find_reader(name) / "reader.json").read_bytes())
    lora = ReaderTrainSettings().lora
    assert (config["rank"], config["alpha"]) == (lora.rank, lora.alpha)


def test_the_large_reader_reads_english_where_its_base_and_onnxruntime_are(trained, monkeypatch):
    folders = {**reader._BUILTIN_FOLDERS, "builtin:reader-large": trained / "output"}
    monkeypatch.setattr(reader, "_BUILTIN_FOLDERS", folders)

    def choose(reference="builtin:reader", languages=("en", "de", "en")):
        reader._has_large_reader.cache_clear()
        return choose_reader(reference, languages)

    assert choose() == choose(languages=()) == ("builtin:reader-large", "")
    assert choose("builtin:reader-small") == ("builtin:reader-small", "")
    assert choose(str(trained)) == (str(trained), "")
    with monkeypatch.context() as without:
        without.setattr(reader, "can_quantize", lambda: False)
        assert choose() == ("builtin:reader", "")
    monkeypatch.setattr(reader, "is_local", lambda base: False)
    assert choose() == ("builtin:reader", "")
    reader._has_large_reader.cache_clear()


@pytest.mark.parametrize(
    ("start", "answers"),
    [("builtin:reader", "builtin:reader-large"), ("builtin:reader-small", "")],
)
def test_a_start_that_training_kept_answers_as_that_start(start, answers, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "_prefer_large", lambda name: ("builtin:reader-large", ""))

    def keep(name, taken):
        job = Job.start(tmp_path / name, "recipe\n")
        for file in ("reader.json", "reader.safetensors"):
            shutil.copy(find_reader("builtin:reader") / file, job.output)
        job.finish("checkpoint", parents=[Parent("start", taken, "")], details={"kept": "start"})
        return str(tmp_path / name)

    first = keep("first", start)
    again = keep("again", "../first")
    for folder in (first, f"{first}/output", again):
        assert choose_reader(folder, ["en"]) == (answers or folder, "")


@pytest.mark.parametrize("why", ["base", "onnxruntime"])
def test_a_large_reader_that_cannot_be_opened_gives_way_to_the_small_one(
    trained, monkeypatch, tmp_path, why
):
    folders = {"builtin:reader": trained / "output", "builtin:reader-large": tmp_path}
    if why == "onnxruntime":  # found, and broken
        folders["builtin:reader-large"] = shutil.copytree(trained / "output", tmp_path / "wide")
        monkeypatch.setattr(adapted_bert, "_MAX_FLOAT_WIDTH", 0)
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        monkeypatch.setattr(adapted_bert, "can_quantize", lambda: True)
    monkeypatch.setattr(reader, "_BUILTIN_FOLDERS", folders)
    monkeypatch.setattr(reader, "_has_large_reader", lambda: True)
    _open_cached.cache_clear()
    small = SimpleNamespace(fingerprint="small")
    opened = reader.open_reader
    monkeypatch.setattr(
        reader, "open_reader", lambda name: small if name == "builtin:reader" else opened(name)
    )
    answering, warning = open_available_reader("builtin:reader", ["en"])
    assert answering is small
    code = {"base": "checkpoint.not-a-reader", "onnxruntime": "extra.missing"}[why]
    assert warning.startswith(f"builtin:reader-large is installed but cannot be opened ({code})")
    assert str(tmp_path) not in warning  # clients of a server read it
    _open_cached.cache_clear()


def test_a_wide_reader_is_read_in_8_bits_and_says_so(trained, monkeypatch):
    exact = SentenceReader(trained / "output")
    monkeypatch.setattr(adapted_bert, "_MAX_FLOAT_WIDTH", 0)
    rounded = SentenceReader(trained / "output")
    assert (exact.precision, rounded.precision) == ("float32", "int8")
    assert exact.fingerprint != rounded.fingerprint
    passages = [("The mill", "The mill ground corn. It rests.", [(0, 21), (22, 31)])]
    first, second = (
        opened.read("When does it rest?", passages, NoOverlap()) for opened in (exact, rounded)
    )
    assert [one.start for one in first.sentences] == [one.start for one in second.sentences]
    assert first.probability == pytest.approx(second.probability, abs=0.05)
    assert first.probability != second.probability


def test_a_reader_reads_as_many_passages_as_it_was_calibrated_for(place, trained, tmp_path):
    shutil.copytree(trained / "output", tmp_path / "one")
    config = json.loads((tmp_path / "one" / "reader.json").read_bytes())
    settings = {"name": "quote", "min_probability": 0.0, "reader": str(tmp_path / "one")}
    question, read = "When does a cat rest at night by the river?", []
    for number in (1, 2):
        (tmp_path / "one" / "reader.json").write_text(json.dumps(config | {"passages": number}))
        _open_cached.cache_clear()
        with Index.open(place / "index") as index:
            answer = ask(index, scripted_model({}), question, k=1, answering=settings)
        read.append(answer.details["trace"][0]["found"])
    assert read == [1, 2]
    (tmp_path / "one" / "reader.json").write_text(json.dumps(config | {"passages": 51}))
    with pytest.raises(CheckpointError, match="51 passages cannot be read"):
        SentenceReader(tmp_path / "one")
    _open_cached.cache_clear()


def test_training_on_the_multilingual_encoder_is_expected_to_take_twice_the_time(place):
    plain, other = (
        estimate(make_recipe(place, base)) for base in (DEFAULT_EMBEDDER, MULTILINGUAL_EMBEDDER)
    )
    assert other.seconds == 2 * plain.seconds > 0


@pytest.mark.parametrize("languages", [[], [""], ["en", "de"], ["English", "English"]])
def test_languages_that_are_unknown_or_mostly_english_choose_no_other_reader(languages):
    assert choose_reader("builtin:reader", languages) == ("builtin:reader", "")


def test_few_readings_without_an_answer_are_told(trained, tmp_path, monkeypatch):
    before = [(read(-1.0), read(), read(-1.0 if one < 8 else None)) for one in range(30)]
    after = [(read(1.0), read(), read(-1.5 if one < 8 else None)) for one in range(30)]
    chosen, told = choose(trained, tmp_path, monkeypatch, before, after)
    assert chosen["comparison"]["shift"] == 0.5  # all stay unanswered, by as much as before
    assert "rests on 8 questions without any document that answers" in told[0]


CONFIG = {
    "weights": dict.fromkeys(("overlap", "short", "rank"), 0.0),
    "calibration": {name: float(name == "margin") for name in (*FEATURES, "intercept")},
    "threshold": 0.5,
}


def read(margin: float | None = None) -> HeldOutScores:
    """Return the reading of one sentence that answers, or of none."""
    if margin is None:
        return HeldOutScores([], [], 0.0, lambda _: 0.0)
    best = ScoredSentence(0, 0, 9, margin, 0.0, 0.0)
    return HeldOutScores([best], [True], 0.0, lambda _: 0.0)


def choose(trained, folder, monkeypatch, before, after):
    """Choose between readings of the start and of a trained reader, of questions with answers."""
    question = JudgedQuestion("q", "What?", ("corn",))
    held_out = [training_run._RetrievedQuestion(question, [], "d", None)] * len(after)
    monkeypatch.setattr(training_run, "_read_held_out", lambda *_: before)
    monkeypatch.setattr(SentenceReader, "__init__", lambda self, _: setattr(self, "config", CONFIG))
    (folder / "reader.json").write_text(json.dumps({**CONFIG, "alpha": 8.0}), encoding="utf-8")
    told: list[str] = []
    job = SimpleNamespace(output=folder, say=told.append, warn=told.append)
    recipe = SimpleNamespace(start=trained / "output")
    return training_run._choose(recipe, held_out, after, job), told


def test_a_question_in_other_words_is_learned_from_though_a_search_misses_its_passage(
    place, encoder, tmp_path, monkeypatch
):
    row = {"question": "What do the cats do?", "answers": [], "evidence": ["The mill ground corn."]}
    (tmp_path / "odd.jsonl").write_text(json.dumps(row), encoding="utf-8")
    recipe = make_recipe(place, encoder, questions=f"[{tmp_path / 'odd.jsonl'}]")
    monkeypatch.setattr(training_run, "_SPARE_HITS", 1 - recipe.k)
    job = Job.start(tmp_path / "reader", "recipe\n")
    (entry,) = training_run._retrieve(recipe, job)
    searched, found = (hit.passage.text for hit in entry.hits)
    assert "mill" not in searched
    assert "The mill ground corn." in found
    assert entry.document == entry.hits[1].passage.document_id


def test_questions_about_other_documents_are_refused(place, encoder, tmp_path):
    row = {"question": "Who?", "answers": ["nobody"], "evidence": ["Nobody wrote this sentence."]}
    (tmp_path / "other.jsonl").write_text(json.dumps(row), encoding="utf-8")
    recipe = make_recipe(place, encoder, questions=f"[{tmp_path / 'other.jsonl'}]")
    with pytest.raises(DataError) as caught:
        run_recipe(recipe, tmp_path / "reader")
    assert caught.value.code == "rag.no-evidence"


def test_questions_that_cannot_be_learned_from_are_counted(place, encoder, tmp_path):
    rows = [{"question": "Why?", "answers": ["so"]}]
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    both = f"[questions.jsonl, {tmp_path / 'more.jsonl'}]"
    run_recipe(make_recipe(place, encoder, questions=both), tmp_path / "reader")
    told = "".join(path.read_text() for path in (tmp_path / "reader").rglob("*.jsonl"))
    assert f"1 of {len(QUESTIONS) + 1} questions are left out" in told


def test_questions_without_an_answer_teach_silence(place, encoder, tmp_path):
    rows = [
        {"question": f"Who {verb} the mill?", "answers": []}
        for verb in ("built", "sold", "burned", "owns", "painted", "moved", "drew", "left")
    ]
    (tmp_path / "open.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    both = f"[questions.jsonl, {tmp_path / 'open.jsonl'}]"
    artifact = run_recipe(make_recipe(place, encoder, questions=both), tmp_path / "reader")
    told = "".join(path.read_text() for path in (tmp_path / "reader").rglob("*.jsonl"))
    trained, silent = re.search(
        r"(\d+) questions for training, (\d+) of them without", told
    ).groups()
    assert 0 < int(silent) < int(trained)
    validation = artifact.details["validation"]
    assert validation["silent_unanswerable"] is not None
    held_out = (tmp_path / "reader" / "output" / "held_out.jsonl").read_text().splitlines()
    answerable = [row for row in map(json.loads, held_out) if row["answers"]]
    assert len(answerable) == validation["questions"] < len(held_out)


def test_questions_that_judge_are_not_learned_from(place, encoder, tmp_path):
    rows = [{"question": "what ground CORN", "answers": ["The mill"]}]
    (tmp_path / "judge.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = make_recipe(place, encoder, without=f"[{tmp_path / 'judge.jsonl'}]")
    run_recipe(recipe, tmp_path / "reader")
    told = "".join(path.read_text() for path in (tmp_path / "reader").rglob("*.jsonl"))
    assert "1 question is left out, since they judge the reader" in told
    assert f"of {len(QUESTIONS)} examples" not in told


def test_a_judgment_of_the_sentence_that_judges_is_not_learned_from(place, encoder, tmp_path):
    quote = QUESTIONS[0][2]
    part = {"document_id": "d", "passage": "p", "start": 0, "end": len(quote), "quote": quote}
    asked = (f"What, in the words of {at}?" for at in range(99))
    judged = [Judgment("quote", AskedAnswer(one, "?"), (quote,), (part,)) for one in asked]
    learned = next(one for one in judged if one.side == "train")
    judging = next(one for one in judged if one.side == "test")
    store = JudgmentStore(tmp_path / "run.judgments")
    store.add(learned)
    store.add(judging)
    recipe = make_recipe(
        place,
        encoder,
        questions=f"[questions.jsonl, {store.path_of('train')}]",
        without=f"[{store.path_of('test')}]",
    )
    run_recipe(recipe, tmp_path / "reader")
    told = "".join(path.read_text() for path in (tmp_path / "reader").rglob("*.jsonl"))
    assert "1 question is left out" in told  # the other record of the sentence is learned from


def test_a_base_that_is_no_bert_is_refused(place, tmp_path):
    tiny_checkpoint(tmp_path / "llama")
    with pytest.raises(CheckpointError) as caught:
        run_recipe(make_recipe(place, tmp_path / "llama"), tmp_path / "reader")
    assert caught.value.code == "checkpoint.not-a-bert"


def answer(place: Path, question: str, **settings):
    model = scripted_model(["never asked"])
    with Index.open(place / "index") as index:
        return ask(index, model, question, answering={"name": "quote", **settings})


def test_quotes_are_bytes_of_the_source(place, trained):
    found = answer(
        place, "What ground corn?", reader=str(trained), min_probability=0.0, margin=99.0
    )
    quotes = found.details["quotes"]
    assert quotes
    assert found.details["calls"] == 0
    for quote in quotes:
        source = (place / "documents" / quote["path"]).read_bytes()
        assert quote["is_exact"]
        assert source[quote["byte_start"] : quote["byte_end"]].decode() == quote["text"]
        assert f"{quote['text']} [{quote['number']}]" in found.completion.text
    assert {citation.number for citation in found.citations} == {
        quote["number"] for quote in quotes
    }


def test_below_the_probability_it_abstains_and_quotes_the_nearest_sentences(place, trained):
    found = answer(place, "What ground corn?", reader=str(trained), min_probability=1.0)
    assert found.details["abstained"]
    assert found.details["refusal"] == "no-answer"
    assert {quote["passage_id"] for quote in found.details["quotes"]} == {*found.details["nearest"]}


def test_threads_that_need_a_reader_share_the_one_that_is_opened(monkeypatch):
    opened = []

    class Slow:
        def __init__(self, folder):
            time.sleep(0.02)
            opened.append(folder)

    monkeypatch.setattr("stillroom.rag.answer_selection.reader.SentenceReader", Slow)
    _open_cached.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(open_reader, ["builtin:reader"] * 8))
    _open_cached.cache_clear()
    assert len(found) == len(opened) == 1


def test_a_reader_without_its_base_says_what_to_install(monkeypatch):
    def fail(reference):
        raise CheckpointError("no base", code="checkpoint.not-found", next="pip install it")

    monkeypatch.setattr("stillroom.rag.answer_selection.adapted_bert.resolve_checkpoint", fail)
    _open_cached.cache_clear()
    with pytest.raises(CheckpointError) as caught:
        open_reader("builtin:reader")
    assert caught.value.problems[0].next == "pip install it"


def test_a_folder_without_a_reader_is_named(tmp_path):
    with pytest.raises(CheckpointError) as caught:
        open_reader(str(tmp_path))
    assert caught.value.code == "checkpoint.not-a-reader"


def test_a_reader_learns_from_questions_and_finds_answers_in_other_documents(encoder, tmp_path):
    animals = ["cat", "dog", "mill", "river", "house", "lemon", "corn", "sugar"]
    places = ["at night", "in paris", "in france", "at river", "at house", "north of mill"]
    (tmp_path / "documents").mkdir()
    rows = []
    for number in range(24):
        order = np.random.default_rng(number).permutation(len(animals))[:5]
        subjects = [animals[place] for place in order]
        sentences = [
            f"The {subject} sleeps {places[(number + place) % len(places)]}."
            for place, subject in enumerate(subjects)
        ]
        text = f"# Python {number}\n\n{' '.join(sentences)}\n"
        (tmp_path / "documents" / f"{number}.md").write_text(text, encoding="utf-8")
        rows += [
            {
                "question": f"Python {number}: when is the {subject} of it?",
                "answers": [sentence.split("sleeps ")[1].strip(".")],
                "evidence": [sentence],
            }
            for subject, sentence in zip(subjects, sentences, strict=True)
        ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = "kind: rag.index\ndocuments: documents\nembedder: builtin:static\n"
    run_recipe(parse_recipe(recipe, folder=tmp_path), tmp_path / "index")
    settings = {
        "train.steps": 60, "train.batch_size": 8, "train.learning_rate": 0.003, "k": 2,
        "unanswerable": 0.0,
    }  # fmt: skip
    recipe = make_recipe(tmp_path, encoder, **settings)
    figures = run_recipe(recipe, tmp_path / "reader").details["validation"]
    assert figures["questions"] == 50
    # Chance finds 2 of them: five passages of five sentences. Two seeds found 12.
    assert figures["first_by_logit"] >= 7


def test_nothing_held_out_leaves_a_reader_that_is_never_silent(place, encoder, tmp_path):
    row = {"question": QUESTIONS[0][0], "answers": QUESTIONS[0][1], "evidence": [QUESTIONS[0][2]]}
    (tmp_path / "one.jsonl").write_text(json.dumps(row), encoding="utf-8")
    recipe = make_recipe(place, encoder, questions=f"[{tmp_path / 'one.jsonl'}]")
    figures = run_recipe(recipe, tmp_path / "reader").details["validation"]
    assert (figures["questions"], figures["threshold"]) == (0, 0.0)


def test_all_held_out_leaves_nothing_to_train_on(place, encoder, tmp_path):
    with pytest.raises(DataError) as caught:
        run_recipe(make_recipe(place, encoder, validation=0.9), tmp_path / "reader")
    assert caught.value.code == "data.no-questions"


def test_a_folder_of_another_layout_is_no_reader(trained, tmp_path):
    tensors = load_file(trained / "output" / "reader.safetensors")
    del tensors["ends.weight"]
    save_file(tensors, tmp_path / "reader.safetensors")
    (tmp_path / "reader.json").write_bytes((trained / "output" / "reader.json").read_bytes())
    with pytest.raises(CheckpointError) as caught:
        open_reader(str(tmp_path))
    assert caught.value.code == "checkpoint.not-a-reader"


TAMPERED = [
    ("rank", 0), ("rank", 16), ("alpha", 1e300), ("alpha", -1), ("alpha", 10**400),
    ("base", "\0"), ("threshold", float("inf")), ("threshold", "x"),
]  # fmt: skip


def list_tampered_folders(folder: Path, name: str, changes) -> Iterator[str]:
    """Change one number or one tensor's shape of a reader or checker at a time."""
    files = [folder / f"{name}.json", folder / f"{name}.safetensors"]
    config, tensors = json.loads(files[0].read_bytes()), load_file(files[1])
    for key, value in changes:
        files[0].write_text(json.dumps({**config, key: value}))
        yield f"{key} {value!r:.20}"
    files[0].write_text(json.dumps(config))
    factors = [key for key in tensors if ".lora_" in key][:2]
    for key in [*factors, *(key for key in tensors if ".lora_" not in key)]:
        value = tensors[key]
        for other in (value[None], value[:0], np.concatenate([value, value]), value.T[:-1]):
            save_file({**tensors, key: np.ascontiguousarray(other)}, files[1])
            yield f"{key} {other.shape}"
        save_file({one: tensors[one] for one in tensors if one != key}, files[1])
        yield f"no {key}"


def test_a_tampered_reader_is_refused(trained, tmp_path):
    folder = shutil.copytree(trained / "output", tmp_path / "reader")
    config = json.loads((folder / "reader.json").read_bytes())
    nested = [
        (part, {**config[part], key: value})
        for part, key in (("calibration", "cosine"), ("weights", "rank"))
        for value in (float("nan"), 10**400, None)
    ]
    for change in list_tampered_folders(folder, "reader", [*TAMPERED, ("threshold", 2), *nested]):
        with pytest.raises(CheckpointError):
            pytest.fail(f"{change} is not refused: {SentenceReader(folder)}")


def test_a_tampered_start_is_refused_before_it_is_trained(
    place, encoder, trained, tmp_path, monkeypatch
):
    folder = shutil.copytree(trained / "output", tmp_path / "reader")
    config = json.loads((folder / "reader.json").read_bytes())
    (folder / "reader.json").write_text(json.dumps({**config, "calibration": {}}))
    monkeypatch.setattr(training_run, "train", lambda *_, **__: pytest.fail("it was trained"))
    with pytest.raises(CheckpointError) as caught:
        run_recipe(make_recipe(place, encoder, start=folder), tmp_path / "out")
    assert caught.value.code == "checkpoint.not-a-reader"


def test_a_whole_sentence_is_no_short_answer():
    text = "The mill was closed in 1950."
    passage = ReaderPassage("", text, ((0, len(text)),))
    evidence = (EvidenceSpan(text, "doc"),)
    for answers, short in (((text,), None), ((text, "1950"), (23, 27))):
        question = JudgedQuestion("1", "When?", answers, evidence)
        (labeled,) = label_passages(question, [passage])
        assert (labeled.answers, labeled.short) == ((True,), short)


def test_a_single_question_trains_a_reader_that_is_never_silent(place, encoder, tmp_path, capsys):
    row = {"question": "What ground corn?", "answers": ["The mill"]}
    row["evidence"] = ["The mill ground corn."]
    (tmp_path / "one.jsonl").write_text(json.dumps(row), encoding="utf-8")
    recipe = make_recipe(place, encoder, questions=f"[{tmp_path / 'one.jsonl'}]")
    run_recipe(recipe, tmp_path / "reader")
    assert open_reader(str(tmp_path / "reader")).threshold == 0
    further = make_recipe(
        place, encoder, questions=f"[{tmp_path / 'one.jsonl'}]", start=tmp_path / "reader"
    )
    details = run_recipe(further, tmp_path / "further").details
    assert details["kept"] == "start"
    unknown = dict.fromkeys(("difference", "low", "high", "shift"))
    assert details["comparison"] == {**unknown, "n": 0}


def test_a_base_that_was_relative_to_the_training_is_found_elsewhere(trained, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(trained, moved)
    config = json.loads((moved / "output/reader.json").read_text())
    (moved / "output/reader.json").write_text(json.dumps({**config, "base": "encoder-of-then"}))
    assert SentenceReader(moved / "output").config["base"] == "encoder-of-then"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_line_of_signs_below_a_heading_is_no_part_of_a_sentence(end):
    def read(*lines):
        text = end.join(lines)
        return [text[a:b] for a, b in find_sentences(text, ["The mill", "Oil"])]

    assert read("The mill", "========", "It runs.", "It rests.") == ["It runs.", "It rests."]
    assert read("========", "The mill", "========", "It runs.") == ["It runs."]
    assert read("It runs.", "", "Oil", "~~~", "It takes oil.") == ["It runs.", "It takes oil."]
    assert read("## The mill", "~~~~", "It = 1", "~~~~") == [end.join(["~~~~", "It = 1", "~~~~"])]
    assert read("The mill", "~~~", "It = 1", "~~~") == [end.join(["~~~", "It = 1", "~~~"])]
    assert read("A dash", "-----", "It runs.") == [end.join(["A dash", "-----", "It runs."])]
    assert read("It runs.", "", "The mill", "---") == ["It runs."]
    code = ["~~~", "It = 1", "~~~"]
    assert read("Oil", *code) == [end.join(code)]
    assert read("Oil", "~~~", "It runs.", "", "The mill", "~~~~~~~~", "It rests.") == [
        "It runs.",
        "It rests.",
    ]
    assert read("~~~", "Oil", "~~~", "It runs.") == ["It runs."]
    for signs in ("=", "==", "--", "   ---"):
        assert read("The mill", signs, "It runs.") == ["It runs."]
    assert read("## The mill", "--", "It runs.") == [end.join(["--", "It runs."])]
