"""A server of an index with tenants: by no key, way or question is another tenant's word told."""

import asyncio
import hashlib
import json
import random
import re

import httpx
import pytest
from tests.unit.rag.graphs import write_pages

from stillroom.errors import DataError
from stillroom.flow import run_recipe
from stillroom.rag.extractors.noun_phrases import NounPhrases
from stillroom.rag.generation.semantic_cache import SemanticCache
from stillroom.rag.index.view import AccessContext
from stillroom.rag.jobs.graph import GraphRecipe
from stillroom.rag.jobs.index import IndexRecipe
from stillroom.rag.retrieval.pipeline import parse_pipeline
from stillroom.serve import create_app
from stillroom.serve.access import ApiKey, read_keys
from stillroom.serve.mounts import Mount, open_run
from stillroom.serve.server import ServerSettings, run_server
from stillroom.testing import scripted_model

TENANTS = ("acme", "bolt", "crux")
LABELS = ("public", "group:sales", "user:ann")
PROJECTS = ("Falcon", "Heron", "Kestrel")
PAGES = {
    f"{tenant}/{at}.md": f"Project {PROJECTS[at % 3]} of {tenant.title()} has canary{tenant}{at}. "
    f"The team of Project {PROJECTS[at % 3]} met Mister {PROJECTS[at % 3]}son.\n"
    for tenant in TENANTS
    for at in range(9)
}
WAYS = (
    "convex",
    "hybrid",
    "keyword",
    "dense",
    "graph_local",
    "graph_global",
)
OVERLAP = {"name": "quote", "reader": "builtin:overlap", "min_probability": 0.0}
KEYS = {
    (tenant, label): f"key-of-{tenant}-{label}-and-long-enough"
    for tenant in TENANTS
    for label in ("nothing", *LABELS[1:])
}


def access_of(tenant, label):
    return AccessContext(tenant, [] if label == "nothing" else [label])


def may_see(tenant, label):
    """Return the canaries that somebody may be told."""
    own = {0} if label == "nothing" else {0, LABELS.index(label)}
    return {f"canary{tenant}{at}" for at in range(9) if at % 3 in own}


