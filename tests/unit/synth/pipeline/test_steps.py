"""Pipelines of steps: what they may say, what flows, what is asked anew, and equal bytes."""

import json
import signal
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tests.processes import Process, run_process
from tests.unit.models.endpoint_server import Server, completion
from tests.unit.synth.conftest import make_passages

from stillroom.errors import DataError, RecipeError
from stillroom.jobs import Job
from stillroom.recipes import dump_recipe, parse_recipe
from stillroom.records import Message, Origin, Record, read_records, write_records
from stillroom.synth.jobs.records import JOB_KIND, estimate
from stillroom.synth.output.records import preview_records
from stillroom.synth.pipeline.steps import estimate_steps, format_steps
from stillroom.synth.selection import MixSettings, mix_records
from stillroom.train.data import split_records

SAID = "The passage in other words, said of "


def answer(path, body, headers):
    """Say something of the prompt alone, after a moment that differs."""
    if path == "/models":
        return {"data": [{"id": "m"}]}
    asked = body["messages"][-1]["content"].replace("<", "(")  # no teacher repeats the fence
    return 200, completion(f"{SAID}{asked[-90:-40]} {len(asked)}."), {}, 0.002 * (len(asked) % 7)


@pytest.fixture
def serve():
    running = []

    def start(answer=answer):
        server = Server(answer).__enter__()
        running.append(server)
        return server

    yield start
    for server in running:
        server.__exit__()


def asked(server):
    return sum(path.endswith("/completions") for path, *_ in server.requests)


def write_seeds(path, count):
    rows = [
        Record(
            (Message("user", f"Task {n}: say {n * 7}."), Message("assistant", f"It is {n * 7}.")),
            {"number": n},
            Origin("human", (), "MIT"),
        )
        for n in range(count)
    ]
    write_records(path, rows)
    return path


STEPS = """
steps:
  first:
    generator: {{name: rewrite, max_new_tokens: 64}}
    attempts: 2
  clean: {{filters: [shape, repetition, duplicate]}}
  again:
    from: clean
    generator: {{name: rewrite, styles: [brief], max_new_tokens: 64}}
  last:
    from: [clean, again]
    filters: [{{name: length, unit: words, max_answer: {longest}}}, duplicate]
"""


def make_recipe(server, seeds, *, longest=90, more="", concurrency=8, steps=STEPS):
    text = f"""
version: 1
kind: synth.records
seeds: {seeds}
model: {server.address}#m
held_out: 0.25
seed: 3
engine: {{concurrency: {concurrency}}}
{more}
pipeline:
{textwrap.indent(steps.format(longest=longest), "  ")}
"""
    return parse_recipe(text)


def do(recipe, out, **more):
    job = Job.start(out, dump_recipe(recipe), seed=recipe.seed, **more)
    try:
        return JOB_KIND.run(recipe, job)
    finally:
        job.close()


def read_rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def outputs(out):
    files = sorted((out / "output").iterdir())
    return {path.name: path.read_bytes() for path in files if path.name != "report.html"}


def test_a_resolved_graph_reads_back_as_itself(serve, tmp_path):
    recipe = make_recipe(serve(), write_seeds(tmp_path / "seeds.jsonl", 4))
    text = dump_recipe(recipe)
    assert parse_recipe(text) == recipe
    assert recipe.sources == {
        "first": ("seeds",),
        "clean": ("first",),
        "again": ("clean",),
        "last": ("clean", "again"),
    }


def test_steps_of_a_pipeline_are_built_again_within_a_flow():
    steps = "{a: {filters: [shape]}, b: {from: [seeds, a], filters: [refusal]}}"
    flow = parse_recipe(
        "kind: flow\ninputs: {tasks: t.jsonl}\nsteps:\n  records: {kind: synth.records, "
        f"seeds: {{from: inputs.tasks}}, pipeline: {{steps: {steps}}}}}\n"
    )
    built = flow.steps["records"].build({"inputs.tasks": "t.jsonl"}, 0)
    assert built.sources == {"a": ("seeds",), "b": ("seeds", "a")}
    assert dump_recipe(parse_recipe(dump_recipe(flow))) == dump_recipe(flow)


