import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from tests.unit.models.tiny_encoders import config_of, write_tokenizer
from tests.unit.rag.answer_selection.test_reader import TAMPERED, list_tampered_folders
from transformers import BertModel

from stillroom.errors import CheckpointError, DataError
from stillroom.flow import run_recipe
from stillroom.flow.replay import ReplayAmount, plan_replay
from stillroom.models.encoders.numpy_bert import open_bert
from stillroom.provenance import verify_artifact
from stillroom.rag import Index
from stillroom.rag.answer_selection.adapted_bert import find_special_tokens
from stillroom.rag.checkers.trained import Trained
from stillroom.rag.claim_checking.checker import ClaimChecker, open_checker
from stillroom.rag.claim_checking.encoding import encode_claim
from stillroom.rag.claim_checking.training import (
    ClaimNetwork,
    LabeledClaim,
    build_source,
    compute_loss,
)
from stillroom.rag.claim_checking.training_run import _choose_threshold, _report, _summarize
from stillroom.recipes import parse_recipe
from stillroom.train.settings import LoraSettings

PASSAGE = (
    "The server of Olaf Hansen keeps at least 30 backups of the database in a local folder. "
    "It does not delete an old backup before a new one is complete. A client can read the "
    "archive when the server is running. In Norway, the office of Maria Berg checks every "
    "backup in 1987 and in 1994."
)
TEXTS = (
    "The mill ground corn. It rests at night. The river is north of it. Cats purr.",
    "The cat sleeps at night. Cats purr when they rest. The house is at the river.",
    "Paris is the capital of France. The house is at the river. The mill rests.",
)
CLAIMS = (
    ("The mill ground corn.", "Cats ground corn.", 0, 4),
    ("The river is north of the mill.", "The mill is north of the river.", 4, 8),
    ("Cats purr.", "Cats sleep.", 5, 10),
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(3)
    BertModel(config_of(write_tokenizer(folder)), add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with judged claims about three passages."""
    place = tmp_path_factory.mktemp("place")
    rows = []
    for text in TEXTS:
        for right, wrong, start, stop in CLAIMS:
            rows.append({"claim": right, "passage": text, "supported": True})
            marked = {"claim": wrong, "passage": text, "supported": False}
            rows.append({**marked, "unsupported": [[start, stop]]})
    (place / "claims.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return place


def make_recipe(place: Path, encoder: Path, **changes):
    settings = {"train.steps": 3, "train.batch_size": 4, "train.threads": 1, **changes}
    text = f"kind: rag.checker\nclaims: [claims.jsonl]\nbase: {encoder}\nstart: null\n"
    overrides = [f"{key}={value}" for key, value in settings.items()]
    return parse_recipe(text, overrides=overrides, folder=place)


@pytest.fixture(scope="module")
def trained(place: Path, encoder: Path) -> Path:
    run_recipe(make_recipe(place, encoder), place / "checker")
    return place / "checker"


def test_the_sentences_that_hold_a_claim_together_are_read_in_their_order(encoder: Path):
    tokenizer = open_bert(encoder).tokenizer
    special = find_special_tokens(tokenizer)

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    filler = "It is at it. " * 6
    text = f"The mill ground corn. {filler}Cats purr. {filler}Paris is the capital of France."
    claim = "Paris purr at the mill corn."
    encoded = encode_claim(tokenizer, claim, "", text, special=special)
    parts = ("The mill ground corn.", "Cats purr.", "Paris is the capital of France.")
    expected = [
        token for part in parts for token in tokenizer(part, add_special_tokens=False)["input_ids"]
    ]
    assert encoded.ids[count(claim) + 2 : -1] == expected
    assert len(encoded.offsets) == count(claim)
    assert encoded.segments.count(0) == count(claim) + 2
    first = encoded.ids[1]  # Paris, of both sides
    places = [place for place, token in enumerate(encoded.ids) if token == first]
    assert len(places) == 2
    assert all(encoded.shared[place] for place in places)
    assert not encoded.shared[0]
    empty = encode_claim(tokenizer, "", "", "", special=special)
    assert empty.ids == [special[0], special[1], special[1]]


def test_a_claim_is_measured_as_it_was_trained(encoder: Path, trained: Path):
    plain, checker = open_bert(encoder), ClaimChecker(trained / "output")
    network = ClaimNetwork(
        BertModel.from_pretrained(encoder, add_pooling_layer=False),
        LoraSettings(rank=32, alpha=32),
        0,
    )
    config, weights = (trained / "output" / f"checker.{end}" for end in ("json", "safetensors"))
    network.load(config, weights, base=str(encoder), alpha=32)
    claims = [
        LabeledClaim(str(n), wrong, "Title", TEXTS[0], "d", False, ((start, stop),))
        for n, (_, wrong, start, stop) in enumerate(CLAIMS)
    ]
    source = build_source(
        claims,
        plain.tokenizer,
        special=find_special_tokens(plain.tokenizer),
        batch_size=3,
        micro_tokens=4096,
        seed=0,
        device=torch.device("cpu"),
    )
    batch = source.load([0, 1, 2])
    with torch.no_grad():
        support, _ = network(batch)
        loss = compute_loss(network, batch)
    order = [int(name) for name in batch.record_ids]
    found = [checker.measure(claims[n].text, "Title", TEXTS[0]) for n in order]
    np.testing.assert_allclose(found, torch.sigmoid(support), atol=1e-4)
    assert float(loss.total) > 0
    marked = [batch.unsupported[row].nonzero().flatten().tolist() for row in range(3)]
    assert all(marked)
    assert all(batch.claim[row, places].all() for row, places in enumerate(marked))


def test_a_job_trains_judges_and_can_be_verified(
    trained: Path, place: Path, encoder: Path, tmp_path: Path
):
    assert 0 < open_checker(str(trained)).threshold <= 1
    assert not verify_artifact(trained)
    artifact = json.loads((trained / "artifact.json").read_bytes())
    assert artifact["details"]["validation"]["claims"] == 6
    assert 0 <= artifact["details"]["validation"]["area"] <= 1
    assert {parent["role"] for parent in artifact["parents"]} == {"claims", "base"}
    tensors = load_file(trained / "output" / "checker.safetensors")
    assert any(value.abs().max() > 0 for name, value in tensors.items() if "lora_B" in name)
    run_recipe(make_recipe(place, encoder), tmp_path / "again")
    for name in ("checker.json", "checker.safetensors"):
        again = (tmp_path / "again" / "output" / name).read_bytes()
        assert again == (trained / "output" / name).read_bytes()


def test_its_training_is_replayed(trained: Path):
    job = plan_replay(trained, ReplayAmount.parse("all"), seed=1).run().jobs[0]
    assert job.segments
    assert not job.differences


def test_a_checker_is_trained_further_and_another_rank_is_refused(
    place: Path, encoder: Path, trained: Path, tmp_path: Path
):
    further = make_recipe(place, encoder, start=trained)
    artifact = run_recipe(further, tmp_path / "further")
    assert {parent.role for parent in artifact.parents} == {"claims", "base", "start"}
    other = make_recipe(place, encoder, start=trained, **{"train.lora.rank": 4})
    with pytest.raises(CheckpointError) as caught:
        run_recipe(other, tmp_path / "other")
    assert caught.value.code == "checkpoint.other-base"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"claim": "x", "passage": "y", "supported": "no"}', "neither true nor false"),
        ('{"claim": "x", "supported": true}', "passage"),
        ('{"claim": "x", "passage": "y", "supported": true, "unsupported": [[0, 1]]}', "supported"),
        ('{"claim": "x", "passage": "y", "supported": false, "unsupported": [3]}', ""),
        *(
            (
                f'{{"claim": "abc", "passage": "y", "supported": false, "unsupported": [{s}]}}',
                "3 ch",
            )
            for s in ("[0, 4]", "[2, 1]", "[-2, 2]", "[0.5, 2]", '"12"', "[0, 1e999]", "[1, 1]")
        ),
        ('{"claim": " ", "passage": "y", "supported": false}', "empty"),
        ('{"claim": "x", "passage": "", "supported": false}', "empty"),
        ('{"claim": "x", "passage": "y", "supported": false, "document": 3}', "not a text"),
        ('{"claim": "x\u2028", "passage": "y", "supported": "no"}', "neither true nor false"),
        ("[]", ""),
    ],
)
def test_a_line_that_judges_nothing_is_named(
    place: Path, encoder: Path, tmp_path: Path, line: str, what: str
):
    (tmp_path / "bad.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(DataError) as caught:
        run_recipe(make_recipe(place, encoder, claims=f"['{tmp_path}/bad.jsonl']"), tmp_path / "o")
    assert caught.value.problems[0].code == "data.no-claims"
    assert caught.value.problems[0].where.endswith("bad.jsonl:2")
    assert what in str(caught.value)


def test_files_of_claims_that_cannot_be_read_or_are_too_few_are_named(
    place: Path, encoder: Path, tmp_path: Path
):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    (tmp_path / "few.jsonl").write_text('{"claim": "x", "passage": "y", "supported": true}\n')
    for name in ("empty.jsonl", "bytes.jsonl", ".", "few.jsonl"):
        with pytest.raises(DataError) as caught:
            run_recipe(
                make_recipe(place, encoder, claims=f"['{tmp_path / name}']"), tmp_path / "out"
            )
        assert caught.value.problems[0].code == "data.no-claims"
        assert caught.value.problems[0].where == str(tmp_path / name)


def test_a_checker_that_supports_nothing_is_told():
    chances, labels = np.array([0.9, 0.2]), np.array([False, True])
    threshold = _choose_threshold(chances, labels, 0.99)
    figures = _summarize(chances, labels, threshold)
    assert (figures["area"], figures["supported_true"], figures["precision"]) == (0, 0, None)
    said: list[str] = []
    _report(figures, 0.99, SimpleNamespace(say=said.append, warn=said.append))
    assert "area under the ROC curve 0.000" in said[0]
    assert "no threshold reaches a precision of 0.99" in said[1]


def test_the_claim_that_reaches_the_precision_is_supported():
    chances, labels = np.array([0.9440075, 0.3]), np.array([True, False])
    assert _summarize(chances, labels, _choose_threshold(chances, labels, 0.8))["precision"] == 1
    chances, labels = np.array([0.9, 0.5, 0.5]), np.array([True, True, False])
    assert _choose_threshold(chances, labels, 0.8) == 0.9  # the others have one probability
    assert _choose_threshold(np.array([1e-9]), np.array([True]), 0.8) > 0  # refused claims have 0


def test_the_packaged_checker_supports_what_a_passage_says_in_other_words(built):
    right = (
        "It does not delete an old backup before a new one is complete.",
        "While the server runs, clients are able to read the archive.",
        "At least thirty database backups are kept locally by Olaf Hansen's server.",
    )
    wrong = (
        "The server of Maria Berg keeps at least 30 backups of the database.",
        "The server keeps at least 1994 backups of the database in a local folder.",
        "The server deletes the old backup before the new one is complete.",
        "A client can only read the archive when the server is stopped.",
        "The archive can read a client when the server is running.",
        "Bananas grow in the tropical forests of the south.",
        "Delete an old backup before a new one is complete.",
        "In Norway, the office of Maria Berg does not check every backup in 1987 and in 1994.",
    )
    with Index.open(built) as index:
        texts = Trained().hold([PASSAGE], index)
        texts.set_headings(["Backups"])
        assert [claim for claim in right if texts.measure(claim, 1) < texts.threshold] == []
        assert [claim for claim in wrong if texts.measure(claim, 1) >= texts.threshold] == []
        assert texts.find(right[0]).number == 1


def test_fragments_and_other_languages_are_checked_by_words(built):
    german = "Die Mühle mahlt das Korn, und der Fluss ist im Norden der Stadt."
    with Index.open(built) as index:
        texts = Trained().hold([german, PASSAGE], index)
        assert texts.measure("Die Mühle mahlt das Korn.", 1) >= texts.threshold
        assert texts.measure("Die Mühle mahlt 12 Tonnen Korn.", 1) < texts.threshold
        assert texts.measure("Olaf Hansen.", 2) >= texts.threshold
        assert texts.measure("Olaf Larsen.", 2) < texts.threshold


def test_a_damaged_checker_is_neither_used_nor_trained_further(
    place: Path, encoder: Path, trained: Path, tmp_path: Path
):
    tensors = load_file(trained / "output" / "checker.safetensors")
    tensors["support.bias"] = tensors["support.bias"] * float("nan")
    settings = (trained / "output" / "checker.json").read_text()
    (tmp_path / "checker.json").write_text(settings)
    for damage in (save(tensors), save(tensors)[:999]):
        (tmp_path / "checker.safetensors").write_bytes(damage)
        with pytest.raises(CheckpointError) as caught:
            ClaimChecker(tmp_path)
        assert caught.value.code == "checkpoint.not-a-checker"
        with pytest.raises(CheckpointError) as caught:
            run_recipe(make_recipe(place, encoder, start=tmp_path), tmp_path / "out")
        assert caught.value.code == "checkpoint.broken"
    shutil.copy(trained / "output" / "checker.safetensors", tmp_path)
    config = {**json.loads(settings), "threshold": float("nan")}
    (tmp_path / "checker.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError):
        ClaimChecker(tmp_path)


def test_a_tampered_checker_is_refused(trained: Path, tmp_path: Path):
    folder = shutil.copytree(trained / "output", tmp_path / "checker")
    for change in list_tampered_folders(folder, "checker", [*TAMPERED, ("threshold", 0)]):
        if "unsupported" not in change:  # a head that is only trained
            with pytest.raises(CheckpointError):
                pytest.fail(f"{change} is not refused: {ClaimChecker(folder)}")


@pytest.mark.parametrize("content", [None, "{}", '{"threshold": 1}'])
def test_a_folder_without_a_checker_is_named(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "checker.json").write_text(content)
    with pytest.raises(CheckpointError) as caught:
        open_checker(str(tmp_path))
    assert caught.value.problems[0].code == "checkpoint.not-a-checker"