CANARIES = {f"canary{tenant}{at}" for tenant in TENANTS for at in range(9)}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("tenants")
    write_pages(place / "documents", PAGES)
    told = [
        {"path": path, "tenant": path.split("/")[0], "labels": [LABELS[int(path[-4]) % 3]]}
        for path in PAGES
    ]
    (place / "told.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
    recipe = IndexRecipe(
        documents=str(place / "documents"),
        embedder="static",
        access="tenants",
        metadata=str(place / "told.jsonl"),
    )
    run_recipe(recipe, place / "index")
    for tenant in TENANTS:  # made by one who sees all of a tenant, and asked by those who do not
        reader = {"tenant": tenant, "principals": list(LABELS)}
        extractor = NounPhrases(min_count=1, prune=0)
        graph = GraphRecipe(index=str(place / "index"), reader=reader, extractor=extractor)
        run_recipe(graph, place / f"graph-{tenant}")
    return place


def echo(prompt):
    """Answer by all that the model is shown."""
    shown = "\n".join(message.content for message in prompt.messages)
    return f"It is said [1]: {shown}"[:4000]


@pytest.fixture
def opened(place, monkeypatch):
    model = scripted_model(echo)
    monkeypatch.setattr("stillroom.serve.mounts.open_text_model", lambda *_, **__: model)

    def make(**settings):
        return open_run(place / "index", model="scripted", settings=settings)

    return make


def app_of(served, **settings):
    keys = [ApiKey(secret, access_of(*who)) for who, secret in KEYS.items()]
    return create_app(served, api_keys=[*keys, "a-key-that-names-nobody"], **settings)


def ask_all(app, questions, **fields):
    """Ask (key, question) one after another; return the replies."""

    async def call():
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [
                await client.post(
                    "/v1/chat/completions",
                    json={
                        "model": "index",
                        "messages": [{"role": "user", "content": question}],
                        "k": 10,
                        **fields,
                    },
                    headers={"Authorization": f"Bearer {key}"},
                )
                for key, question in questions
            ]

    return asyncio.run(call())


def draw(rng):
    words = [*PROJECTS, *TENANTS, "Mister", "team", rng.choice(sorted(CANARIES))]
    drawn = " ".join(rng.choices(words, k=rng.randint(1, 6)))
    return drawn if "canary" in drawn else f'{drawn} "Project {rng.choice(PROJECTS)}"'


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("owner", TENANTS)
def test_a_tenant_never_sees_anothers_passage_entity_summary_or_kept_answer(
    place, opened, way, owner
):
    rng = random.Random(f"{way}{owner}")
    line = way if "_" not in way else f"{way}:graph={place}/graph-{owner}"
    # two write by all that the model is shown, one quotes: once with the reader that a server has
    # by default, otherwise by word overlap, which sees the same passages
    fields = {} if owner == TENANTS[0] else {"answering": "generate"}
    is_default = not fields and way == WAYS[0]  # whose reader takes a second for five questions
    count = 2 if is_default else 12 if fields else 8
    asked = [(rng.choice(sorted(KEYS)), draw(rng)) for _ in range(count)]
    asked += [(who, "Which project has a canary?") for who in sorted(KEYS)]  # kept for each
    rng.shuffle(asked)
    settings = {"retriever": parse_pipeline(line).retriever, "cache": SemanticCache()}
    if not fields and not is_default:
        settings["answering"] = OVERLAP
    with opened(**settings) as served:
        keyed = [(KEYS[who], question) for who, question in asked]
        replies = ask_all(app_of(served), keyed, **fields)
    seen = set()
    for (who, question), reply in zip(asked, replies, strict=True):
        assert reply.status_code == 200, reply.text
        # What is not found of the question's own words is named.
        answered = re.sub(r"[Nn]o passage that was read has [^.\"]*", "", reply.text)
        foreign = {one for one in CANARIES if one in answered.replace(question, "")}
        assert foreign <= may_see(*who), (who, question)
        seen |= foreign
    assert seen or way == "graph_global"  # the test could see a canary


def test_each_question_leaves_a_line_of_who_asked(place, opened):
    before = audit_lines(place)
    who = ("bolt", "user:ann")
    with opened(cache=SemanticCache()) as served:
        ask_all(app_of(served), [(KEYS[who], "Which project is it?")] * 2)
    lines = audit_lines(place)[len(before) :]
    kinds = [line["kind"] for line in lines]
    assert kinds[0] == "query"
    assert kinds[-1] == "cached"
    assert {(line["tenant"], *line["principals"]) for line in lines} == {who}
    assert "Which project" not in (place / "index" / "audit.jsonl").read_text()


def audit_lines(place):
    path = place / "index" / "audit.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_key_that_names_nobody_is_refused_and_a_default_is_a_tenant(place, opened, monkeypatch):
    with opened() as served:
        (reply,) = ask_all(app_of(served), [("a-key-that-names-nobody", "Falcon")])
    assert reply.status_code == 403
    assert reply.json()["error"]["code"] == "no_tenant"
    with open_run(place / "index", model="scripted", access=AccessContext("crux")) as served:
        (reply,) = ask_all(create_app(served), [("", "Which project has canaryacme0?")])
    assert "canarycrux" in reply.text
    assert not any(
        f"canary{one}{at}. " in reply.text for one in ("acme", "bolt") for at in range(9)
    )


def test_a_server_that_nobody_could_ask_does_not_start(place, opened, tmp_path):
    with pytest.raises(DataError) as caught:
        run_server([Mount("index", str(place / "index"), "scripted")], ServerSettings(port=0))
    assert caught.value.code == "rag.access-needed"
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents/a.txt").write_text("Falcon.\n")
    run_recipe(
        IndexRecipe(documents=str(tmp_path / "documents"), embedder="static"), tmp_path / "open"
    )
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-enough-length tenant=acme\n")
    keys.chmod(0o600)
    with pytest.raises(DataError) as caught:
        run_server(
            [Mount("open", str(tmp_path / "open"), "scripted")],
            ServerSettings(port=0, api_key_file=keys),
        )
    assert caught.value.code == "rag.no-tenants"


def test_a_line_of_the_key_file_is_understood_whole_or_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("STILLROOM_API_KEY", raising=False)
    path = tmp_path / "keys"

    def read(text):
        path.write_text(text)
        path.chmod(0o600)
        return read_keys(path)

    key = "a-key-of-enough-length"
    digest = hashlib.sha256(key.encode()).hexdigest()
    assert read(f"{key} tenant=acme principal=a principal=b # remark") == (
        ApiKey(key, AccessContext("acme", ["a", "b"])),
    )
    bad = ("principal=a", "tenant=", "tenant=a tenant=b", "acme", "tennant=a", "tenant=a x=y")
    twice = f"{key}\n{key} tenant=acme", f"{key} tenant=a\nsha256:{digest} tenant=b"
    for line in (*(f"{key} {rest}" for rest in bad), *twice):
        with pytest.raises(DataError) as caught:
            read(line)
        assert caught.value.code == "serve.key-file"
        assert key not in str(caught.value)
