import pytest
from starlette.testclient import TestClient
from tests.console_folder import KEY

from stillroom.console import create_console


def test_nobody_is_inside_without_the_key(outside):
    for path in ("/", "/ask", "/source?at=run&passage=x", "/v1/models?at=run", "/nowhere"):
        reply = outside.get(path)
        assert reply.status_code == 401, path
        assert "Enter the console" in reply.text
        assert 'stillroom-token" content=""' in reply.text
    assert outside.get("/static/tokens.css").status_code == 200
    assert outside.get("/?key=another-key").status_code == 401


def test_the_key_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(outside):
    reply = outside.get(f"/ask?at=run&key={KEY}")
    assert (reply.status_code, reply.headers["location"]) == (303, "/ask?at=run")
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert KEY not in cookie
    assert outside.get("/ask").status_code == 200


def test_two_consoles_of_one_host_do_not_shut_each_other_out(folder):
    """A browser keeps cookies by host, whatever the port."""
    jar = {}
    consoles = {port: create_console(folder, key=f"{KEY}-{port}") for port in (8152, 8153)}
    for port, app in consoles.items():
        here = f"http://127.0.0.1:{port}"
        with TestClient(app, base_url=here, follow_redirects=False) as client:
            jar |= dict(client.get(f"/?key={KEY}-{port}").cookies)
    for port, app in consoles.items():
        with TestClient(app, base_url=f"http://127.0.0.1:{port}", cookies=jar) as client:
            assert client.get("/ask").status_code == 200


def test_the_key_may_be_typed(outside):
    assert outside.post("/enter", data={"key": "wrong"}).status_code == 401
    reply = outside.post("/enter", data={"key": KEY})
    assert (reply.status_code, reply.headers["location"]) == (303, "/")


def test_a_path_is_never_read_as_another_machine(outside):
    reply = outside.get(f"http://127.0.0.1:8152//evil.example/?key={KEY}")
    assert reply.headers["location"].startswith("/evil.example")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8152", "", "[::2]:8152"])
def test_names_of_other_machines_are_not_answered_to(client, host):
    for path in ("/ask", "/static/tokens.css"):
        reply = client.get(path, headers={"host": host})
        assert reply.status_code == 403
        assert "names of this machine" in reply.text


@pytest.mark.parametrize("host", ["localhost:8152", "[::1]:8152"])
def test_this_machines_own_names_are(client, host):
    assert client.get("/static/tokens.css", headers={"host": host}).status_code == 200


def test_pages_of_other_origins_are_refused(client, token):
    headers = {"origin": "http://evil.example", "x-stillroom-token": token}
    assert client.post("/ask/open?at=run", headers=headers).status_code == 403
    headers["origin"] = "http://127.0.0.1:9999"
    assert client.post("/ask/open?at=run", headers=headers).status_code == 403
    headers["origin"] = "http://127.0.0.1:8152"
    assert client.post("/ask/open?at=run", headers=headers).status_code == 200


def test_a_request_that_changes_something_bears_the_token(client, token):
    for headers in ({}, {"x-stillroom-token": "wrong"}, {"content-type": "text/plain"}):
        assert client.post("/ask/open?at=run", headers=headers).status_code == 403
    cross = {"x-stillroom-token": token, "sec-fetch-site": "cross-site"}
    assert client.post("/ask/open?at=run", headers=cross).status_code == 403
    assert client.post("/ask/open?at=run", data={"token": "wrong"}).status_code == 403
    assert client.post("/ask/open?at=run", data={"token": token}).status_code == 200
    assert client.post("/v1/chat/completions?at=run", json={}).status_code == 403


def test_a_form_has_a_size(client, token):
    reply = client.post("/ask/open?at=run", data={"token": token, "more": "x" * 1_000_001})
    assert reply.status_code == 403
    assert "larger" in reply.text


def test_a_program_may_bear_the_key(outside):
    headers = {"authorization": f"Bearer {KEY}"}
    reply = outside.get("/v1/models?at=run", headers=headers)
    assert [one["id"] for one in reply.json()["data"]][:2] == ["run", "run-bare"]
    assert (
        outside.get("/v1/models?at=run", headers={"authorization": "Bearer x"}).status_code == 401
    )


def test_every_page_forbids_what_is_not_its_own(client):
    for path in ("/ask", "/nowhere", "/static/ask.js"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "same-origin"  # else our own forms have no origin
        assert headers["x-content-type-options"] == "nosniff"
    assert (
        client.get("/v1/models?at=run").headers["content-security-policy"].count("default-src") == 1
    )


def test_a_body_of_two_lengths_is_refused(client):
    headers = {"Content-Length": "3", "Transfer-Encoding": "chunked"}
    reply = client.post("/enter", headers=headers, content=b"a=b")
    assert (reply.status_code, reply.headers["connection"]) == (400, "close")
