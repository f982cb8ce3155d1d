"""What becomes of a mergekit file: honored key by key, or refused with its place."""

import pytest

from stillroom.errors import RecipeError
from stillroom.merge.interfaces import METHODS
from stillroom.merge.mergekit.parameters import MERGEKIT_METHODS
from stillroom.merge.mergekit.recipe_files import (
    is_mergekit_config,
    read_mergekit_config,
)
from stillroom.recipes import parse_recipe
from stillroom.recipes.yaml_text import emit_yaml


def read(text, **more):
    """Return the last merge of a text, as our recipe."""
    return read_mergekit_config(text, **more)[-1].recipe


def refused(text):
    """Return the problems of a text by code."""
    with pytest.raises(RecipeError) as caught:
        read_mergekit_config(text, where="their.yml")
    return caught.value.problems


SLERP = "merge_method: slerp\nbase_model: a\n"
LINEAR = "merge_method: linear\nparameters: {weight: 1}\n"
SLICES = "merge_method: passthrough\nslices: "
VALUE, KEY = "merge.mergekit-value", "merge.mergekit-key"
TIES = """\
merge_method: ties
base_model: org/base
models:
  - model: org/base
  - model: org/one
    parameters: {density: 0.5, weight: 0.3}
  - model: org/two@v1
    parameters: {density: [0, 0.5, 1], weight: [{filter: mlp, value: 0.2}, {value: 0.7}]}
parameters: {normalize: false, lambda: 1.5, int8_mask: true}
dtype: float32
out_dtype: bfloat16
"""


def test_a_ties_merge_with_everything_it_may_say():
    made = read_mergekit_config(TIES)[-1]
    assert made.recipe == {
        "version": 1,
        "kind": "merge.weights",
        "method": {
            "name": "ties",
            "trim": "tensor",
            "density": 1.0,
            "normalize": False,
            "rescale": False,
            "scale": 1.5,
        },
        "base_model": "hub:org/base",
        "models": [
            {"model": "hub:org/one", "density": 0.5, "weight": 0.3},
            {"model": "hub:org/two@v1"},
        ],
        "arithmetic": {"name": "mergekit", "compute_dtype": "float32"},
        "out": {"dtype": "bfloat16"},
        "parameters": [
            {"setting": "weight", "model": 1, "tensors": ["*mlp*"], "value": 0.2},
            {"setting": "weight", "model": 1, "value": 0.7},
            {"setting": "density", "model": 1, "value": [0.0, 0.5, 1.0]},
        ],
    }
    assert made.warnings == ("parameters.int8_mask does not change the result",)


def test_the_result_is_a_recipe_of_ours():
    for made in read_mergekit_config(TIES):
        recipe = parse_recipe("\n".join(emit_yaml(made.recipe)))
        assert recipe.method.scale == 1.5
        assert recipe.models[0].weight == 0.3
        assert recipe.arithmetic.name == "mergekit"


@pytest.mark.parametrize("name", MERGEKIT_METHODS)
def test_every_method_of_theirs_is_one_of_ours(name):
    theirs = MERGEKIT_METHODS[name]
    given = [key for key, parameter in theirs.parameters.items() if parameter.default is None]
    models = (
        "[{model: a}, {model: b}]"
        if theirs.base == "pair"
        else "[{model: a}, {model: c}, {model: b}]"
    )
    models = "[{model: a}]" if name == "passthrough" else models
    models = "[{model: c}, {model: b}]" if name == "nuslerp" else models
    text = f"merge_method: {name}\nmodels: {models}\n"
    text += "base_model: a\n" if theirs.base in {"delta", "pair"} else ""
    text += f"parameters: {{{', '.join(f'{key}: 0.5' for key in given)}}}\n"
    made = read_mergekit_config(text)[-1]
    recipe = parse_recipe("\n".join(emit_yaml(made.recipe)))
    assert recipe.method.method_name() == name
    assert set(made.recipe["method"]) <= {"name", *METHODS.get(name).model_fields}


