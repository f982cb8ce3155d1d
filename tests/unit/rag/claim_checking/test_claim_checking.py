import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stillroom.errors import CheckpointError, DataError
from stillroom.flow import run_recipe
from stillroom.provenance import verify_artifact
from stillroom.rag import Index
from stillroom.rag.checkers.trained import Trained
from stillroom.rag.claim_checking.alignment import FEATURES, AlignedPassage, describe_claim
from stillroom.rag.claim_checking.checker import open_checker
from stillroom.rag.claim_checking.edits import plant_claims
from stillroom.rag.claim_checking.training_run import _report
from stillroom.rag.claim_checking.word_groups import (
    find_opposites,
    find_strangers,
    find_synonyms,
)
from stillroom.recipes import parse_recipe

PASSAGE = (
    "The server of Olaf Hansen keeps at least 30 backups of the database in a local folder. "
    "It does not delete an old backup before a new one is complete. A client can read the "
    "archive when the server is running. In Norway, the office of Maria Berg checks every "
    "backup in 1987 and in 1994."
)


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


def make_recipe(place: Path, **changes):
    text = "kind: rag.checker\nindex: index\nclaims: [claims.jsonl]\nsentences: 4\n"
    return parse_recipe(text, overrides=[f"{k}={v}" for k, v in changes.items()], folder=place)


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    run_recipe(make_recipe(place), place / "checker")
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
        kinds |= {one.kind for one in claims}
    assert {"paraphrase", "number", "name", "negation", "opposite", "stranger"} <= kinds
    assert {"quantifier", "cause", "mixture"} & kinds


def test_a_planted_number_is_not_the_sentences_own():
    claims = [
        one for seed in range(80) for one in plant_claims(PASSAGE, np.random.default_rng(seed), 4)
    ]
    numbers = [set(re.findall(r"\d+", one.text)) for one in claims if one.kind == "number"]
    assert numbers
    assert all(found and not found >= {"1987", "1994"} and found != {"30"} for found in numbers)


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


def describe(claim: str, passage: str = PASSAGE, heading: str = "") -> dict[str, float]:
    def stem(word: str) -> str:
        return "" if word in {"the", "of", "a", "in", "it", "is", "does"} else word.rstrip("s")

    aligned = AlignedPassage.of(passage, heading, stem)
    found = describe_claim(claim, aligned, stem=stem, weigh=lambda term: 2.0)
    assert tuple(found) == FEATURES
    return found


def test_what_is_left_over_between_claim_and_passage_is_counted():
    same = describe("It does not delete an old backup before a new one is complete.")
    assert same["verbatim"] == 1
    assert not any(same[name] for name in ("novel", "inverted", "negation", "opposites", "chunks"))
    assert describe("It does delete an old backup before a new one is complete.")["negation"] == 1
    turned = describe("It does not delete an new backup before a old one is complete.")
    assert turned["inverted"] == 1
    after = describe("It does not delete an old backup after a new one is complete.")
    assert after["opposites"] >= 1
    assert describe("The server keeps at least 31 backups.")["numbers"] == 1
    assert describe("Olaf Larsen keeps the database.")["names"] == 1
    assert describe("A client can get the archive when the server is running.")["strangers"] == 1
    assert describe("It does not erase an old backup.")["synonyms"] == 1
    assert describe("Zebras run fast.", heading="Zebra")["novel"] == 2
    assert describe("", "")["short"] == 1


def test_the_packaged_checker_fails_wrong_sentences_of_the_passages_words(built):
    right = (
        "It does not delete an old backup before a new one is complete.",
        "It doesn't delete an old backup before a new one is complete.",
        "The server of Olaf Hansen keeps at least 30 backups of the database.",
    )
    wrong = (
        "It deletes an old backup before a new one is complete.",
        "It does not delete a new backup before an old one is complete.",
        "The server of Maria Berg keeps at least 30 backups of the database.",
        "The server keeps at most 30 backups of the database in a local folder.",
        "The server keeps at least 1994 backups of the database in a local folder.",
        "The archive can read a client when the server is running.",
        "The office of Olaf Hansen checks every backup in 1987.",
        "Bananas grow in the tropical forests of the south.",
    )
    with Index.open(built) as index:
        texts = Trained().hold([PASSAGE], index)
        texts.set_headings(["Backups"])
        assert [claim for claim in right if texts.measure(claim, 1) < texts.threshold] == []
        assert [claim for claim in wrong if texts.measure(claim, 1) >= texts.threshold] == []
        assert texts.find(right[0]).number == 1


