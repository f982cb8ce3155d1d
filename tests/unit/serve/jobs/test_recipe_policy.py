import pytest

from stillroom.errors import RecipeError
from stillroom.serve.jobs.recipe_policy import (
    RecipePolicy,
    dump_client_recipe,
    validate_client_recipe,
)
from stillroom.serve.workspace import TenantRoot

MERGE = {"kind": "merge.weights", "method": "linear", "models": [{"model": "a"}, {"model": "b"}]}
SYNTH = {
    "kind": "synth.records",
    "index": "docs",
    "model": "teacher",
    "pipeline": {"generator": "rewrite"},
}


@pytest.fixture
def root(tmp_path):
    inside = tmp_path / "served"
    (inside / "docs").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (inside / "way-out").symlink_to(tmp_path / "secret")
    (inside / "way-round").symlink_to(inside / "docs")
    return TenantRoot(inside)


def refused(recipe, root, policy=None, overrides=()):
    with pytest.raises(RecipeError) as caught:
        validate_client_recipe(
            dump_client_recipe(recipe), root, policy or RecipePolicy(), overrides
        )
    assert {problem.code for problem in caught.value.problems} == {"recipe.outside"}
    assert str(root.folder) not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "name",
    [
        "/etc", "~/x", "~root/x", "../other", "docs/../../other", "docs\\..\\..\\x", "way-out",
        "\\\\host\\share", "way-out/file", "file:///etc/passwd", "http://169.254.169.254/latest",
        "s3://bucket", "hub:a/b@../../../etc", ".stillroom/jobs", "docs/.hidden", " /etc",
        "run.judgments", "run.judgments/train.jsonl",
        "HTTP://host/v1", "job:1", "gs://x",
    ],
)  # fmt: skip
def test_a_reference_stays_inside(root, name):
    refused({**MERGE, "base_model": name}, root)
    told = refused(MERGE, root, overrides=[f'models.0.model="{name}"'.replace("\\", "\\\\")])
    assert "models.0.model" in told.problems[0].where


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_no_setting(root, number):
    for recipe, overrides in (
        ({**MERGE, "method": {"name": "ties", "density": number}}, ()),
        ({**MERGE, "method": "ties"}, [f"method.density=.{number}"]),
    ):
        with pytest.raises(
            RecipeError, match=r"method\.density cannot be .*(nan|inf|NaN|Inf)"
        ) as told:
            validate_client_recipe(dump_client_recipe(recipe), root, RecipePolicy(), overrides)
        (problem,) = told.value.problems
        assert "finite number" in problem.expected


def test_a_script_is_a_file_inside(root):
    named = {**SYNTH, "model": "scripted:docs/script.json"}
    assert (
        validate_client_recipe(dump_client_recipe(named), root, RecipePolicy()).model
        == "scripted:docs/script.json"
    )
    for name in ("/etc/passwd", "../x", "way-out/x", ".stillroom/x"):
        refused({**SYNTH, "model": f"scripted:{name}"}, root)


@pytest.mark.parametrize("name", ["docs", "not-there-yet", "way-round/x", "hub:org/name", "./docs"])
def test_names_inside_pass_as_they_are_written(root, name):
    recipe = validate_client_recipe(
        dump_client_recipe({**MERGE, "base_model": name}), root, RecipePolicy()
    )
    assert recipe.base_model == name.removeprefix("./")


@pytest.mark.parametrize(
    "change",
    [
        {"engine": {"fallbacks": ["http://host/v1#model"]}},
        {"cache": "/var/cache"},
        {"pipeline": {"generator": {"name": "tool_calls", "tools": "t.json", "source": "t.py"}}},
        {"pipeline": {"filters": [{"name": "personal", "key": "${env:STILLROOM_API_KEY}"}]}},
        {"pipeline": {"filters": [{"name": "judge", "judges": ["http://h/v1#m"], "rubric": {}}]}},
    ],
)
def test_settings_that_reach_out_are_refused(root, change):
    refused({**SYNTH, **change}, root)


def test_paths_in_settings_that_are_no_references_are_found(root):
    refused(
        {
            "kind": "rag.index",
            "documents": "docs",
            "embedding": {"context": {"model": "m", "cache": "../x"}},
        },
        root,
    )
    sweep = {"kind": "rag.sweep", "index": {"documents": "docs"}, "questions": "q"}
    refused({**sweep, "pipelines": ["dense:model=/etc"]}, root)
    refused({**sweep, "cache": "/etc"}, root)
    refused({**MERGE, "method": {"name": "fisher", "statistics": ["/etc", "x"]}}, root)


def test_prose_may_speak_of_anything(root):
    prompt = "Write about / and ~ and ../ or http://example.org: {text}"
    prompts = {"task": "Look: see http://example.org. Is and/or .py code ok? {text}"}
    for said in (prompt, prompts["task"]):
        generator = {"name": "magpie", "system": said}
        text = dump_client_recipe({**SYNTH, "index": None, "pipeline": {"generator": generator}})
        recipe = validate_client_recipe(text, root, RecipePolicy())
        assert recipe.pipeline.generator.system == said


def test_what_the_operator_opens_is_open(root):
    policy = RecipePolicy(("http://localhost:8000/v1",), variables=("TOKEN",))
    teacher = {
        "endpoint": "http://localhost:8000/v1", "api_key": "${env:TOKEN}", "tokenizer": "t"
    }  # fmt: skip
    kind = "distill.endpoint_logits"
    recipe = {"kind": kind, "records": "docs", "method": "forward_kl", "student": "s"}
    validate_client_recipe(dump_client_recipe({**recipe, "teacher": teacher}), root, policy)
    refused({**recipe, "teacher": {**teacher, "api_key": "${env:HOME}"}}, root, policy)
    for address in (
        "http://localhost:8000/v1x", "http://localhost:80/v1", "https://localhost:8000/v1",
        "http://localhost:8000", "http://localhost:8000/v1/../admin", "http://evil/localhost:8000/v1",
    ):  # fmt: skip
        refused({**recipe, "teacher": {**teacher, "endpoint": address}}, root, policy)
    assert policy.ports == (8000,)
    assert not policy.has_endpoint("http://me@localhost:8000/v1")
    assert not policy.has_endpoint("http://localhost:port/v1")


def test_steps_of_a_flow_are_looked_at_too(root):
    step = {"kind": "rag.index", "documents": "/etc"}
    refused({"kind": "flow", "steps": {"index": step}}, root)
    refused({"kind": "flow", "inputs": {"documents": "/etc"}, "steps": {}}, root)


def test_defaults_are_ours_and_pass(root):
    assert validate_client_recipe(
        dump_client_recipe({"kind": "rag.index", "documents": "docs"}), root, RecipePolicy()
    )


def test_no_recipe_of_a_client_works_on_a_cluster(root):
    for engine in ("ray", {"ray": {"address": "10.0.0.5:6379"}}):
        told = refused({**SYNTH, "engine": engine}, root)
        assert "engine: ray is not allowed" in str(told)
        steps = {"records": {**SYNTH, "engine": engine}}
        refused({"kind": "flow", "steps": steps}, root)
        refused({"kind": "flow", "steps": {"records": SYNTH}, "engine": engine}, root)
