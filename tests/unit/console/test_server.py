import pytest
from click.testing import CliRunner

from stillroom.cli.app import stillroom
from stillroom.console import run_console
from stillroom.errors import DataError, RecipeError


def test_others_than_this_machine_are_never_listened_to(tmp_path):
    with pytest.raises(RecipeError) as told:
        run_console(tmp_path, host="0.0.0.0", port=0)  # noqa: S104  # to be refused
    assert told.value.code == "console.host"
    assert "ssh -L" in str(told.value)


def test_the_folder_is_one(tmp_path):
    with pytest.raises(DataError) as told:
        run_console(tmp_path / "none", port=0)
    assert told.value.code == "data.missing"


def test_the_command_says_where_it_is_and_with_which_key(tmp_path, monkeypatch):
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: None)
    done = CliRunner().invoke(stillroom, ["console", str(tmp_path), "--port", "0"])
    assert done.exit_code == 0, done.output
    assert "http://127.0.0.1:" in done.stderr
    assert "/?key=" in done.stderr


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "console.no-page"),
        ("DELETE", "/ask", 405, "console.method"),
        ("POST", "/ask/open", 403, "console.refused"),
    ],
)
def test_what_is_wrong_is_said_on_a_page(client, token, method, path, status, code):
    headers = {} if code == "console.refused" else {"x-stillroom-token": token}
    reply = client.request(method, path, headers=headers)
    assert reply.status_code == status
    assert code in reply.text
