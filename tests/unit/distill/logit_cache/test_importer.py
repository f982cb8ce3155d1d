"""The files are written here, by small writers of the documented layouts."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from click.testing import CliRunner

from stillroom.cli.app import stillroom
from stillroom.distill.logit_cache.cache import LogitCache
from stillroom.distill.logit_cache.capture import verify_cache
from stillroom.distill.logit_cache.distillkit import CompressionConfig, unpack_bits
from stillroom.distill.logit_cache.importer import import_cache
from stillroom.errors import DataError, RecipeError

K = 12


@pytest.fixture
def spoken(loaded, lessons):
    """Return token ids of a few records with the teacher's log-probabilities, (T, V)."""
    found = []
    for lesson in lessons[:3]:
        with torch.no_grad():
            logits = loaded[0](input_ids=torch.from_numpy(lesson.ids)[None]).logits[0]
        found.append((lesson.ids, torch.log_softmax(logits, -1).double().numpy()))
    return found


def likeliest(logprobs, k=K):
    ids = np.argsort(-logprobs, -1)[:, :k]
    return ids, np.take_along_axis(logprobs, ids, -1)


def write_axolotl(path, spoken, style="targets"):
    with path.open("w") as file:
        for ids, logprobs in spoken:
            tokens, values = likeliest(logprobs[:-1])  # row t predicts token t: the first has none
            row = {"input_ids": ids.tolist()}
            if style != "entries":
                rows = [
                    (pad := (list(range(K)), [-1e9] * K, [0] * K)),
                    *zip(tokens.tolist(), values.tolist(), [[1] * K] * len(tokens), strict=True),
                ]
                if style == "shifted":  # row t predicts token t + 1: the last has none
                    rows = [*rows[1:], pad]
                names = ("target_token_ids", "target_logprobs", "target_mask")
                row |= dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
            else:
                row["logprobs"] = [None] + [
                    [
                        {"token": f"token_id:{token}", "logprob": value}
                        for token, value in zip(*both, strict=True)
                    ]
                    for both in zip(tokens.tolist(), values.tolist(), strict=True)
                ]
            file.write(json.dumps(row) + "\n")


