"""Another tokenizer without training: what is shared is copied, the rest is written in it."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, AutoTokenizer

from stillroom.checkpoints import Checkpoint
from stillroom.errors import CheckpointError
from stillroom.merge.engine.computation import orthogonal_matching_pursuit
from stillroom.merge.engine.merge import Merge
from stillroom.merge.jobs.transplant import TransplantRecipe
from stillroom.merge.planning.inputs import MergeSource
from stillroom.merge.planning.transplant import TransplantPlanner, plan_transplant
from stillroom.testing import tiny_checkpoint

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def retokenize(folder, sentences, size, special):
    """Give a tiny checkpoint another tokenizer, and random rows for it."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(text, special=True, normalized=False) for text in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": special[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = json.loads((folder / "config.json").read_text())
    size = tokenizer.get_vocab_size()
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    (folder / "config.json").write_text(json.dumps(config | ids | {"vocab_size": size}))
    (folder / "generation_config.json").unlink()
    return size


def refill(folder, **tables):
    tensors = load_file(folder / "model.safetensors")
    for name, table in tables.items():
        key = EMBEDDING if name == "embedding" else HEAD
        tensors[key] = table.to(tensors[key].dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def transplant(donor, target, out, k=64):
    recipe = TransplantRecipe(target="target", donor="donor", k=k)
    base, parent = (MergeSource(one.folder.name, one) for one in (target, donor))
    done = Merge(partial(plan_transplant, recipe), base, [parent]).write(out)
    return done, TransplantPlanner(base, parent, recipe)


@pytest.fixture
def pair(tmp_path):
    """A donor whose new rows are sums of three shared ones, and a target without them."""
    donor = tiny_checkpoint(tmp_path / "donor", seed=5, hidden=48)
    target = tiny_checkpoint(tmp_path / "target", seed=6, hidden=64, tie=False)
    size = retokenize(donor, ["zebras zigzag over frozen quartz"] * 3, 280, ["<|stop|>"])
    rng = torch.Generator().manual_seed(0)
    refill(donor, embedding=torch.randn(size, 48, generator=rng))
    return donor, target


def ids_of(folder):
    return Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True)


def table(folder, name=EMBEDDING):
    return Checkpoint.open(folder).tensor(name)


def test_rows_of_shared_tokens_are_copied_bit_for_bit(pair, tmp_path):
    donor, target = pair
    _, planner = transplant(Checkpoint.open(donor), Checkpoint.open(target), tmp_path / "out")
    ours, theirs = ids_of(donor), ids_of(target)
    shared = [token for token in ours if token in theirs]
    for name in (EMBEDDING, HEAD):
        before, after = table(target, name), table(tmp_path / "out", name)
        assert len(after) == len(ours)
        for token in shared:
            assert torch.equal(after[ours[token]], before[theirs[token]]), token
    assert planner.shared == len(shared)
    assert planner.tokens == len(ours)
    assert planner.new == len(ours) - len(shared) - 1
    assert planner.match.by_role == ("<|stop|>",)


def test_a_new_token_is_the_same_sum_in_the_targets_rows(pair, tmp_path):
    donor, target = pair
    ours, theirs = ids_of(donor), ids_of(target)
    words = sorted(token for token in ours if token in theirs)
    new = next(token for token in sorted(ours) if token not in theirs and token != "<|stop|>")
    rows = table(donor).clone()
    rows[ours[new]] = 2 * rows[ours[words[3]]] - 0.5 * rows[ours[words[40]]]
    refill(donor, embedding=rows)
    done, _ = transplant(Checkpoint.open(donor), Checkpoint.open(target), tmp_path / "out", k=8)
    before, after = table(target), table(tmp_path / "out")
    wanted = 2 * before[theirs[words[3]]] - 0.5 * before[theirs[words[40]]]
    assert torch.allclose(after[ours[new]], wanted, atol=1e-5)
    assert 0 < done.notes[EMBEDDING]["median"] < 1


def test_a_special_token_takes_the_row_of_its_role(pair, tmp_path):
    donor, target = pair
    transplant(Checkpoint.open(donor), Checkpoint.open(target), tmp_path / "out")
    role = json.loads((target / "config.json").read_text())["bos_token_id"]
    after = table(tmp_path / "out")
    assert torch.equal(after[ids_of(donor)["<|stop|>"]], table(target)[role])


def test_the_result_loads_and_generates(pair, tmp_path):
    donor, target = pair
    transplant(Checkpoint.open(donor), Checkpoint.open(target), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    encoded = tokenizer("zebras zigzag", return_tensors="pt")
    made = model.generate(**encoded, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert made.shape[1] > encoded["input_ids"].shape[1]
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id


def test_a_model_with_its_own_tokenizer_is_itself(pair, tmp_path):
    target = pair[1]
    done, planner = transplant(Checkpoint.open(target), Checkpoint.open(target), tmp_path / "out")
    assert planner.new == 0
    assert done.fingerprint == Checkpoint.open(target).fingerprint
    assert Checkpoint.open(tmp_path / "out").fingerprint == done.fingerprint


def test_half_precision_and_padding_are_kept(tmp_path):
    donor = tiny_checkpoint(tmp_path / "donor", seed=5, dtype=torch.bfloat16)
    size = retokenize(donor, ["zebras zigzag"] * 3, 262, ["<|stop|>"])
    refill(donor, embedding=torch.randn(size + 6, 64))
    config = json.loads((donor / "config.json").read_text())
    (donor / "config.json").write_text(json.dumps(config | {"vocab_size": size + 6}))
    target = tiny_checkpoint(tmp_path / "target", seed=6, dtype=torch.bfloat16)
    transplant(Checkpoint.open(donor), Checkpoint.open(target), tmp_path / "out")
    after = table(tmp_path / "out")
    assert after.dtype == torch.bfloat16
    assert len(after) == size + 6
    assert after.isfinite().all()


def test_nothing_in_common_is_refused(pair, tmp_path):
    donor, target = pair
    words = Tokenizer.from_file(str(donor / "tokenizer.json"))
    other = json.loads(words.to_str())
    other["model"]["vocab"] = {f"Ġ{n}xx": n for n in range(9)}
    other["model"]["merges"], other["added_tokens"] = [], []
    (donor / "tokenizer.json").write_text(json.dumps(other))
    with pytest.raises(CheckpointError) as caught:
        transplant(Checkpoint.open(donor), Checkpoint.open(target), tmp_path / "out")
    assert caught.value.code == "merge.transplant"
    assert not (tmp_path / "out").exists()


def test_pursuit_finds_the_atoms_a_sum_was_made_of():
    rng = np.random.default_rng(0)
    atoms = rng.standard_normal((300, 40)).astype(np.float32)
    atoms[7] = 0
    signals = (3 * atoms[[5, 8]] - 2 * atoms[[100, 200]]).astype(np.float32)
    chosen, shares, left = orthogonal_matching_pursuit(atoms, signals, 6)
    assert np.allclose(np.einsum("bk,bkd->bd", shares, atoms[chosen]), signals, atol=1e-5)
    assert (left < 1e-5).all()
    assert set(chosen[0][np.abs(shares[0]) > 1e-3]) == {5, 100}


def test_pursuit_is_least_squares_on_what_it_chose():
    rng = np.random.default_rng(1)
    atoms = rng.standard_normal((80, 30)).astype(np.float32)
    signals = rng.standard_normal((9, 30)).astype(np.float32)
    chosen, shares, left = orthogonal_matching_pursuit(atoms, signals, 12)
    for signal, picks, share, rest in zip(signals, chosen, shares, left, strict=True):
        best, *_ = np.linalg.lstsq(atoms[picks].T.astype(float), signal.astype(float), rcond=None)
        assert np.allclose(share, best, atol=1e-5)
        gap = np.linalg.norm(signal - best @ atoms[picks]) / np.linalg.norm(signal)
        assert gap == pytest.approx(rest, abs=1e-5)


@pytest.mark.parametrize("k", [1, 5, 500])
def test_pursuit_of_equal_atoms_and_of_nothing_ends(k):
    atoms = np.ones((4, 3), np.float32)
    chosen, shares, left = orthogonal_matching_pursuit(
        atoms, np.stack([np.ones(3), np.zeros(3)]).astype(np.float32), k
    )
    assert np.isfinite(shares).all()
    assert left.tolist() == pytest.approx([0, 0], abs=1e-6)
    assert chosen.shape[1] == min(k, 3)
