"""Statistics from real models, and the merges that weigh by them."""

import json
from pathlib import Path

import numpy as np
import torch
from click.testing import CliRunner
from tests.unit.merge.analysis.test_comparison import records
from tests.unit.merge.lora.test_adapter import refused

from stillroom.checkpoints import Checkpoint
from stillroom.cli.merge.analysis import calibrate_command
from stillroom.errors import CheckpointError, DataError, RecipeError
from stillroom.merge import METHODS, merge_checkpoints
from stillroom.merge.analysis.calibration import (
    gather_fisher,
    gather_gram_matrices,
    gather_merged_gram_matrices,
)
from stillroom.merge.interfaces import BlockContext, merge_arrays
from stillroom.merge.tensors.linear_algebra import solve_regmean
from stillroom.merge.tensors.storage import ModelStatistics, write_statistics
from stillroom.models import load_causal_lm
from stillroom.provenance import read_artifact, verify_artifact
from stillroom.records import write_records

Q = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
KEYS = ("one#0", "two#0")


def write(folder, kind, arrays, model, **details):
    return str(
        write_statistics(folder, kind, arrays, model=model, tokens=9, details=details).folder
    )


def place(shape, weights=(1.0, 1.0), keys=KEYS):
    return BlockContext("tensor", shape, keys, weights)


def test_fisher_with_true_labels_is_the_squared_gradient_of_the_likelihood(family, tmp_path):
    folder = family[1][0]
    found = gather_fisher(folder, records(1), tmp_path / "f", labels="true", device="cpu")
    from stillroom.models.tokenization.assistant_mask import encode_conversations

    model, tokenizer = load_causal_lm(folder, dtype="float32", device="cpu")
    model.get_input_embeddings().padding_idx = None  # as its end of turn, which is learned
    (encoded,) = encode_conversations(tokenizer, records(1), max_tokens=512)
    ids = torch.tensor(encoded.ids)
    targets = torch.tensor(encoded.targets)
    logits = model(input_ids=ids[None]).logits[0, targets - 1]
    torch.nn.functional.cross_entropy(logits, ids[targets], reduction="sum").backward()
    for name in (Q, "model.embed_tokens.weight"):
        wanted = model.get_parameter(name).grad.square() / len(targets)
        np.testing.assert_allclose(found.array(name), wanted, rtol=1e-3, atol=1e-10)
    assert found.tokens == len(targets)
    assert found.model == Checkpoint.open(folder).fingerprint


def test_sampled_fisher_is_the_same_for_the_same_seed_only(family, tmp_path):
    folder, few = family[1][0], records(2)
    one, two = (gather_fisher(folder, few, tmp_path / n, device="cpu") for n in "ab")
    other = gather_fisher(folder, few, tmp_path / "c", seed=1, device="cpu")
    assert (one.array(Q) == two.array(Q)).all()
    assert (one.array(Q) != other.array(Q)).any()
    assert set(one.names()) == set(Checkpoint.open(folder).names())


def test_gram_matrices_are_the_mean_products_of_what_layers_were_given(family, tmp_path):
    folder = family[1][0]
    found = gather_gram_matrices(folder, records(), tmp_path / "g", device="cpu")
    model, tokenizer = load_causal_lm(folder, dtype="float32", device="cpu")
    from stillroom.models.tokenization.assistant_mask import encode_conversations

    seen = {}
    for name in (Q, DOWN):
        module = model.get_submodule(name.removesuffix(".weight"))
        module.register_forward_pre_hook(
            lambda _, x, name=name: seen.setdefault(name, []).append(x[0][0].double())
        )
    with torch.inference_mode():
        for each in encode_conversations(tokenizer, records(), max_tokens=512):
            model(input_ids=torch.tensor(each.ids)[None])
    for name, parts in seen.items():
        x = torch.cat(parts)
        np.testing.assert_allclose(found.array(name), x.T @ x / len(x), rtol=1e-9, atol=1e-9)
    key = Q.replace("q_proj", "k_proj")
    assert key in found
    assert (found.array(key) == found.array(Q)).all()
    assert json.loads((tmp_path / "g" / "statistics.json").read_text())["same"][key] == Q


