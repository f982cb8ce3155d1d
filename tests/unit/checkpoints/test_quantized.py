"""Quantized checkpoints as the plain tensors they stand for, against packers of their own."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from stillroom.checkpoints import Checkpoint
from stillroom.checkpoints.quantization import find_quantization
from stillroom.checkpoints.safetensors_format import build_header
from stillroom.errors import CheckpointError
from stillroom.testing import tiny_checkpoint

OUT, IN, GROUP = 64, 96, 32
NAME = "m.weight"


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def write(folder, said, tensors, dtype="float16", **config):
    folder.mkdir(exist_ok=True)
    config = {"model_type": "llama", "dtype": dtype, "quantization_config": said, **config}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: one.contiguous() for name, one in tensors.items()}, folder / "model.safetensors"
    )
    return Checkpoint.open(folder)


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_what_is_said_of_quantization_is_found_in_the_config_or_that_of_its_text(key, tmp_path):
    said = {key: {"quant_method": "awq"}}
    for config in (said, {"text_config": said}, {**said, "text_config": None}):
        assert find_quantization(tmp_path, config).method == "awq"
    for config in ({}, {key: {}}, {"text_config": "plain"}, {"text_config": {key: None}}):
        assert find_quantization(tmp_path, config) is None


def pack(codes, bits):
    """Pack rows of codes into 32-bit words, through one long integer a row."""
    words = -(-codes.shape[1] * bits // 32)
    rows = []
    for row in codes:
        long = sum(int(code) << (bits * at) for at, code in enumerate(row))
        rows.append([(long >> (32 * word)) & 0xFFFFFFFF for word in range(words)])
    return torch.from_numpy(np.array(rows, np.uint32).view(np.int32))


def half(values):
    return torch.from_numpy(np.asarray(values)).to(torch.float16)


def check(stored, expected, dtype=torch.float16):
    """Hold a tensor, whole and in odd blocks, to float64 rounded once."""
    wanted = torch.from_numpy(np.asarray(expected, np.float64)).to(dtype)
    assert stored.names() == [NAME]
    assert (stored.shape(NAME), stored.dtype(NAME)) == (tuple(wanted.shape), dtype)
    assert torch.equal(stored.tensor(NAME), wanted)
    rows = len(wanted)
    parts = [stored.rows(NAME, at, min(at + 7, rows)) for at in range(0, rows, 7)]
    assert torch.equal(torch.cat(parts), wanted)
    assert stored.rows(NAME, 3, 3).shape == (0, *wanted.shape[1:])
    assert "quantization_config" not in stored.config
    assert stored.parameters == wanted.numel()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("is_ordered", [False, True])
def test_gptq(tmp_path, rng, bits, form, is_ordered):
    codes = rng.integers(0, 1 << bits, (OUT, IN))
    zeros = rng.integers(0, 1 << bits, (OUT, IN // GROUP))
    scales = half(rng.uniform(0.01, 0.1, (OUT, IN // GROUP)))
    groups = np.arange(IN) // GROUP
    if is_ordered:
        groups = rng.permutation(groups)
    kept = (zeros - (form == "gptq")) % (1 << bits)
    tensors = {
        "m.qweight": pack(codes, bits).T,
        "m.qzeros": pack(kept.T, bits),
        "m.scales": scales.T,
        "m.g_idx": torch.from_numpy(groups.astype(np.int32)),
    }
    if not is_ordered:
        del tensors["m.g_idx"]
    said = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "checkpoint_format": form}
    exact = (codes - zeros[:, groups]) * scales.double().numpy()[:, groups]
    check(write(tmp_path, said, tensors), exact)


def test_gptq_of_a_folder_that_says_so_in_a_file_of_its_own(tmp_path, rng):
    codes = rng.integers(0, 16, (OUT, IN))
    tensors = {
        "m.qweight": pack(codes, 4).T,
        "m.qzeros": pack(np.full((1, OUT), 7), 4),
        "m.scales": torch.full((1, OUT), 0.5, dtype=torch.float16),
    }
    write(tmp_path, None, tensors)
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "group_size": -1}')
    check(Checkpoint.open(tmp_path), (codes - 8) * 0.5)


def test_awq(tmp_path, rng):
    codes = rng.integers(0, 16, (OUT, IN))
    zeros = rng.integers(0, 16, (OUT, IN // GROUP))
    scales = half(rng.uniform(0.01, 0.1, (OUT, IN // GROUP)))

    def packed(values):  # columns 0, 2, 4, 6, 1, 3, 5, 7 of each eight, from the lowest bits
        turned = values.T.reshape(values.shape[1], -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        return pack(turned.reshape(values.shape[1], -1), 4)

    tensors = {"m.qweight": packed(codes), "m.qzeros": packed(zeros), "m.scales": scales.T}
    said = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
    groups = np.arange(IN) // GROUP
    exact = (codes - zeros[:, groups]) * scales.double().numpy()[:, groups]
    check(write(tmp_path, said, tensors), exact)
    write(tmp_path / "file", None, tensors)
    own = {"zero_point": True, "q_group_size": GROUP, "w_bit": 4, "version": "GEMM"}
    (tmp_path / "file" / "quant_config.json").write_text(json.dumps(own))
    check(Checkpoint.open(tmp_path / "file"), exact)
    said["group_size"] = 2 * GROUP
    assert "does not hold" in refusal(write(tmp_path / "fewer", said, tensors)).problems[0].what


FP8 = [
    ("fp8", "_scale_inv", (2, 3), [32, 32]),  # DeepSeek-V3, Qwen3 FP8
    ("fp8", "_scale_inv", (), None),  # Ministral
    ("fbgemm_fp8", "_scale", (OUT, 1), None),
    ("modelopt", "_scale", (), None),
    ("compressed-tensors", "_scale", (1,), None),
    ("compressed-tensors", "_scale", (OUT, 1), None),
    ("compressed-tensors", "_scale", (2, 3), [32, 32]),
]


@pytest.mark.parametrize(("method", "ending", "shape", "block"), FP8, ids=str)
def test_fp8_with_scales_of_a_tensor_a_row_and_a_block(tmp_path, rng, method, ending, shape, block):
    codes = torch.from_numpy(rng.normal(size=(OUT, IN)) * 100).to(torch.float8_e4m3fn)
    scale = torch.from_numpy(rng.uniform(0.001, 0.01, shape)).float()
    weights = {
        **{"num_bits": 8, "block_structure": block, "group_size": None},  # llm-compressor's null
        "strategy": "block" if block else "channel" if OUT in shape else "tensor",
    }
    said = {
        "quant_method": method,
        "quant_algo": "FP8",
        "weight_block_size": block,
        "config_groups": {"group_0": {"weights": weights}},
    }
    tensors = {NAME: codes, f"{NAME}{ending}": scale, "m.input_scale": torch.ones(1)}
    tensors["m.input_scale_ub"] = torch.ones(1)  # beside fbgemm_fp8
    spread = scale.numpy()
    if block:
        spread = np.repeat(np.repeat(spread, 32, 0), 32, 1)[:OUT, :IN]
    exact = codes.float().numpy() * spread  # in float32, as the libraries do
    check(write(tmp_path, said, tensors, "bfloat16"), exact, torch.bfloat16)
    if block:  # fewer scales than blocks are not those of the tensor, or of its rows
        for fewer in ((1, 1), (OUT, 1), (2, 1)):
            damaged = {**tensors, f"{NAME}{ending}": torch.ones(fewer)}
            what = refusal(write(tmp_path / "damaged", said, damaged)).problems[0].what
            assert "6 scales" in what or "not (2, 3)" in what


def test_fp8_of_experts_in_one_tensor_and_of_a_last_block_that_is_not_full(tmp_path, rng):
    codes = torch.from_numpy(rng.normal(size=(3, 40, 24)) * 9).to(torch.float8_e4m3fn)
    scale = torch.from_numpy(rng.uniform(0.5, 2, (3, 3, 2))).float()
    said = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    stored = write(tmp_path, said, {"m.gate_up_proj": codes, "m.gate_up_proj_scale_inv": scale})
    spread = np.repeat(np.repeat(scale.numpy(), 16, 1), 16, 2)[:, :40, :24]
    wanted = torch.from_numpy(codes.float().numpy() * spread).half()
    assert torch.equal(stored.tensor("m.gate_up_proj"), wanted)
    assert torch.equal(stored.rows("m.gate_up_proj", 1, 3), wanted[1:])


def test_bitsandbytes_int8(tmp_path, rng):
    codes = rng.integers(-127, 128, (OUT, IN)).astype(np.int8)
    largest = rng.uniform(0.1, 3, OUT).astype(np.float32)
    tensors = {
        NAME: torch.from_numpy(codes),
        "m.SCB": torch.from_numpy(largest),
        "m.weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    exact = codes * largest[:, None] * np.float32(1 / 127)
    check(write(tmp_path, {"load_in_8bit": True}, tensors), exact)


@pytest.mark.parametrize("is_nested", [False, True])
def test_bitsandbytes_four_bits(tmp_path, rng, is_nested):
    rows, width, run = 20, 50, 64  # rows begin within a byte's run, and within a block
    table = np.sort(rng.uniform(-1, 1, 16)).astype(np.float32)
    codes = rng.integers(0, 16, rows * width).astype(np.uint8)
    blocks = -(-len(codes) // run)
    about = {"quant_type": "nf4", "blocksize": run, "dtype": "float16", "shape": [rows, width]}
    tensors = {NAME: torch.from_numpy(codes[0::2] << 4 | codes[1::2])[:, None]}
    if is_nested:
        about |= {"nested_blocksize": 4, "nested_offset": 0.25, "nested_dtype": "float32"}
        inner = np.linspace(-1, 1, 256).astype(np.float32)
        places = rng.integers(0, 256, blocks).astype(np.uint8)
        outer = rng.uniform(0.1, 2, -(-blocks // 4)).astype(np.float32)
        largest = inner[places] * outer[np.arange(blocks) // 4] + np.float32(0.25)
        tensors[f"{NAME}.nested_absmax"] = torch.from_numpy(outer)
        tensors[f"{NAME}.nested_quant_map"] = torch.from_numpy(inner)
        tensors[f"{NAME}.absmax"] = torch.from_numpy(places)
    else:
        largest = rng.uniform(0.1, 2, blocks).astype(np.float32)
        tensors[f"{NAME}.absmax"] = torch.from_numpy(largest)
    tensors[f"{NAME}.quant_map"] = torch.from_numpy(table)
    state = np.frombuffer(json.dumps(about).encode(), np.uint8).copy()
    tensors[f"{NAME}.quant_state.bitsandbytes__nf4"] = torch.from_numpy(state)
    said = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    exact = (table[codes] * largest[np.arange(len(codes)) // run]).reshape(rows, width)
    stored = write(tmp_path, said, tensors)
    check(stored, exact)
    assert stored.dequantized_from == "bitsandbytes nf4"


def compressed(form, **weights):
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("has_zeros", [False, True])
def test_compressed_tensors_packed(tmp_path, rng, bits, has_zeros):
    low, width = -(1 << (bits - 1)), IN - 6
    codes = rng.integers(low, -low, (OUT, width))
    zeros = rng.integers(low, -low, (OUT, 3)) if has_zeros else np.zeros((OUT, 3), int)
    scales = half(rng.uniform(0.01, 0.1, (OUT, 3)))
    tensors = {
        "m.weight_packed": pack(codes - low, bits),
        "m.weight_scale": scales,
        "m.weight_shape": torch.tensor([OUT, width]),
    }
    if has_zeros:
        tensors["m.weight_zero_point"] = pack((zeros - low).T, bits).T
    groups = np.arange(width) // (width // 3)
    exact = (codes - zeros[:, groups]) * scales.double().numpy()[:, groups]
    for stated in ({}, {"strategy": "group", "group_size": width // 3}):
        said = compressed("pack-quantized", num_bits=bits, **stated)
        check(write(tmp_path / f"{len(stated)}", said, tensors), exact)
    for stated in ({"group_size": width}, {"group_size": -1}, {"strategy": "channel"}):
        said = compressed("pack-quantized", num_bits=bits, **stated)
        damaged = write(tmp_path / "damaged", said, tensors)
        assert "does not hold" in refusal(damaged).problems[0].what


def test_compressed_tensors_of_integers(tmp_path, rng):
    codes = rng.integers(-128, 128, (OUT, IN)).astype(np.int8)
    zeros = rng.integers(-9, 9, (OUT, 1)).astype(np.int8)
    scales = half(rng.uniform(0.01, 0.1, (OUT, 1)))
    tensors = {
        NAME: torch.from_numpy(codes),
        "m.weight_scale": scales,
        "m.weight_zero_point": torch.from_numpy(zeros),
    }
    exact = (codes.astype(int) - zeros) * scales.double().numpy()
    check(write(tmp_path, compressed("int-quantized", num_bits=8), tensors), exact)


FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


@pytest.mark.parametrize("form", ["nvfp4-pack-quantized", "mxfp4-pack-quantized", "modelopt"])
def test_four_bit_floats(tmp_path, rng, form):
    codes = rng.integers(0, 16, (OUT, IN)).astype(np.uint8)
    packed = torch.from_numpy(codes[:, 0::2] | codes[:, 1::2] << 4)
    if form == "mxfp4-pack-quantized":
        powers = rng.integers(120, 132, (OUT, IN // 32)).astype(np.uint8)
        spread = np.repeat(2.0 ** (powers.astype(int) - 127), 32, 1)
        tensors = {"m.weight_packed": packed, "m.weight_scale": torch.from_numpy(powers)}
    else:
        inner = torch.from_numpy(rng.uniform(1, 400, (OUT, IN // 16))).to(torch.float8_e4m3fn)
        spread = np.repeat(inner.float().numpy(), 16, 1)
        over = np.float32(2000 if form == "nvfp4-pack-quantized" else 0.0007)
        spread = spread / over if form == "nvfp4-pack-quantized" else spread * over
        names = ("m.weight_packed", "m.weight_global_scale")
        names = (NAME, "m.weight_scale_2") if form == "modelopt" else names
        tensors = {names[0]: packed, names[1]: torch.tensor(over), "m.weight_scale": inner}
    said = compressed(form, num_bits=4, type="float")
    if form == "modelopt":
        said = {"quant_method": "modelopt", "quant_algo": "NVFP4"}
    check(write(tmp_path, said, tensors), (FP4[codes].astype(np.float32) * spread))


def test_experts_of_gpt_oss(tmp_path, rng):
    codes = rng.integers(0, 16, (2, 6, 64)).astype(np.uint8)
    powers = rng.integers(120, 132, (2, 6, 2)).astype(np.uint8)
    packed = (codes[..., 0::2] | codes[..., 1::2] << 4).reshape(2, 6, 2, 16)
    tensors = {
        "e.down_proj_blocks": torch.from_numpy(packed),
        "e.down_proj_scales": torch.from_numpy(powers),
        "e.down_proj_bias": torch.ones(2, 6),
    }
    stored = write(tmp_path, {"quant_method": "mxfp4"}, tensors)
    exact = FP4[codes] * np.repeat(2.0 ** (powers.astype(int) - 127), 32, 2)
    assert stored.names() == ["e.down_proj", "e.down_proj_bias"]
    wanted = torch.from_numpy(exact).half().transpose(1, 2)
    assert torch.equal(stored.tensor("e.down_proj"), wanted)


def refusal(stored):
    with pytest.raises(CheckpointError) as caught:
        stored.names()
    return caught.value


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"quant_method": "hqq"}, "(hqq)"),
        ({"quant_method": "aqlm"}, "(aqlm)"),
        ({"load": "somehow"}, "an unnamed method"),
        ({"quant_method": "awq", "version": "gemv"}, "version 'gemv'"),
        ({"quant_method": "gptq", "checkpoint_format": "gptq_p"}, "'gptq_p'"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "W4A8_AWQ"),
        (
            {"quant_method": "compressed-tensors", "sparsity_config": {"format": "marlin-24"}},
            "marlin-24",
        ),
        ({"quant_method": "compressed-tensors", "transform_config": {"r1": 1}}, "rotated"),
        ({"quant_method": "fp8"}, "'m.weight' (I8) has no known scales"),
        ({"quant_method": "gptq"}, "'m.weight' (I8) has no known scales"),
    ],
    ids=str,
)
def test_what_is_not_known_is_refused_by_name(tmp_path, said, what):
    stored = write(tmp_path, said, {NAME: torch.ones(4, 4, dtype=torch.int8)})
    error = refusal(stored)
    assert error.code == "checkpoint.quantized"
    assert what in str(error)
    assert stored.fingerprint  # of what is stored, known all the same


@pytest.mark.parametrize(
    "said",
    [
        {"quant_method": "torchao"},
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        {"quant_method": "gptq", "bits": 4},
        {"load": "somehow"},
    ],
    ids=str,
)
def test_plain_weights_beside_what_was_left_of_quantization_stay_plain(tmp_path, said):
    weights = torch.arange(16.0).reshape(4, 4).to(torch.bfloat16)
    stored = write(tmp_path, said, {NAME: weights, "m.bias": torch.ones(4)})
    assert torch.equal(stored.tensor(NAME), weights)
    assert stored.dequantized_from == ""


def test_plain_weights_beside_the_file_of_another_quantizer_stay_plain(tmp_path):
    (tmp_path / "quantize_config.json").write_text('{"bits": 4, "group_size": 128}')
    stored = write(tmp_path, None, {NAME: torch.ones(4, 4)})
    assert stored.names() == [NAME]
    assert stored.dequantized_from == ""


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("m.W_q", torch.uint8),
        ("m.codes", torch.int16),
        ("m.weight._data", torch.int8),
        ("m.weight_qdata", torch.float8_e4m3fn),
        ("m.indices", torch.int64),
        ("m.weight._scale", torch.float32),
    ],
)
def test_whatever_may_be_codes_of_a_layout_that_is_not_known_is_refused(tmp_path, name, dtype):
    tensors = {name: torch.ones(4, 4).to(dtype), "m.bias": torch.ones(4)}
    error = refusal(write(tmp_path, {"quant_method": "other"}, tensors))
    assert error.code == "checkpoint.quantized"
    assert "(other)" in str(error)
    assert name in str(error)


UNDECLARED = ["m.qweight", "m.weight_packed", "m.SCB", "m.weight.absmax", NAME]
UNDECLARED += ["m.W_q", "m.codes", "m.indices", "m.weight._data", "m.weight_int4"]


@pytest.mark.parametrize("name", UNDECLARED)
def test_codes_of_which_config_says_nothing_are_refused(tmp_path, name):
    write(tmp_path, None, {name: torch.ones(4, 4, dtype=torch.int8)})
    error = refusal(Checkpoint.open(tmp_path))
    assert error.code == "checkpoint.quantized"
    assert "does not say how" in str(error)


def test_masks_and_positions_are_no_codes(tmp_path):
    tensors = {
        "h.attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8),
        "position_ids": torch.arange(4)[None],
        NAME: torch.ones(4, 4).to(torch.float8_e4m3fn),  # no scales: weights of 8 bits
    }
    write(tmp_path, None, tensors)
    assert len(Checkpoint.open(tmp_path).names()) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"m.scales": torch.ones(2, OUT)},
        {"m.g_idx": torch.full((IN,), 9, dtype=torch.int32)},
        {"m.qzeros": torch.ones(1, 5, dtype=torch.int32)},
        {"m.qzeros": torch.ones(0, OUT // 8, dtype=torch.int32)},
        {"m.qzeros": torch.ones(2, OUT // 8, dtype=torch.int32)},
        {"m.scales": None},
        {"m.qweight": torch.ones(12, dtype=torch.int32)},
    ],
    ids=str,
)
def test_parts_that_do_not_fit_are_refused(tmp_path, change):
    tensors = {
        "m.qweight": torch.ones(IN // 8, OUT, dtype=torch.int32),
        "m.qzeros": torch.ones(1, OUT // 8, dtype=torch.int32),
        "m.scales": torch.ones(1, OUT),
        **change,
    }
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    said = {"quant_method": "gptq", "bits": 4, "group_size": -1}
    assert refusal(write(tmp_path, said, tensors)).code == "checkpoint.quantized"


def test_a_config_that_is_no_mapping_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"quantization_config": [1]}')
    header = build_header([("x", "F32", (1,), 0, 4)])
    (tmp_path / "model.safetensors").write_bytes(header + bytes(4))
    with pytest.raises(CheckpointError, match="not a mapping") as caught:
        Checkpoint.open(tmp_path)
    assert caught.value.code == "checkpoint.config"


def quantize_int8(plain, folder):
    """Write a model with the matrices of its layers in bitsandbytes' int8."""
    stored, tensors = Checkpoint.open(plain), {}
    shutil.copytree(plain, folder)
    for name in stored.names():
        tensor = stored.tensor(name)
        if name.endswith("proj.weight"):
            largest = tensor.float().abs().amax(1)
            tensors[f"{name.removesuffix('weight')}SCB"] = largest
            tensor = torch.round(tensor.float() / largest[:, None] * 127).to(torch.int8)
        tensors[name] = tensor
    said = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    kind = str(stored.dtype("model.norm.weight")).removeprefix("torch.")
    write(folder, said, tensors, **(stored.config | {"torch_dtype": kind, "dtype": kind}))
    return folder