def pack(numbers, bits):
    flags = (numbers[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(flags.reshape(len(numbers), -1).astype(np.uint8), axis=1)


def write_distillkit(folder, spoken, vocabulary, **changes):
    config = {
        "d": vocabulary,
        "k": K,
        "exact_k": 4,
        "exact_dtype": "float32",
        "polynomial_terms": [0, 1, 2, "sqrt"],
        "term_dtype": "float32",
        "residual_bins": [{"scale_dtype": "float32", "element_bits": 8, "num_elements": 8}],
        "delta_encoding": False,
        "error_diffusion": False,
        "normalize_t": False,
        **changes,
    }
    folder.mkdir(exist_ok=True)
    (folder / "compression_config.yaml").write_text(yaml.safe_dump(config))
    at = np.arange(K - 4.0)
    terms = np.stack([np.ones_like(at), at, at**2, np.sqrt(at)], -1)
    rows = {"input_ids": [], "compressed_logprobs": [], "bytepacked_indices": []}
    for ids, logprobs in spoken:
        tokens, values = likeliest(logprobs)
        coded = np.diff(values, prepend=0) if config["delta_encoding"] else values
        factors = np.linalg.lstsq(terms, coded[:, 4:].T, rcond=None)[0].T.astype("<f4")
        residual = coded[:, 4:] - factors @ terms.T
        scale = (np.abs(residual).max(-1, keepdims=True) / 128).astype("<f4")
        steps = np.clip(np.round(residual / scale), -128, 127).astype(np.int64) + 128
        parts = [coded[:, :4].astype("<f4"), factors, scale]
        data = [np.ascontiguousarray(part).view(np.uint8) for part in parts] + [pack(steps, 8)]
        rows["input_ids"].append(ids.tolist())
        rows["compressed_logprobs"].append(np.concatenate(data, 1).tolist())
        bits = (vocabulary - 1).bit_length()
        rows["bytepacked_indices"].append(pack(tokens, bits).tolist())
    byte_lists = pa.list_(pa.list_(pa.uint8()))
    schema = pa.schema(
        [
            ("input_ids", pa.list_(pa.uint64())),
            ("compressed_logprobs", byte_lists),
            ("bytepacked_indices", byte_lists),
        ]
    )
    pq.write_table(pa.table(rows, schema=schema), folder / "data_0.parquet")


def compare(cache, spoken, apart):
    for lesson, (ids, logprobs) in zip(cache.records(), spoken, strict=True):
        assert np.array_equal(lesson.ids, ids)
        assert np.array_equal(lesson.positions, np.arange(len(ids) - 1))
        tokens, values = likeliest(logprobs[:-1])
        rows = cache.read(lesson)
        np.testing.assert_allclose(rows["logprobs"].astype(float), values, atol=apart)
        assert (rows["ids"] == tokens).mean() > 0.98  # ties
        rest = 1 - np.exp(values).sum(-1)
        np.testing.assert_allclose(np.exp(rows["tail"]), rest, atol=max(apart, 1e-4))


def test_an_earlier_row_whose_last_position_is_padding_is_not_taken_for_a_shifted_one(
    tmp_path, spoken, teacher_folder
):
    for ids, logprobs in spoken:  # a teacher that is sure of the text
        logprobs[:] = -9.0
        logprobs[np.arange(len(ids) - 1), ids[1:]] = -0.1
    path = tmp_path / "a.jsonl"
    write_axolotl(path, spoken)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[:2]:
        row["target_token_ids"][-1] = [0] * K
        row["target_logprobs"][-1] = [-1e9] * K
        row["target_mask"][-1] = [0] * K
    path.write_text("\n".join(map(json.dumps, rows)))
    import_cache(path, tmp_path / "cache", format="axolotl", teacher=str(teacher_folder))
    with LogitCache.open(tmp_path / "cache") as cache:
        for lesson in cache.records():
            best = cache.read(lesson)["ids"][:, 0]
            assert np.array_equal(best, lesson.ids[lesson.positions + 1])


@pytest.mark.parametrize("style", ["targets", "shifted", "entries"])
def test_axolotls_rows_become_ours(tmp_path, spoken, teacher_folder, style):
    write_axolotl(tmp_path / "a.jsonl", spoken, style)
    report = import_cache(
        tmp_path / "a.jsonl",
        tmp_path / "cache",
        format="axolotl",
        teacher=str(teacher_folder),
        logprob_dtype="float32",
    )
    assert (report.records, report.k, report.whole) == (3, K, 0)
    with LogitCache.open(tmp_path / "cache") as cache:
        compare(cache, spoken, 1e-5)
        assert (cache.header.source, cache.header.template) == ("axolotl", "unknown")
    assert verify_cache(tmp_path / "cache", tolerance=1e-3).largest < 1e-3


@pytest.mark.parametrize("delta", [False, True])
def test_distillkits_rows_become_ours(tmp_path, spoken, teacher_folder, loaded, delta):
    vocabulary = loaded[0].config.vocab_size
    write_distillkit(tmp_path / "kit", spoken, vocabulary, delta_encoding=delta)
    report = import_cache(
        tmp_path / "kit",
        tmp_path / "cache",
        format="distillkit",
        teacher=str(teacher_folder),
        logprob_dtype="float32",
    )
    assert (report.records, report.k) == (3, K)
    with LogitCache.open(tmp_path / "cache") as cache:
        compare(cache, spoken, 0.01)  # of residuals in eight bits
    assert verify_cache(tmp_path / "cache").largest < 0.1


def test_the_usual_polynomial_is_exact_in_float64():
    """Terms 0 to 4 and sqrt over 112 ranks, not normalized: float32 sums lose nats here."""
    config = CompressionConfig(d=49152, k=128, exact_k=16, polynomial_terms=[0, 1, 2, 3, 4, "sqrt"],
                         term_dtype="float64", delta_encoding=False)  # fmt: skip
    values = -1.1 * np.log(np.arange(1, 129.0))
    at = np.arange(112.0)
    terms = np.stack([at**power for power in range(5)] + [np.sqrt(at)], -1)
    factors = np.linalg.lstsq(terms, values[16:], rcond=None)[0]
    data = np.concatenate([values[:16].astype("<f4").view(np.uint8), factors.view(np.uint8)])
    decoded = config.decode(data[None])
    np.testing.assert_allclose(decoded[0, 16:], terms @ factors, atol=1e-9)
    np.testing.assert_allclose(decoded[0], values, atol=0.02)


@pytest.mark.parametrize("bits", [1, 5, 9, 16, 17])
def test_bits_are_unpacked(bits):
    numbers = np.random.default_rng(0).integers(0, 2**bits, (7, 11))
    assert np.array_equal(unpack_bits(pack(numbers, bits), bits, 11), numbers)


def test_bfloat16_values_are_read():
    config = CompressionConfig(d=10, k=2, exact_k=2, exact_dtype="bfloat16", delta_encoding=False)
    values = torch.tensor([-0.5, -3.25], dtype=torch.bfloat16)
    data = values.view(torch.uint8).numpy()[None]
    assert config.decode(data).tolist() == [[-0.5, -3.25]]


def test_renormalized_rows_are_counted(tmp_path, spoken, teacher_folder, loaded):
    cut = [
        (ids, np.log(np.exp(lp) / np.exp(likeliest(lp)[1]).sum(-1, keepdims=True)))
        for ids, lp in spoken
    ]
    write_axolotl(tmp_path / "a.jsonl", cut)
    where = ["--teacher", str(teacher_folder), "--out", str(tmp_path / "cache")]
    done = CliRunner().invoke(
        stillroom, ["distill", "import", str(tmp_path / "a.jsonl"), "--format", "axolotl", *where]
    )
    assert done.exit_code == 0, done.output
    assert "renormalized" in done.output


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"input_ids": None}, "input_ids"),
        ({"target_logprobs": [[-1.0]]}, "target_logprobs"),
        ({"target_logprobs": "nan"}, "logprobs"),
        ({"target_logprobs": "inf"}, "logprobs"),
        ({"target_logprobs": "sum"}, "logprobs"),
        ({"target_token_ids": "far"}, "target_token_ids"),
        ({"input_ids": [-5, *range(99)]}, "input_ids"),
        ({"input_ids": [1.5, *range(99)]}, "input_ids"),
        ({"input_ids": [10**30, *range(99)]}, "target"),
        ({"target_token_ids": 3}, "target"),
        ({"target_mask": [[1]]}, "target"),
    ],
)
def test_odd_rows_are_named(tmp_path, spoken, teacher_folder, change, field):
    path = tmp_path / "a.jsonl"
    write_axolotl(path, spoken)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    count = len(rows[1]["target_logprobs"])
    for name, value in change.items():
        made = {
            "nan": [[float("nan")] + [-3.0] * (K - 1)] * count,
            "inf": [[float("inf")] + [-3.0] * (K - 1)] * count,
            "sum": [[-0.1] * K] * count,
            "far": [[10**6 + n for n in range(K)]] * count,
        }
        rows[1][name] = made.get(value, value) if isinstance(value, str) else value
    path.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(DataError, match=field) as caught:
        import_cache(path, tmp_path / "c", format="axolotl", teacher=str(teacher_folder))
    assert caught.value.code == "distill.import-row"
    assert "row 1" in str(caught.value)


