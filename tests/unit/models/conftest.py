import importlib.util
from pathlib import Path

import pytest

_PATH = Path(__file__).with_name("endpoint_server.py")


@pytest.fixture(scope="session")
def endpoint_server():
    """The module with ``Server``, a scripted HTTP server on loopback."""
    pytest.importorskip("aiohttp")
    spec = importlib.util.spec_from_file_location("endpoint_server", _PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def serve(endpoint_server):
    """Start servers that stop with the test: ``serve(answer) -> Server``."""
    running = []

    def start(answer):
        server = endpoint_server.Server(answer).__enter__()
        running.append(server)
        return server

    yield start
    for server in running:
        server.__exit__()


@pytest.fixture
def completion(endpoint_server):
    return endpoint_server.completion