def test_fisher_weighs_each_number_by_its_information(tmp_path):
    rng = np.random.default_rng(0)
    parents = [rng.standard_normal((6, 4)).astype(np.float32) for _ in range(2)]
    information = [rng.random((6, 4)) + 0.1 for _ in range(2)]
    folders = [
        write(tmp_path / name, "fisher", {"tensor": array}, name)
        for name, array in zip(("one", "two"), information, strict=True)
    ]
    method = METHODS.build({"name": "fisher", "statistics": folders, "normalize": False})
    at = place((6, 4), (1.0, 3.0))
    merged = merge_arrays(method, None, parents, at)
    a, b = information[0], 3 * information[1]
    np.testing.assert_allclose(
        merged, (a * parents[0] + b * parents[1]) / (a + b), rtol=1e-5, atol=1e-6
    )
    assert merge_arrays(method, None, parents, at, rows=1).tobytes() == merged.tobytes()
    same = merge_arrays(method, None, [parents[0]] * 2, at)
    assert same.tobytes() == parents[0].tobytes()


def test_regmean_is_the_least_squares_solution(tmp_path):
    rng = np.random.default_rng(0)
    parents = [rng.standard_normal((3, 5)) for _ in range(2)]
    inputs = [rng.standard_normal((40, 5)) * (1 + n) for n in range(2)]
    grams = [x.T @ x / len(x) for x in inputs]
    found = solve_regmean(parents, grams, [1.0, 2.0], 1.0)
    stacked = np.concatenate([inputs[0], inputs[1] * 2**0.5])
    wanted = np.concatenate([inputs[0] @ parents[0].T, 2**0.5 * inputs[1] @ parents[1].T])
    best, *_ = np.linalg.lstsq(stacked, wanted, rcond=None)
    np.testing.assert_allclose(found, best.T, rtol=1e-6, atol=1e-8)
    folders = [
        write(tmp_path / name, "gram", {"tensor": gram}, name)
        for name, gram in zip(("one", "two"), grams, strict=True)
    ]
    method = METHODS.build({"name": "regmean", "statistics": folders[::-1], "alpha": 1.0})
    merged = merge_arrays(method, None, parents, place((3, 5), (1.0, 2.0)))
    np.testing.assert_allclose(merged, found)
    same = merge_arrays(method, None, [parents[0]] * 2, place((3, 5)))
    assert (same == parents[0]).all()


def test_inputs_that_never_came_are_averaged_and_alpha_zero_is_diagonal():
    parents = [np.zeros((1, 3)), np.ones((1, 3))]
    grams = [np.diag([1.0, 3.0, 0.0]), np.diag([1.0, 1.0, 0.0])]
    found = solve_regmean(parents, grams, [1.0, 1.0], 0.9)
    np.testing.assert_allclose(found, [[0.5, 0.25, 0.5]], atol=1e-6)
    full = [gram + 0.2 for gram in grams]
    found = solve_regmean(parents, full, [1.0, 1.0], 0.0)
    np.testing.assert_allclose(found, [[0.5, 1.2 / 4.4, 0.5]], atol=1e-6)
    assert solve_regmean(parents, [np.zeros((3, 3))] * 2, [1.0, 1.0], 0.9).tolist() == [[0.5] * 3]


def test_checkpoints_merge_by_their_statistics(family, tmp_path):
    one, two, _ = family[1]
    for kind, gather in (("fisher", gather_fisher), ("regmean", gather_gram_matrices)):
        folders = [
            str(gather(path, records(4), tmp_path / f"{kind}{n}", device="cpu").folder)
            for n, path in enumerate((one, two))
        ]
        merge_checkpoints({"name": kind, "statistics": folders}, None, [one, two], tmp_path / kind)
        merged = Checkpoint.open(tmp_path / kind)
        average = (Checkpoint.open(one).tensor(Q) + Checkpoint.open(two).tensor(Q)) / 2
        assert 0 < float((merged.tensor(Q) - average).norm()) < float(average.norm())
        with refused(RecipeError, "merge.statistics"):
            merge_checkpoints(
                {"name": kind, "statistics": folders[:1]}, None, [one, two], tmp_path / "no"
            )
        with refused(RecipeError, "merge.weights"):
            merge_checkpoints(
                {"name": kind, "statistics": folders},
                None,
                [one, two],
                tmp_path / "no",
                weights=[1, 0],
            )
        assert not (tmp_path / "no").exists()


def test_regmean_comes_nearer_to_both_models_outputs_than_the_average(family, tmp_path):
    one, two, _ = family[1]
    data = records(8)
    folders = [
        str(gather_gram_matrices(path, data, tmp_path / str(n), device="cpu").folder)
        for n, path in enumerate((one, two))
    ]
    gram = (
        ModelStatistics.open(tmp_path / "0").array(DOWN),
        ModelStatistics.open(tmp_path / "1").array(DOWN),
    )
    parents = [Checkpoint.open(path).tensor(DOWN).double().numpy() for path in (one, two)]
    keys = tuple(f"{Checkpoint.open(path).fingerprint}#0" for path in (one, two))
    method = METHODS.build({"name": "regmean", "statistics": folders, "alpha": 1.0})
    at = BlockContext(DOWN, parents[0].shape, keys, (1.0, 1.0))
    merged = merge_arrays(method, None, parents, at)

    def distance(matrix):
        gaps = [matrix - parent for parent in parents]
        return sum(float(np.trace(gap @ g @ gap.T)) for gap, g in zip(gaps, gram, strict=True))

    assert distance(merged) < 0.9 * distance((parents[0] + parents[1]) / 2)


