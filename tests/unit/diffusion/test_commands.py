"""What a user types: write, fill holes, watch, score, convert, train; and what goes wrong."""

import io
import json
import re

import pytest
import yaml
from click.testing import CliRunner
from pydantic import ValidationError
from tests.unit.diffusion.conftest import MASK, say_diffusion
from tests.unit.diffusion.model.formats.test_formats import LLADA, llada_tensors, write
from tests.unit.diffusion.test_training import chats

from stillroom.checkpoints import Checkpoint
from stillroom.cli.app import stillroom
from stillroom.diffusion.model.initialization import describe_expected_quality
from stillroom.diffusion.model.loading import open_diffusion
from stillroom.diffusion.sampling.animation import TerminalAnimation, write_animation
from stillroom.diffusion.sampling.sampler import StepEvent
from stillroom.diffusion.sampling.sequence import build_infill_request, decode_text, decode_tokens
from stillroom.errors import DataError, StillroomError
from stillroom.provenance import read_artifact, verify_artifact
from stillroom.records import write_records
from stillroom.testing import tiny_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny", hidden=32)
    return str(say_diffusion(made))


def call(*words):
    done = CliRunner().invoke(stillroom, ["diffusion", *words])
    if isinstance(done.exception, StillroomError):
        raise done.exception
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def call_json(*words):
    done = call(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_writes_texts_with_settings(folder):
    found = call_json(
        "sample",
        folder,
        "The still",
        "--count",
        "2",
        "--set",
        "max_new_tokens=6",
        "--set",
        "commit.name=quota",
        "--set",
        "commit.steps=3",
        "--set",
        "temperature=0.9",
        "--set",
        "end.never=true",
    )
    assert [row["steps"] for row in found["samples"]] == [3, 3]
    assert [row["tokens"] for row in found["samples"]] == [6, 6]
    assert found["samples"][0]["text"] != found["samples"][1]["text"]
    assert found["settings"]["commit"] == {"name": "quota", "steps": 3}
    plain = call("sample", folder, "The still", "--set", "max_new_tokens=4", "--chat")
    assert re.search(r"4 tokens, \d+ steps, \d+ passes|stop", plain.stderr)


def test_equal_texts_of_a_prompt_are_said(folder):
    few = ("sample", folder, "The still", "--set", "max_new_tokens=2")
    equal = call(*few, "--count", "3")
    assert "warning: the 3 texts of a prompt are equal at temperature 0" in equal.stderr
    assert "warning" not in call(*few).stderr


def test_fills_holes_and_keeps_the_rest(folder):
    found = call_json("sample", folder, "--holes", "A jar [[3]] plums [[2]].")
    assert re.match(r"A jar .*plums.*\.$", found["samples"][0]["text"], re.DOTALL)
    tokenizer = open_diffusion(folder).tokenizer
    request = build_infill_request(tokenizer, "A jar [[3]] plums [[2]].")
    assert request.ids.count(None) == 5
    assert request.max_new_tokens == 0


def test_json_is_filled_under_a_schema(folder, tmp_path):
    path = tmp_path / "jar.json"
    size = {"type": "integer", "minimum": 1, "maximum": 9}
    said = {"type": "object", "properties": {"color": {"enum": ["red", "green"]}, "size": size}}
    path.write_text(json.dumps({**said, "required": ["color", "size"]}))
    words = ["sample", folder, "A jar:", "--schema", str(path), "--set", "max_new_tokens=60"]
    (sample,) = call_json(*words)["samples"]
    found = json.loads(sample["text"])
    assert found["color"] in {"red", "green"}
    assert 1 <= found["size"] <= 9
    assert json.loads(call(*words).stdout) == found
    assert call(*words, "--watch").exit_code == 2
    for text in ("[1]", "{"):
        path.write_text(text)
        with pytest.raises(StillroomError) as caught:
            call(*words)
        assert caught.value.code == "diffusion.schema"


def test_settings_come_from_a_file_and_words_win(folder, tmp_path):
    path = tmp_path / "decode.yaml"
    path.write_text(
        yaml.safe_dump({"max_new_tokens": 5, "order": "margin", "end": {"never": True}})
    )
    found = call_json("sample", folder, "x", "--settings", str(path), "--set", "max_new_tokens=3")
    assert found["samples"][0]["tokens"] == 3
    assert found["settings"]["order"] == {"name": "margin"}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--set", "commit.threshold=1.5"], "recipe.value"),
        (["--set", "colour=red"], "recipe.unknown-key"),
        (["--set", "order=confidance"], "recipe.unknown-method"),
        (["--set", "nonsense"], "recipe.override"),
        (["--settings", "missing.yaml"], "recipe.not-found"),
        (["--set", "cache=block"], "diffusion.decode"),
        (["--model-is", "blocks=3"], "recipe.unknown-key"),
    ],
)
def test_settings_that_are_wrong_are_refused_with_their_place(folder, words, code):
    with pytest.raises(StillroomError) as caught:
        call("sample", folder, "x", *words)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (2**63, f"less than or equal to {2**63 - 1}"),
        (-1, "greater than or equal to 0"),
    ],
)
def test_a_seed_out_of_bounds_is_told_the_bound(folder, seed, expected):
    with pytest.raises(StillroomError) as caught:
        call("sample", folder, "x", "--set", f"seed={seed}")
    assert caught.value.problems[0].expected == expected


