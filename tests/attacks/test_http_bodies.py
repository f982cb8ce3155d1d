"""Malformed requests by the thousand: each is answered, none breaks the server."""

import asyncio
import json
import random

import httpx
import pytest
from tests.unit.serve.test_app import Embedder, ask_documents, served
from tests.unit.serve.test_jobs import fill

from stillroom.rag.index.view import AccessContext
from stillroom.serve import RequestLimits, create_app
from stillroom.serve.access import ApiKey
from stillroom.serve.jobs.runner import JobRunner
from stillroom.serve.media_check import MediaCheckService
from stillroom.serve.workspace import Workspace

KEYS = {"acme": "acmes-key-of-enough-length", "bolt": "bolts-key-of-enough-length"}
CANARY = "canaryofbolt"
TURN = {"role": "user", "content": "What is it?"}
BODIES = {
    "/v1/chat/completions": {"model": "run", "messages": [TURN], "stream": True, "k": 3},
    "/v1/responses": {
        "model": "run",
        "stream": True,
        "input": [
            TURN,
            {"role": "assistant", "content": [{"type": "output_text", "text": "x"}]},
            {"role": "user", "content": [{"type": "input_text", "text": "y"}]},
        ],
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}],
        "metadata": {"a": "b"},
        "include": ["reasoning.encrypted_content"],
    },
    "/v1/completions": {"model": "run", "prompt": "Once", "max_tokens": 3, "stop": ["x"]},
    "/v1/embeddings": {"model": "embedder", "input": ["a", "b"], "encoding_format": "base64"},
    "/v1/rerank": {"model": "embedder", "query": "a", "documents": ["b", {"text": "c"}]},
    "/v1/judgments": {
        "model": "run",
        "question": "a?",
        "answer": "b [1]",
        "citations": [{"number": 1, "passage_id": "pas-1"}],
        "verdict": "quote",
        "quote": "b",
    },
    "/v1/jobs": {"recipe": "kind: merge.weights", "overrides": ["seed=1"], "name": "x"},
    "/v1/forensics/check": {"file": "x"},
    "/v1/jobs/20200101-000000-merge-00000000/cancel": {},
}
ODD = [
    None, True, -1, 0, 1e400, float("nan"), 2**70, 0.5, "", " ", "\x00", "\ud800", "a" * 5000, [],
    {}, [[]], {"": {}}, [None], "../../etc/passwd",
    "${env:HOME}", "{{7*7}}", "%s%n", "\u202e", "null",
    {"type": "json_schema", "json_schema": {"schema": {"$ref": "#"}}}, ["x"] * 300,
]  # fmt: skip


def paths_in(value, at=()):
    yield at
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, part in items:
        yield from paths_in(part, (*at, key))


def change(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = change(value[path[0]], path[1:], new)
    return copy


def malformed(rng):
    """Return a path, a body and headers, one of them at least not what it should be."""
    path = rng.choice(list(BODIES))
    body = BODIES[path]
    for _ in range(rng.randint(1, 3)):
        body = change(body, rng.choice(list(paths_in(body))), rng.choice(ODD))
        if isinstance(body, dict) and rng.random() < 0.3:
            body = {
                **body,
                rng.choice(["", "model", "x" * 99, "tools", "pipeline", "n"]): rng.choice(ODD),
            }
    raw = json.dumps(body, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    headers = {"Content-Type": "application/json"}
    match rng.randint(0, 9):
        case 0:
            cut = rng.randint(0, len(raw))
            raw = raw[:cut]
        case 1:
            at = rng.randrange(len(raw) or 1)
            raw = raw[:at] + rng.randbytes(rng.randint(1, 4)) + raw[at + 1 :]
        case 2:
            raw = rng.randbytes(rng.randint(0, 200))
        case 3:
            raw = b"[" * rng.randint(1, 20_000)
        case 4:
            kinds = [
                "text/plain",
                "multipart/form-data; boundary=x",
                "application/x-www-form-urlencoded",
                "x",
            ]
            headers["Content-Type"] = rng.choice(kinds)
        case 5:
            headers["Idempotency-Key"] = rng.choice(["", "x" * 300, "\x7f"])
            headers["Last-Event-ID"] = rng.choice(["-1", "9" * 30, "x"])
    return path, raw, headers


async def fuzz(app, count, seed):
    rng, statuses = random.Random(seed), {}
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {KEYS['acme']}"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://localhost", headers=headers
    ) as client:
        for number in range(count):
            path, raw, more = malformed(rng)
            reply = await client.post(path, content=raw, headers=more)
            said = (
                f"{number}: {path} {raw[:200]!r} {more} -> {reply.status_code} {reply.text[:300]}"
            )
            assert reply.status_code < 500 or reply.json()["error"]["code"] == "stopping", said
            if reply.status_code >= 400:
                assert set(reply.json()["error"]) >= {"message", "type", "param", "code"}, said
            assert CANARY not in reply.text, said
            assert "Traceback" not in reply.text, said
            statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/v1/jobs")).status_code == 200
    return statuses


@pytest.mark.parametrize(
    "count", [300, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_no_body_breaks_the_server_or_shows_another_tenants(tmp_path, count):
    keys = [ApiKey(key, AccessContext(name)) for name, key in KEYS.items()]
    both = served(ask=ask_documents, embedder=Embedder(), access_rule="tenants")
    with Workspace(tmp_path, has_tenants=True).open() as space:
        fill(space.root("acme").folder)
        (space.root("bolt").folder / CANARY).mkdir()
        runner = JobRunner(space, waiting=3)
        runner.begin_stop()  # recipes that are whole by chance are refused, too
        app = create_app(
            both,
            api_keys=keys,
            jobs=runner,
            media_check=MediaCheckService(),
            limits=RequestLimits(max_new_tokens=64),
        )
        statuses = asyncio.run(fuzz(app, count, seed=count))
    assert set(statuses) <= {200, 400, 403, 404, 409, 413, 415, 422, 503}, statuses
    assert statuses[400] > count / 2


def test_an_upload_that_stalls_gives_its_place_back(tmp_path):
    limits = RequestLimits(body_s=0.1, upload_s=60, checks=0)
    app = create_app(served(), limits=limits, media_check=MediaCheckService())
    form = {"file": ("a.png", b"no picture")}

    async def trickle():
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
        while True:
            await asyncio.sleep(0.05)
            yield b"x"

    async def stall():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            kind = {"Content-Type": "multipart/form-data; boundary=x"}
            slow = asyncio.ensure_future(
                client.post("/v1/forensics/check", content=trickle(), headers=kind)
            )
            await asyncio.sleep(0.05)
            refused = await client.post("/v1/forensics/check", files=form)
            return refused, await slow

    refused, slow = asyncio.run(asyncio.wait_for(stall(), 20))
    assert refused.status_code == 429
    assert slow.status_code == 408
    assert slow.json()["error"]["code"] == "body_too_slow"