def test_slerp_turns_from_the_base_to_the_other():
    recipe = read(
        "merge_method: slerp\nbase_model: b\nmodels: [{model: a}, {model: b}]\n"
        "parameters:\n  t:\n    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}\n"
        "    - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}\n    - value: 0.5\n"
    )
    assert recipe["models"] == [{"model": "hub:b"}, {"model": "hub:a"}]
    assert "base_model" not in recipe
    assert recipe["parameters"] == [
        {"setting": "t", "tensors": ["*self_attn*"], "value": [0.0, 0.5, 0.3, 0.7, 1.0]},
        {"setting": "t", "tensors": ["*mlp*"], "value": [1.0, 0.5, 0.7, 0.3, 0.0]},
        {"setting": "t", "value": 0.5},
    ]


def test_slices_stack_layers():
    recipe = read(
        "merge_method: passthrough\nbase_model: a\nslices:\n"
        "  - sources: [{model: a, layer_range: [0, 24]}]\n"
        "  - sources:\n      - model: b\n        layer_range: [8, 32]\n"
        "        parameters: {scale: [{filter: o_proj, value: 0}, {value: 1}]}\n"
    )
    assert recipe["models"] == [{"model": "hub:a"}, {"model": "hub:b"}]
    assert recipe["slices"] == [
        {"sources": [{"model": 0, "layer_range": [0, 24]}]},
        {
            "sources": [{"model": 1, "layer_range": [8, 32]}],
            "parameters": [
                {"setting": "scale", "tensors": ["*o_proj*"], "value": 0.0},
                {"setting": "scale", "value": 1.0},
            ],
        },
    ]


def test_slices_of_differences_name_the_base():
    recipe = read(
        "merge_method: ties\nbase_model: a\nparameters: {density: 0.5}\nslices:\n"
        "  - sources:\n    - {model: b, layer_range: [0, 2], parameters: {weight: 0.4}}\n"
        "    - {model: a, layer_range: [0, 2]}\n    parameters: {normalize: false}\n"
    )
    assert recipe["base_model"] == "hub:a"
    assert recipe["models"] == [{"model": "hub:b"}]
    assert recipe["slices"][0]["sources"] == [
        {"model": -1, "layer_range": [0, 2]},
        {"model": 0, "layer_range": [0, 2]},
    ]
    assert recipe["slices"][0]["parameters"] == [
        {"setting": "weight", "model": 1, "value": 0.4},
        {"setting": "density", "model": 1, "value": 0.5},
        {"setting": "normalize", "value": False},
    ]


def test_linear_takes_its_base_as_a_model():
    recipe = read(
        "merge_method: linear\nbase_model: b\nparameters: {weight: 0.2}\nmodels: [{model: a}]\n"
    )
    assert [model["model"] for model in recipe["models"]] == ["hub:a", "hub:b"]
    assert [model["weight"] for model in recipe["models"]] == [0.2, 0.2]
    assert recipe["base_model"] == "hub:b"


def test_adapters_are_taken_with_their_model():
    recipe = read(
        "merge_method: linear\nparameters: {weight: 1}\nmodels:\n  - model: org/m@r1+org/l@r2\n"
        "  - model: {model: {path: org/m, revision: r1}, lora: {path: org/k}}\n"
    )
    assert recipe["models"] == [
        {"model": "hub:org/m@r1", "adapter": "hub:org/l@r2"},
        {"model": "hub:org/m@r1", "adapter": "hub:org/k"},
    ]


def test_folders_are_found_from_the_file(tmp_path):
    (tmp_path / "mine").mkdir()
    path = tmp_path / "their.yml"
    path.write_text("merge_method: passthrough\nmodels: [{model: mine}]\n")
    made = read_mergekit_config(path)[-1]
    assert made.recipe["models"] == [{"model": str(tmp_path / "mine")}]
    assert made.name == "their"
    assert made.position == f"{path}:1:1"


