import pytest
import torch

from stillroom.models import load_causal_lm
from stillroom.testing import tiny_checkpoint
from stillroom.train.precision import (
    autocast_body,
    choose_precision,
    deterministic_torch,
    limit_threads,
    matmul_dtype,
)
from stillroom.train.settings import TrainSettings


def test_a_named_precision_is_taken():
    cpu = torch.device("cpu")
    assert choose_precision("float32", cpu) == "float32"
    assert choose_precision("bfloat16", cpu) == "bfloat16"
    assert choose_precision("auto", cpu) in {"float32", "bfloat16"}


@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float32", None)])
def test_products_take_the_precision(precision, dtype):
    assert matmul_dtype(precision) is dtype
    with autocast_body(precision, torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is (dtype or torch.float32)


def test_threads_are_put_back_after_an_error():
    before = torch.get_num_threads()

    def fail():
        with limit_threads(1):
            raise RuntimeError(f"{torch.get_num_threads()} thread")

    with pytest.raises(RuntimeError, match="1 thread"):
        fail()
    assert torch.get_num_threads() == before


def test_gradient_checkpointing_is_on_only_while_training(tmp_path):
    model, _ = load_causal_lm(tiny_checkpoint(tmp_path / "t"), dtype="float32", device="cpu")
    settings = TrainSettings(gradient_checkpointing=True, threads=1)
    with deterministic_torch(settings, model):
        assert model.training
        assert model.model.layers[0].gradient_checkpointing
    assert not model.model.layers[0].gradient_checkpointing
