"""Sums of adapters: exact, compressed to the best of a rank, and what is refused."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from tests.unit.merge.lora.test_adapter import EMBEDDING, Q, refused, write_adapter

from stillroom.checkpoints import Checkpoint
from stillroom.cli.merge.adapters import adapters_command
from stillroom.errors import CheckpointError, DataError, RecipeError
from stillroom.merge.lora.adapter import AdaptedCheckpoint, Adapter
from stillroom.merge.lora.combination import choose_rank, compress_product, merge_adapters
from stillroom.merge.lora.extraction import extract_lora
from stillroom.merge.tensors.structure import HEAD
from stillroom.provenance import read_artifact, render_tree, verify_artifact, walk_lineage

K = "model.layers.1.self_attn.k_proj"


def draw(seed, rank=3, modules=(Q,), width=64):
    rng = torch.Generator().manual_seed(seed)
    return {
        f"{module}.{part}.weight": torch.randn(shape, generator=rng)
        for module in modules
        for part, shape in (("lora_A", (rank, width)), ("lora_B", (width, rank)))
    }


def product(adapter, name=f"{Q}.weight"):
    left, right = adapter.factors(name)
    return left @ right


def test_the_sum_is_exact_and_never_crosses_the_factors(tmp_path):
    one = Adapter.open(write_adapter(tmp_path / "a", draw(1)))
    two = Adapter.open(write_adapter(tmp_path / "b", draw(2, 5, (Q, K)), r=5, use_rslora=True))
    result = merge_adapters([one, two], [0.5, -2.0], tmp_path / "sum")
    found = Adapter.open(tmp_path / "sum")
    assert found.names() == two.names()
    wanted = 0.5 * product(one) - 2 * product(two)
    np.testing.assert_allclose(product(found), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        product(found, f"{K}.weight"), -2 * product(two, f"{K}.weight"), rtol=1e-5, atol=1e-5
    )
    assert {layer.name: layer.rank for layer in result.layers} == {
        f"{Q}.weight": 8,
        f"{K}.weight": 5,
    }
    assert result.relative == 0


def test_compression_is_the_best_of_its_rank_and_says_its_error(tmp_path):
    adapters = [Adapter.open(write_adapter(tmp_path / str(n), draw(n))) for n in range(3)]
    wanted = sum(product(adapter) for adapter in adapters)
    values = np.linalg.svd(wanted, compute_uv=False)
    result = merge_adapters(adapters, [1, 1, 1], tmp_path / "sum", rank=4)
    (layer,) = result.layers
    assert (layer.full_rank, layer.rank) == (9, 4)
    assert layer.error == pytest.approx(np.linalg.norm(values[4:]))
    gap = np.linalg.norm(product(Adapter.open(tmp_path / "sum")) - wanted)
    assert gap == pytest.approx(layer.error, rel=1e-5)
    assert result.relative == pytest.approx(layer.relative)
    assert f"{layer.relative:.3g}" in (tmp_path / "sum" / "README.md").read_text()
    assert result.to_json()["layers"][0]["rank"] == 4


def test_energy_keeps_as_few_values_as_hold_it():
    values = np.array([3.0, 2.0, 1.0, 0.0])
    assert choose_rank(values, energy=9 / 14) == 1
    assert choose_rank(values, energy=0.7) == 2
    assert choose_rank(values, energy=1.0) == 3
    assert choose_rank(values, rank=1, energy=1.0) == 1
    assert choose_rank(np.zeros(3), energy=0.9) == 1
    assert choose_rank(values, rank=9) == 4


def test_ranks_above_the_matrix_are_the_matrix():
    rng = np.random.default_rng(0)
    left, right = rng.standard_normal((4, 9)), rng.standard_normal((9, 6))
    b, a, values = compress_product(left, right)
    assert b.shape == (4, 4)
    assert len(values) == 4
    np.testing.assert_allclose(b @ a, left @ right)


def test_embeddings_stay_embeddings(tmp_path):
    tensors = {
        f"{EMBEDDING}.lora_embedding_A": torch.randn(3, 384),
        f"{EMBEDDING}.lora_embedding_B": torch.randn(64, 3),
        f"{EMBEDDING}.base_layer.weight": torch.randn(384, 64),
    }
    adapters = [Adapter.open(write_adapter(tmp_path / name, tensors)) for name in "ab"]
    merge_adapters(adapters, [1, 1], tmp_path / "sum", rank=3)
    found = Adapter.open(tmp_path / "sum")
    name = f"{EMBEDDING}.weight"
    np.testing.assert_allclose(product(found, name), 2 * product(adapters[0], name), atol=1e-4)
    assert found.digest_replaced(name) == adapters[0].digest_replaced(name) != ""
    with safe_open(tmp_path / "sum" / "adapter_model.safetensors", "np") as file:
        parts = {key.rpartition(f"{EMBEDDING}.")[2] for key in file.keys()}  # noqa: SIM118
    assert parts == {"lora_embedding_A", "lora_embedding_B", "base_layer.weight"}
    other = Adapter.open(
        write_adapter(
            tmp_path / "c", tensors | {f"{EMBEDDING}.base_layer.weight": torch.ones(384, 64)}
        )
    )
    with refused(CheckpointError, "merge.adapter-not-a-sum"):
        merge_adapters([adapters[0], other], [1, 1], tmp_path / "no")


def test_biases_are_summed(tmp_path):
    adapters = [
        Adapter.open(
            write_adapter(
                tmp_path / str(n), draw(n) | {f"{Q}.lora_B.bias": torch.ones(64)}, lora_bias=True
            )
        )
        for n in range(2)
    ]
    merge_adapters(adapters, [1, 0.5], tmp_path / "sum")
    np.testing.assert_allclose(Adapter.open(tmp_path / "sum").bias(f"{Q}.bias"), np.full(64, 3.0))


def test_dora_is_refused_by_name(tmp_path):
    tensors = draw(0) | {f"{Q}.lora_magnitude_vector": torch.ones(64)}
    adapter = Adapter.open(write_adapter(tmp_path / "a", tensors, use_dora=True))
    with refused(CheckpointError, "merge.adapter-not-a-sum", naming=f"{Q}.weight"):
        merge_adapters([adapter], [1], tmp_path / "sum")
    assert not (tmp_path / "sum").exists()


@pytest.mark.parametrize(
    ("weights", "settings"),
    [
        ([], {}),
        ([1, 1], {}),
        ([float("nan")], {}),
        ([0], {}),
        ([1], {"rank": 0}),
        ([1], {"energy": 1.5}),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, weights, settings):
    adapter = Adapter.open(write_adapter(tmp_path / "a"))
    with refused(RecipeError, "merge.adapter-settings"):
        merge_adapters([adapter], weights, tmp_path / "sum", **settings)


def test_an_existing_folder_is_kept_and_different_bases_are_told(tmp_path):
    one = Adapter.open(write_adapter(tmp_path / "a", base_model_name_or_path="x"))
    two = Adapter.open(write_adapter(tmp_path / "b", base_model_name_or_path="y"))
    with refused(DataError, "data.exists"):
        merge_adapters([one], [1], tmp_path / "b")
    assert Adapter.open(tmp_path / "b").base_name == "y"
    result = merge_adapters([one, two], [1, 1], tmp_path / "b", overwrite=True)
    assert "x, y" in result.notes[0]
    assert Adapter.open(tmp_path / "b").base_name == "x"


def test_layers_that_lose_nothing_count_in_the_whole(tmp_path):
    one = Adapter.open(write_adapter(tmp_path / "a", draw(1, modules=(Q, K))))
    two = Adapter.open(write_adapter(tmp_path / "b", draw(2)))
    result = merge_adapters([one, two], [1, 1], tmp_path / "sum", rank=3)
    errors = {layer.name: layer.error for layer in result.layers}
    assert errors[f"{K}.weight"] == pytest.approx(0, abs=1e-9)
    whole = np.linalg.norm(product(one) + product(two)) ** 2
    whole += np.linalg.norm(product(one, f"{K}.weight")) ** 2
    assert result.relative == pytest.approx(errors[f"{Q}.weight"] / whole**0.5)


def test_the_command_adds_adapters_up(tmp_path):
    folders = [str(write_adapter(tmp_path / name, draw(n))) for n, name in enumerate("ab")]
    out = str(tmp_path / "sum")
    arguments = [*folders, "--weight", "2", "--weight", "1", "--out", out]
    shown = CliRunner().invoke(adapters_command, [*arguments, "--rank", "4"])
    assert shown.exit_code == 0, shown.output
    assert "4/6" in shown.output
    again = CliRunner().invoke(adapters_command, [*arguments, "--overwrite", "--json"])
    assert json.loads(again.output)["adapter"]["layers"][0]["rank"] == 6
    one, two = (Adapter.open(tmp_path / name) for name in "ab")
    wanted = 2 * product(one) + product(two)
    np.testing.assert_allclose(product(Adapter.open(tmp_path / "sum")), wanted, atol=1e-4)


def test_too_few_weights_and_a_model_in_place_of_an_adapter_are_told_in_words(tmp_path):
    adapter = Adapter.open(write_adapter(tmp_path / "a"))
    with pytest.raises(RecipeError, match="2 adapters and 1 weight: ") as caught:
        merge_adapters([adapter, adapter], [1], tmp_path / "sum")
    assert "once for each adapter" in caught.value.problems[0].next
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds a whole model, not an adapter") as broken:
        Adapter.open(tmp_path / "model")
    assert "merge run" in broken.value.problems[0].next


def test_a_sum_proves_what_it_was_made_from(tmp_path):
    paths = [write_adapter(tmp_path / name, draw(n)) for n, name in enumerate("ab")]
    adapters = [Adapter.open(path) for path in paths]
    merge_adapters(adapters, [0.5, 2], tmp_path / "sum", rank=3)
    made = read_artifact(tmp_path / "sum")
    assert [(one.role, one.path, one.digest) for one in made.parents] == [
        ("adapter", str(one.folder), one.fingerprint) for one in adapters
    ]
    assert made.details["weights"] == [0.5, 2]
    assert not verify_artifact(tmp_path / "sum")
    # A sum of a sum names it as an artifact, and replaces it only as its own result.
    merge_adapters([Adapter.open(tmp_path / "sum"), adapters[0]], [1, 1], tmp_path / "more")
    merge_adapters([Adapter.open(tmp_path / "sum")], [1], tmp_path / "more", overwrite=True)
    assert read_artifact(tmp_path / "more").parents[0].digest == made.digest
    assert str(paths[0]) in render_tree(walk_lineage(tmp_path / "more"))
    with (tmp_path / "sum" / "adapter_config.json").open("a") as file:
        file.write(" ")
    assert {one.kind for one in verify_artifact(tmp_path / "more")} == {"changed"}


def test_what_is_extracted_from_tied_checkpoints_is_added(family, tmp_path):
    base = Checkpoint.open(family[0])
    assert base.is_tied
    for number, path in enumerate(family[1][:2]):
        extract_lora(Checkpoint.open(path), base, tmp_path / str(number), rank=4)
    adapters = [Adapter.open(tmp_path / str(number)) for number in range(2)]
    merge_adapters(adapters, [1, 0.5], tmp_path / "sum", base=base)
    found = Adapter.open(tmp_path / "sum")
    for name in found.names():
        if not found.is_replaced(name):
            wanted = product(adapters[0], name) + 0.5 * product(adapters[1], name)
            np.testing.assert_allclose(product(found, name), wanted, rtol=1e-4, atol=1e-6)
    assert (found.replacement(HEAD) == found.replacement(f"{EMBEDDING}.weight")).all()
    assert AdaptedCheckpoint(base, found).names() == base.names()
