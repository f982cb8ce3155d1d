import pytest
import torch

from stillroom.checkpoints import Checkpoint
from stillroom.distill.interfaces import CROSS_TOKENIZER_LOSSES, FEATURE_LOSSES, METHODS
from stillroom.distill.output import (
    choose_candidate_steps,
    make_candidate_writer,
    name_method,
    write_student,
)
from stillroom.distill.settings import StudentOutputSettings
from stillroom.models import load_causal_lm
from stillroom.train.lora import add_lora, unwrap_model
from stillroom.train.settings import LoraSettings

CARD = {"title": "T", "body": "B", "license": "apache-2.0", "base_models": ["org/teacher"]}


@pytest.mark.parametrize(
    ("steps", "candidates", "wanted"),
    [
        (10, 0, set()),
        (10, 1, {10}),
        (10, 2, {5, 10}),
        (10, 3, {5, 7, 10}),
        (1, 4, {1}),
        (3, 9, {2, 3}),
    ],
)
def test_candidates_come_from_the_second_half(steps, candidates, wanted):
    assert choose_candidate_steps(steps, candidates) == wanted


@pytest.mark.parametrize(
    ("registry", "weights", "features", "name"),
    [
        (METHODS, {"name": "jsd", "ce_weight": 1}, (), "distill.methods.jsd"),
        (METHODS, {"name": "jsd", "kd_weight": 0, "ce_weight": 1}, (), "distill.cross_entropy"),
        (METHODS, {"name": "jsd", "kd_weight": 0}, ("relation",), "distill.features"),
        (CROSS_TOKENIZER_LOSSES, {"name": "uld"}, (), "distill.cross_tokenizer_losses.uld"),
        (
            CROSS_TOKENIZER_LOSSES,
            {"name": "uld", "kd_weight": 0, "ce_weight": 1},
            (),
            "distill.cross_entropy",
        ),
    ],
)
def test_the_origin_names_an_objective_only_if_it_has_a_weight(registry, weights, features, name):
    losses = [FEATURE_LOSSES.build(feature) for feature in features]
    assert name_method(registry.build(weights), losses) == name


def test_what_is_written_is_the_model(loaded, teacher_folder, tmp_path):
    out = StudentOutputSettings(dtype="float32")
    fingerprint = write_student(loaded[0], tmp_path / "s", teacher_folder, out, CARD)
    found = Checkpoint.open(tmp_path / "s")
    assert found.fingerprint == fingerprint == Checkpoint.open(teacher_folder).fingerprint
    assert found.license == "apache-2.0"


def test_a_card_says_that_no_weight_has_changed(loaded, teacher_folder, tmp_path):
    model, said = loaded[0], []

    def write(name, dtype):
        out = StudentOutputSettings(dtype=dtype)
        write_student(model, tmp_path / name, teacher_folder, out, CARD, warn=said.append)
        return "nothing was learned" in (tmp_path / name / "README.md").read_text()

    weight = model.get_input_embeddings().weight
    before = weight.detach().clone()
    assert write("same", "bfloat16")
    assert len(said) == 1
    with torch.no_grad():
        weight += 1e-7 * weight  # less than bfloat16 holds
    assert write("rounded", "bfloat16")
    assert not write("kept", "float32")
    with torch.no_grad():
        weight += 1.0
    assert not write("moved", "bfloat16")
    with torch.no_grad():
        weight.copy_(before)
    assert len(said) == 2


def test_candidates_are_bfloat16_folders_and_leftovers_go(loaded, teacher_folder, tmp_path):
    stale = tmp_path / "candidates" / ".000002.draft"
    stale.mkdir(parents=True)
    (stale / "half").write_bytes(b"half")
    keep = make_candidate_writer(tmp_path, teacher_folder, {2}, StudentOutputSettings(), CARD)
    assert not stale.exists()
    keep(1, loaded[0])
    keep(2, loaded[0])
    assert [path.name for path in (tmp_path / "candidates").iterdir()] == ["000002"]
    found = Checkpoint.open(tmp_path / "candidates" / "000002")
    assert {str(found.dtype(name)) for name in found.names()} == {"torch.bfloat16"}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers in an older way
def test_merged_updates_keep_eleven_bits_unless_a_number_is_too_large(teacher_folder, tmp_path):
    pytest.importorskip("peft")
    plain, _ = load_causal_lm(teacher_folder, dtype="float32", device="cpu")
    model = add_lora(plain, LoraSettings(rank=2), 0)

    def dtypes(name):
        write_student(model, tmp_path / name, teacher_folder, StudentOutputSettings(), CARD)
        found = Checkpoint.open(tmp_path / name)
        return {str(found.dtype(tensor)) for tensor in found.names()}

    assert dtypes("small") == {"torch.float16"}
    with torch.no_grad():
        unwrap_model(model).model.norm.weight[0] = 1e6
    assert dtypes("large") == {"torch.bfloat16"}
