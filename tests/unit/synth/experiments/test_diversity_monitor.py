"""The monitor warns of data made of made data, and not of more of the same."""

import itertools
import json
import shutil
from collections import defaultdict

import numpy as np
import pytest
from click.testing import CliRunner
from pydantic import ValidationError
from tests.unit.synth.conftest import run_in

from stillroom.checkpoints.random_init import write_random_checkpoint
from stillroom.cli import stillroom
from stillroom.errors import DataError
from stillroom.evaluate import Report
from stillroom.records import Message, Record, write_records
from stillroom.synth.experiments import diversity_monitor
from stillroom.synth.experiments.diversity_monitor import DiversityAlarm, monitor_diversity
from stillroom.synth.jobs.diversity import DiversityRecipe


def write(path, texts):
    write_records(path, [Record((Message("assistant", text),)) for text in texts])


def plan_of(*paths, **more):
    return DiversityRecipe(generations=tuple(map(str, paths)), **more)


def monitor(out, plan):
    """Return the report that a run writes, and its alarms."""
    artifact = run_in(out, monitor_diversity, plan)
    alarms = [DiversityAlarm(**alarm) for alarm in artifact.details["alarms"]]
    return Report.read(out / "output"), alarms


def people(rng, count):
    words = [f"w{at}" for at in range(4000)]
    weights = 1 / np.arange(1, 4001)
    return [" ".join(rng.choice(words, 40, p=weights / weights.sum())) for _ in range(count)]


def imitate(texts, rng, count):
    """Texts of a bigram model of the texts."""
    following = defaultdict(list)
    for text in texts:
        told = text.split()
        for one, other in itertools.pairwise(told):
            following[one].append(other)
    starts = [text.split()[0] for text in texts]
    made = []
    for _ in range(count):
        told = [rng.choice(starts)]
        while len(told) < 40 and following[told[-1]]:
            told.append(rng.choice(following[told[-1]]))
        made.append(" ".join(told))
    return made


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("written"), np.random.default_rng(0)
    texts = people(rng, 120)
    write(folder / "more.jsonl", people(rng, 120))
    for number in range(4):
        write(folder / f"g{number}.jsonl", texts)
        texts = imitate(texts, rng, 120)
    return folder


@pytest.fixture
def generations(written, tmp_path):
    return shutil.copytree(written, tmp_path, dirs_exist_ok=True)