def test_several_merges_come_in_the_order_they_need():
    made = read_mergekit_config(
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: late}, {model: early}]\n"
        "---\nname: late\nmerge_method: passthrough\nmodels: [{model: early}]\n"
        "---\nname: early\nmerge_method: passthrough\nmodels: [{model: org/m}]\n",
        where="all.yml",
    )
    assert [each.name for each in made] == ["early", "late", "all"]
    assert made[2].recipe["models"] == [{"model": "step:late"}, {"model": "step:early"}]
    assert made[1].position == "all.yml:5:1"


def test_a_merge_in_a_models_place_is_a_merge_before():
    made = read_mergekit_config(
        "merge_method: linear\nparameters: {weight: 1}\nmodels:\n  - model: org/m\n"
        "  - model: {merge_method: passthrough, models: [{model: org/k}]}\n",
        where="nested.yml",
    )
    assert [each.name for each in made] == ["nested-1", "nested"]
    assert made[1].recipe["models"][1] == {"model": "step:nested-1"}


@pytest.mark.parametrize(
    "text",
    [
        "name: a\nmerge_method: passthrough\nmodels: [{model: b}]\n---\n"
        "name: b\nmerge_method: passthrough\nmodels: [{model: a}]\n",
        "merge_method: passthrough\nmodels: [{model: b}]\n---\n"
        "merge_method: passthrough\nmodels: [{model: a}]\n",
        "name: a\nmerge_method: passthrough\nmodels: [{model: b}]\n---\n"
        "name: a\nmerge_method: passthrough\nmodels: [{model: c}]\n",
        "name: ../a\nmerge_method: passthrough\nmodels: [{model: b}]\n",
    ],
)
def test_steps_that_do_not_add_up_are_refused(text):
    assert refused(text)[0].code == "merge.mergekit-steps"


def test_a_tokenizer_is_read():
    recipe = read(
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a}, {model: b}]\n"
        "tokenizer:\n  source: b\n  pad_to_multiple_of: 32\n  tokens:\n"
        "    <a>: {source: a, force: true}\n    <z>: {source: {kind: zero}}\n"
        "    <t>: {source: {kind: model_token, model: b, token: <s>}}\n"
        "    <r>: {source: {kind: model_token, model: b, token_id: 7}}\n"
        "chat_template: chatml\n"
    )
    assert recipe["tokenizer"] == {
        "source": 1,
        "tokens": {
            "<a>": {"add": True, "source": 0, "force": True},
            "<z>": {"add": True, "source": "zero"},
            "<t>": {"add": True, "source": {"model": 1, "token": "<s>"}},
            "<r>": {"add": True, "source": {"model": 1, "row": 7}},
        },
        "pad_to_multiple_of": 32,
    }
    assert recipe["chat_template"] == "chatml"


TOKENS = LINEAR + "models: [{model: a}, {model: b}]\ntokenizer: {tokens: {t: %s}}\n"


@pytest.mark.parametrize(("force", "forces"), [("no", False), ("'false'", False), ("on", True)])
def test_force_is_a_truth_value_in_the_spellings_of_mergekit(force, forces):
    token = read(TOKENS % f"{{force: {force}}}")["tokenizer"]["tokens"]["t"]
    assert token.get("force", False) is forces


@pytest.mark.parametrize(
    "token",
    [
        "{force: maybe}",
        "{source: {kind: model_token, model: a}}",
        "{source: {kind: model_token, model: a, token: s, token_id: 3}}",
    ],
)
def test_a_token_that_mergekit_refuses_is_refused(token):
    assert VALUE in {problem.code for problem in refused(TOKENS % token)}


