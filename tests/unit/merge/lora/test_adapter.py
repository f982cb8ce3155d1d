"""Adapters from folders: what is honored, what is refused by name, and hostile files."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stillroom.checkpoints import Checkpoint
from stillroom.errors import CheckpointError, ShapeError
from stillroom.evaluate import regex_search
from stillroom.merge.lora.adapter import AdaptedCheckpoint, Adapter, is_adapter
from stillroom.testing import tiny_checkpoint

Q = "model.layers.0.self_attn.q_proj"
EMBEDDING = "model.embed_tokens"


@contextmanager
def refused(kind, code, naming=""):
    """Expect an error of a kind, with a code of the reference, that names something."""
    with pytest.raises(kind) as caught:
        yield caught
    assert caught.value.code == code
    assert naming in str(caught.value)


def write_adapter(folder, tensors=None, **config):
    folder.mkdir(parents=True)
    rng = torch.Generator().manual_seed(len(config))
    tensors = tensors or {
        f"{Q}.lora_A.weight": torch.randn(3, 64, generator=rng),
        f"{Q}.lora_B.weight": torch.randn(64, 3, generator=rng),
    }
    save_file(
        {f"base_model.model.{name}": tensor for name, tensor in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    settings = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return Checkpoint.open(tiny_checkpoint(tmp_path_factory.mktemp("base") / "base", tie=False))


def test_rows_are_the_base_plus_the_scaled_product(base, tmp_path):
    adapter = Adapter.open(write_adapter(tmp_path / "a", base_model_name_or_path="some/base"))
    assert is_adapter(tmp_path / "a")
    assert not is_adapter(base.folder)
    assert adapter.names() == [f"{Q}.weight"]
    assert adapter.base_name == "some/base"
    assert adapter.rank(f"{Q}.weight") == 3
    left, right = adapter.factors(f"{Q}.weight")
    start = base.tensor(f"{Q}.weight").double().numpy()
    found = AdaptedCheckpoint(base, adapter).rows(f"{Q}.weight", 0, 64, dtype=np.float64)
    np.testing.assert_allclose(found, start + left @ right)
    assert adapter.changes[f"{Q}.weight"].scale == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_no_bit_depends_on_how_rows_are_cut(base, tmp_path, dtype):
    rng = torch.Generator().manual_seed(0)
    tensors = {
        f"{EMBEDDING}.lora_embedding_A": torch.randn(5, 384, generator=rng).bfloat16(),
        f"{EMBEDDING}.lora_embedding_B": torch.randn(64, 5, generator=rng).bfloat16(),
        f"{EMBEDDING}.lora_magnitude_vector": torch.rand(64, generator=rng),
        f"{Q}.lora_A.weight": torch.randn(5, 64, generator=rng),
        f"{Q}.lora_B.weight": torch.randn(64, 5, generator=rng),
        f"{Q}.lora_magnitude_vector": torch.rand(64, generator=rng),
    }
    adapter = Adapter.open(write_adapter(tmp_path / "a", tensors, r=5, use_dora=True))
    over = AdaptedCheckpoint(base, adapter)
    with refused(CheckpointError, "merge.adapter-unsupported"):
        adapter.rows(f"{EMBEDDING}.weight", 0, 9, np.zeros((9, 64), dtype))
    other = np.zeros((9, 64), dtype)
    assert adapter.rows("another.weight", 0, 9, other) is other
    for name, rows in ((f"{EMBEDDING}.weight", 384), (f"{Q}.weight", 64)):
        whole = over.rows(name, 0, rows, dtype=dtype)
        assert whole.dtype == dtype
        for step in (1, 7, 61):
            cut = [
                over.rows(name, at, min(at + step, rows), dtype=dtype)
                for at in range(0, rows, step)
            ]
            assert np.concatenate(cut).tobytes() == whole.tobytes()


def test_dora_gives_rows_the_lengths_that_were_learned(base, tmp_path):
    rng = torch.Generator().manual_seed(0)
    lengths = torch.rand(64, generator=rng) + 1
    tensors = {
        f"{Q}.lora_A.weight": torch.randn(3, 64, generator=rng),
        f"{Q}.lora_B.weight": torch.randn(64, 3, generator=rng),
        f"{Q}.lora_magnitude_vector": lengths,
    }
    adapter = Adapter.open(write_adapter(tmp_path / "a", tensors, use_dora=True))
    found = AdaptedCheckpoint(base, adapter).rows(f"{Q}.weight", 0, 64, dtype=np.float64)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), lengths.double(), rtol=1e-12)
    assert adapter.changes[f"{Q}.weight"].magnitude


def test_the_fingerprint_names_what_the_adapter_means(tmp_path):
    same = [Adapter.open(write_adapter(tmp_path / name)).fingerprint for name in "ab"]
    other = Adapter.open(write_adapter(tmp_path / "c", lora_alpha=7)).fingerprint
    assert same[0] == same[1] != other


def test_the_license_is_the_cards(tmp_path):
    adapter = Adapter.open(write_adapter(tmp_path / "a"))
    assert adapter.license == ""
    (tmp_path / "a" / "README.md").write_text("---\nlicense: mit\n---\n")
    assert Adapter.open(tmp_path / "a").license == "mit"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("peft_type", "LOHA"),
        ("init_lora_weights", "pissa_niter_16"),
        ("layer_replication", [[0, 2]]),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("trainable_token_indices", [3]),
        ("use_qalora", True),
        ("kasa_config", {"beta": 1}),
        ("a_setting_of_the_future", 3),
        ("bias", "some"),
    ],
)
def test_settings_that_cannot_be_honored_are_refused_by_name(tmp_path, setting, value):
    with refused(CheckpointError, "merge.adapter-unsupported", naming=setting):
        Adapter.open(write_adapter(tmp_path / "a", **{setting: value}))


def test_settings_of_the_future_that_are_off_do_no_harm(tmp_path):
    settings = {"use_qalora": False, "new": None, "newer": [], "peft_version": "9"}
    adapter = Adapter.open(write_adapter(tmp_path / "a", **settings))
    assert (adapter.names(), adapter.changes[f"{Q}.weight"].scale) == ([f"{Q}.weight"], 2)


@pytest.mark.parametrize(
    "tensors",
    [
        {f"{Q}.lora_A.weight": torch.zeros(3, 64, 1, 1), f"{Q}.lora_B.weight": torch.zeros(4, 3)},
        {f"{Q}.lora_E": torch.zeros(3)},
        {f"{EMBEDDING}.token_adapter.trainable_tokens_delta": torch.zeros(3, 64)},
    ],
)
def test_tensors_that_cannot_be_honored_are_refused_by_name(tmp_path, tensors):
    with refused(CheckpointError, "merge.adapter-unsupported", naming=next(iter(tensors))):
        Adapter.open(write_adapter(tmp_path / "a", tensors))


@pytest.mark.parametrize(
    "tensors",
    [
        {f"{Q}.lora_A.weight": torch.zeros(3, 64)},
        {f"{Q}.lora_A.weight": torch.zeros(4, 64), f"{Q}.lora_B.weight": torch.zeros(64, 4)},
        {f"{Q}.lora_A.weight": torch.zeros(3, 64), f"{Q}.lora_B.weight": torch.zeros(64, 2)},
        {f"{Q}.lora_A.weight": torch.zeros(3, 4).int(), f"{Q}.lora_B.weight": torch.zeros(4, 3)},
        {
            f"{Q}.lora_A.weight": torch.zeros(3, 64),
            f"{Q}.lora_B.weight": torch.zeros(64, 3),
            f"{Q}.lora_magnitude_vector": torch.zeros(63),
        },
    ],
)
def test_tensors_that_do_not_belong_together_are_refused(tmp_path, tensors):
    with refused(CheckpointError, "merge.adapter-broken"):
        Adapter.open(write_adapter(tmp_path / "a", tensors))


@pytest.mark.parametrize(
    "config",
    [{"r": 0}, {"r": "3"}, {"lora_alpha": None}, {"r": True}, {"lora_alpha": 10**400}],
)
def test_ranks_and_scales_that_are_no_numbers_are_refused(tmp_path, config):
    with refused(CheckpointError, "merge.adapter-broken"):
        Adapter.open(write_adapter(tmp_path / "a", **config))


def test_patterns_that_are_no_patterns_match_nothing(tmp_path):
    adapter = Adapter.open(write_adapter(tmp_path / "a", alpha_pattern={"(": 9, "q_proj|": 12}))
    assert adapter.changes[f"{Q}.weight"].scale == 4
    plain = Adapter.open(write_adapter(tmp_path / "b", alpha_pattern={"(": 9, "x" * 999: 12}))
    assert plain.changes[f"{Q}.weight"].scale == 2


@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_whose_search_does_not_end_is_refused(tmp_path, setting, monkeypatch):
    unending = None, 2.0
    monkeypatch.setattr("stillroom.merge.lora.peft_format.time_search", lambda *_, **__: unending)
    folder = write_adapter(tmp_path / "a", **{setting: {"([a-z._0-9]+)+!": 3}})
    with refused(CheckpointError, "merge.adapter-broken"):
        Adapter.open(folder)


def test_the_first_of_names_and_patterns_counts(tmp_path):
    for number, (patterns, scale) in enumerate(
        [
            ({"q_proj": 9, ".*q_proj": 12}, 3),
            ({".*q_proj": 12, "q_proj": 9}, 4),
            ({"k_proj": 3, "self_attn.q_proj": 9, "q_proj": 12}, 3),
            ({"_proj": 9, "q_proj|k": 12}, 4),
        ]
    ):
        folder = write_adapter(tmp_path / str(number), alpha_pattern=patterns)
        assert Adapter.open(folder).changes[f"{Q}.weight"].scale == scale


def test_broken_folders_are_refused(tmp_path):
    with refused(CheckpointError, "merge.adapter-broken"):
        Adapter.open(tmp_path)
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_config.json").write_text("[" * 100_000)
    with refused(CheckpointError, "merge.adapter-broken"):
        Adapter.open(folder)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3, "lora_alpha": 6}')
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with refused(CheckpointError, "checkpoint.broken"):
        Adapter.open(folder)
    weights.unlink()
    with refused(CheckpointError, "merge.adapter-broken"):
        Adapter.open(folder)
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n")
    with refused(CheckpointError, "checkpoint.pickle"):
        Adapter.open(folder)


def test_tensors_of_another_kind_of_model_are_refused(tmp_path):
    folder = write_adapter(tmp_path / "a")
    save_file({"unet.lora_A.weight": torch.zeros(3, 64)}, folder / "adapter_model.safetensors")
    with refused(CheckpointError, "merge.adapter-unsupported"):
        Adapter.open(folder)


def test_an_adapter_of_another_base_is_refused_with_every_tensor_that_does_not_fit(base, tmp_path):
    tensors = {
        "model.layers.9.self_attn.q_proj.lora_A.weight": torch.zeros(3, 64),
        "model.layers.9.self_attn.q_proj.lora_B.weight": torch.zeros(64, 3),
        f"{Q}.lora_A.weight": torch.zeros(3, 32),
        f"{Q}.lora_B.weight": torch.zeros(64, 3),
        "model.norm.weight": torch.zeros(65),
        f"{Q}.lora_B.bias": torch.zeros(64),
        f"{EMBEDDING}.lora_embedding_A": torch.zeros(3, 384),
        f"{EMBEDDING}.lora_embedding_B": torch.zeros(64, 3),
        f"{EMBEDDING}.base_layer.weight": torch.zeros(390, 64),
    }
    adapter = Adapter.open(write_adapter(tmp_path / "a", tensors, lora_bias=True))
    with refused(ShapeError, "merge.adapter-fit") as caught:
        AdaptedCheckpoint(base, adapter)
    assert len(caught.value.problems) == 5
    with refused(ShapeError, "merge.adapter-fit"):
        adapter.rows(f"{Q}.weight", 0, 4, np.zeros((4, 64), np.float32))
    with refused(ShapeError, "merge.adapter-fit"):
        adapter.rows(f"{Q}.weight", 0, 4, np.zeros(4, np.float32))


def test_a_pattern_that_does_not_come_to_an_end_is_refused(tmp_path, monkeypatch):
    """Else this test does not end."""
    regex_search._PROCESS.close()
    monkeypatch.setattr(regex_search, "_CPU_S", 0)  # searches are stopped within a second
    module = f"model.layers.0.{'a' * 40}c"
    tensors = {
        f"{module}.lora_A.weight": torch.zeros(3, 64),
        f"{module}.lora_B.weight": torch.zeros(64, 3),
    }
    with refused(CheckpointError, "merge.adapter-broken") as caught:
        Adapter.open(write_adapter(tmp_path / "a", tensors, rank_pattern={"(a+)+b": 3}))
    assert "(a+)+b" in caught.value.problems[0].what
    regex_search._PROCESS.close()