def test_an_autoregressive_checkpoint_does_not_write(plain):
    with pytest.raises(StillroomError) as caught:
        call("sample", str(plain), "x")
    assert caught.value.code == "diffusion.not-diffusion"
    with pytest.raises(StillroomError) as caught:
        call("convert", str(plain), "--out", "never")
    assert caught.value.code == "diffusion.not-diffusion"


def test_steps_are_shown_and_played_back(folder, tmp_path):
    page = tmp_path / "page.html"
    done = call(
        "sample",
        folder,
        "The still",
        "--watch",
        "--html",
        str(page),
        "--set",
        "max_new_tokens=5",
        "--set",
        "commit.name=top_k",
        "--set",
        "end.never=true",
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("step ")]
    assert len(lines) == 5
    assert "4 masked" in lines[0]
    assert "0 masked" in lines[-1]
    text = page.read_text()
    frames = json.loads(re.search(r"const frames = (\[.*?\]), given", text, re.DOTALL)[1])
    assert len(frames) == 5
    assert [len(frame["new"]) for frame in frames] == [1] * 5
    assert sum(part is None for part in frames[1]["text"]) == 3
    assert "".join(frames[-1]["text"]).endswith(done.stdout.rstrip("\n")[-3:])
    assert "src=" not in text
    assert "http" not in text


def test_a_page_escapes_what_tokens_say(folder, tmp_path):
    tokenizer = open_diffusion(folder).tokenizer
    ids = tuple(tokenizer("</script><b>&")["input_ids"])
    count = len(ids)
    event = StepEvent(0, 0, 1, ids, (False,) * count, (0,), (), (1.0,) * count, 0)
    write_animation(tmp_path / "p.html", [event], tokenizer, title="<i>")
    text = (tmp_path / "p.html").read_text()
    assert text.count("</script>") == 1
    assert "<i>" not in text
    assert "&lt;b&gt;&amp;" in text
    ids = tuple(tokenizer("@DATA@ @GIVEN@ <!-- <script>")["input_ids"])
    event = StepEvent(0, 0, 1, ids, (False,) * len(ids), (0,), (), (1.0,) * len(ids), 0)
    write_animation(tmp_path / "p.html", [event], tokenizer, title="@LAST@")
    text = (tmp_path / "p.html").read_text()
    assert text.count("const frames") == 1
    assert "<h1>@LAST@</h1>" in text
    assert "@DATA@ @GIVEN@ &lt;!-- &lt;script&gt;</div>" in text
    assert text.count("<script") == 1
    assert "<!--" not in text


def test_what_was_given_around_holes_is_marked_and_what_was_written_counted(folder, tmp_path):
    page = tmp_path / "page.html"
    words = ["sample", folder, "--holes", "The [[2]] stood [[3]] the", "--html", str(page)]
    (sample,) = call_json(*words)["samples"]
    assert sample["tokens"] == 5
    with pytest.raises(DataError, match="already exists"):
        call(*words)
    done = call(*words[:-2])
    assert re.search(r"^5 tokens, \d+ steps, \d+ passes$", done.stderr, re.MULTILINE)
    text = page.read_text()
    frames = json.loads(re.search(r"const frames = (\[.*?\]), given", text, re.DOTALL)[1])
    given = set(json.loads(re.search(r"new Set\((\[.*?\])\)", text)[1]))
    written = {at for frame in frames for at in frame["new"]}
    assert len(written) == 5
    assert given == set(range(len(frames[0]["text"]))) - written