@pytest.mark.parametrize("column", ["input_ids", "compressed_logprobs", "bytepacked_indices", ""])
def test_columns_that_are_missing_null_or_no_parquet_are_named(
    tmp_path, spoken, teacher_folder, loaded, column
):
    write_distillkit(tmp_path / "kit", spoken, loaded[0].config.vocab_size)
    path = tmp_path / "kit" / "data_0.parquet"
    table = pq.read_table(path)
    files = [(b"no parquet", "row 0")]
    if column:
        index = table.schema.get_field_index(column)
        rows = [row if number else None for number, row in enumerate(table[column].to_pylist())]
        nulls = pa.array(rows, table.schema.field(column).type)
        files = [(table.drop_columns(column), column)]
        files += [(table.set_column(index, column, nulls), "row 0")]
    for content, named in files:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            pq.write_table(content, path)
        with pytest.raises(DataError, match=named) as caught:
            import_cache(
                tmp_path / "kit", tmp_path / "c", format="distillkit", teacher=str(teacher_folder)
            )
        assert caught.value.code == "distill.import-row"


@pytest.mark.parametrize(
    ("limit", "named"), [("_MAX_CHUNK_VALUES", "row group"), ("MAX_ROW_BYTES", "larger")]
)
def test_a_parquet_file_that_grows_in_memory_is_refused(
    tmp_path, spoken, teacher_folder, loaded, monkeypatch, limit, named
):
    write_distillkit(tmp_path / "kit", spoken, loaded[0].config.vocab_size)
    monkeypatch.setattr(f"stillroom.records.streams.{limit}", 99)
    monkeypatch.setattr("stillroom.records.streams._VALUES_PER_BYTE", 0)
    with pytest.raises(DataError, match=named) as caught:
        import_cache(
            tmp_path / "kit", tmp_path / "c", format="distillkit", teacher=str(teacher_folder)
        )
    assert caught.value.code == "distill.import-row"