def test_statistics_of_the_merge_equal_plain_ones_where_the_models_are_equal(family, tmp_path):
    one = family[1][0]
    plain = gather_gram_matrices(one, records(), tmp_path / "plain", device="cpu")
    found = gather_merged_gram_matrices(
        [one, one], [records(), records()], [tmp_path / "a", tmp_path / "b"], device="cpu"
    )
    for statistics in found:
        assert statistics.names() == plain.names()
        for name in plain.names():
            np.testing.assert_allclose(
                statistics.array(name), plain.array(name), rtol=1e-4, atol=1e-6
            )


def test_plus_plus_merges_with_statistics_of_the_merge_and_refuses_others(family, tmp_path):
    one, two, _ = family[1]
    steps = []
    found = gather_merged_gram_matrices(
        [one, two],
        [records(4), records(4)],
        [tmp_path / "a", tmp_path / "b"],
        device="cpu",
        on_layer=lambda: steps.append(1),
    )
    assert len(steps) == 4  # embeddings, two layers, the last norm
    plain = gather_gram_matrices(one, records(4), tmp_path / "plain", device="cpu")
    assert np.abs(found[0].array(DOWN) - plain.array(DOWN)).max() > 0
    folders = [str(each.folder) for each in found]
    settings = {"name": "regmean", "statistics": folders}
    merge_checkpoints(settings | {"plus_plus": True}, None, [one, two], tmp_path / "out")
    with refused(RecipeError, "merge.statistics"):
        merge_checkpoints(settings, None, [one, two], tmp_path / "no")


def test_broken_statistics_and_empty_records_are_refused(family, tmp_path):
    with refused(CheckpointError, "merge.statistics-broken"):
        ModelStatistics.open(tmp_path)
    folder = tmp_path / "f"
    write(folder, "fisher", {"tensor": np.ones((2, 2))}, "one")
    (folder / "statistics.safetensors").unlink()
    with refused(CheckpointError, "merge.statistics-broken"):
        ModelStatistics.open(folder)
    for gather in (gather_fisher, gather_gram_matrices):
        with refused(DataError, "merge.no-records"):
            gather(family[1][0], [], tmp_path / "no", device="cpu")


def test_the_command_gathers_one_folder_a_model(family, tmp_path):
    one, two, _ = family[1]
    write_records(tmp_path / "r.jsonl", records(2))
    arguments = [str(one), str(two), "--device", "cpu", "--records", str(tmp_path / "r.jsonl")]
    for number, more in enumerate((["--for", "fisher"], ["--for", "regmean", "--plus-plus"])):
        out = tmp_path / str(number)
        shown = CliRunner().invoke(
            calibrate_command, [*arguments, *more, "--out", str(out), "--json"]
        )
        assert shown.exit_code == 0, shown.output
        found = json.loads(shown.output)["statistics"]
        made = read_artifact(Path(found[0]["folder"]))
        models = ["model"] * (1 + number)  # RegMean++ reads inputs from layers merged of all
        assert [parent.role for parent in made.parents] == [*models, "records"]
        assert made.parents[0].digest == Checkpoint.open(one).fingerprint
        assert not verify_artifact(Path(found[0]["folder"]))
        assert [ModelStatistics.open(Path(each["folder"])).model for each in found] == [
            Checkpoint.open(path).fingerprint for path in (one, two)
        ]
    folder = tmp_path / "0" / f"0-{one.name}"
    again = [*arguments, "--for", "fisher", "--out", str(tmp_path / "0"), "--overwrite"]
    assert CliRunner().invoke(calibrate_command, again).exit_code == 0
    with (folder / "statistics.json").open("a") as file:
        file.write(" ")
    assert [found.path for found in verify_artifact(folder)] == ["statistics.json"]
    out = ["--out", str(tmp_path / "no")]
    for wrong in (["--for", "fisher", "--plus-plus"], ["--for", "fisher", *arguments[-2:]] * 2):
        failed = CliRunner().invoke(calibrate_command, [*arguments, *wrong, *out])
        assert failed.exception.code == "merge.calibration-settings"
