import json
import signal
import sys
import time

import pytest
from pydantic import ValidationError
from tests.processes import Process
from tests.unit.synth.conftest import behave, make_passages

from stillroom.errors import BackendError, Cancelled, DataError
from stillroom.jobs import Job
from stillroom.jobs.segments import read_segments
from stillroom.provenance import read_artifact
from stillroom.records import Message, Origin, Record, read_records, write_records
from stillroom.synth.generators.grounded_qa import GroundedQa
from stillroom.synth.interfaces import FILTERS, PASSAGE_FILTERS
from stillroom.synth.jobs.records import JOB_KIND, RecordsRecipe, estimate
from stillroom.synth.output.records import preview_records
from stillroom.synth.pipeline.executor import RunCache
from stillroom.synth.selection import MixSettings
from stillroom.testing import scripted_model


@pytest.fixture
def use(monkeypatch):
    """Let every reference lead to the given teacher."""

    def use(model):
        monkeypatch.setattr("stillroom.models.factory.open_text_model", lambda *a, **k: model)
        return model

    return use


SHAPE = (FILTERS.build("shape"),)
RULES = [name for name in PASSAGE_FILTERS if name != "quality"]  # which needs an embedder


@pytest.fixture
def recipe(index):
    return RecordsRecipe(
        index=str(index),
        pipeline={"filters": RULES},
        num_records={"train": 5, "held_out": 2},
        held_out=0.4,
        batch_size=2,
        seed=1,
    )


def change(recipe, **groups):
    """Return a recipe with other settings in some of its groups."""
    changed = {
        name: getattr(recipe, name).model_copy(update=settings) for name, settings in groups.items()
    }
    return recipe.model_copy(update=changed)


def do(recipe, out, **more):
    job = Job.start(out, "kind: synth.records\n", seed=recipe.seed, **more)
    try:
        return JOB_KIND.run(recipe, job)
    finally:
        job.close()


def read_output(out):
    return {path.name: path.read_bytes() for path in sorted((out / "output").iterdir())}


def test_artifact_holds_records_dropped_ones_and_a_report(recipe, use, teacher, tmp_path):
    use(teacher)
    artifact = do(recipe, tmp_path / "out")
    assert artifact.kind == "records"
    assert teacher.is_closed
    assert {parent.role for parent in artifact.parents} == {"passages"}  # nothing was asked
    records = list(read_records(tmp_path / "out" / "output" / "records.jsonl"))
    asked = [record for record in records if "question" in record.fields]
    texts = [record for record in records if "question" not in record.fields]
    assert sum(record.fields["split"] == "train" for record in asked) == 5
    assert sum(record.fields["split"] == "held_out" for record in asked) == 2
    assert texts
    assert all(record.origin.kind == "human" for record in texts)
    assert all(record.fields["split"] == "train" for record in texts)
    assert artifact.origin["kind"] == "synthetic"
    report = json.loads((tmp_path / "out" / "output" / "report.json").read_text())
    train = report["splits"]["train"]
    assert train["kept"] == 5
    assert train["parsed"] - train["kept"] == sum(
        count for name, count in train["dropped"].items() if not name.startswith("generator")
    )
    assert "seconds" not in json.dumps(report)


@pytest.mark.parametrize("is_asked", [False, True])
def test_only_a_teacher_that_was_asked_is_a_parent(recipe, teacher, use, tmp_path, is_asked):
    use(teacher)
    generator = GroundedQa(openings=not is_asked)
    recipe = change(recipe, pipeline={"generator": generator, "filters": SHAPE})
    artifact = do(recipe, tmp_path / "out")
    assert bool(teacher.asked) == is_asked
    assert ("teacher" in {parent.role for parent in artifact.parents}) == is_asked
    page = (tmp_path / "out" / "output" / "report.html").read_text()
    assert ("Terms of the teachers" in page) == is_asked