def import_rows(folder, teacher_folder, rows):
    """Import rows of (tokens, log-probabilities, mask); return report, positions and targets."""
    names = ("target_token_ids", "target_logprobs", "target_mask")
    lines = [
        {"input_ids": [7, 8, 9, 10], **dict(zip(names, zip(*row, strict=True), strict=True))}
        for row in rows
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = import_cache(
        folder / "rows.jsonl", folder / "c", format="axolotl", teacher=str(teacher_folder)
    )
    with LogitCache.open(folder / "c") as cache:
        (record,) = cache.records()
        return report, record.positions.tolist(), cache.target([record])


PAD = ([0, 0, 0], [-1e9] * 3, [0, 0, 0])


def full(*tokens):
    return list(tokens), np.log([0.6, 0.2, 0.1]).tolist(), [1, 1, 1]


def test_padding_does_not_hide_the_probability_of_token_0(tmp_path, teacher_folder):
    short = [0, 5, 0], [*np.log([0.9, 0.06]).tolist(), -1e9], [1, 1, 0]
    _, _, targets = import_rows(tmp_path, teacher_folder, [[PAD, PAD, PAD, short]])
    assert targets.ids.tolist() == [[0, 5]]
    np.testing.assert_allclose(targets.logprobs.exp(), [[0.9, 0.06]], atol=1e-3)


def test_k_is_that_of_the_shortest_position(tmp_path, teacher_folder):
    """A cache of -inf would be refused by every run."""
    short = [3, 5, 0], [*np.log([0.7, 0.2]).tolist(), -1e9], [1, 1, 0]
    rows = [[PAD, full(1, 2, 3), short, full(1, 2, 3)]]
    report, positions, targets = import_rows(tmp_path, teacher_folder, rows)
    assert (report.k, report.widest, positions) == (2, 3, [0, 1, 2])
    assert "up to 3" in str(report)
    assert targets.logprobs.isfinite().all()
    np.testing.assert_allclose(targets.tail.exp(), [0.2, 0.1, 0.2], atol=1e-3)


def test_rows_of_one_text_are_joined(tmp_path, teacher_folder):
    """A conversation exported once a turn: the same tokens, other positions."""
    rows = [[PAD, full(1, 2, 3), PAD, PAD], [PAD, PAD, full(2, 1, 3), full(3, 2, 1)]]
    rows = [[(*row[:2], [0] * 3) if row is PAD else row for row in turn] for turn in rows]
    rows[0][3] = ([9, 8, 7], np.log([0.5, 0.2, 0.1]).tolist(), [0] * 3)  # no padding: not shifted
    report, positions, targets = import_rows(tmp_path, teacher_folder, rows)
    assert (report.records, report.positions, report.known, positions) == (1, 3, 0, [0, 1, 2])
    assert targets.ids[:, 0].tolist() == [1, 2, 3]
    again, positions, _ = import_rows(tmp_path, teacher_folder, rows)
    assert (again.records, again.positions, again.known, positions) == (0, 0, 3, [0, 1, 2])
    assert "already" in str(again)


def test_a_file_that_is_no_json_or_not_there_is_named(tmp_path, teacher_folder, spoken):
    (tmp_path / "bad.jsonl").write_text("{")
    for name in ("bad.jsonl", "none.jsonl"):
        with pytest.raises(DataError, match=name):
            import_cache(
                tmp_path / name, tmp_path / "c", format="axolotl", teacher=str(teacher_folder)
            )
    with pytest.raises(RecipeError) as caught:
        import_cache(tmp_path / "bad.jsonl", tmp_path / "c", format="x", teacher="t")
    assert caught.value.code == "distill.import-format"
    write_distillkit(tmp_path / "kit", spoken, 512, k=40)  # more than the bytes hold
    with pytest.raises(DataError, match="compressed_logprobs"):
        import_cache(
            tmp_path / "kit", tmp_path / "d", format="distillkit", teacher=str(teacher_folder)
        )
    (tmp_path / "kit" / "compression_config.yaml").unlink()
    with pytest.raises(DataError, match="compression_config"):
        import_cache(
            tmp_path / "kit", tmp_path / "e", format="distillkit", teacher=str(teacher_folder)
        )
