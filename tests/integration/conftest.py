"""What several integration tests share: one object store a process."""

import logging
import urllib.request

import pytest


@pytest.fixture(scope="session")
def object_store():
    """Start an S3 server; give a function that makes a bucket and returns the settings to reach it.

    The server keeps its buckets for the whole process, however often one is started: each module
    takes a bucket of a name of its own.
    """
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    made = set()

    def make(name):
        assert name not in made, f"another module has taken the bucket {name}"
        made.add(name)
        request = urllib.request.Request(f"http://{host}:{port}/{name}", method="PUT")
        opener.open(request, timeout=60).close()
        return settings

    yield make
    running.stop()