def test_no_document_feeds_both_sides(recipe, use, teacher, tmp_path):
    use(teacher)
    do(recipe, tmp_path / "out")
    sides = {}
    for record in read_records(tmp_path / "out" / "output" / "records.jsonl"):
        sides.setdefault(record.fields["document_id"], set()).add(record.fields["split"])
    assert all(len(side) == 1 for side in sides.values())
    assert set.union(*sides.values()) == {"train", "held_out"}


def test_evidence_leads_back_to_the_passage(recipe, use, teacher, tmp_path):
    use(teacher)
    do(recipe, tmp_path / "out")
    passages = {passage.id: passage for passage in make_passages()}
    for record in read_records(tmp_path / "out" / "output" / "records.jsonl"):
        if "question" in record.fields:
            evidence = record.fields["evidence"]
            passage = passages[evidence["passage_id"]]
            cut = slice(evidence["start"] - passage.start, evidence["end"] - passage.start)
            assert passage.text[cut] == evidence["quote"]
            assert record.origin.chain[-1].parents == (passage.id,)


def test_neither_order_of_passages_nor_group_size_changes_a_byte(
    recipe, use, teacher, tmp_path, index
):
    use(teacher)
    do(recipe, tmp_path / "one")
    lines = (index / "passages.jsonl").read_text().splitlines()
    (index / "passages.jsonl").write_text("\n".join(lines[::-1]) + "\n")
    do(recipe.model_copy(update={"batch_size": 64}), tmp_path / "two")
    assert read_output(tmp_path / "one") == read_output(tmp_path / "two")


def test_run_that_was_cut_off_ends_with_the_same_bytes(recipe, use, teacher, tmp_path):
    recipe = change(recipe, pipeline={"generator": GroundedQa(openings=False), "filters": SHAPE})
    use(teacher)
    do(recipe, tmp_path / "whole")
    full = len(teacher.asked)
    asked = 0

    def die(prompt):
        nonlocal asked
        asked += 1
        if asked > full // 2:
            raise BackendError("the endpoint is down", code="backend.unreachable")
        return behave(prompt)

    use(scripted_model(die, fingerprint="scripted:behaves"))
    job = Job.start(tmp_path / "cut", "kind: synth.records\n", seed=1)
    with pytest.raises(BackendError, match="the endpoint is down"):
        JOB_KIND.run(recipe, job)
    job.close()
    healthy = use(scripted_model(behave, fingerprint="scripted:behaves"))
    do(recipe, tmp_path / "cut", resume=True)
    assert read_output(tmp_path / "cut") == read_output(tmp_path / "whole")
    assert 0 < len(healthy.asked) < full


def test_cancel_stops_at_a_safe_point(recipe, use, teacher, tmp_path):
    use(teacher)
    job = Job.start(tmp_path / "out", "kind: synth.records\n")
    job.cancel()
    with pytest.raises(Cancelled):
        JOB_KIND.run(recipe, job)
    job.close()
    assert teacher.is_closed
    assert not teacher.asked


def test_nothing_kept_fails_with_counts(recipe, use, tmp_path):
    use(scripted_model(lambda prompt: " I cannot say."))
    asked = change(recipe, pipeline={"generator": GroundedQa(openings=False)})
    with pytest.raises(DataError) as caught:
        do(asked, tmp_path / "out")
    assert caught.value.code == "synth.nothing-kept"
    assert "generator: no question" in caught.value.problems[0].what
    assert not (tmp_path / "out").exists()


def test_shortfall_is_said(recipe, use, teacher, tmp_path):
    use(teacher)
    wanting = change(recipe, num_records={"train": 999})
    do(wanting, tmp_path / "out")
    events = (tmp_path / "out" / "events.jsonl").read_text()
    assert "of 999 train records kept" in events