def test_generations_that_replace_each_other_are_warned_of(generations):
    paths = ", ".join(str(generations / f"g{at}.jsonl") for at in range(4))
    words = ["run", "synth.diversity", f"generations=[{paths}]", "--quiet"]
    words += ["--out", str(generations / "out")]
    done = CliRunner().invoke(stillroom, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert "Warning: variety is lost" in done.output
    told = json.loads((generations / "out/artifact.json").read_text())["details"]["alarms"]
    assert {"distinct_3", "repeated"} <= {
        one["figure"] for one in told if "g1" in one["generation"]
    }
    assert (generations / "out/output/report.html").is_file()


def test_more_of_the_same_is_not_warned_of(generations, monkeypatch):
    monkeypatch.setattr(diversity_monitor, "open_embedder", lambda *_, **__: Spread())
    plan = plan_of(generations / "g0.jsonl", generations / "more.jsonl", embedder="spread")
    report, warned = monitor(generations / "out", plan)
    assert warned == []
    assert "No figure is seen to be worse" in report.summary
    assert "coverage" in {section.title for section in report.sections}


def test_the_perplexity_of_human_text_under_each_student_is_a_figure(generations, tmp_path):
    texts = ["A colony keeps its nest warm.", "The river rises in the north."] * 10
    write(tmp_path / "human.jsonl", texts)
    students = []
    for name, spread in (("calm", 0.02), ("wild", 0.5)):
        folder = write_random_checkpoint(tmp_path / name, texts, spread=spread)
        students.append(str(folder))
    measured = {"students": students, "human": str(tmp_path / "human.jsonl")}
    paths = (generations / "g0.jsonl", generations / "more.jsonl")
    plan = plan_of(*paths, perplexity=measured)
    report, warned = monitor(generations / "out", plan)
    assert [one.figure for one in warned] == ["perplexity"]
    assert warned[0].change > 0.05
    names = {f"perplexity/{name}.jsonl" for name in ("g0", "more")}
    assert names <= set(report.metrics)
    with pytest.raises(ValidationError, match="2 students for 3 generations") as caught:
        plan_of(*paths, paths[0], perplexity=measured)
    assert caught.value.errors()[0]["ctx"]["error"].code == "synth.students"


class Spread:
    """Vectors that follow from the text and have no pattern."""

    def embed(self, texts, *, kind):
        rows = np.stack(
            [np.random.default_rng(len(t) + sum(map(ord, t))).normal(size=6) for t in texts]
        )
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_texts_of_spaces_alone_have_a_meaning_too(generations, monkeypatch):
    """A student may write nothing that can be seen; embedders refuse that."""

    class Strict(Spread):
        def embed(self, texts, *, kind):
            assert all(text.strip() for text in texts)
            return super().embed(texts, kind=kind)

    texts = ["w1 w2 w3 w4 w5 w6 w7 w8"] * 40 + [" \n\u00a0"]
    write(generations / "blank.jsonl", texts)
    monkeypatch.setattr(diversity_monitor, "open_embedder", lambda *_, **__: Strict())
    plan = plan_of(generations / "g0.jsonl", generations / "blank.jsonl", embedder="strict")
    report, _ = monitor(generations / "out", plan)
    assert "coverage/blank.jsonl" in report.metrics


def garble(texts, rng):
    """Texts of as many letters, which spell no word that people use: more varied than theirs."""
    letters = list("abcdefghijklmnopqrstuvwxyz")
    return [
        " ".join("".join(rng.choice(letters, size=len(word))) for word in text.split())
        for text in texts
    ]


def test_text_that_departs_from_peoples_is_warned_of_though_it_is_varied(tmp_path):
    rng = np.random.default_rng(1)
    texts = people(rng, 120)
    for name, told in (("human", texts), ("more", people(rng, 120)), ("made", garble(texts, rng))):
        write(tmp_path / f"{name}.jsonl", told)
    plan = plan_of(*(tmp_path / f"{one}.jsonl" for one in ("human", "more", "made")))
    report, warned = monitor(tmp_path / "out", plan)
    named = {one.figure for one in warned if one.generation.startswith("made")}
    assert "surprise" in named
    assert not named & {"distinct_1", "distinct_3", "self_bleu", "compression", "repeated"}
    assert not [one for one in warned if one.generation.startswith("more")]
    assert report.metrics["surprise/made.jsonl"].unit == "bits/character"


def test_each_value_of_the_headline_stands_beside_its_own_generation(generations):
    plan = plan_of(*(generations / f"g{at}.jsonl" for at in range(4)))
    report, warned = monitor(generations / "out", plan)
    for figure in {one.figure for one in warned}:
        held = [one for one in warned if one.figure == figure]
        for one in (held[0], held[-1]):
            assert str(one) in report.summary
    assert "from g1" not in report.summary


def test_a_figure_that_rises_from_zero_is_warned_of(tmp_path):
    words = iter(range(10**6))
    human = [" ".join(f"w{next(words)}" for _ in range(40)) for _ in range(120)]
    made = [" ".join(["thank", "you", "for", "asking", *text.split()[4:]]) for text in human]
    write(tmp_path / "human.jsonl", human)
    write(tmp_path / "made.jsonl", made)
    plan = plan_of(tmp_path / "human.jsonl", tmp_path / "made.jsonl", tolerance=0.01)
    report, warned = monitor(tmp_path / "out", plan)
    (repeated,) = (one for one in warned if one.figure == "repeated")
    assert 0 < repeated.change < 1
    assert f"repeated 0 to {repeated.change:.2g} in made.jsonl" in report.summary


def test_generations_of_few_records_are_not_judged(generations):
    texts = [" ".join(["w1 w2 w3 w4"] * 60)] * 5  # as poor as can be
    write(generations / "few.jsonl", texts)
    plan = plan_of(generations / "g0.jsonl", generations / "few.jsonl")
    report, warned = monitor(generations / "out", plan)
    assert warned == []
    assert "Not judged, on fewer than 20 records: distinct_1" in report.summary
    assert "of few.jsonl" in report.summary


def test_one_generation_or_too_little_text_is_refused(generations):
    write(generations / "few.jsonl", ["a few words"])
    with pytest.raises(ValidationError, match="at least 2"):
        plan_of(generations / "g0.jsonl")
    plan = plan_of(generations / "g0.jsonl", generations / "few.jsonl")
    with pytest.raises(DataError) as caught:
        run_in(generations / "out", monitor_diversity, plan)
    assert caught.value.problems[0].code == "synth.too-little-text"


def test_a_sample_larger_than_a_generation_is_refused(generations):
    plan = plan_of(generations / "g0.jsonl", generations / "g1.jsonl", sample_words=10**6)
    with pytest.raises(DataError, match="at least 1000000 words") as caught:
        run_in(generations / "out", monitor_diversity, plan)
    assert "lower sample_words" in str(caught.value)
