"""Merge, Diffusion and Forensics: what their pages ask for, within bounds."""

import io
import re

import pytest

MODEL = "run/steps/model"


@pytest.fixture
def headers(token):
    return {"x-stillroom-token": token}


def test_the_pages_offer_what_lies_in_the_folder(client):
    page = client.get("/merge").text
    assert 'name="m" value="other"' in page
    assert "<option>records</option>" in page
    page = client.get("/diffusion").text
    assert '<option value="diffusion">' in page
    assert MODEL not in page
    assert "No detector is loaded" in client.get("/forensics").text


def test_conflict_is_measured_by_layer(client, headers):
    query = {"base": MODEL, "m": ["other", "third"], "density": "0.5"}
    found = client.post("/merge/conflict", params=query, headers=headers).json()
    assert list(found["layers"])[:2] == ["layer 0", "layer 1"]
    assert -1 <= found["whole"]["pairs"][0]["cosine"] <= 1
    assert found["parents"] == ["other", "third"]
    same = client.post(
        "/merge/conflict", params={**query, "m": ["other", "other"]}, headers=headers
    ).json()
    assert same["whole"]["pairs"][0]["cosine"] == pytest.approx(1)
    assert same["whole"]["cancelling"] == pytest.approx(0)


def test_the_loss_between_two_is_measured_at_even_shares(client, headers):
    query = {"m": ["other", "third"], "records": "records", "n": "2", "points": "3"}
    found = client.post("/merge/path", params=query, headers=headers).json()
    assert [one["share"] for one in found["points"]] == [0, 0.5, 1]
    assert found["records"] == 2
    assert found["held_out"] is False
    back = client.post(
        "/merge/path", params={**query, "m": ["third", "other"]}, headers=headers
    ).json()
    assert back["points"][0]["value"] == pytest.approx(found["points"][2]["value"])


@pytest.mark.parametrize(
    ("path", "query", "code"),
    [
        ("/merge/conflict", {"base": MODEL, "m": ["other"]}, "console.parents"),
        ("/merge/conflict", {"base": MODEL, "m": ["other"] * 5}, "console.parents"),
        (
            "/merge/conflict",
            {"base": MODEL, "m": ["other"] * 2, "density": "9"},
            "console.settings",
        ),
        ("/merge/conflict", {"base": "../secret", "m": ["other"] * 2}, "data.missing"),
        ("/merge/path", {"m": ["other"]}, "console.parents"),
        ("/merge/path", {"m": ["other", "third"], "points": "1e9"}, "console.settings"),
        ("/merge/path", {"m": ["other", "../secret"], "records": "records"}, "data.missing"),
    ],
)
def test_what_cannot_be_measured_is_refused(client, headers, path, query, code):
    reply = client.post(path, params=query, headers=headers)
    assert reply.status_code in {400, 404}
    assert code in reply.text
    assert "{" not in reply.text


def test_a_text_is_unmasked_step_by_step(client, headers):
    body = {"prompt": "A jar", "max_new_tokens": 6, "at_once": 2, "order": "left_to_right"}
    told = client.post("/diffusion/write?at=diffusion", json=body, headers=headers).json()
    steps, result = told["steps"], told["result"]
    assert len(steps) == 3
    assert all(len(one["pieces"]) == 6 for one in steps)
    assert [one["written"] for one in steps] == [[0, 1], [2, 3], [4, 5]]
    assert steps[-1]["pieces"].count(None) == 0
    assert result["nfe"] >= 3
    again = client.post("/diffusion/write?at=diffusion", json=body, headers=headers).json()
    assert again == told


@pytest.mark.parametrize(
    ("at", "body"),
    [
        (MODEL, {}),
        ("records", {}),
        ("../secret", {}),
        ("diffusion", {"max_new_tokens": 100_000}),
        ("diffusion", {"order": "../../x"}),
        ("diffusion", {"order": "no_such_order"}),
        ("diffusion", {"more": 1}),
        ("diffusion", {"temperature": "nan"}),
    ],
)
def test_what_cannot_be_written_is_refused(client, headers, at, body):
    reply = client.post("/diffusion/write", params={"at": at}, json=body, headers=headers)
    assert reply.status_code in {400, 404}


def test_a_picture_is_looked_at_and_needs_the_token(client, headers):
    image = pytest.importorskip("PIL.Image")
    data = io.BytesIO()
    image.new("RGB", (64, 64), "white").save(data, "PNG")
    files = {"file": ("../a.png", data.getvalue(), "image/png")}
    assert client.post("/v1/forensics/check", files=files).status_code == 403
    told = client.post("/v1/forensics/check", files=files, headers=headers).json()
    assert told["files"][0]["path"] == "a.png"
    assert "not a sign of a forgery" in told["files"][0]["verdict"]


def test_direction_characters_in_a_name_turn_no_other_text(client):
    css = client.get("/static/console.css").text
    (elements,) = re.findall(r"^(.+?) \{ unicode-bidi: isolate; \}", css, re.MULTILINE)
    assert {"a", "code", "span"} <= set(elements.split(", "))