@pytest.mark.parametrize(
    ("steps", "what"),
    [
        ("steps: {a: {filters: [shape], generator: rewrite}}", "is not a setting"),
        ("steps: {a: {attempts: 2}}", "does not fit"),
        ("steps: {a: {from: b, filters: [shape]}, b: {filters: [shape]}}", "'b' is neither"),
        ("steps: {Index: {filters: [shape]}}", "is not a valid step name"),
        ("steps: {a: {from: nothing, filters: [shape]}}", "and there are none"),
        ("generator: magpie\nsteps: {a: {filters: [shape]}}", "generator is not a setting"),
        ("steps: {a: {filters: [shpae]}}", "'shpae' is not a method"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_asked(serve, tmp_path, steps, what):
    server = serve()
    with pytest.raises(RecipeError, match=what):
        make_recipe(
            server,
            write_seeds(tmp_path / "s.jsonl", 2),
            steps=steps.replace("{", "{{").replace("}", "}}"),
        )
    assert not server.requests


def test_every_record_is_accounted_for_by_step(serve, tmp_path):
    recipe = make_recipe(serve(), write_seeds(tmp_path / "seeds.jsonl", 12), longest=30)
    artifact = do(recipe, tmp_path / "out")
    assert artifact.origin["kind"] == "synthetic"
    report = json.loads((tmp_path / "out/output/report.json").read_text())
    dropped = [
        json.loads(line)
        for line in (tmp_path / "out/output/dropped.jsonl").read_text().splitlines()
    ]
    for split in ("train", "held_out"):
        steps = report["splits"][split]["steps"]
        for name, step in steps.items():
            fell = sum(step["dropped"].values())
            assert fell == sum(row["step"] == name and row["split"] == split for row in dropped)
            if name in {"clean", "last"}:
                assert step["taken"] == step["given"] + fell
        assert steps["clean"]["taken"] == steps["first"]["given"]
        assert steps["again"]["units"] == steps["clean"]["given"]
        assert steps["last"]["taken"] == steps["clean"]["given"] + steps["again"]["given"]
        assert report["splits"][split]["kept"] == steps["last"]["given"]
    records = list(read_records(tmp_path / "out/output/records.jsonl"))
    assert len(records) == sum(report["splits"][one]["kept"] for one in report["splits"])
    sides = {}
    for record in records:
        sides.setdefault(record.fields["document_id"], set()).add(record.fields["split"])
    assert all(len(side) == 1 for side in sides.values())


def test_bytes_are_those_of_one_request_at_a_time(serve, tmp_path):
    server, seeds = serve(), write_seeds(tmp_path / "seeds.jsonl", 30)
    more = "num_records: {train: 20, held_out: 8}"
    for concurrency, gathers in ((1, 1), (64, 20)):
        server.gathers = gathers
        recipe = make_recipe(server, seeds, concurrency=concurrency, more=more)
        do(recipe, tmp_path / f"at-{concurrency}")
    assert server.most_busy >= 20
    assert outputs(tmp_path / "at-1") == outputs(tmp_path / "at-64")
    kept = json.loads((tmp_path / "at-1/output/report.json").read_text())["splits"]
    assert (kept["train"]["kept"], kept["held_out"]["kept"]) == (20, 8)


def test_a_changed_last_step_asks_nothing_and_a_new_seed_one_thing(serve, tmp_path):
    server, seeds = serve(), write_seeds(tmp_path / "seeds.jsonl", 10)
    steps = """
steps:
  first: {{generator: {{name: rewrite, max_new_tokens: 64}}}}
  last: {{filters: [{{name: length, unit: words, max_answer: {longest}}}]}}
"""
    do(make_recipe(server, seeds, steps=steps), tmp_path / "out")
    first = asked(server)
    assert first == 10
    recipe = make_recipe(server, seeds, steps=steps, longest=5)
    with pytest.raises(DataError) as caught:
        do(recipe, tmp_path / "out", overwrite=True)
    assert caught.value.code == "synth.nothing-kept"
    assert asked(server) == first
    recipe = make_recipe(server, seeds, steps=steps, longest=91)
    do(recipe, tmp_path / "out", overwrite=True)
    assert asked(server) == first
    write_seeds(seeds, 11)
    do(recipe, tmp_path / "out", overwrite=True)
    assert asked(server) == first + 1
    fresh = serve()
    again = make_recipe(fresh, seeds, steps=steps, longest=91)
    do(again, tmp_path / "fresh")
    same = (tmp_path / "fresh/output/records.jsonl").read_text().replace(fresh.address, "")
    ours = (tmp_path / "out/output/records.jsonl").read_text().replace(server.address, "")
    strip = [[json.loads(line)["messages"] for line in text.splitlines()] for text in (same, ours)]
    assert strip[0] == strip[1]


def test_a_changed_middle_step_keeps_what_stands_before_it(serve, tmp_path):
    server, seeds = serve(), write_seeds(tmp_path / "seeds.jsonl", 8)
    do(make_recipe(server, seeds), tmp_path / "out")
    before = asked(server)
    changed = STEPS.replace("styles: [brief]", "styles: [plain]")
    do(make_recipe(server, seeds, steps=changed), tmp_path / "out", overwrite=True)
    report = json.loads((tmp_path / "out/output/report.json").read_text())["splits"]
    wanted = sum(report[one]["steps"]["again"]["asked"] for one in report)
    assert asked(server) == before + wanted


CHILD = """
import sys
from dataclasses import replace
from pathlib import Path
from stillroom.jobs import Job
from stillroom.recipes import dump_recipe, load_recipe
from stillroom.synth.jobs.records import JOB_KIND
recipe = load_recipe(Path(sys.argv[1]))
job = Job.start(Path(sys.argv[2]), dump_recipe(recipe), seed=recipe.seed, resume=True)
JOB_KIND.run(recipe, job)
"""


def test_a_killed_run_ends_with_the_same_bytes_and_pays_nothing_twice(serve, tmp_path):
    gate = threading.Event()
    count = 0

    def slowly(path, body, headers):
        nonlocal count
        count += path.endswith("/completions")
        given = answer(path, body, headers)
        return (
            (*given[:3], given[3] + (0.0 if gate.is_set() else 0.02))
            if type(given) is tuple
            else given
        )

    server, seeds = serve(slowly), write_seeds(tmp_path / "seeds.jsonl", 30)
    recipe = make_recipe(server, seeds, concurrency=4)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    command = [sys.executable, "-c", CHILD, str(path), str(tmp_path / "cut")]
    before = 0
    for wait_for in (9, 30):
        child = Process(command)
        deadline = time.monotonic() + 60
        while count - before < wait_for and time.monotonic() < deadline and child.poll() is None:
            time.sleep(0.005)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        before = count
    gate.set()
    assert run_process(command).returncode == 0
    paid = asked(server)
    do(recipe, tmp_path / "whole")
    assert outputs(tmp_path / "cut") == outputs(tmp_path / "whole")
    whole = asked(server) - paid
    assert paid <= whole + 2 * 2 * 4 * 2  # two kills, at most what was begun ahead at two steps


def test_files_of_records_are_judged_without_a_teacher(serve, tmp_path):
    server = serve()
    rows = [
        Record((Message("user", f"Q{n}"), Message("assistant", text)), {}, Origin("human"))
        for n, text in enumerate(["A short one here.", "no", "Another short one here.", "x " * 80])
    ]
    write_records(tmp_path / "rows.jsonl", rows)
    steps = """
steps:
  short: {{filters: [{{name: length, unit: words, min_answer: 2, max_answer: 20}}]}}
  one: {{select: {{name: top, score: length, budget: 1}}}}
"""
    recipe = make_recipe(server, tmp_path / "rows.jsonl", steps=steps, more="")
    recipe = recipe.model_copy(update={"held_out": 0.0})
    do(recipe, tmp_path / "out")
    assert not server.requests
    kept = list(read_records(tmp_path / "out/output/records.jsonl"))
    assert [record.messages[1].content for record in kept] == ["Another short one here."]
    assert kept[0].origin.kind == "human"
    rows = [
        json.loads(line)
        for line in (tmp_path / "out/output/dropped.jsonl").read_text().splitlines()
    ]
    assert sorted((row["step"], row["reason"]) for row in rows) == [
        ("one", "beyond the budget"),
        ("short", "answer too long"),
        ("short", "answer too short"),
    ]
    (scored,) = (
        json.loads(line) for line in (tmp_path / "out/output/scores.jsonl").read_text().splitlines()
    )
    assert scored["scores"]["length"] == 5.0


def test_passages_may_be_judged_as_plain_text(serve, tmp_path, index):
    steps = "pipeline: {steps: {texts: {from: index, filters: [shape]}}}"
    recipe = parse_recipe(f"kind: synth.records\nindex: {index}\nheld_out: 0\n{steps}\n")
    do(recipe, tmp_path / "out")
    kept = list(read_records(tmp_path / "out/output/records.jsonl"))
    assert len(kept) == len(make_passages())
    assert kept[0].messages[0].role == "assistant"


def test_a_limit_stops_what_stands_before(serve, tmp_path):
    server, seeds = serve(), write_seeds(tmp_path / "seeds.jsonl", 60)
    steps = """
steps:
  first: {{generator: {{name: rewrite, max_new_tokens: 64}}, limit: 5}}
"""
    recipe = make_recipe(server, seeds, steps=steps, concurrency=2)
    recipe = recipe.model_copy(update={"held_out": 0.0})
    do(recipe, tmp_path / "out")
    assert len(list(read_records(tmp_path / "out/output/records.jsonl"))) == 5
    assert asked(server) <= 5 + 2 * 2


def test_the_graph_is_drawn_and_counted_before(serve, tmp_path):
    server = serve()
    more = "budget: {input_price: 1, output_price: 2}"
    recipe = make_recipe(server, write_seeds(tmp_path / "seeds.jsonl", 100), more=more)
    forecasts = {one.step: one for one in estimate_steps(recipe)}
    assert forecasts["first"].requests == 200
    assert forecasts["clean"].outputs == 100
    assert forecasts["first"].cost > forecasts["again"].cost > 0
    lines = format_steps(recipe)
    assert lines[0].split()[:3] == ["step", "from", "methods"]
    assert "clean, again" in lines[4]
    assert lines[4].endswith("(out)")
    assert "300 requests" in estimate(recipe).basis
    assert not server.requests


def test_a_preview_shows_what_arrives(serve, tmp_path):
    recipe = make_recipe(serve(), write_seeds(tmp_path / "seeds.jsonl", 20), concurrency=1)
    units = list(preview_records(recipe, 3))
    assert len(units) == 3
    assert any(unit.records for unit in units)
    assert list(tmp_path.glob("*.partial")) == []


def test_budgets_end_a_graph(serve, tmp_path):
    server, seeds = serve(), write_seeds(tmp_path / "seeds.jsonl", 60)
    recipe = make_recipe(server, seeds, more="budget: {requests: 12}", concurrency=2)
    do(recipe, tmp_path / "out")
    report = json.loads((tmp_path / "out/output/report.json").read_text())
    assert 12 <= report["spent"]["asks"] <= 14


@pytest.mark.parametrize("targets", ["{train: 20}", "{held_out: 3}", "{}"])
def test_a_side_without_a_target_leaves_budget_for_the_other(serve, tmp_path, targets):
    more = f"budget: {{requests: 24}}\nnum_records: {targets}"
    seeds = write_seeds(tmp_path / "seeds.jsonl", 60)
    do(make_recipe(serve(), seeds, more=more, concurrency=2), tmp_path / "out")
    splits = json.loads((tmp_path / "out/output/report.json").read_text())["splits"]
    assert all(splits[split]["asked"] >= 3 for split in ("train", "held_out"))


TRAIN = {"split": "train"}


def human(n):
    return Record((Message("assistant", f"people wrote {n}"),), TRAIN, Origin("human"))


def made(n):
    return Record((Message("assistant", f"a model wrote {n}"),), TRAIN, Origin("synthetic"))


def test_mixing_keeps_a_share_of_what_people_wrote(tmp_path):
    write_records(tmp_path / "old.jsonl", [human(1), human(2), made(1), made(2)])
    new = [made(n) for n in range(2, 9)]
    settings = MixSettings(records=(str(tmp_path / "old.jsonl"),), human_share=0.4)
    mixed = mix_records(new, settings)
    kinds = [record.origin.kind for record in mixed.records]
    assert kinds.count("human") / len(kinds) >= 0.4
    assert len(kinds) == 5
    assert mixed.records[:4] == (human(1), human(2), made(1), made(2))
    reasons = [drop.reason for drop in mixed.dropped]
    assert reasons.count("is there already") == 1
    assert reasons.count("would crowd out what people wrote") == 5
    assert len(mixed.records) + len(mixed.dropped) == 4 + len(new)


def test_replacing_drops_what_was_there_and_says_so(tmp_path):
    write_records(tmp_path / "old.jsonl", [human(1), made(1)])
    settings = MixSettings(records=(str(tmp_path / "old.jsonl"),), rule="replace")
    mixed = mix_records([made(5)], settings)
    assert mixed.records == (made(5),)
    assert [drop.reason for drop in mixed.dropped] == ["replaced", "replaced"]
    kept = mix_records([made(5)], settings.model_copy(update={"human_share": 0.5}))
    assert kept.records == (human(1), made(5))


def test_a_subsample_is_as_large_as_what_people_wrote(tmp_path):
    write_records(tmp_path / "old.jsonl", [*map(human, range(30)), *map(made, range(60))])
    settings = MixSettings(
        records=(str(tmp_path / "old.jsonl"),), rule="accumulate_subsample", human_share=0.5
    )
    new = [made(n) for n in range(60, 90)]
    mixed = mix_records(new, settings, seed=3)
    kinds = [record.origin.kind for record in mixed.records]
    assert len(kinds) == 30
    assert kinds.count("human") >= 15
    assert {drop.reason for drop in mixed.dropped} == {"not drawn"}
    assert len(mixed.dropped) == 90
    assert mix_records(new, settings, seed=3) == mixed
    assert mix_records(new, settings, seed=4).records != mixed.records
    with pytest.raises(DataError) as caught:
        mix_records([made(1)], MixSettings(rule="accumulate_subsample"))
    assert caught.value.code == "synth.human-share"


def test_of_existing_records_only_training_ones_are_mixed_in(tmp_path):
    earlier = replace(made(1), fields={"split": "held_out"})
    bare = replace(human(2), fields={})  # people's files have no split
    write_records(tmp_path / "old.jsonl", [earlier, bare, made(3)])
    mixed = mix_records([made(4)], MixSettings(records=(str(tmp_path / "old.jsonl"),)))
    assert mixed.records == (human(2), made(3), made(4))
    assert [drop.record for drop in mixed.dropped] == [earlier]
    assert mixed.before == 3
    write_records(tmp_path / "mixed.jsonl", mixed.records)
    split = split_records(tmp_path / "mixed.jsonl")
    assert (len(split.train), split.passed_over) == (3, {})


def test_what_is_held_out_here_is_not_mixed_in(tmp_path):
    tasks = [
        ("Which city lies at the mouth of the Elbe river?", "That is Cuxhaven."),
        ("How many strings does a common violin have?", "It has four strings."),
        ("When was the first lighthouse of Genoa built?", "In the twelfth century."),
        ("Who discovered the moons of the planet Mars?", "That was Asaph Hall."),
    ]

    def rows(answer):
        return [
            Record((Message("user", q), Message("assistant", answer or a)), {}, Origin("human"))
            for q, a in tasks
        ]

    write_records(tmp_path / "seeds.jsonl", rows(""))
    write_records(tmp_path / "old.jsonl", rows("Nobody that I have asked knows it."))

    def mix(filters, records, out):
        text = (
            f"kind: synth.records\nseeds: {tmp_path / 'seeds.jsonl'}\nheld_out: 0.5\n"
            f"pipeline: {{steps: {{a: {{from: seeds, filters: [{filters}]}}}}}}\n"
            f"mix: {{records: [{tmp_path / records}]}}\n"
        )
        do(parse_recipe(text), tmp_path / out)
        written = list(read_records(tmp_path / out / "output/records.jsonl"))
        sides = {
            side: {row.messages[0].content for row in written if row.fields["split"] == side}
            for side in ("train", "held_out")
        }
        assert all(sides.values())
        return sides["train"] & sides["held_out"]

    assert not mix("shape, decontaminate", "old.jsonl", "a")
    assert not mix("shape", "seeds.jsonl", "b")  # nothing is asked of a recipe for the same rows


def test_nothing_unknown_is_trained_on_in_silence(tmp_path):
    unknown = Record((Message("assistant", "who wrote this"),))
    with pytest.raises(DataError) as caught:
        mix_records([unknown], MixSettings())
    assert caught.value.code == "synth.unknown-origin"
    assert mix_records([unknown, made(1)], MixSettings(unknown="drop")).records == (made(1),)
    assert mix_records([unknown], MixSettings(unknown="keep")).records == (unknown,)
    with pytest.raises(DataError) as caught:
        mix_records([made(1)], MixSettings(human_share=0.1))
    assert caught.value.code == "synth.human-share"


def test_a_graph_mixes_on_its_way_out(serve, tmp_path):
    seeds = write_seeds(tmp_path / "seeds.jsonl", 8)
    more = f"mix: {{records: [{seeds}], human_share: 0.6}}"
    steps = "steps: {{first: {{generator: rewrite}}}}"
    recipe = make_recipe(serve(), seeds, steps=steps, more=more)
    artifact = do(recipe, tmp_path / "out")
    report = json.loads((tmp_path / "out/output/report.json").read_text())
    assert report["origins"]["human"] == 8
    assert report["origins"]["synthetic"] == 5
    assert "mixed in" in {parent.role for parent in artifact.parents}
    assert Path(tmp_path / "out/output/dropped.jsonl").read_text().count("crowd out") > 0


def test_what_is_beyond_a_steps_limit_is_a_counted_row(serve, tmp_path):
    server, seeds = serve(), write_seeds(tmp_path / "seeds.jsonl", 4)
    ask = "{{generator: {{name: rewrite, styles: [plain, brief]}}, limit: 3}}"
    recipe = make_recipe(server, seeds, steps=f"steps: {{{{ask: {ask}}}}}")
    do(recipe, tmp_path / "out")
    report = json.loads((tmp_path / "out/output/report.json").read_text())
    step = report["splits"]["train"]["steps"]["ask"]
    assert (step["given"], step["dropped"]) == (3, {"limit: beyond the limit of the step": 1})
    (row,) = (tmp_path / "out/output/dropped.jsonl").read_text().splitlines()
    assert json.loads(row)["record"]["messages"]


@pytest.mark.parametrize(
    ("steps", "what"),
    [
        ("a: {filters: [shape]}, b: {select: top}", "no earlier step scores by 'ifd'"),
        (
            "a: {filters: [shape]}, g: {generator: rewrite}, "
            "b: {select: {name: top, score: shape}}",
            "no earlier step scores by 'shape'",
        ),
        ("a: {filters: [shape]}, b: {select: {name: top, score: shap}}", "did you mean 'shape'"),
    ],
)
def test_a_choice_by_a_score_that_nothing_gives_is_refused_before_anything_is_asked(steps, what):
    text = f"kind: synth.records\nseeds: s.jsonl\npipeline: {{steps: {{{steps}}}}}\n"
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text)
    assert what in str(caught.value)
    good = "a: {filters: [shape]}, b: {filters: [refusal]}, c: {select: {name: top, score: shape}}"
    parse_recipe(f"kind: synth.records\nseeds: s.jsonl\npipeline: {{steps: {{{good}}}}}\n")
    parse_recipe(
        "kind: synth.records\nseeds: s.jsonl\npipeline: {steps: {a: {select: semdedup}}}\n"
    )


def test_the_share_of_human_records_of_a_subsample_is_never_rounded_down(tmp_path):
    write_records(tmp_path / "old.jsonl", [*map(human, range(5)), *map(made, range(600))])
    settings = MixSettings(
        records=(str(tmp_path / "old.jsonl"),), rule="accumulate_subsample", human_share=0.5
    )
    kinds = [record.origin.kind for record in mix_records([], settings).records]
    assert len(kinds) == 5
    assert kinds.count("human") == 3
