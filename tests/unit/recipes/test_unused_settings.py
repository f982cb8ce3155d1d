"""Settings that would do nothing are told of; those that cannot be carried out are refused."""

from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import TypeAdapter, ValidationError

from stillroom.cli.app import stillroom
from stillroom.diffusion.interfaces import ATTENTIONS, REMASKINGS
from stillroom.diffusion.sampling.settings import EndSettings
from stillroom.distill.settings import FidelitySettings
from stillroom.errors import StillroomError
from stillroom.evaluate.jobs.report import AnswerSamplingSettings
from stillroom.flow import run_recipe
from stillroom.forensics.jobs.audio_detector import AudioDetectorRecipe
from stillroom.forensics.jobs.image_detector import ForgeryData
from stillroom.forensics.settings import SplitSettings
from stillroom.recipes import (
    build_recipe,
    dump_recipe,
    list_kinds,
    load_recipe,
    parse_recipe,
    render_template,
)
from stillroom.synth import preview_records
from stillroom.synth.interfaces import FILTERS, SELECTORS
from stillroom.text.interfaces import CHUNKERS


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (SplitSettings, {"test": 0.5, "validation": 0.5}, "leave a share for training"),
        (AudioDetectorRecipe, {"count": 8}, "greater than or equal to 9"),
        (ForgeryData, {"count": 1}, "greater than or equal to 2"),
    ],
)
def test_settings_that_cannot_be_carried_out_are_refused(settings, values, message):
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(settings).validate_python(values)


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        (EndSettings, {"never": True}),
        (EndSettings, {"penalty": 1.0}),
        (FidelitySettings, {"records": 0}),
        (FidelitySettings, {"records": 4, "baseline": True, "keep_baseline": True}),
        (SplitSettings, {"test": 0.9, "validation": 0.0}),
        (AnswerSamplingSettings, {"temperature": 0.7, "top_k": 5, "top_p": 0.5}),
        (AnswerSamplingSettings, {"temperature": 0, "top_k": 0, "top_p": 1}),
    ],
)
def test_settings_with_an_effect_are_accepted(settings, values):
    assert TypeAdapter(settings).validate_python(values).describe_unused() == []


SAMPLED = "pipeline={generator: {name: grounded_qa, temperature: 0.7, top_p: 0.5}}"
SCHEMA = "pipeline={generator: {name: grounded_qa, form: schema, shots: 2}}"


@pytest.mark.parametrize(
    ("kind", "overrides", "told"),
    [
        (
            "synth.records",
            ["index=i", SAMPLED, "pipeline.generator.temperature=0"],
            "pipeline.generator.top_p has no effect: set temperature above 0",
        ),
        ("synth.records", ["index=i", SCHEMA], "pipeline.generator.shots"),
        ("rag.index", ["documents=d", "limits.ocr=never", "limits.ocr_language=de"], "ocr_lang"),
        ("evaluate.report", ["records=r", "models={a: m}", "sampling.top_k=5"], "sampling.top_k"),
        (
            "distill.supervised",
            ["records=r", "teacher=t", "fidelity.answers=4", "fidelity.records=0"],
            "fidelity.answers",
        ),
        (
            "distill.supervised",
            ["records=r", "teacher=t", "fidelity.max_new_tokens=9", "fidelity.answers=0"],
            "fidelity.max_new_tokens",
        ),
        (
            "distill.supervised",
            ["records=r", "teacher=t", "fidelity={baseline: false, keep_baseline: true}"],
            "fidelity.keep_baseline",
        ),
        (
            "distill.supervised",
            ["records=r", "teacher=t", "sequence={attempts: 8}", "sequence.temperature=0"],
            "sequence.attempts",
        ),
        (
            "distill.supervised",
            ["records=r", "teacher=t", "student={keep: [0, 1], choose: kl}"],
            "student.choose",
        ),
        (
            "distill.supervised",
            ["records=r", "teacher=t", "train={schedule: constant, final_share: 0.5}"],
            "train.final_share",
        ),
    ],
)
def test_one_override_that_leaves_other_settings_without_effect_is_told_not_refused(
    kind, overrides, told
):
    recipe = load_recipe(Path(kind), overrides)
    (line,) = recipe.describe_unused()
    assert told in line
    assert parse_recipe(dump_recipe(recipe)).describe_unused() == [line]