def test_held_out_text_in_another_document_stays_out_of_training(index, use, teacher, tmp_path):
    rows = [json.loads(line) for line in (index / "passages.jsonl").read_text().splitlines()]
    copies = [{**row, "document_id": row["document_id"] + "-copy"} for row in rows]
    (index / "passages.jsonl").write_text("\n".join(json.dumps(row) for row in rows + copies))
    use(teacher)
    targets = {"train": 20, "held_out": 9}
    steps = {"filters": RULES}
    recipe = RecordsRecipe(index=str(index), pipeline=steps, num_records=targets, held_out=0.5)
    do(recipe, tmp_path / "out")
    records = list(read_records(tmp_path / "out" / "output" / "records.jsonl"))
    held = {r.fields["answer"] for r in records if r.fields["split"] == "held_out"}
    train = [r for r in records if r.fields["split"] == "train"]
    assert held
    assert not any(answer in r.messages[-1].content for answer in held for r in train)


def test_passages_can_be_left_out(recipe, use, teacher, tmp_path):
    use(teacher)
    do(change(recipe, pipeline={"include_passages": 0}), tmp_path / "out")
    records = read_records(tmp_path / "out" / "output" / "records.jsonl")
    assert all("question" in record.fields for record in records)


def test_one_document_is_enough_to_train_on(tmp_path, use, teacher):
    path = tmp_path / "passages.jsonl"
    path.write_text(json.dumps(make_passages()[0].to_json()) + "\n")
    use(teacher)
    targets = {"train": 2, "held_out": 5}
    steps = {"filters": RULES}
    recipe = RecordsRecipe(index=str(path), pipeline=steps, num_records=targets)
    do(recipe, tmp_path / "out")
    details = read_artifact(tmp_path / "out").details["counts"]
    assert details["train"]["kept"] == 2
    assert details["held_out"]["kept"] == 0


def test_preview_shows_verdicts_and_writes_nothing(recipe, use, teacher, tmp_path):
    use(teacher)
    shown = list(preview_records(recipe, 3))
    assert len(shown) == 3
    assert any(verdict.keep for unit in shown for _, _, verdict in unit.records)
    assert not list(tmp_path.glob("*out*"))


def test_estimate_grows_with_the_target_and_opens_no_model(recipe):
    small = estimate(recipe)
    large = estimate(change(recipe, num_records={"train": 500}))
    assert 0 < small.seconds < large.seconds
    assert small.memory_bytes > 0
    assert small.basis


@pytest.mark.parametrize(
    ("generator", "said"),
    [
        ({"openings": True, "answer": "quote"}, "requests (none for passages in English, German,"),
        ({"openings": False}, "about "),
        ({"openings": True, "answer": "teacher"}, "about "),
    ],
)
def test_an_estimate_says_for_which_passages_no_model_is_asked(recipe, generator, said):
    method = GroundedQa(**generator)
    basis = estimate(change(recipe, pipeline={"generator": method})).basis
    assert said in basis
    assert basis.startswith("at most") is (said != "about ")


def test_an_estimate_says_none_only_if_no_step_asks_a_model_for_such_passages(recipe):
    quoting = {"generator": {"name": "grounded_qa", "openings": True, "answer": "quote"}}
    steps = {"quoting": quoting, "writing": {"generator": {"name": "textbook"}}}
    steps["all"] = {"from": ["quoting", "writing"], "filters": ["duplicate"]}
    values = recipe.model_dump(mode="json", by_alias=True) | {"pipeline": {"steps": steps}}
    basis = estimate(RecordsRecipe.model_validate(values)).basis
    assert basis.startswith("at most")
    assert "none for" not in basis


SLOW = """
import sys, time
from pathlib import Path
import stillroom.models.factory as opening
from stillroom.jobs import Job
from stillroom.synth.jobs.records import JOB_KIND, RecordsRecipe
from stillroom.testing import scripted_model
from tests.unit.synth.conftest import behave

def slowly(prompt):
    time.sleep(0.05)
    return behave(prompt)

opening.open_text_model = lambda *a, **k: scripted_model(slowly, fingerprint="scripted:behaves")
recipe = RecordsRecipe.model_validate_json(sys.argv[1])
JOB_KIND.run(recipe, Job.start(Path(sys.argv[2]), "kind: synth.records\\n", seed=recipe.seed))
"""


