import pytest
from starlette.testclient import TestClient
from tests.console_folder import KEY, build_folder, model

from stillroom.console import create_console


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return build_folder(tmp_path_factory.mktemp("console"))


@pytest.fixture
def app(folder, monkeypatch):
    monkeypatch.setattr("stillroom.serve.mounts.open_text_model", lambda *_, **__: model())
    return create_console(folder, key=KEY)


@pytest.fixture
def outside(app):
    with TestClient(app, base_url="http://127.0.0.1:8152", follow_redirects=False) as client:
        yield client


@pytest.fixture
def client(outside):
    assert outside.get(f"/?key={KEY}").status_code == 303
    return outside


@pytest.fixture
def token(app):
    return app.token