@pytest.mark.parametrize("kind", [kind for kind in list_kinds() if kind != "flow"])
def test_a_template_has_no_setting_without_effect(kind):
    assert parse_recipe(render_template(kind)).describe_unused() == []


def test_a_temperature_of_0_samples_one_completion():
    told = {"records": "r", "teacher": "t", "sequence": {"temperature": 0}}
    sequence = build_recipe({"kind": "distill.supervised", **told}).sequence
    assert sequence.num_completions == 1
    assert sequence.describe_unused() == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (EndSettings(never=True, penalty=1.0), "penalty has no effect: never suppresses"),
        (EndSettings(never=True, last=True), "last has no effect"),
        (SELECTORS.build({"name": "top", "budget": 3, "share": 0.5}), "share has no effect"),
        (SELECTORS.build({"name": "semdedup", "score": "ifd"}), "score has no effect"),
    ],
)
def test_settings_that_another_one_replaces_are_told(settings, told):
    (line,) = settings.describe_unused()
    assert line.startswith(told)


def test_check_prints_settings_without_effect(tmp_path):
    for name in ("r.jsonl", "a", "b"):
        (tmp_path / name).touch()
    told = CliRunner().invoke(
        stillroom,
        [
            "check",
            "evaluate.report",
            f"records={tmp_path}/r.jsonl",
            f"models={{a: '{tmp_path}/a'}}",
            "sampling.top_p=0.5",
        ],
    )
    assert "warning: sampling.top_p has no effect" in told.output


SILENT_OCR = {"ocr": "never", "ocr_language": "de"}


def test_python_callers_without_a_reporter_get_a_python_warning(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("One sentence.")
    index = {"kind": "rag.index", "documents": str(tmp_path / "docs"), "embedder": "static"}
    recipe = build_recipe({**index, "limits": SILENT_OCR})
    with pytest.warns(UserWarning, match="limits.ocr_language has no effect") as told:
        run_recipe(recipe, tmp_path / "index")
    assert told[0].filename == __file__


def test_a_preview_of_records_tells_settings_without_effect():
    generator = {"name": "grounded_qa", "temperature": 0.0, "top_p": 0.5}
    recipe = build_recipe(
        {"kind": "synth.records", "index": "none", "pipeline": {"generator": generator}}
    )
    with (
        pytest.warns(UserWarning, match="top_p has no effect"),
        pytest.raises(StillroomError),
    ):
        list(preview_records(recipe, 1))


@pytest.mark.parametrize(
    ("registry", "method"),
    [
        (REMASKINGS, {"name": "wino", "threshold": 0}),
        (REMASKINGS, {"name": "remdm", "eta": 0}),
        (FILTERS, {"name": "language", "languages": ["english"]}),
        (FILTERS, {"name": "language", "languages": ["EN"]}),
        *((CHUNKERS, {"name": name, "size": 50, "overlap": 26}) for name in CHUNKERS.names()),
    ],
)
def test_methods_without_effect_are_refused(registry, method):
    with pytest.raises(ValidationError):
        registry.build(method)


def test_a_small_size_lowers_the_default_of_the_least_size():
    for name in CHUNKERS.names():
        CHUNKERS.build({"name": name, "size": 10, "overlap": 5})


def test_attention_is_annealed_by_the_last_step_or_it_shows():
    attention = ATTENTIONS.build({"name": "full", "anneal_steps": 10})
    assert attention.visible_share(9) == 1
    assert attention.visible_share(4) == 0.5