def test_the_old_way_to_choose_a_tokenizer():
    head = "merge_method: task_arithmetic\nbase_model: a\nparameters: {weight: 1}\n"
    head += "models: [{model: b}]\n"
    assert read(head + "tokenizer_source: union\n")["tokenizer"] == {
        "source": "union",
        "pad_to_multiple_of": 1,
    }
    assert read(head + "tokenizer_source: a\n")["tokenizer"]["source"] == "base"
    assert read(head + "tokenizer_source: b\n")["tokenizer"]["source"] == 0


def test_everything_that_is_wrong_is_said_at_once_with_its_place():
    problems = refused(
        "merge_method: ties\n"
        "base_model: a\n"
        "dtpe: bfloat16\n"
        "dtype: bf16\n"
        "modulez: {}\n"
        "models:\n"
        "  - model: b\n"
        "    weight: 1\n"
        "    parameters: {densty: 0.5}\n"
        "parameters: {weight: {value: [true]}}\n"
    )
    told = {problem.where.removeprefix("their.yml:"): problem for problem in problems}
    assert told["3:1"].next == "did you mean 'dtype'?"
    assert told["4:8"].next == "did you mean 'float32'?" or "bfloat16" in told["4:8"].expected
    assert told["5:1"].code == "merge.mergekit-key"
    assert told["8:5"].code == "merge.mergekit-key"
    assert told["9:18"].next == "did you mean 'density'?"
    assert told["10:30"].code == "merge.mergekit-value"
    assert list(told) == sorted(told, key=lambda place: [int(n) for n in place.split(":")])


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("merge_method: tise\nmodels: [{model: a}]\n", "merge.mergekit-method"),
        ("merge_method: ties\nmodels: [{model: a, parameters: {weight: 1}}]\n", VALUE),
        ("merge_method: linear\nmodels: [{model: a}]\n", VALUE),
        (LINEAR + "models: []\n", VALUE),
        (LINEAR, VALUE),
        (LINEAR + "models: [a]\n", VALUE),
        (SLERP + "parameters: {t: .5}\nmodels: [{model: b}, {model: c}]\n", VALUE),
        (SLERP + "models: [{model: b}]\n", VALUE),
        (SLICES + "[{sources: [{model: a, layer_range: [0, -1]}]}]\n", VALUE),
        (SLICES + "[{sources: [{model: a}]}]\n", VALUE),
        (LINEAR + "models: [{model: {model: a, override_architecture: X}}]\n", VALUE),
        (LINEAR + "models: [{model: /nowhere/a@r}]\n", VALUE),
        ("merge_method: linear\nmodels: [{model: a, parameters: {weight: .nan}}]\n", VALUE),
        (
            "merge_method: linear\nmodels: [{model: a}]\n"
            "parameters: {weight: [{filter: mlp, value: 1}]}\n",
            VALUE,
        ),
        (LINEAR + "models: [{model: a}, {model: a}]\n", VALUE),
        (LINEAR + "normalize: true\nmodels: [{model: a}]\n", KEY),
        (LINEAR + "models: [{model: a}]\ntokenizer: {source: b}\n", VALUE),
        (LINEAR + "merge_method: ties\nmodels: [{model: a}]\n", "recipe.duplicate-key"),
        (LINEAR + "models: [{model: !!python/object a}]\n", "recipe.yaml-feature"),
        ("merge_method: [\n", "recipe.yaml"),
        ("", "recipe.kind"),
    ],
)
def test_what_cannot_be_honored_is_refused(text, code):
    assert code in {problem.code for problem in refused(text)}


def test_what_mergekit_overlooks_is_noted():
    made = read_mergekit_config(
        "merge_method: slerp\nbase_model: a\nint8_mask: true\nmodels:\n  - model: b\n"
        "    parameters: {weight: 0.5, t: 0.9}\nparameters: {t: 0.3, normalize: true}\n"
    )[-1]
    assert made.recipe["method"] == {"name": "slerp", "t": 0.3}
    assert made.warnings == (
        "int8_mask does not change the result",
        "parameters.normalize is not read by slerp",
        "models.0.parameters.weight is not read by slerp",
        "models.0.parameters.t is only read for all models together",
    )