def test_what_is_the_same_may_be_said_in_either_order(built):
    with Index.open(built) as index:
        texts = Trained().hold(["Paris is the capital of France. Rome is old."], index)
        assert texts.measure("The capital of France is Paris.", 1) >= texts.threshold
        assert texts.measure("The capital of France is Rome.", 1) < texts.threshold


def test_fragments_and_other_languages_are_checked_by_words(built):
    german = "Die Mühle mahlt das Korn, und der Fluss ist im Norden der Stadt."
    with Index.open(built) as index:
        texts = Trained().hold([german, PASSAGE], index)
        assert texts.measure("Die Mühle mahlt das Korn.", 1) >= texts.threshold
        assert texts.measure("Die Mühle mahlt 12 Tonnen Korn.", 1) < texts.threshold
        assert texts.measure("Olaf Hansen.", 2) >= texts.threshold
        assert texts.measure("Olaf Larsen.", 2) < texts.threshold


def test_a_job_trains_judges_and_can_be_verified(trained: Path, place: Path, tmp_path: Path):
    checker = open_checker(str(trained))
    assert 0 < checker.threshold <= 1
    assert not verify_artifact(trained)
    details = json.loads((trained / "artifact.json").read_bytes())["details"]["validation"]
    assert details["judged"]["claims"] == 2
    assert details["planted"]["claims"] > 20
    run_recipe(make_recipe(place), tmp_path / "again")
    first, again = (
        (run / "output" / "checker.json").read_bytes() for run in (trained, tmp_path / "again")
    )
    assert first == again


def test_a_line_that_judges_nothing_is_named(place: Path, tmp_path: Path):
    (tmp_path / "bad.jsonl").write_text('\n{"claim": "x", "passage": "y", "supported": "no"}\n')
    with pytest.raises(DataError) as caught:
        run_recipe(make_recipe(place, claims=f"['{tmp_path}/bad.jsonl']"), tmp_path / "out")
    assert caught.value.problems[0].code == "data.no-claims"
    assert caught.value.problems[0].where.endswith("bad.jsonl:2")


def test_files_of_claims_that_cannot_be_read_are_named(place: Path, tmp_path: Path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    for name in ("empty.jsonl", "bytes.jsonl", "."):
        with pytest.raises(DataError) as caught:
            run_recipe(make_recipe(place, claims=f"['{tmp_path / name}']"), tmp_path / "out")
        assert caught.value.problems[0].code == "data.no-claims"
        assert caught.value.problems[0].where == str(tmp_path / name)


def list_said(folder: Path) -> list[str]:
    events = map(json.loads, (folder / "events.jsonl").read_text().splitlines())
    return [event["text"] for event in events if event["event"] == "said"]


def test_no_more_claims_are_planted_than_asked_for_and_the_figures_are_told(
    place: Path, tmp_path: Path
):
    artifact = run_recipe(make_recipe(place, claims="[]", max_claims=31), tmp_path / "out")
    assert artifact.details["validation"]["planted"]["claims"] == 31
    assert [line[:22] for line in list_said(tmp_path / "out")] == ["of 31 planted claims, "]


def test_judged_claims_with_passages_of_others_are_not_counted_as_planted(
    place: Path, tmp_path: Path
):
    passages = [PASSAGE.replace("Norway", f"Land{number}") for number in range(8)]
    rows = [{"claim": f"It is {n}.", "passage": one, "supported": False}
            for n, one in enumerate(passages)]  # fmt: skip
    (tmp_path / "judged.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = make_recipe(place, claims=f"['{tmp_path}/judged.jsonl']", max_claims=40)
    figures = run_recipe(recipe, tmp_path / "out").details["validation"]
    assert (figures["planted"]["claims"], figures["judged"]["claims"]) == (40, 8)
    assert figures["supported_by_kind"]["judged_foreign"][1] == 24


def test_a_checker_that_supports_nothing_is_told():
    said: list[str] = []
    nothing = {"claims": 9, "precision": None, "recall": 0.0}
    _report(
        {"planted": nothing, "judged": nothing}, 0.95, SimpleNamespace(say=print, warn=said.append)
    )
    assert "no threshold reaches a precision of 0.95" in said[-1]


@pytest.mark.parametrize("content", [None, "{}", '{"features": ["novel"]}'])
def test_a_folder_without_a_checker_is_named(tmp_path: Path, content: str | None):
    if content is not None:
        (tmp_path / "checker.json").write_text(content)
    with pytest.raises(CheckpointError) as caught:
        open_checker(str(tmp_path))
    assert caught.value.problems[0].code == "checkpoint.not-a-checker"
