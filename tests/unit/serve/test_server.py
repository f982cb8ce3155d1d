import errno
import socket
import subprocess
import sys
import threading

import pytest

from stillroom.errors import DataError, RecipeError, ResourceError
from stillroom.serve import access
from stillroom.serve.access import SCOPES, ApiKey, create_key, read_keys
from stillroom.serve.jobs.recipe_policy import RecipePolicy
from stillroom.serve.middleware.auth import match_key
from stillroom.serve.server import JobServerSettings, ServerSettings, check_host, run_server

KEY = "a-key-of-enough-length"


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch):
    monkeypatch.delenv("STILLROOM_API_KEY", raising=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_this_machine_needs_no_keys(host):
    assert check_host(host, ()) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.4", "example.org", ""])  # noqa: S104
def test_others_are_not_let_in_without_keys(host):
    with pytest.raises(RecipeError) as caught:
        check_host(host, ())
    assert caught.value.code == "serve.open-host"
    check_host(host, (KEY,))


def test_keys_come_from_file_and_environment(tmp_path, monkeypatch):
    path = tmp_path / "keys"
    path.write_text(f"# mine\n{KEY}  # laptop\n\n")
    path.chmod(0o600)
    monkeypatch.setenv("STILLROOM_API_KEY", "another-key-of-length")
    assert read_keys(path) == (ApiKey("another-key-of-length"), ApiKey(KEY))
    assert read_keys() == (ApiKey("another-key-of-length"),)


def test_a_key_file_that_others_may_read_is_refused(tmp_path):
    path = tmp_path / "keys"
    path.write_text(KEY)
    path.chmod(0o644)
    with pytest.raises(DataError, match="readable by other users") as caught:
        read_keys(path)
    assert caught.value.code == "serve.key-file"
    with pytest.raises(DataError, match="cannot be read"):
        read_keys(tmp_path / "none")


def test_a_short_key_is_refused_and_not_shown(monkeypatch):
    monkeypatch.setenv("STILLROOM_API_KEY", "hunter2")
    with pytest.raises(DataError) as caught:
        read_keys()
    assert caught.value.code == "serve.weak-key"
    assert "hunter2" not in str(caught.value)


def test_a_taken_port_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=str(port)) as caught:
            run_server((), ServerSettings(port=port))
    assert caught.value.code == "serve.port"


def test_nothing_to_serve_is_said():
    from click.testing import CliRunner

    from stillroom.cli.app import stillroom

    error = CliRunner().invoke(stillroom, ["serve"]).exception
    assert error.code == "serve.nothing"


@pytest.mark.parametrize("address", ["file:///etc", "host:80", "http://", "http://me@host/v1"])
def test_only_addresses_of_servers_are_opened_to_recipes(tmp_path, address):
    jobs = JobServerSettings(tmp_path, policy=RecipePolicy((address,)))
    with pytest.raises(RecipeError) as caught:
        run_server((), ServerSettings(port=0, jobs=jobs))
    assert caught.value.code == "serve.endpoint"


def test_scopes_of_keys_are_read_and_odd_ones_refused(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"{KEY} tenant=acme scope=jobs:read scope=models\n{KEY}2\n")
    path.chmod(0o600)
    first, second = read_keys(path)
    assert first.scopes == {"jobs:read", "models"}
    assert second.scopes == SCOPES
    path.write_text(f"{KEY} scope=everything")
    with pytest.raises(DataError, match="not recognized"):
        read_keys(path)


def test_a_new_key_is_kept_as_a_digest_alone(tmp_path):
    path = tmp_path / "keys"
    first = create_key(path, "tenant=acme scope=jobs:read")
    second = create_key(path)
    text = path.read_text()
    assert first not in text
    assert second not in text
    assert path.stat().st_mode & 0o077 == 0
    (one, two) = read_keys(path)
    assert (one.access.tenant, one.scopes) == ("acme", {"jobs:read"})
    digests = [key.digest for key in (one, two)]
    assert match_key(f"Bearer {first}".encode(), digests) == 0
    assert match_key(f"Bearer {second}".encode(), digests) == 1
    assert match_key(f"Bearer {text.split()[0]}".encode(), digests) is None
    assert first not in repr(one)
    with pytest.raises(DataError, match="not recognized"):
        create_key(path, "tennant=acme")
    assert path.read_text() == text


def test_a_new_key_that_cannot_be_written_loses_no_other(tmp_path):
    path = tmp_path / "keys"
    for name in "ab":
        create_key(path, f"tenant={name}")
    before = path.read_bytes()
    code = (
        "import pathlib, resource, signal, sys\n"
        "from stillroom.serve.access import create_key\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) + 10},) * 2)\n"
        "create_key(pathlib.Path(sys.argv[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 1
    assert "too large" in done.stderr
    assert path.read_bytes() == before
    assert len(read_keys(path)) == 2


def test_a_new_key_that_cannot_be_written_takes_no_other_back(tmp_path, monkeypatch):
    path, issued = tmp_path / "keys", [create_key(tmp_path / "keys")]
    other = threading.Thread(target=lambda: issued.append(create_key(path)))
    sync = access.sync_path

    def fail(synced):
        monkeypatch.setattr(access, "sync_path", sync)
        other.start()
        other.join(0.2)
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(access, "sync_path", fail)
    with pytest.raises(ResourceError):
        create_key(path, "tenant=acme")
    other.join()
    assert [key.digest for key in read_keys(path)] == [ApiKey(key).digest for key in issued]


def test_new_keys_are_printed_once(tmp_path):
    from click.testing import CliRunner

    from stillroom.cli.app import stillroom

    path = tmp_path / "keys"
    arguments = ["serve", "--new-key", "scope=models", "--api-key-file", str(path)]
    key = CliRunner().invoke(stillroom, arguments).output.strip()
    (kept,) = read_keys(path)
    assert kept.digest == ApiKey(key).digest
    assert CliRunner().invoke(stillroom, ["serve", "--new-key", ""]).exception.code


def test_the_log_says_who_and_what_and_nothing_that_was_said():
    import json

    from tests.unit.serve.test_app import chat, request, served

    from stillroom.serve import create_app

    lines = []
    app = create_app(served(), api_keys=[KEY], log=lines.append)
    headers = {"Authorization": f"Bearer {KEY}"}
    chat(app, headers=headers, messages=[{"role": "user", "content": "canaryword"}])
    request(app, "GET", "/v1/models/canaryname?x=canaryquery", headers=headers)
    first, second = map(json.loads, lines)
    assert (first["route"], first["status"], first["key"]) == ("/v1/chat/completions", 200, 0)
    assert first["own_ms"] <= first["ms"]
    assert 0 < first["first_token_ms"] <= first["ms"]
    assert second["first_token_ms"] is None
    assert (second["route"], second["status"]) == ("/v1/models/{name:path}", 404)
    assert "canary" not in "".join(lines)
    assert KEY not in "".join(lines)