def test_a_key_that_nobody_reads_is_warned_of_and_one_misspelled_refused():
    text = (
        "merge_method: slerp\nbase_model: a\nrandom_seed: 5\nslices:\n"
        "  - fooo: 1\n    sources:\n"
        "      - {model: a, layer_range: [0, 2], revision: main}\n"
        "      - {model: b, layer_range: [0, 2], color: red}\n"
        "parameters: {t: 0.3, int_space: true, dtype: float32}\n"
        "tokenizer: {source: union, vocabx: 3}\nchat_template: llama3\n"
    )
    made = read_mergekit_config(text)[-1]
    assert [note.split()[0] for note in made.warnings] == [
        "random_seed",
        "parameters.int_space",
        "parameters.dtype",
        "slices.0.fooo",
        "slices.0.sources.0.revision",
        "slices.0.sources.1.color",
        "tokenizer.vocabx",
        "chat_template",
    ]
    assert "NAME@REVISION" in made.warnings[4]
    assert made.recipe["arithmetic"] == "mergekit"
    near = text.replace("int_space", "tt").replace("revision", "layer_ranges")
    assert {problem.code for problem in refused(near)} == {KEY}


def test_values_as_older_yaml_writes_them():
    recipe = read(
        "merge_method: linear\nmodels:\n  - &x {model: a, parameters: &p {weight: 1e-1}}\n"
        "  - {model: b, parameters: *p}\n  - {<<: *x, model: c}\nparameters: {normalize: no}\n"
    )
    assert [model["weight"] for model in recipe["models"]] == [0.1, 0.1, 0.1]
    assert recipe["method"]["normalize"] is False


def test_filters_with_signs_of_patterns_are_taken_as_they_are():
    recipe = read(
        "merge_method: linear\nmodels:\n  - model: a\n"
        "    parameters: {weight: [{filter: 'a[0]*', value: 2}, {filter: '*', value: 1}]}\n"
    )
    assert recipe["parameters"][0]["tensors"] == ["*a[[]0][*]*"]
    assert recipe["parameters"][1] == {"setting": "weight", "model": 0, "value": 1.0}


def test_an_alias_bomb_is_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 9)]
    assert refused("\n".join(lines))[0].code == "recipe.too-large"


def test_a_list_that_holds_itself_is_refused():
    assert refused("merge_method: &x [*x]\n")[0].code == "recipe.too-large"


def test_overrides_speak_mergekits_words():
    text = "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: 0.1}\n"
    assert read(text, overrides=["parameters.t=0.4"])["method"]["t"] == 0.4


@pytest.mark.parametrize(
    "override",
    [
        "compat=paper",
        "lambda_scaling=3.0",
        "models.0.parameters.scaling_lambda=2.0",
        "models.0.revision=v1",
        "parameters.dtype=float32",
        "extras={a: {b: 1}}",
        "extras.a.b=1",
    ],
)
def test_an_override_that_mergekit_would_overlook_is_refused(override):
    text = "merge_method: linear\nmodels:\n  - {model: a, parameters: {weight: 1}}\n"
    with pytest.raises(RecipeError) as caught:
        read(text, overrides=[override])
    (problem,) = caught.value.problems
    assert problem.code == "merge.mergekit-key"
    assert problem.where == f"override '{override}'"


def test_what_a_file_has_mergekit_overlook_stays_a_warning_beside_an_override():
    text = "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nextras: 1\n"
    made = read_mergekit_config(text, overrides=["parameters.t=0.4", "chat_template=llama3"])[-1]
    assert "extras is ignored, as in mergekit" in made.warnings
    assert made.recipe["method"]["t"] == 0.4