def test_killed_run_ends_with_the_same_bytes(recipe, use, teacher, tmp_path):
    recipe = change(recipe, pipeline={"generator": GroundedQa(openings=False), "filters": SHAPE})
    use(teacher)
    do(recipe, tmp_path / "whole")
    command = [sys.executable, "-c", SLOW, recipe.model_dump_json(), str(tmp_path / "killed")]
    process = Process(command)
    journals = tmp_path / ".killed.partial" / "units"
    end = time.monotonic() + 60
    while not sum(file.stat().st_size for file in journals.glob("*")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    asked = len(teacher.asked)
    do(recipe, tmp_path / "killed", resume=True)
    assert read_output(tmp_path / "killed") == read_output(tmp_path / "whole")
    assert len(teacher.asked) - asked < asked


def test_records_named_as_index_are_passages_for_generators_that_take_both(tmp_path, use):
    from stillroom.recipes import parse_recipe

    rows = [{"text": passage.text} for passage in make_passages()]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = (
        "kind: synth.records\nheld_out: 0\npipeline: {generator: {name: dialogue, min_turns: 1}}\n"
    )
    model = use(scripted_model(lambda prompt: "Why do they do that at all?"))
    shown = list(preview_records(parse_recipe(f"{told}index: {path}\n"), 1))
    assert shown[0].unit.startswith("pas-")
    assert "Write the person's first message" in model.asked[0].messages[-1].content


def test_a_changed_filter_sends_no_request_again(recipe, use, teacher, tmp_path):
    use(teacher)
    do(recipe, tmp_path / "out")
    sent = len(teacher.asked)
    shorter = change(recipe, pipeline={"filters": recipe.pipeline.filters[:-2]})
    do(shorter, tmp_path / "out", overwrite=True)
    assert len(teacher.asked) == sent


def test_records_of_a_generator_and_passages_are_mixed(recipe, use, teacher, tmp_path):
    use(teacher)
    old = [Record((Message("assistant", "People wrote this."),), {}, Origin("human"))]
    write_records(tmp_path / "old.jsonl", old)
    mix = MixSettings(records=(str(tmp_path / "old.jsonl"),))
    artifact = do(recipe.model_copy(update={"mix": mix}), tmp_path / "out")
    report = json.loads((tmp_path / "out" / "output" / "report.json").read_text())
    texts = report["passage_records"]["kept"]
    assert report["mix"]["written"] == 1 + report["splits"]["train"]["kept"] + texts
    assert "mixed in" in {parent.role for parent in artifact.parents}


def test_a_source_that_no_step_takes_is_refused():
    steps = {"tell": {"from": "seeds", "filters": ["shape"]}}
    with pytest.raises(ValidationError, match="index is set, and no step takes it"):
        RecordsRecipe(index="a", seeds="b", pipeline={"steps": steps})


def test_a_budget_that_stops_all_is_named(recipe, use, teacher, tmp_path):
    use(teacher)
    plain = RecordsRecipe.model_validate(
        {
            **recipe.model_dump(mode="json"),
            "pipeline": {"generator": {"name": "grounded_qa", "form": "plain"}, "filters": []},
            "budget": {"requests": 1},
        }
    )
    with pytest.raises(DataError, match=r"budget\.requests: 1 is spent") as caught:
        do(plain, tmp_path / "out")
    assert caught.value.problems[0].next == "raise budget.requests"


def test_a_mixture_without_a_generated_record_warns(recipe, use, teacher, tmp_path):
    use(teacher)
    old = [Record((Message("assistant", "People wrote this."),), {}, Origin("human"))]
    write_records(tmp_path / "old.jsonl", old)
    mix = MixSettings(records=(str(tmp_path / "old.jsonl"),), human_share=1)
    do(recipe.model_copy(update={"mix": mix}), tmp_path / "out")
    told = (tmp_path / "out" / "events.jsonl").read_text()
    assert "0 of them generated here; left out: " in told


@pytest.mark.parametrize("filters", [["shape"], RULES])
@pytest.mark.parametrize("held_out", [0.0, 0.4])
def test_records_of_unknown_origin_are_refused_before_a_teacher_is_asked(
    index, use, teacher, tmp_path, filters, held_out
):
    use(teacher)
    rows = [
        Record((Message("assistant", "People wrote this."),), {}, Origin("human")),
        Record((Message("assistant", "Who wrote this?"),), {}, Origin("unknown")),
    ]
    write_records(tmp_path / "old.jsonl", rows)
    mix = {"records": [str(tmp_path / "old.jsonl")]}
    targets = {"train": 5, **({"held_out": 2} if held_out else {})}
    plan = {"index": str(index), "num_records": targets, "held_out": held_out, "batch_size": 1}
    recipe = RecordsRecipe.model_validate({**plan, "pipeline": {"filters": filters}, "mix": mix})
    before = len(teacher.asked)
    with pytest.raises(DataError) as caught:
        do(recipe, tmp_path / "out")
    assert caught.value.code == "synth.unknown-origin"
    events = tmp_path / "out/events.jsonl"
    assert not events.exists() or "generating train records" not in events.read_text()
    if filters == ["shape"] or not held_out:
        assert len(teacher.asked) == before
    write_records(tmp_path / "old.jsonl", rows[:1])
    do(recipe, tmp_path / "known")
    write_records(
        tmp_path / "old.jsonl",
        [Record(rows[1].messages, {"split": "held_out"}, rows[1].origin), rows[0]],
    )
    do(recipe, tmp_path / "elsewhere")


def test_passages_of_unknown_origin_are_refused_before_a_teacher_is_asked(use, teacher, tmp_path):
    use(teacher)
    rows = [{"text": passage.text} for passage in make_passages()]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pipeline = {"filters": ["shape"], "include_passages": 2}
    plan = {"index": str(tmp_path / "r.jsonl"), "held_out": 0, "pipeline": pipeline, "mix": {}}
    before = len(teacher.asked)
    with pytest.raises(DataError) as caught:
        do(RecordsRecipe.model_validate(plan), tmp_path / "out")
    assert caught.value.code == "synth.unknown-origin"
    assert len(teacher.asked) == before


@pytest.mark.parametrize("settings", [{"shots": 2}, {"answer": "teacher"}, {"openings": False}])
def test_settings_of_another_form_are_told(settings):
    (line,) = GroundedQa(form="schema", **settings).describe_unused()
    assert line.endswith("has no effect: set form: statement")


def test_progress_names_no_records_that_are_not_to_be_made(index, use, teacher, tmp_path):
    use(teacher)
    rules = {"filters": RULES}
    targets = {"train": 5}
    none = RecordsRecipe(index=str(index), pipeline=rules, num_records=targets, held_out=0)
    do(none, tmp_path / "out")
    events = (tmp_path / "out" / "events.jsonl").read_text(encoding="utf-8")
    assert "generating train records" in events
    assert "held_out records" not in events


def test_held_out_records_need_a_held_out_share():
    with pytest.raises(ValidationError, match="needs a held_out above 0"):
        RecordsRecipe(index="a", held_out=0, num_records={"held_out": 5})
    RecordsRecipe(index="a", held_out=0)


def test_rows_that_may_be_test_rows_are_counted_in_a_warning(tmp_path):
    names = ["driving test", "test-prep", "driving test", "gsm8k_test", "web"]
    turns = [
        (
            Message("user", f"What is the number of bee {n}?"),
            Message("assistant", f"It is number {n}."),
        )
        for n in range(5)
    ]
    rows = [Record(turns[n], {"split": name}) for n, name in enumerate(names)]
    write_records(tmp_path / "seeds.jsonl", rows)
    pipeline = {"steps": {"keep": {"from": "seeds", "filters": ["shape"]}}}
    recipe = RecordsRecipe.model_validate(
        {"seeds": str(tmp_path / "seeds.jsonl"), "held_out": 0, "pipeline": pipeline}
    )
    job = Job.start(tmp_path / "out", "kind: synth.records\n")
    JOB_KIND.run(recipe, job)
    job.close()
    events = (tmp_path / "out" / "events.jsonl").read_text(encoding="utf-8")
    assert "3 rows of" in events
    assert "may be test rows (split: driving test, test-prep)" in events


@pytest.mark.parametrize(("kinds", "most"), [(("unknown",) * 2, 0), (("human", "unknown"), 4)])
def test_seeds_of_unknown_origin_are_refused_before_all_are_judged(
    use, teacher, tmp_path, monkeypatch, kinds, most
):
    """Before any is, if all are; at the first one that is kept, if some are."""
    use(teacher)
    rows = [
        Record(
            (Message("user", f"What is bee {n}?"), Message("assistant", f"It is bee number {n}.")),
            {},
            Origin(kinds[n % 2]),
        )
        for n in range(40)
    ]
    write_records(tmp_path / "seeds.jsonl", rows)
    steps = {"keep": {"from": "seeds", "filters": ["shape", {"name": "judge", "judges": ["t"]}]}}
    plan = {"seeds": str(tmp_path / "seeds.jsonl"), "held_out": 0, "pipeline": {"steps": steps}}
    recipe = RecordsRecipe.model_validate({**plan, "mix": {}, "batch_size": 1})
    judged = []
    grade = {"ratings": [{"scores": {"all": 5}, "way": "text", "mean": 5}], "length": 1}
    measure = lambda _, record: judged.append(record) or grade  # noqa: E731
    monkeypatch.setattr("stillroom.synth.filters.judge._JudgeState.measure", measure)
    with pytest.raises(DataError) as caught:
        do(recipe, tmp_path / "out")
    assert caught.value.code == "synth.unknown-origin"
    assert len(judged) <= most


@pytest.mark.parametrize(("split", "more"), [({}, 0), ({"split": "train_sft"}, 0), ({}, 1)])
def test_seeds_of_unknown_origin_that_are_there_already_are_not_refused(tmp_path, split, more):
    def make(number, kind, **fields):
        texts = f"What is bee {number}?", f"It is bee number {number}."
        return Record((Message("user", texts[0]), Message("assistant", texts[1])), fields, kind)

    seeds = [make(n, Origin("unknown")) for n in range(4)]
    seeds += [make(n + 4, Origin("human")) for n in range(more)]
    existing = [make(n, Origin("human"), **split) for n in range(4)]
    write_records(tmp_path / "seeds.jsonl", seeds)
    write_records(tmp_path / "known.jsonl", [existing[0], existing[0], *existing[1:]])
    steps = {"keep": {"from": "seeds", "filters": ["shape"]}}
    plan = {"seeds": str(tmp_path / "seeds.jsonl"), "held_out": 0, "pipeline": {"steps": steps}}
    mix = {"records": [str(tmp_path / "known.jsonl")]}
    do(RecordsRecipe.model_validate({**plan, "mix": mix, "batch_size": 1}), tmp_path / "out")
    records = list(read_records(tmp_path / "out"))
    assert [row.origin.kind for row in records] == ["human"] * (4 + more)


def test_what_an_ended_run_committed_beyond_the_result_is_withdrawn(tmp_path):
    """A unit that was not answered at first may be, once the run goes on: others are used then."""
    finished = []
    for is_resumed, used in ((False, ("a", "b")), (True, ("b", "c"))):
        job = Job.start(tmp_path / "out", "kind: synth.records\n", resume=is_resumed)
        caches = RunCache.of(job)
        cache = caches.open("units", 1)
        for key in used:
            cache.put(key, {"is": key})
        caches.commit(job, [f"{cache.name}/{key}" for key in used])
        caches.close()
        if is_resumed:
            (job.output / "x").write_text("x")
            job.finish("records")
        finished = [f"{cache.name}/{key}" for key in used]
        job.close()
    assert [one.name for one in read_segments(tmp_path / "out")] == finished