def test_tokens_of_a_text_join_to_the_text(folder):
    tokenizer = open_diffusion(folder).tokenizer
    said = "Plums — 蜂蜜, naïve."
    ids = tokenizer(said)["input_ids"]
    assert "".join(decode_tokens(tokenizer, ids)) == said


def test_the_terminal_view_redraws_and_marks(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    tokenizer, stream = open_diffusion(folder).tokenizer, Terminal()
    view = TerminalAnimation(tokenizer, stream)
    ids = (40, 41, MASK)
    view.show(StepEvent(0, 0, 1, ids, (False, False, True), (1,), (), (1.0,) * 3, 0))
    view.show(StepEvent(0, 1, 2, ids, (False, True, True), (), (1,), (1.0,) * 3, 0))
    drawn = stream.getvalue()
    assert "\x1b[1;32m" in drawn
    assert "\x1b[1;31m" in drawn
    # "step 0, 1 passes, 1 masked" and one line of text: no more is drawn over
    assert re.findall(r"\x1b\[(\d+)A\x1b\[J", drawn) == ["2"]
    ids = tuple(tokenizer("word " * 20)["input_ids"])
    view = TerminalAnimation(tokenizer, stream)
    event = StepEvent(0, 0, 1, ids, (False,) * len(ids), (1, 2), (), (1.0,) * len(ids), 0)
    text = view.draw(event, color=False)
    view.show(event)
    view.show(event)
    ids = tuple(tokenizer("a\x1b[2Jb\tc")["input_ids"])
    event = StepEvent(0, 0, 1, ids, (False,) * len(ids), (), (), (1.0,) * len(ids), 0)
    assert view.draw(event, color=False) == "a\u241b[2Jb\u2409c"  # shown, not obeyed
    lines = 1 + -(-len(text) // 30)
    assert stream.getvalue().count(f"\x1b[{lines}A\x1b[J") == 1


def test_scores_records_with_an_error_and_tells_how_many_samples(folder, tmp_path):
    path = tmp_path / "r.jsonl"
    write_records(path, chats())
    found = call_json(
        "score",
        folder,
        "--records",
        str(path),
        "--split",
        "held_out",
        "--set",
        "samples=8",
        "--error",
        "0.01",
    )
    assert found["kind"] == "bound"
    assert found["error"] > 0
    assert (found["records"], found["forwards"]) == (3, 24)
    assert found["samples_for_error"] > 8
    said = call("score", folder, "--records", str(path), "--estimator", "chain_rule").stdout
    assert "log-likelihood of one order" in said
    with pytest.raises(StillroomError, match="of split 'nowhere'") as caught:
        call("score", folder, "--records", str(path), "--split", "nowhere")
    assert caught.value.code == "diffusion.no-places"


def test_the_error_of_one_sample_is_unknown_and_no_number(folder, tmp_path):
    path = tmp_path / "r.jsonl"
    write_records(path, chats())
    one = ["--set", "samples=1", "--error", "0.1"]
    found = call_json("score", folder, "--records", str(path), *one)
    assert found["error"] is None
    assert found["samples_for_error"] is None
    (answer,) = call_json("score", folder, "--answer", " yes", *one)["answers"]
    assert answer["error"] is None
    assert "error unknown (one sample)" in call("score", folder, "--answer", " yes", *one).stdout


def test_chooses_among_answers(folder):
    words = ["score", folder, "--prompt", "Say", "--answer", " yes", "--answer", " no"]
    found = call_json(*words, "--estimator", "exhaustive")
    nats = {row["answer"]: row["nats"] for row in found["answers"]}
    assert found["best"] == max(nats, key=nats.get)
    assert found["lead_in_errors"] is None
    assert "*" in call(*words).stdout
    drawn = call_json(*words, "--set", "samples=8", "--error", "0.001")["answers"]
    assert all(row["samples_for_error"] > 8 for row in drawn)
    asked = call_json(*words, "--chat", "--estimator", "exhaustive")["answers"]
    assert asked[0]["nats"] != found["answers"][0]["nats"]


@pytest.mark.parametrize("answers", [(" yes", " no"), (" yes", " yes")])
def test_an_unknown_or_no_lead_is_not_passed_over(folder, answers):
    words = [word for answer in answers for word in ("--answer", answer)]
    assert "before you trust it" in call("score", folder, *words, "--set", "samples=1").stdout


def test_an_error_that_no_number_of_samples_reaches_is_refused(folder):
    refused = call("score", folder, "--answer", "x", "--error", "1e-300")
    assert (refused.exit_code, "--error" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--answer", "x", "--estimator", "nothing"], "recipe.unknown-method"),
    ],
)
def test_estimators_that_are_wrong_are_refused(folder, words, code):
    with pytest.raises(StillroomError) as caught:
        call("score", folder, *words)
    assert caught.value.code == code


def test_a_setting_out_of_its_range_is_named(folder):
    with pytest.raises(ValidationError, match="samples"):
        call("score", folder, "--answer", "x", "--set", "samples=0")


def test_records_or_answers_but_not_both(folder):
    assert call("score", folder).exit_code == 2
    assert call("score", folder, "--records", "r.jsonl", "--prompt", "x").exit_code == 2
    for idle in (
        ["--split", "train"],
        ["--most", "3"],
        ["--max-tokens", "9"],
        ["--include-prompt"],
    ):
        refused = call("score", folder, "--answer", "x", *idle)
        assert (refused.exit_code, idle[0] in refused.stderr) == (2, True)
    assert call("sample", folder, "a [[2]]", "--holes", "--chat").exit_code == 2


def test_a_published_layout_is_written_in_stock_terms(tmp_path, folder):
    stored = write(tmp_path / "llada", LLADA, llada_tensors())
    out = tmp_path / "stock"
    assert "layout llada" in call("convert", str(stored), "--out", str(out)).stdout
    assert read_artifact(out).parents[0].digest == Checkpoint.open(stored).fingerprint
    assert not verify_artifact(out)
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert open_diffusion(str(out)).metadata.mask_token_id == LLADA["mask_token_id"]
    with pytest.raises(StillroomError) as caught:
        call("convert", str(stored), "--out", str(out))
    assert caught.value.code == "data.exists"
    done = call("convert", str(stored), "--out", str(tmp_path / "x"), "--block-size", "4")
    assert (done.exit_code, "--block-size has no effect" in done.stderr) == (2, True)
    both = ["--records", "r.jsonl", "--block-size", "4", "--anneal-steps", "2"]
    assert call("convert", str(stored), "--out", str(tmp_path / "x"), *both).exit_code == 2


def test_an_autoregressive_checkpoint_is_converted_by_training(plain, tmp_path):
    path = tmp_path / "r.jsonl"
    write_records(path, chats())
    found = call_json(
        "convert",
        str(plain),
        "--out",
        str(tmp_path / "out"),
        "--records",
        str(path),
        "--steps",
        "2",
        "--block-size",
        "8",
        "--set",
        "validation.samples=2",
        "--set",
        "validation.records=2",
        "--quiet",
    )
    assert found["after"]["is_bound"]
    assert found["tokens"] > 0
    assert f"expected after {found['tokens']:,} tokens: it predicts" in found["expect"]
    assert "1e9" in found["expect"]  # what conversions by blocks took
    assert open_diffusion(str(tmp_path / "out")).metadata.block_size == 8


def test_what_to_expect_goes_by_the_tokens():
    said = [describe_expected_quality(10**power, by_blocks=False) for power in (5, 6, 8, 10)]
    assert len({text.partition("tokens")[2] for text in said}) == 4
    assert all("6.5e10" in text for text in said)


def test_what_is_written_is_told_whole_or_new(folder):
    model = open_diffusion(folder)
    from stillroom.diffusion.sampling.sampler import generate
    from stillroom.diffusion.sampling.sequence import InfillRequest
    from stillroom.diffusion.sampling.settings import DecodeSettings

    ids = tuple(model.tokenizer("The still")["input_ids"])
    (sample,) = generate(model, [InfillRequest(ids, 3)], DecodeSettings(end={"never": True}))
    assert decode_text(model.tokenizer, sample.ids).startswith("The still")
    assert not decode_text(model.tokenizer, sample.new_ids).startswith("The still")