@pytest.mark.parametrize(
    ("text", "is_theirs"),
    [
        ("models: []\nmerge_method: ties\n", True),
        ('"merge_method": ties', True),
        ("{merge_method: ties}", True),
        ("version: 1\nkind: merge.weights\n", False),
        ("# merge_method: ties\nkind: merge.weights\n", False),
        ("x:\n  merge_method: ties\n", False),
    ],
)
def test_their_files_are_recognized(text, is_theirs):
    assert is_mergekit_config(text) == is_theirs


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(RecipeError) as caught:
        read_mergekit_config(tmp_path / "none.yml")
    assert caught.value.code == "recipe.not-found"


MODULES = """
merge_method: task_arithmetic
base_model: base
modules:
  text_decoder:
    models: [{model: a, parameters: {weight: 0.3}}, {model: b, parameters: {weight: [0.1, 0.9]}}]
  vision_tower:
    models: [{model: a}]
    parameters: {weight: 0.5}
  multi_modal_projector:
    models: [{model: b}]
parameters: {weight: 1.0, lambda: 0.7}
"""


def test_modules_are_parts_by_names_the_rest_last():
    recipe = read(MODULES)
    vision, projector, rest = recipe["groups"]
    assert "*.visual.*" in vision["tensors"]
    assert vision["models"] == [0]
    assert vision["parameters"] == [{"setting": "weight", "model": 0, "value": 0.5}]
    assert projector["models"] == [1]
    assert "parameters" not in projector
    assert rest == {
        "tensors": ["*"],
        "models": [0, 1],
        "parameters": [
            {"setting": "weight", "model": 0, "value": 0.3},
            {"setting": "weight", "model": 1, "value": [0.1, 0.9]},
        ],
    }
    assert recipe["method"]["scale"] == 0.7


def test_slices_of_the_text_decoder_stand_beside_other_modules():
    start, end = MODULES.index("models: [{model: a, par"), MODULES.index("  vision_tower")
    sources = "[{model: a, layer_range: [0, 2]}, {model: base, layer_range: [0, 2]}]"
    text = f"{MODULES[:start]}slices: [{{sources: {sources}}}]\n{MODULES[end:]}"
    recipe = read(text)
    assert recipe["slices"][0]["sources"][0] == {"model": -1, "layer_range": [0, 2]}
    assert len(recipe["groups"]) == 2
    problems = refused(text.replace("  text_decoder:", "  vision_tower_:"))
    assert any("cannot be stacked" in str(problem) for problem in problems)


def test_modules_that_are_left_out_are_copied_and_said():
    text = MODULES[: MODULES.index("  text_decoder")] + MODULES[MODULES.index("  vision_tower") :]
    (imported,) = read_mergekit_config(text)
    assert any("their tensors are copied" in note for note in imported.warnings)
    assert "vision_tower.*" in imported.recipe["include"]
    assert "*" not in imported.recipe["include"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("modules:\n", "models: []\nmodules:\n"),
        ("    models: [{model: b}]\n", "    modelz: [{model: b}]\n"),
        ("    models: [{model: b}]\n", "    models: []\n"),
    ],
)
def test_modules_that_cannot_be_read_are_errors_with_their_line(old, new):
    assert old in MODULES
    assert all(problem.where.count(":") == 2 for problem in refused(MODULES.replace(old, new)))


@pytest.mark.parametrize(
    "line", ["license: mit", "metadata: {a: 1}", "parameters: {rescale_norm: l1}", "lazy: true"]
)
def test_a_key_like_none_of_mergekits_is_ignored_with_a_warning(line):
    text = "merge_method: linear\nmodels:\n  - {model: a, parameters: {weight: 1}}\n" + line
    (note,) = read_mergekit_config(text)[-1].warnings
    assert "is ignored, as in mergekit" in note


def test_a_method_in_capitals_is_told_which_one_is_meant():
    assert "did you mean 'slerp'?" in str(refused("merge_method: SLERP\nmodels: [{model: a}]\n"))


def test_a_mergekit_file_taken_for_a_recipe_is_told_its_command():
    with pytest.raises(RecipeError, match="stillroom merge run"):
        parse_recipe("merge_method: linear\nmodels: []\n")
