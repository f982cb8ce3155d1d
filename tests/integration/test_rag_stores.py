"""Every store passes the same checks: the folder, and a real PostgreSQL server with pgvector."""

import pytest
from tests.postgres import serve

from stillroom.rag.interfaces import STORES
from stillroom.testing import check_store


@pytest.fixture(scope="module")
def server():
    with serve() as address:
        yield address


def test_the_folder_passes(tmp_path):
    check_store(STORES.build("folder"), tmp_path, steps=12, filters=16)


def test_postgres_passes(tmp_path, server, monkeypatch):
    monkeypatch.setenv("STILLROOM_POSTGRES", server)
    check_store(STORES.build("postgres"), tmp_path, steps=12, filters=16)


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_postgres_passes_for_long(tmp_path, server, monkeypatch):
    monkeypatch.setenv("STILLROOM_POSTGRES", server)
    check_store(STORES.build("postgres"), tmp_path, steps=600, filters=800, seed=1)
