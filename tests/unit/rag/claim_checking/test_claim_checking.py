import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tests.unit.models.tiny_encoders import config_of, write_tokenizer
from transformers import AutoModel, BertModel

from stillroom.errors import CheckpointError, DataError
from stillroom.flow import run_recipe
from stillroom.models.encoders.numpy_bert import open_bert
from stillroom.provenance import verify_artifact
from stillroom.rag.answer_selection.reader import find_special_tokens
from stillroom.rag.claim_checking.checker import open_checker
from stillroom.rag.claim_checking.edits import plant_claims
from stillroom.rag.claim_checking.encoding import encode_claim, encode_source
from stillroom.rag.claim_checking.training import CheckerNetwork, LabeledClaim, build_source
from stillroom.rag.claim_checking.word_groups import (
    find_opposites,
    find_strangers,
    find_synonyms,
)
from stillroom.recipes import parse_recipe
from stillroom.train.settings import LoraSettings

PASSAGE = (
    "The server of Olaf Hansen keeps at least 30 backups of the database in a local folder. It does not delete "
    "an old backup before a new one is complete. A client can read the archive when the server "
    "is running. In Norway, the office of Maria Berg checks every backup in 1987 and in 1994."
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(3)
    BertModel(config_of(write_tokenizer(folder)), add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an index of six documents, and two judged claims."""
    place = tmp_path_factory.mktemp("place")
    (place / "documents").mkdir()
    for number in range(6):
        text = PASSAGE.replace("30", str(30 + number)).replace("Norway", f"Town{number}")
        (place / "documents" / f"{number}.txt").write_text(text, encoding="utf-8")
    recipe = "kind: rag.index\ndocuments: documents\nembedder: builtin:static\n"
    run_recipe(parse_recipe(recipe, folder=place), place / "index")
    rows = [
        {"claim": "Old backups outlive the making of new ones.", "supported": True},
        {"claim": "An old backup goes before the new one is there.", "supported": False},
    ]
    lines = [json.dumps({**row, "passage": PASSAGE}) for row in rows]
    (place / "claims.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return place


def make_recipe(place: Path, encoder: Path, **changes):
    settings = {"train.steps": 3, "train.batch_size": 4, "train.threads": 1, **changes}
    text = (
        f"kind: rag.checker\nindex: index\nclaims: [claims.jsonl]\nbase: {encoder}\n"
        "validation: 0.4\n"
    )
    return parse_recipe(text, overrides=[f"{k}={v}" for k, v in settings.items()], folder=place)


@pytest.fixture(scope="module")
def trained(place: Path, encoder: Path) -> Path:
    run_recipe(make_recipe(place, encoder), place / "checker")
    return place / "checker"


def test_as_many_wrong_claims_are_planted_as_right_ones_and_none_stands_in_the_passage():
    kinds = set()
    for seed in range(60):
        claims = plant_claims(PASSAGE, np.random.default_rng(seed), 4)
        right, wrong = (
            [one for one in claims if one.is_supported is is_right] for is_right in (True, False)
        )
        assert len(right) == len(wrong) > 0
        assert all(one.text not in PASSAGE for one in wrong)
        assert all(0 <= start < end <= len(one.text) for one in wrong for start, end in one.wrong)
        assert not any(one.wrong for one in right)
        kinds |= {one.kind for one in claims}
    assert {"paraphrase", "number", "name", "negation", "opposite", "stranger"} <= kinds
    assert {"quantifier", "cause", "mixture"} & kinds


def test_a_planted_number_is_marked_as_the_wrong_word():
    claims = [
        one for seed in range(80) for one in plant_claims(PASSAGE, np.random.default_rng(seed), 4)
    ]
    numbers = {one.text[slice(*one.wrong[0])] for one in claims if one.kind == "number"}
    assert numbers
    assert all(number.isdigit() for number in numbers)


def test_the_same_seed_plants_the_same_claims():
    first, again = (plant_claims(PASSAGE, np.random.default_rng(5), 4) for _ in range(2))
    assert first == again
    assert plant_claims("Too short. No.", np.random.default_rng(5), 4) == []


def test_words_are_replaced_in_their_inflection():
    assert "erases" in find_synonyms("Deletes")
    assert "erases" not in find_strangers("deletes")
    assert "made" in find_strangers("deleted")
    assert "at most" in find_opposites("at least")
    assert find_synonyms("zebra") == find_strangers("zebra") == find_opposites("zebra") == ()


def test_a_claim_is_read_with_the_sentences_that_it_is_about(encoder: Path):
    tokenizer = open_bert(encoder).tokenizer
    special = find_special_tokens(tokenizer)
    text = "The cat sleeps. " + "The house is big. " * 12 + "The river is north of the mill."
    source = encode_source(tokenizer, text, "Cats")
    encoded = encode_claim(tokenizer, "The river is north.", source, special=special)
    said = [tokenizer(word, add_special_tokens=False)["input_ids"] for word in ("north", "cat")]
    read = encoded.ids[len(encoded.offsets) + 2 :]
    assert said[0][0] in read
    assert said[1][0] not in read
    assert len(encoded.ids) == len(encoded.segments) == len(encoded.marks)
    assert encoded.marks[1 + len(encoded.offsets)] == (0, 0, 0)
    words = encoded.marks[1 : 1 + len(encoded.offsets)]
    assert words[1] == (1, 1, 1)
    nothing = encode_claim(tokenizer, "", source, special=special)
    assert nothing.offsets == []


def test_numpy_and_torch_read_alike(trained: Path, encoder: Path):
    checker = open_checker(str(trained))
    tensors = load_file(trained / "output" / "checker.safetensors")
    network = CheckerNetwork(AutoModel.from_pretrained(encoder), LoraSettings(rank=8, alpha=16), 0)
    state = network.state_dict()
    for name in state:
        layer, mark, factor = name.removeprefix("encoder.").partition(".lora_")
        key = f"{layer}.lora_{factor[0]}" if mark else name
        if key in tensors:
            state[name] = torch.from_numpy(tensors[key].astype(np.float32))
    network.load_state_dict(state)
    claim = LabeledClaim("1", "The server keeps 30 backups.", PASSAGE, "T", True, (), "judged")
    tokenizer = open_bert(encoder).tokenizer
    source = build_source(
        [claim], tokenizer, special=find_special_tokens(tokenizer), max_tokens=64,
        batch_size=1,
        micro_tokens=999, seed=0, device=torch.device("cpu"),
    )  # fmt: skip
    batch = source.load([0])
    with torch.no_grad():
        support, wrong = network(batch)
    expected = float(support[0]), float(wrong[batch.words > 0].max())
    found = checker.read(checker.encode(claim.text, claim.passage, claim.title))
    assert found == pytest.approx(expected, abs=2e-3)


def test_a_job_trains_calibrates_and_can_be_verified(trained: Path):
    config = json.loads((trained / "output" / "checker.json").read_bytes())
    assert config["calibration"].keys() == {"support", "wrong", "intercept"}
    assert 0 < config["threshold"] <= 1
    assert not verify_artifact(trained)
    details = json.loads((trained / "artifact.json").read_bytes())["details"]
    assert details["validation"]["claims"] > 0
    assert (
        sum(count for _, count in details["validation"]["supported_by_kind"].values())
        == (details["validation"]["claims"])
    )


def test_a_line_that_judges_nothing_is_named(place: Path, encoder: Path, tmp_path: Path):
    (tmp_path / "bad.jsonl").write_text('\n{"claim": "x", "passage": "y", "supported": "no"}\n')
    recipe = make_recipe(place, encoder, claims=f"['{tmp_path}/bad.jsonl']")
    with pytest.raises(DataError) as caught:
        run_recipe(recipe, tmp_path / "out")
    assert caught.value.problems[0].code == "data.no-claims"
    assert caught.value.problems[0].where.endswith("bad.jsonl:2")


def test_a_folder_without_a_checker_is_named(tmp_path: Path):
    with pytest.raises(CheckpointError) as caught:
        open_checker(str(tmp_path))
    assert caught.value.problems[0].code == "checkpoint.not-a-checker"
