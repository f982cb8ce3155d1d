import pytest

from stillroom.errors import BackendError
from stillroom.models import open_text_model
from stillroom.records import Message, Prompt, Sampling


def test_a_server_that_keeps_failing_is_named_with_what_it_said(serve, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = serve(lambda path, body, headers: (503, {"error": "out of memory"}))
    model = open_text_model(f"{server.address}#m", tries=1)
    with pytest.raises(BackendError, match="out of memory") as caught:
        model.generate([Prompt(messages=(Message("user", "a"),))], Sampling())
    model.close()
    assert caught.value.code == "backend.unavailable"