def test_a_model_is_loaded_without_the_library_that_quantized_it(tmp_path):
    from stillroom.models import load_causal_lm

    plain = tiny_checkpoint(tmp_path / "plain")
    stored = Checkpoint.open(quantize_int8(plain, tmp_path / "int8"))
    plain, folder = (load_causal_lm(path, dtype="float32")[0] for path in (plain, stored.folder))
    tokens = torch.tensor([[1, 5, 9, 40]])
    with torch.no_grad():
        near = torch.nn.functional.cosine_similarity(
            plain(tokens).logits.flatten(), folder(tokens).logits.flatten(), dim=0
        )
    assert near > 0.999
    weight = folder.model.layers[0].mlp.up_proj.weight
    assert torch.equal(weight, stored.tensor("model.layers.0.mlp.up_proj.weight"))


SCALES = ["weight_scale", "weight_scales", "weight_scale_inv", "weight.scale", "scale_weight"]


@pytest.mark.parametrize("scale", [*SCALES, "scales", "scale"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("said", [None, {"quant_method": "fp8"}], ids=["nothing", "fp8"])
def test_codes_kept_as_floats_are_told_by_the_scale_beside_them(tmp_path, scale, dtype, said):
    codes = torch.tensor([[3.0, -120.0], [7.0, 88.0]]).to(dtype)
    write(tmp_path, said, {NAME: codes, f"m.{scale}": torch.tensor([[0.01], [0.02]])})
    if said and dtype is torch.float8_e4m3fn and scale in {"weight_scale", "weight_scale_inv"}:
        assert Checkpoint.open(tmp_path).names() == [NAME]
        return
    error = refusal(Checkpoint.open(tmp_path))
    assert error.code == "checkpoint.quantized"
    assert f"m.{scale}" in str(error) or NAME in str(error)


@pytest.mark.parametrize("shape", [(16,), (4, 4)])
def test_integers_under_the_name_of_a_weight_are_codes_in_any_shape_and_size(tmp_path, shape):
    write(tmp_path, None, {NAME: torch.ones(shape, dtype=torch.int32)})
    assert refusal(Checkpoint.open(tmp_path)).code == "checkpoint.quantized"


def test_a_learned_scale_beside_a_weight_is_no_scale_of_codes(tmp_path):
    tensors = {NAME: torch.randn(4, 4), "m.scale": torch.ones(4), "n.weight": torch.ones(4)}
    assert len(write(tmp_path, None, tensors | {"n.scale": torch.ones(1)}).names()) == 4


@pytest.mark.parametrize("is_code", [False, True])
def test_weights_rounded_only_while_a_model_runs_leave_their_scales_out(tmp_path, is_code):
    said = {"quant_method": "compressed-tensors", "quantization_status": "frozen"}
    weights = torch.randn(4, 4)
    stored = write(
        tmp_path,
        said,
        {NAME: weights.round() + 1 if is_code else weights, "m.weight_scale": torch.ones(4, 1)},
    )
    if is_code:
        assert refusal(stored).code == "checkpoint.quantized"
    else:
        assert stored.names() == [NAME]
